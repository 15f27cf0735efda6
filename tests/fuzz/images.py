"""Fuzz the decoding of images with malformed and hostile files.

    python -m tests.fuzz.images                              # 100,000 files, half an hour
    python -m tests.fuzz.images --runs 1000 --seed 7         # the same thousand each time
    python -m tests.fuzz.images --child                      # as the service decodes them
    python -m tests.fuzz.images --coverage --seconds 3600    # guided by code coverage
    python -m tests.fuzz.images .cache/fuzz/fc3ff98e.bin     # repeat a file that failed

Each file must open as RGB or be refused, within limits of CPU time and memory and without output on
the standard error stream. Half of the files are mutations of the corpus of make_corpus; PNG
checksums are corrected to get past them. The others cost as much as they can: tests/fuzz/hostile
draws them, and some of them are mutated, too. The first file that fails is kept in --found, and so
is the current one if the process crashes.

Without --child, files are decoded in this process, where nothing stops those that cost too much:
they fail. With it, they are decoded as the service does it: a worker may be stopped, which is
counted, while the service itself must answer in time.

--coverage uses atheris, which sees Pillow's Python code and ours, not the decoders in C, and is
ten times slower.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving import resources
from tests.fuzz import hostile
from tests.fuzz.decode import (
    Cost,
    Decode,
    FuzzError,
    ServiceDecoder,
    decode_here,
    return_memory,
)
from tests.fuzz.make_corpus import FOLDER
from training.cli import make_parser, run_command

SIZES = (None, (10, 6), (299, 299))  # (height, width) for open_image
HOSTILE = 0.5  # the share of files that cost as much as they can
SERVED = (299, 299)  # as most models ask for
SECONDS = 5.0  # limit of CPU time for a file
MEMORY = resources.MOST  # limit of bytes for a file
MOST_MEMORY = (
    8_000_000_000  # bytes of address space; beyond, a file is refused, and not this machine
)
HANGING = 120  # seconds after which a hanging process ends
GROWTH = 100_000_000  # bytes by which memory may grow after the first fifth; 40 MB are usual
HEAD = 12  # bytes that determine a file's format
LONGEST = 100_000  # bytes of a mutated file
# Limits of 8, 16 and 32 bits, where counts, sizes and signs change.
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
EDGES += (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def main(arguments: list[str] | None = None) -> int:
    """Fuzz as the command line says and return the exit code."""
    flags = parse_arguments(arguments)
    limits = (flags.runs, flags.seconds, flags.seed, flags.found)

    def command() -> None:
        decode = ServiceDecoder() if flags.child else decode_here
        if flags.files:
            check_files(flags.files, decode)
        elif flags.coverage:
            follow_coverage(*limits)
        else:
            resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))
            print(run(*limits, decode))

    return run_command(command, "tests.fuzz.images")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = make_parser(__doc__, "python -m tests.fuzz.images")
    add = parser.add_argument
    add("files", type=Path, nargs="*", help="files to check instead of others")
    add("--runs", type=int, default=100_000, help="number of files [%(default)s]")
    add("--seconds", type=float, default=86_400, help="time limit [%(default)s]")
    add("--seed", type=int, default=0, help="of the files [%(default)s]")
    add("--child", action="store_true", help="decode in a process that can be stopped")
    add("--coverage", action="store_true", help="let atheris choose what to mutate")
    add("--found", type=Path, default=Path(".cache/fuzz"), help="folder for failures [%(default)s]")
    return parser.parse_args(arguments)


def check_files(paths: list[Path], decode: Decode) -> None:
    """Check each file and print a line about it."""
    for path in paths:
        outcome, cost = check(path.read_bytes(), SERVED, decode)
        print(f"{path}: {outcome} in {cost.seconds:.2f} s, {cost.memory / 1e6:.0f} MB")


class Summary:
    """Counts outcomes, and keeps the worst costs."""

    def __init__(self) -> None:
        self.outcomes: Counter = Counter()
        self.worst = Cost(0, 0)
        self._started = time.monotonic()

    def add(self, outcome: str, cost: Cost) -> None:
        """Count a file."""
        self.outcomes[outcome] += 1
        self.worst = Cost(*map(max, self.worst, cost))

    def seconds(self) -> float:
        """Return how long it took."""
        return time.monotonic() - self._started

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {times}" for name, times in self.outcomes.most_common())
        return (
            f"{self.outcomes.total()} files in {self.seconds():.0f} s: {counts}; "
            f"slowest {self.worst.seconds:.2f} s; most memory {self.worst.memory / 1e6:.0f} MB"
        )


def run(runs: int, seconds: float, seed: int, found: Path, decode: Decode = decode_here) -> str:
    """Check `runs` files, for at most `seconds`, and return a summary.

    Raises:
        FuzzError: a file failed, and is now in `found`, or memory grew.
    """
    corpus = read_corpus()
    rng = random.Random(seed)  # noqa: S311
    summary, memory = Summary(), 0
    with guarded(found) as keep:
        for count in range(1, runs + 1):
            data, size = draw(rng, corpus)
            with keep(data):
                summary.add(*check(data, size, decode))
            if count == -(-runs // 5):
                memory = resident()
            if summary.seconds() > seconds:
                break
    growth = resident() - memory if memory else 0
    line = f"{summary}; memory grew by {growth / 1e6:.0f} MB."
    if growth > GROWTH:
        raise FuzzError(f"Expected memory not to grow. Received: {line} Repeat with --seed {seed}.")
    return line


def draw(rng: random.Random, corpus: Sequence[bytes]) -> tuple[bytes, tuple[int, int] | None]:
    """Return a file, mutated or hostile or both, and the (height, width) to open it for."""
    if rng.random() >= HOSTILE:
        return mutate(rng.choice(corpus), rng, corpus), rng.choice(SIZES)
    data = hostile.draw_file(rng)
    if len(data) < LONGEST and rng.random() < 0.2:
        data = mutate(data, rng, corpus)
    return data, SERVED


def check(
    data: bytes, size: tuple[int, int] | None = None, decode: Decode = decode_here
) -> tuple[str, Cost]:
    """Return the outcome of `data`, opened for `size` (height, width), and what it took.

    Raises:
        FuzzError: it is neither opened nor refused, or takes too long or too much memory.
    """
    outcome, cost = decode(data, size)
    if cost.seconds > SECONDS:
        raise FuzzError(f"Expected at most {SECONDS} s. Received: {cost.seconds:.1f} s.")
    if cost.memory > MEMORY:
        most, received = MEMORY / 1e6, cost.memory / 1e6
        raise FuzzError(f"Expected at most {most:.0f} MB. Received: {received:.0f} MB.")
    return outcome, cost


def read_corpus(folder: Path = FOLDER) -> list[bytes]:
    """Return the contents of all files in `folder` and its subfolders."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.read_bytes() for path in paths]


