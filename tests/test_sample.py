"""training.sample: recognisable, repeatable, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from math import tau

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw

from training import sample
from training.dataset import DataError, scan
from training.sample import LABELS, PLANTS, Pose, draw, main, write_sample
from training.staging import STAGING


def contents(folder):
    """Return {path: bytes} of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_five_folders_of_pictures_that_training_can_use(drawn):
    dataset = scan(drawn)
    assert dataset.class_names == LABELS == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert dataset.counts == dict.fromkeys(LABELS, 10)
    assert dataset.left_out == ()
    assert sorted(path.name for path in drawn.iterdir()) == list(LABELS)


def test_pictures_are_small_colour_jpegs_of_both_orientations(drawn):
    sizes = set()
    for path in drawn.glob("*/*.jpg"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert np.asarray(picture).std() > 12
            sizes.add(picture.size)
        assert path.name.startswith(path.parent.name)
    assert all(200 <= side <= 320 for size in sizes for side in size)
    assert {width > height for width, height in sizes} == {True, False}


def test_the_same_seed_draws_the_same_bytes(tmp_path, drawn):
    write_sample(tmp_path / "again", per_class=2, seed=0)
    write_sample(tmp_path / "other", per_class=2, seed=1)
    again, other, more = contents(tmp_path / "again"), contents(tmp_path / "other"), contents(drawn)
    assert len(again) == 10
    assert again == {name: more[name] for name in again}
    assert all(again[name] != other[name] for name in again)
    assert len(set(more.values())) == len(more)


def test_draw_makes_any_size_and_knows_its_labels():
    picture = draw("rose", np.random.default_rng(3), (97, 143))
    assert (picture.size, picture.mode) == ((97, 143), "RGB")
    with pytest.raises(ValueError, match=r"Expected one of daisy, .* Received: orchid"):
        draw("orchid", np.random.default_rng(0))


def colours(picture):
    """Return how much of each hue, saturation and value there is in the middle of `picture`."""
    pixels = np.asarray(picture.convert("HSV").resize((64, 64)))[8:56, 8:56].reshape(-1, 3)
    histogram = np.histogramdd(pixels, bins=(12, 3, 3), range=[(0, 256)] * 3)[0].ravel()
    return np.sqrt(histogram / histogram.sum())


def rings(label, rng):
    """Return mean and deviation of the colour of eight rings around one blossom, on grey."""
    scene = Image.new("RGB", (300, 300), (128, 128, 128))
    turned = 0.0 if label == "tulip" else rng.uniform(0, tau)
    PLANTS[label](ImageDraw.Draw(scene), rng, [Pose(150, 150, 140, turned)], scene.size)
    pixels = np.asarray(scene.reduce(6), dtype=float)
    y, x = np.mgrid[-1:1:50j, -1:1:50j]
    ring = (np.hypot(x, y) * 8).astype(int)
    pieces = [pixels[ring == number] for number in range(8)]
    return np.concatenate([np.r_[piece.mean(0), piece.std(0)] for piece in pieces])


def accuracy(measure, count, held_out):
    """Return the share of drawings not seen that lie nearest to their own class' mean."""
    found = np.array(
        [
            [measure(label, np.random.default_rng([7, index, number])) for number in range(count)]
            for index, label in enumerate(LABELS)
        ]
    )
    means = found[:, held_out:].mean(axis=1)
    distances = np.linalg.norm(found[:, :held_out, None] - means, axis=3)
    return np.mean(distances.argmin(axis=2) == np.arange(len(LABELS))[:, None])


def test_colours_alone_go_a_long_way():
    # A fifth by chance. Not all the way, on purpose: roses and tulips share their colours, and
    # any background may be behind any flower.
    assert accuracy(lambda label, rng: colours(draw(label, rng, (160, 120))), 24, 8) > 0.45


def test_blossoms_have_shapes_of_their_own():
    assert accuracy(rings, 24, 8) > 0.6


def test_the_last_line_says_what_to_do_next(tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["--out", str(out), "--per-class", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"Drawn: 1 pictures each of daisy, dandelion, rose, sunflower, tulip, in {out}. "
        f"Next: python train.py --data {out}"
    )


@pytest.mark.parametrize("name", ["rose/1.jpg", "other/notes.txt", "picture.PNG"])
def test_a_folder_with_pictures_is_refused_and_left_alone(tmp_path, capsys, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"precious")
    assert main(["--out", str(tmp_path), "--per-class", "1"]) == 1
    error = capsys.readouterr().err
    assert "never mixed" in error
    assert f"Received: one with {name.split('/')[0]} in it." in error
    assert len(error.splitlines()) == 1
    assert contents(tmp_path) == {name: b"precious"}


def test_a_readme_and_empty_or_hidden_folders_are_no_pictures(tmp_path):
    (tmp_path / "README.md").write_text("what goes here")
    (tmp_path / "rose").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jpg").write_bytes(b"x")
    write_sample(tmp_path, per_class=1, seed=0)
    assert len(contents(tmp_path)) == 5 + 2


def test_a_file_or_a_place_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["--out", str(file)]) == 1
    assert "which is a file" in capsys.readouterr().err
    assert main(["--out", str(file / "below")]) == 1
    assert "Expected a folder that can be written. Received:" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--per-class", "0"], ["--per-class", "x"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "out"), *wrong])
    assert stopped.value.code == 2
    assert "Expected a whole number from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def stop_at(monkeypatch, picture, error):
    """Have `draw` raise `error` instead of drawing its `picture`th one."""
    calls = iter(range(1000))

    def stopping(*arguments):
        if next(calls) == picture:
            raise error
        return draw(*arguments)

    monkeypatch.setattr(sample, "draw", stopping)


def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 5, KeyboardInterrupt())
    assert main(["--out", str(tmp_path / "a" / "b"), "--per-class", "2"]) == 130
    assert capsys.readouterr().err.strip() == "sample: Stopped; nothing was written."
    assert list(tmp_path.iterdir()) == []


def test_interrupted_it_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("what goes here")
    stop_at(monkeypatch, 7, OSError(28, "No space left on device"))
    assert main(["--out", str(tmp_path), "--per-class", "2"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_interrupted_while_moving_in_it_takes_everything_out_again(tmp_path, monkeypatch):
    replace = type(tmp_path).replace

    def stopping(path, target):
        moved = replace(path, target)
        if path.parent.name == "ready" and path.name == "rose":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(type(tmp_path), "replace", stopping)
    (tmp_path / "README.md").write_text("what goes here")
    assert main(["--out", str(tmp_path), "--per-class", "1"]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def start(out, per_class):
    """Start the drawing as a process of its own and wait until it has begun."""
    command = [sys.executable, "-m", "training.sample", "--out", out, "--per-class", per_class]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        text=True,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list((out / STAGING).glob("ready/*/*.jpg")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_terminated_process_leaves_nothing(tmp_path):
    process = start(tmp_path / "out", 500)
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == "sample: Stopped; nothing was written."
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away_by_the_next(tmp_path):
    process = start(tmp_path, 500)
    with pytest.raises(DataError, match="another process is filling"):
        write_sample(tmp_path, per_class=1, seed=0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert (tmp_path / STAGING).exists()
    write_sample(tmp_path, per_class=1, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(LABELS)
    assert len(contents(tmp_path)) == 5
