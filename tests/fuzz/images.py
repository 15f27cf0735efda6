"""Image files that nobody meant to send: each opens as RGB or is refused, in time, in silence.

    python -m tests.fuzz.images                              # 100,000 files: minutes
    python -m tests.fuzz.images --runs 1000 --seed 7         # the same thousand each time
    python -m tests.fuzz.images --coverage --seconds 3600    # goes where it finds new code
    python -m tests.fuzz.images .cache/fuzz/fc3ff98e.bin     # a file that failed, once more

Mutates the corpus that make_corpus draws; checksums are made right again, so that mutations
get behind them. The first file that fails is kept in --found, and so is the one in work when a
decoder takes the whole process down.

Decoders are C, whose code --coverage, by atheris, does not see: it finds the ways through
Pillow's Python and through ours, and is ten times as slow.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import itertools
import os
import random
import re
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.make_corpus import FOLDER

SIZES = (None, (10, 6), (299, 299))  # that images are opened for
SECONDS = 5.0  # of the processor that no file may take
HANGING = 120  # seconds for a hundred files, until a process whose decoder hangs ends itself
GROWTH = 100_000_000  # bytes of memory that no run may gain after its first fifth; 40 come and go
HEAD = 12  # bytes that say which format a file has
LONGEST = 100_000  # bytes of a mutated file
SENTENCE = re.compile(r"Expected [^.]+\. Received: [^.]+\. [A-Z].+\.")
# Where counts, sizes and signs change: bounds of bytes, of 16 and of 32 bits.
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
EDGES += (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


class FuzzError(Exception):
    """A file was not treated as it should; `str(failure)` says how."""


def main(arguments: list[str] | None = None) -> int:
    """Fuzz as the command line says; return the exit code."""
    options = parse_arguments(arguments)
    try:
        if options.files:
            for path in options.files:
                outcome, taken = check(path.read_bytes())
                print(f"{path}: {outcome} in {taken:.2f} s")
        elif options.coverage:
            follow_coverage(options.runs, options.seconds, options.seed, options.found)
        else:
            print(run(options.runs, options.seconds, options.seed, options.found))
    except (FuzzError, OSError) as error:
        print(f"tests.fuzz.images: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="*", help="to check instead of mutated ones")
    add("--runs", type=int, default=100_000, help="files [%(default)s]")
    add("--seconds", type=float, default=86_400, help="at most [%(default)s]")
    add("--seed", type=int, default=0, help="of the mutations [%(default)s]")
    add("--coverage", action="store_true", help="let atheris choose what to mutate")
    add("--found", type=Path, default=Path(".cache/fuzz"), help="a folder [%(default)s]")
    return parser.parse_args(arguments)


def run(runs: int, seconds: float, seed: int, found: Path) -> str:
    """Check `runs` mutated files, for `seconds` at most, and return a line on them.

    Raises:
        FuzzError: one failed, and is in `found` now, or memory grew.
    """
    corpus = read_corpus()
    rng = random.Random(seed)  # noqa: S311
    outcomes: Counter = Counter()
    slowest, memory, started = 0.0, 0, time.monotonic()
    with guarded(found) as keep:
        for count in range(1, runs + 1):
            data = mutate(rng.choice(corpus), rng, corpus)
            with keep(data):
                outcome, taken = check(data, SIZES[count % len(SIZES)])
            outcomes[outcome] += 1
            slowest = max(slowest, taken)
            if count == -(-runs // 5):
                memory = resident()
            if time.monotonic() - started > seconds:
                break
    growth = resident() - memory if memory else 0
    line = (
        f"{count} files in {time.monotonic() - started:.0f} s: "
        f"{', '.join(f'{name} {times}' for name, times in outcomes.most_common())}; "
        f"slowest {slowest:.2f} s; memory grew by {growth / 1e6:.0f} MB."
    )
    if growth > GROWTH:
        raise FuzzError(f"Expected memory not to grow. Received: {line} Repeat with --seed {seed}.")
    return line


def check(data: bytes, size: tuple[int, int] | None = None) -> tuple[str, float]:
    """Open `data` for `size` (height, width); return "RGB" or the error's type, and the seconds.

    Raises:
        FuzzError: something else than that, too late or with noise.
    """
    # Late, because atheris instruments what is imported while it looks.
    from serving.errors import ServingError
    from serving.image import open_image

    begun = time.process_time()
    outcome = "RGB"
    try:
        image = open_image(data, size)
    except ServingError as error:
        outcome = type(error).__name__
        if not SENTENCE.fullmatch(str(error)):
            raise FuzzError(f"Expected a sentence. Received: {error}. Correct it.") from error
    except Exception as error:
        raise FuzzError(f"Expected an error of the service's own. Received: {error!r}.") from error
    else:
        if image.mode != "RGB" or min(image.size) < 1 or set(image.info) != {"format", "size"}:
            raise FuzzError(f"Expected upright RGB. Received: {image} with {image.info}.")
    if (taken := time.process_time() - begun) > SECONDS:
        raise FuzzError(f"Expected at most {SECONDS} s. Received: {taken:.1f} s.")
    return outcome, taken


def read_corpus(folder: Path = FOLDER) -> list[bytes]:
    """Return the contents of the files in `folder` and the folders in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.read_bytes() for path in paths]


