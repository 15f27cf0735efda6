"""tests.fuzz: malformed files are opened or refused, and failures are kept."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from PIL import Image

from serving import image
from serving.errors import ImageError
from tests.fuzz import images, make_corpus
from tests.fuzz.images import FuzzError, check, guarded, run
from tests.fuzz.make_corpus import FOLDER, REFUSED

# pytest replaces the filters that serving.pillow_limits sets.
pytestmark = pytest.mark.filterwarnings("ignore")

CORPUS = ROOT / FOLDER
RUNS = 3000  # some 10 seconds; `make fuzz` makes many more


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
    report = run(RUNS, 600, 0, tmp_path)
    assert f"{RUNS} files in" in report
    for outcome in ("RGB", "ImageError", "TooLargeError", "UnsupportedTypeError"):
        assert outcome in report
    assert list(tmp_path.iterdir()) == []


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
    assert done.returncode == 0
    missing = command("no-such-file")
    assert missing.returncode == 1
    assert missing.stderr.startswith("tests.fuzz.images: ")


def test_coverage_leads_atheris_to_new_files(tmp_path):
    pytest.importorskip("atheris")
    done = command("--coverage", "--runs", 500, "--found", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Done 500 runs" in done.stderr
    assert list((tmp_path / "coverage").iterdir())
