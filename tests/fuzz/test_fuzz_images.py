"""tests.fuzz: malformed files are opened or refused, and failures are kept."""

import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

from serving import decoder_process, image
from serving.errors import ImageError
from tests.fuzz import decode, images, make_corpus
from tests.fuzz.decode import STOPPED, FuzzError, ServiceDecoder
from tests.fuzz.hostile import GENERATORS
from tests.fuzz.hostile.draw import MAX_BYTES
from tests.fuzz.images import check, guarded, run
from tests.fuzz.make_corpus import FOLDER, REFUSED

# pytest replaces the filters that serving.pillow_limits sets.
pytestmark = pytest.mark.filterwarnings("ignore")

CORPUS = ROOT / FOLDER
RUNS = 3000  # some 10 seconds; `make fuzz` makes many more
HOSTILE_RUNS = 100  # some 3 seconds


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.*")), ids=lambda path: path.name)
def test_what_is_whole_opens(path):
    for size in (None, (6, 4)):
        assert check(path.read_bytes(), size)[0] == "RGB"


@pytest.mark.parametrize("path", sorted(CORPUS.glob(f"{REFUSED}/*")), ids=lambda path: path.name)
def test_what_is_not_is_refused(path):
    assert check(path.read_bytes())[0].endswith("Error")


def test_the_corpus_is_what_its_command_draws(tmp_path, capsys):
    assert make_corpus.main(["--into", str(tmp_path)]) == 0
    drawn = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    kept = {str(path.relative_to(CORPUS)) for path in CORPUS.rglob("*.*")}
    assert drawn == kept
    assert capsys.readouterr().out.startswith(f"Wrote {len(drawn)} images")


def test_thousands_of_mutated_files_open_or_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(images, "HOSTILE", 0)
    report = run(RUNS, 600, 0, tmp_path)
    assert f"{RUNS} files in" in report
    for outcome in ("RGB", "ImageError", "TooLargeError", "UnsupportedTypeError"):
        assert outcome in report
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def child():
    """Starts the service's decoder, when what it is to decode with has been replaced."""
    started = []

    def start():
        started.append(ServiceDecoder())
        return started[0]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize("served", [False, True], ids=["here", "in a child"])
def test_hostile_files_cost_little(tmp_path, monkeypatch, child, served):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(images, "HOSTILE", 1)
    decoder = child() if served else decode.decode_here
    report = run(HOSTILE_RUNS, 600, 0, tmp_path, decoder)
    assert f"{HOSTILE_RUNS} files in" in report
    assert STOPPED not in report


@pytest.mark.parametrize("name", GENERATORS)
def test_some_hostile_files_open_and_some_are_refused(name):
    outcomes = {"opened": 0, "refused": 0}
    for seed in range(60):
        data, again = (GENERATORS[name](images.random.Random(seed)) for _ in range(2))
        assert data == again
        assert len(data) <= MAX_BYTES
        outcomes["opened" if check(data, (64, 64))[0] == "RGB" else "refused"] += 1
        if min(outcomes.values()) > 2:
            return
    pytest.fail(str(outcomes))


def test_the_same_seed_makes_the_same_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    seeds = images.read_corpus()

    def mutated(seed):
        rng = images.random.Random(seed)
        return [images.mutate(rng.choice(seeds), rng, seeds) for _ in range(50)]

    assert mutated(5) == mutated(5)
    assert mutated(5) != mutated(6)


def leaks(*_: object) -> None:
    raise ZeroDivisionError


def mumbles(*_: object) -> None:
    raise ImageError("broken")


def opens_as_rgba(*_: object) -> Image.Image:
    return make_corpus.rgba()


def says_nothing_of_the_format(*_: object) -> Image.Image:
    return make_corpus.drawn()


def writes_errors(*_: object) -> None:
    os.write(2, b"libtiff: noise")
    raise ImageError("Expected an image. Received: none. Send one.")