@contextlib.contextmanager
def guarded(found: Path) -> Iterator:
    """Give a context for each file: what fails in it is kept in `found`, and so is what hangs.

    Whatever is written to the standard error stream meanwhile, by C as well, fails.
    """
    found.mkdir(parents=True, exist_ok=True)
    last = found / f"last-{os.getpid()}.bin"
    numbers = itertools.count()
    with (
        tempfile.TemporaryFile() as noise,
        _error_stream(noise) as terminal,
        open(last, "wb", buffering=0) as current,
    ):

        @contextlib.contextmanager
        def keep(data: bytes) -> Iterator[None]:
            os.pwrite(current.fileno(), data, 0)
            current.truncate(len(data))
            if next(numbers) % 100 == 0:  # each time would take longer than most files do
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
    """Let the process write errors to `file`, and give what they were written to before."""
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
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mutate(data: bytes, rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Return `data` with some of it changed, as `rng` has it."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 9))):
        rng.choice(MUTATIONS)(changed, rng, corpus)
    if rng.random() < 0.9:  # else it is soon refused as no image at all
        changed[:HEAD] = data[:HEAD]
    del changed[LONGEST:]
    return _with_checksums(changed) if changed.startswith(b"\x89PNG") else bytes(changed)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a place in `data`: heads, where most formats say how to go on, come more often."""
    return int(rng.random() ** rng.choice((1, 4)) * len(data))


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[_place(data, rng)] = rng.randrange(256)


def _number(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Make a number of 8, 16 or 32 bits an edge, the length of the file, or a little other."""
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
    """Put a piece of another file into this one, over or between what is there."""
    other = rng.choice(corpus)
    start = rng.randrange(len(other) + 1)
    piece = other[start : start + int(2 ** (rng.random() * 10))]
    place = _place(data, rng)
    data[place : place + rng.choice((0, len(piece)))] = piece


MUTATIONS = (_flip, _set, _number, _number, _number, _cut_off, _cut_out, _repeat, _insert, _splice)


def _with_checksums(data: bytearray) -> bytes:
    """Return the PNG `data` with the right checksum in each chunk that still ends in the file."""
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
    """Let atheris choose what to mutate further; ends the process.

    It keeps what fails in `found`, and what led to new code in a folder of that.
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
        f"-seed={seed + 1}",  # 0 is another one each time
        f"-timeout={HANGING}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={found}/",
    ]
    folders = [str(folder) for folder in (kept, FOLDER)]
    atheris.Setup([sys.argv[0], *flags, *folders], check, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