@contextlib.contextmanager
def guarded(found: Path) -> Iterator:
    """Yield a context that keeps a file in `found` if it fails.

    A file also fails if Python or C writes to the standard error stream. One that hangs or crashes
    the process is kept, too.
    """
    found.mkdir(parents=True, exist_ok=True)
    last = found / f"last-{os.getpid()}.bin"
    armed = 0.0
    with (
        tempfile.TemporaryFile() as noise,
        _error_stream(noise) as terminal,
        open(last, "wb", buffering=0) as current,
    ):

        @contextlib.contextmanager
        def keep(data: bytes) -> Iterator[None]:
            os.pwrite(current.fileno(), data, 0)
            current.truncate(len(data))
            nonlocal armed
            if time.monotonic() > armed + 1:  # setting the timer takes longer than most files
                armed = time.monotonic()
                faulthandler.dump_traceback_later(HANGING, exit=True, file=terminal)
            try:
                yield
                if os.fstat(noise.fileno()).st_size:
                    noise.seek(0)
                    text = noise.read().decode(errors="replace").strip()
                    raise FuzzError(f"Expected silence. Received: {text}.")
            except FuzzError as error:
                path = found / f"{hashlib.sha256(data).hexdigest()[:8]}.bin"
                path.write_bytes(data)
                raise FuzzError(
                    f"{error} Repeat with: python -m tests.fuzz.images {path}"
                ) from error

        faulthandler.enable(terminal)
        try:
            yield keep
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            last.unlink()