@pytest.mark.parametrize(
    ("defect", "sentence"),
    [
        (leaks, "Received: ZeroDivisionError"),
        (mumbles, "Expected a sentence. Received: broken"),
        (opens_as_rgba, "Expected upright RGB"),
        (says_nothing_of_the_format, "Expected upright RGB"),
        (writes_errors, "Expected silence. Received: libtiff: noise"),
    ],
)
def test_what_fails_is_kept_and_its_command_named(tmp_path, monkeypatch, defect, sentence):
    monkeypatch.setattr(image, "open_image", defect)
    with pytest.raises(FuzzError, match=sentence) as failed, guarded(tmp_path) as keep:  # noqa: SIM117
        with keep(b"image"):
            check(b"image")
    [path] = tmp_path.iterdir()
    assert path.read_bytes() == b"image"
    assert str(failed.value).endswith(f"Repeat with: python -m tests.fuzz.images {path}")


def test_what_takes_too_long_fails(monkeypatch):
    monkeypatch.setattr(images, "SECONDS", -1)
    with pytest.raises(FuzzError, match="Expected at most -1 s"):
        check(b"")


def test_what_takes_too_much_memory_fails(monkeypatch):
    def fills(*_: object) -> None:
        bytearray(60_000_000)
        raise ImageError("Expected an image. Received: none. Send one.")

    monkeypatch.setattr(images, "MEMORY", 100_000_000)
    monkeypatch.setattr(image, "open_image", fills)
    assert 55e6 < check(b"")[1].memory < 100e6
    monkeypatch.setattr(images, "MEMORY", 50_000_000)
    with pytest.raises(FuzzError, match=r"Expected at most 50 MB. Received: 6\d MB"):
        check(b"")


def spins(*_: object) -> None:
    while True:
        math.sqrt(2)


def crashes(*_: object) -> None:
    os.abort()


@pytest.mark.parametrize("defect", [spins, crashes])
def test_what_the_service_stops_is_counted(monkeypatch, child, defect):
    """The next file is decoded all the same."""
    opens = decoder_process.open_image
    monkeypatch.setattr(
        decoder_process,
        "open_image",
        lambda data, *arguments: (opens if data else defect)(data, *arguments),
    )
    decoder = child()
    decoder.cpu_s = 0.1
    assert check(b"", None, decoder)[0] == STOPPED
    outcome, cost = check((CORPUS / "420.jpg").read_bytes(), None, decoder)
    assert outcome == "RGB"
    assert 0 < cost.seconds < 1


def test_what_the_service_does_not_stop_fails(monkeypatch, child):
    decoder = child()
    monkeypatch.setattr(decode, "LATE_S", -decode.DEADLINE_S)
    with pytest.raises(FuzzError, match="Expected little for the service itself"):
        check(b"", None, decoder)


def test_what_the_worker_takes_is_limited(monkeypatch, child):
    monkeypatch.setattr(images, "SECONDS", 0)
    with pytest.raises(FuzzError, match="Expected at most 0 s"):
        check((CORPUS / "420.jpg").read_bytes(), None, child())


def test_what_takes_the_process_down_is_kept(tmp_path):
    code = """
import os, sys
from pathlib import Path
from tests.fuzz.images import guarded
with guarded(Path(sys.argv[1])) as keep, keep(b"image"):
    os.abort()
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True)
    assert done.returncode < 0
    assert b"Fatal Python error: Aborted" in done.stderr
    [path] = tmp_path.iterdir()
    assert path.read_bytes() == b"image"


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.images", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command_checks_files_again():
    done = command(CORPUS / "420.jpg", CORPUS / REFUSED / "half.jpg")
    whole, half = done.stdout.splitlines()
    assert whole.startswith(f"{CORPUS / '420.jpg'}: RGB in 0.")
    assert half.startswith(f"{CORPUS / REFUSED / 'half.jpg'}: ImageError in 0.")
    assert whole.endswith(" MB")
    assert done.returncode == 0
    assert command("--child", CORPUS / "420.jpg").stdout.startswith(f"{CORPUS / '420.jpg'}: RGB in")
    missing = command("no-such-file")
    assert missing.returncode == 1
    assert missing.stderr.startswith("tests.fuzz.images: ")


def test_coverage_leads_atheris_to_new_files(tmp_path):
    pytest.importorskip("atheris")
    done = command("--coverage", "--runs", 500, "--found", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Done 500 runs" in done.stderr
    assert list((tmp_path / "coverage").iterdir())
