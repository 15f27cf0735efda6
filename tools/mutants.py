"""Change the code in many small ways and count the changes noticed.

    python -m tools.mutants                       # 600 mutants, the same every time
    python -m tools.mutants serving/log.py        # all mutants of a file
    python -m tools.mutants '*'                   # all mutants
    python -m tools.mutants 'training/*' --sample 300
    mutmut show serving.log.x_write__mutmut_3     # the change of one mutant

mutmut makes the mutants and runs the tests in the folder mutants/, with the settings in
pyproject.toml. This module draws the sample and prints the table. It is also a plugin of the pytest
that mutmut runs: slow fixtures are made once, and quick tests run first.
"""

import argparse
import fnmatch
import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from _pytest.fixtures import SubRequest

from serving.errors import UserError
from training.cli import at_least, make_parser, run_command

FOLDER = Path("mutants")
SAMPLE = 600
SEED = 0
SHARED = ("drawn", "small_checkpoint", "small_tflite")  # fixtures of tests/conftest.py
KEPT = Path("fixtures")  # within FOLDER, where mutmut runs the tests
NOTICED = ("killed", "timeout", "segfault")
NOT_RUN = 255  # mutmut's exit code where pytest refused its arguments, which it calls a timeout
# Threads of BLAS wait for each other by spinning, which takes for ever where the cores are busy.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def main(arguments: list[str] | None = None) -> int:
    """Run mutmut as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: run_mutants(options), "tools.mutants")


def run_mutants(options: argparse.Namespace) -> int:
    """Run mutmut on a sample, report, and return mutmut's exit code.

    Raises:
        UserError: there are no mutants of these files.
    """
    names = mutant_names(options.files)
    if not names:
        raise UserError(
            "Expected files of only_mutate in pyproject.toml. Received: "
            f"{', '.join(options.files)}. Name one of those, such as serving/log.py."
        )
    count = options.sample or (len(names) if options.files else SAMPLE)
    chosen = random.Random(SEED).sample(names, min(count, len(names)))  # noqa: S311
    shutil.rmtree(FOLDER, ignore_errors=True)
    temporary = FOLDER.absolute() / "tmp"  # not where other runs of pytest clear up
    temporary.mkdir(parents=True)
    environment = os.environ | ONE_THREAD | {"PYTEST_DEBUG_TEMPROOT": str(temporary)}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.jobs)]
    code = subprocess.run([*command, *chosen], env=environment).returncode
    if code == 0:
        report(set(chosen), len(names))
    return code


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m tools.mutants")
    parser.add_argument("files", nargs="*", help="only these; also a pattern such as 'serving/*'")
    add = parser.add_argument
    add("--sample", type=at_least(1), help=f"how many [{SAMPLE}; all of named files]")
    add("--jobs", type=at_least(1), default=os.cpu_count() or 1, help="at a time [cores]")
    return parser.parse_args(arguments)


def mutant_names(patterns: list[str]) -> list[str]:
    """Return the names of the mutants in files that match `patterns`."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import get_mutant_name

    return [
        get_mutant_name(path, name)
        for path in sorted(walk_mutatable_files())
        if not patterns or any(fnmatch.fnmatch(str(path), pattern) for pattern in patterns)
        for name in mutate_file_contents(str(path), path.read_text()).mutant_names
    ]


def report(chosen: set[str], total: int) -> None:
    """Print the `chosen` mutants of `total` by file, and the unnoticed ones."""
    from mutmut.stats import status_by_exit_code

    counts: dict[str, Counter] = {}
    unnoticed = []
    for meta in sorted(FOLDER.rglob("*.py.meta")):
        file = str(meta.relative_to(FOLDER)).removesuffix(".meta")
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            if name in chosen:
                status = "not run" if code == NOT_RUN else status_by_exit_code[code]
                counts.setdefault(file, Counter())[status] += 1
                if status not in NOTICED:
                    unnoticed.append(f"{name} ({status})")
    print("\nNot noticed:")
    print("\n".join(unnoticed) or "none")
    print(f"\n{'':26}{'mutants':>8}{'noticed':>9}{'survived':>9}{'no test':>9}{'share':>8}")
    for file, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        count, noticed = found.total(), sum(found[status] for status in NOTICED)
        print(
            f"{file:26}{count:8}{noticed:9}{found['survived']:9}{found['no tests']:9}"
            f"{noticed / count:8.1%}"
        )
    print(f"{len(chosen)} of {total} mutants. Look at one with: mutmut show NAME")


def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: SubRequest) -> Path | None:
    """Return a shared fixture that an earlier process has kept."""
    kept = list(KEPT.absolute().glob(f"{fixturedef.argname}/*"))
    if fixturedef.argname not in SHARED or not kept:
        return None
    fixturedef.cached_result = (kept[0], fixturedef.cache_key(request), None)
    return kept[0]


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef) -> None:
    """Keep a shared fixture for the next process."""
    place = KEPT.absolute() / fixturedef.argname
    made = fixturedef.cached_result[0] if fixturedef.cached_result else None
    if fixturedef.argname in SHARED and isinstance(made, Path) and not place.exists():
        place.mkdir(parents=True)
        if made.is_dir():
            shutil.copytree(made, place / made.name)
        else:
            shutil.copy(made, place / made.name)


def pytest_configure() -> None:
    """Exclude what is imported before the fork from garbage collection."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run quick tests first, which notice most mutants."""
    stats = Path("mutmut-stats.json")
    if stats.exists():
        seconds = json.loads(stats.read_text())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


if __name__ == "__main__":
    sys.exit(main())