@contextlib.contextmanager
def _error_stream(file) -> Iterator:
    """Redirect the standard error stream to `file`, and yield the original stream."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        with open(before, "w", closefd=False) as terminal:
            yield terminal
    finally:
        os.dup2(before, 2)
        os.close(before)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mutate(data: bytes, rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Return `data` with random changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 9))):
        rng.choice(MUTATIONS)(changed, rng, corpus)
    if rng.random() < 0.9:  # otherwise most are refused at once as unknown formats
        changed[:HEAD] = data[:HEAD]
    del changed[LONGEST:]
    return _with_checksums(changed) if changed.startswith(b"\x89PNG") else bytes(changed)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a random index in `data`, more often near the beginning."""
    return int(rng.random() ** rng.choice((1, 4)) * len(data))


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, rng)] = rng.randrange(256)


def _number(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Change a number to an edge, the file's length or a neighbour."""
    form = rng.choice(("B", "<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(data) < size:
        return
    place = min(_place(data, rng), len(data) - size)
    [number] = struct.unpack_from(form, data, place)
    near = number + rng.choice((-8, -2, -1, 1, 2, 8))
    number = rng.choice((rng.choice(EDGES), near, number * 2, len(data), rng.getrandbits(32)))
    struct.pack_into(form, data, place, number % 256**size)


def _cut_off(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _cut_out(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    place = _place(data, rng)
    del data[place : place + int(2 ** (rng.random() * 8))]


def _repeat(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    place = _place(data, rng)
    piece = data[place : place + int(2 ** (rng.random() * 10))]
    data[place:place] = piece * rng.choice((1, 1, 2, 30))


def _insert(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    place = _place(data, rng)
    data[place:place] = rng.randbytes(int(2 ** (rng.random() * 6)))


def _splice(data: bytearray, rng: random.Random, corpus: Sequence[bytes]) -> None:
    """Insert a piece of another file, or overwrite with it."""
    other = rng.choice(corpus)
    start = rng.randrange(len(other) + 1)
    piece = other[start : start + int(2 ** (rng.random() * 10))]
    place = _place(data, rng)
    data[place : place + rng.choice((0, len(piece)))] = piece


MUTATIONS = (_flip, _set, _number, _number, _number, _cut_off, _cut_out, _repeat, _insert, _splice)


def _with_checksums(data: bytearray) -> bytes:
    """Return the PNG `data` with the correct checksum in each complete chunk."""
    place = 8
    while place + 12 <= len(data):
        [length] = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def follow_coverage(runs: int, seconds: float, seed: int, found: Path) -> None:
    """Let atheris choose what to mutate; it ends the process.

    It keeps files that fail in `found`, and files that reach new code in `found`/coverage.
    """
    import atheris

    with atheris.instrument_imports(include=["PIL", "serving"]):
        import serving.image  # noqa: F401

    corpus = read_corpus()

    def mutated(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)  # noqa: S311
        if rng.random() < 0.5:
            return atheris.Mutate(data, longest)
        return mutate(data, rng, corpus)[:longest]

    kept = found / "coverage"
    kept.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-runs={runs}",
        f"-max_total_time={seconds:.0f}",
        f"-seed={seed + 1}",  # 0 would be random
        f"-timeout={HANGING}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={found}/",
    ]
    folders = [str(folder) for folder in (kept, FOLDER)]
    atheris.Setup([sys.argv[0], *flags, *folders], check, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
