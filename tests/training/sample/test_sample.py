"""training.sample: recognisable, repeatable, whole or not at all."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from math import tau
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving.model_files import best_model
from serving.preprocess import preprocess
from training import sample
from training.checkpoint import load_checkpoint
from training.dataset.near_copies import near_groups
from training.dataset.perceptual_hash import perceptual_hash
from training.dataset.scan import scan
from training.errors import DataError
from training.files import STAGING
from training.sample import JPEG_QUALITY, LABELS, draw, flowers, write_sample
from training.sample import __main__ as command
from training.sample.__main__ import main
from training.sample.backgrounds import draw_background, photograph
from training.sample.flowers import FLOWERS, arrange
from training.sample.shapes import Canvas, Pose


def contents(folder):
    """Return {path: bytes} of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_five_folders_of_images_that_training_can_use(drawn):
    dataset = scan(drawn)
    assert dataset.class_names == LABELS == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert dataset.counts == dict.fromkeys(LABELS, 10)
    assert dataset.skipped == ()
    assert list(contents(drawn)) == [f"{x}/{x}_{n:04d}.jpg" for x in LABELS for n in range(10)]


def test_images_are_small_colour_jpegs_of_several_sizes_and_both_orientations(drawn):
    same_quality = io.BytesIO()
    Image.new("RGB", (8, 8)).save(same_quality, "JPEG", quality=JPEG_QUALITY)
    sizes = {label: [] for label in LABELS}
    for path in sorted(drawn.glob("*/*.jpg")):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.quantization == Image.open(same_quality).quantization
            assert np.asarray(image).std() > 12
            sizes[path.parent.name].append(image.size)
    for of_class in sizes.values():
        assert all(200 <= side <= 320 for size in of_class for side in size)
        assert {width > height for width, height in of_class} == {True, False}
    assert len({size for of_class in sizes.values() for size in of_class}) == 5
    assert len({tuple(of_class) for of_class in sizes.values()}) == 5  # not one draw for all


def test_the_same_seed_draws_the_same_bytes(tmp_path, drawn):
    write_sample(tmp_path / "again", per_class=2, seed=0)
    write_sample(tmp_path / "other", per_class=2, seed=1)
    again, other, more = contents(tmp_path / "again"), contents(tmp_path / "other"), contents(drawn)
    assert len(again) == 10
    assert again == {name: more[name] for name in again}
    assert all(again[name] != other[name] for name in again)


def test_no_two_images_are_alike(drawn):
    hashes = [perceptual_hash(Image.open(path)) for path in sorted(drawn.glob("*/*.jpg"))]
    assert len(hashes) == 50
    assert None not in hashes
    assert len(set(near_groups(hashes))) == len(hashes)


def test_a_photograph_has_noise_and_a_light_of_its_own():
    grey, shots = Image.new("RGB", (320, 240), (128, 128, 128)), []
    for seed in range(30):
        pixels = np.asarray(photograph(grey, np.random.default_rng(seed)), dtype=float)
        noise = np.diff(pixels, axis=1).std() / 2**0.5
        assert 0.8 < noise < 7
        edges = (
            pixels[:40].mean(),
            pixels[-40:].mean(),
            pixels[:, :40].mean(),
            pixels[:, -40:].mean(),
        )
        red, _, blue = pixels.mean((0, 1))
        shots.append((pixels.mean(), red - blue, edges[0] - edges[1], edges[2] - edges[3]))
    assert np.std(shots, axis=0).min() > 5  # brightness, warmth, from above, from the side
    assert np.abs(np.mean(shots, axis=0) - (128, 0, 0, 0)).max() < 20


def test_images_are_photographs_of_their_scene(images):
    for image in itertools.chain(*images):
        blocks = np.asarray(image, dtype=float).mean(axis=2).reshape(12, 10, 16, 10)
        steps = np.diff(blocks, axis=3).std(axis=(1, 3))
        assert steps.min() > 0.5  # noise, where the scene itself is smooth


def test_backgrounds_are_sky_plants_earth_and_walls():
    kinds, lively = set(), 0
    for seed in range(60):
        image = draw_background(np.random.default_rng(seed), (160, 120))
        assert (image.size, image.mode) == ((160, 120), "RGB")
        pixels = np.asarray(image, dtype=float)
        red, green, blue = pixels.mean((0, 1))
        if green == max(red, green, blue) and green - min(red, blue) > 25:
            kinds.add("plants")
        elif blue - red > 30:
            kinds.add("sky")
        elif red - blue > 25:
            kinds.add("earth")
        elif np.ptp((red, green, blue)) < 20:
            kinds.add("wall")
        lively += pixels.std(axis=1).mean() > 6  # across, since every one is darker below
    assert kinds == {"plants", "sky", "earth", "wall"}
    assert 36 < lively < 60


def test_draw_makes_any_size_and_knows_its_labels():
    image = draw("rose", np.random.default_rng(3), (97, 143))
    assert (image.size, image.mode) == ((97, 143), "RGB")
    assert draw("rose", np.random.default_rng(3)).size == (320, 240)
    with pytest.raises(ValueError, match=r"Expected one of daisy, .* Received: orchid"):
        draw("orchid", np.random.default_rng(0))


def test_edges_are_smooth(monkeypatch):
    """A pixel on an edge has a colour between those on its two sides."""
    monkeypatch.setattr(flowers, "draw_background", lambda rng, size: Image.new("RGB", size))
    monkeypatch.setattr(flowers, "photograph", lambda scene, rng: scene)
    image = flowers.draw("tulip", np.random.default_rng(0))
    outside = np.asarray(image).max(axis=2) == 0
    assert 0.2 < outside.mean() < 0.95
    grey = np.asarray(image.convert("L"), dtype=int)
    left, middle, right = outside[:, :-2], grey[:, 1:-1], grey[:, 2:]
    rim = left & (middle > 0) & (right > 30)
    assert np.mean(middle[rim] < 0.85 * right[rim]) > 0.35


def test_one_to_six_flowers_stand_apart_and_near_the_middle():
    counts, middles = set(), []
    for seed in range(100):
        poses = arrange(np.random.default_rng(seed), (960, 720))
        counts.add(len(poses))
        assert [pose.radius for pose in poses] == sorted(pose.radius for pose in poses)
        for one, other in itertools.combinations(poses, 2):
            distance = np.hypot(one.x - other.x, one.y - other.y)
            assert distance > 0.8 * (one.radius + other.radius)
        for pose in poses:
            assert 0.1 * 960 < pose.x < 0.9 * 960
            assert 0.1 * 720 < pose.y < 0.9 * 720
            assert 50 < pose.radius < 360
            assert 0.6 < pose.tilt <= 1
            middles.append((pose.x / 960, pose.y / 720, pose.angle / tau, pose.tilt))
    assert {1, 2, 3} < counts <= {1, 2, 3, 4, 5, 6}
    assert (np.std(middles, axis=0) > (0.1, 0.1, 0.2, 0.05)).all()


def colours(image):
    """Return how much of each hue, saturation and value there is in the middle of `image`."""
    pixels = np.asarray(image.convert("HSV").resize((64, 64)))[8:56, 8:56].reshape(-1, 3)
    histogram = np.histogramdd(pixels, bins=(12, 3, 3), range=[(0, 256)] * 3)[0].ravel()
    return np.sqrt(histogram / histogram.sum())


def corners(image):
    """Return the mean colour of each corner of `image`."""
    pixels = np.asarray(image.resize((40, 30)), dtype=float)
    top, bottom = pixels[:6], pixels[-6:]
    return np.ravel([part.mean((0, 1)) for p in (top, bottom) for part in (p[:, :8], p[:, -8:])])


def alone(label, rng):
    """Return one flower on grey, 200×200 pixels."""
    scene = Image.new("RGB", (200, 200), (128, 128, 128))
    pose = Pose(100, 100, 90, rng.uniform(0, tau), rng.uniform(0.8, 1))
    FLOWERS[label](Canvas(scene, rng), [pose])
    return scene


def shape(image):
    """Return, for rings around the middle of `image`, how its edges run and how many there are.

    Of the grey image, and relative to all its edges: neither colours nor contrast count.
    """
    down, right = np.gradient(np.asarray(image.convert("L").reduce(2), dtype=float))
    y, x = np.mgrid[-1:1:100j, -1:1:100j]
    distance, edges = np.hypot(x, y), np.hypot(down, right)
    across = np.abs(right * x + down * y) / distance  # the part that points away from the middle
    rings = [(distance * 10).astype(int) == number for number in range(10)]
    run = [across[ring].sum() / (edges[ring].sum() + 1e-6) for ring in rings]
    return np.array(run + [edges[ring].mean() / edges.mean() for ring in rings])


@pytest.fixture(scope="module")
def images():
    """30 images of each class, (160, 120) pixels."""
    return [
        [draw(label, np.random.default_rng([7, index, n]), (160, 120)) for n in range(30)]
        for index, label in enumerate(LABELS)
    ]


@pytest.fixture(scope="module")
def lone_flowers():
    """30 times one flower of each class, on grey."""
    return [
        [alone(label, np.random.default_rng([7, index, n])) for n in range(30)]
        for index, label in enumerate(LABELS)
    ]


def recall(rows, measure):
    """Return which share of each class' last 10 is nearest to the mean of its own first 20."""
    found = np.array([[measure(image) for image in row] for row in rows])
    means = found[:, :20].mean(axis=1)
    distances = np.linalg.norm(found[:, 20:, None] - means, axis=3)
    return np.mean(distances.argmin(axis=2) == np.arange(len(LABELS))[:, None], axis=1)


def test_colours_alone_go_a_long_way(images):
    # A fifth by chance. Not all the way, on purpose: roses and tulips share their colours, and
    # any background may be behind any flower.
    assert 0.5 < recall(images, colours).mean() < 0.95


def test_flowers_have_shapes_of_their_own(lone_flowers):
    assert recall(lone_flowers, shape).min() > 0.8


def test_backgrounds_tell_nothing(images):
    assert recall(images, corners).mean() < 0.4
    assert np.std([corners(image) for row in images for image in row], axis=0).min() > 25


def middle(image):
    """Return the mean colour, red, green, blue, in the middle of `image`."""
    return np.asarray(image.crop((60, 60, 140, 140)), dtype=float).mean((0, 1))


def test_each_flower_has_its_colours(lone_flowers):
    daisies, dandelions, roses, sunflowers, tulips = (
        np.array([middle(image) for image in row]) for row in lone_flowers
    )
    assert daisies.min(axis=1).min() > 100  # white, and yellow where the disc is
    assert sunflowers.max() < 150  # the dark disc
    assert min(roses.std(axis=0).max(), tulips.std(axis=0).max()) > 30
    seeding = dandelions[:, 2] > 150
    assert 0.15 < seeding.mean() < 0.55
    assert (dandelions[~seeding] @ (0.5, 0.5, -1)).min() > 120  # yellow


def test_stems_reach_out_of_the_image(lone_flowers):
    for row in lone_flowers:
        for image in row:
            foot = np.asarray(image, dtype=int)[-4:].mean(axis=0)
            assert (np.abs(foot - 128).max(axis=1) > 12).any()


def test_tulips_stand_upright(lone_flowers):
    for image in lone_flowers[LABELS.index("tulip")]:
        red, green, blue = np.moveaxis(np.asarray(image, dtype=int), 2, 0)
        cup = np.argwhere(np.maximum(red, blue) > green + 15)
        height, width = np.ptp(cup, axis=0)
        assert height > 1.1 * width
        assert abs(cup[:, 1].mean() - 100) < 20


def test_the_checkpoint_that_ships_names_them(drawn):
    """It was trained on photographs, so it knows what a flower looks like."""
    model, metadata = load_checkpoint(best_model(ROOT / "models", ".h5"))
    paths = [path for label in LABELS for path in sorted((drawn / label).iterdir())[:4]]
    flowers = [preprocess(Image.open(path), model.input_shape[1:3]) for path in paths]
    scores = model.predict(np.concatenate(flowers), verbose=0)
    named = [metadata.class_names[i] for i in scores.argmax(axis=1)]
    assert (
        np.mean([path.parent.name == name for path, name in zip(paths, named, strict=True)]) >= 0.9
    )


def test_a_single_image_of_each_class_is_in_the_singular(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--per-class", "1"]) == 0
    assert "\nDrawn: 1 image each of daisy, " in capsys.readouterr().out


def test_each_class_is_announced_and_the_last_line_says_what_to_do_next(tmp_path, capsys):
    out = tmp_path / "my own"
    assert main(["--out", str(out), "--per-class", "2"]) == 0
    *announced, last = capsys.readouterr().out.splitlines()
    assert announced == [f"Drawing {x} ({n} of 5) ..." for n, x in enumerate(LABELS, start=1)]
    assert last == (
        f"Drawn: 2 images each of daisy, dandelion, rose, sunflower, tulip, in {out}. "
        f"Next: python train.py --data '{out}'"
    )
    assert len(contents(out)) == 10


def test_without_flags_it_fills_flowers_with_40_of_each(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(command, "write_sample", lambda *arguments: asked.append(arguments))
    assert main([]) == 0
    assert asked == [(Path("flowers"), 40, 0)]
    assert capsys.readouterr().out.endswith(", in flowers. Next: python train.py\n")
    assert main(["--out", "x", "--per-class", "3", "--seed", "9"]) == 0
    assert asked[1:] == [(Path("x"), 3, 9)]


@pytest.mark.parametrize("name", ["rose/1.jpg", "other/notes.txt", "image.PNG"])
def test_a_folder_with_images_is_refused_and_left_alone(tmp_path, capsys, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"precious")
    assert main(["--out", str(tmp_path), "--per-class", "1"]) == 1
    error = capsys.readouterr().err
    assert "never mixed" in error
    assert f"Received: one with {name.split('/')[0]} in it." in error
    assert len(error.splitlines()) == 1
    assert contents(tmp_path) == {name: b"precious"}


def test_a_readme_and_empty_or_hidden_folders_are_no_images(tmp_path):
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
    assert "Expected to write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--per-class", "0", "expected 1 or more. Received: 0"),
        ("--per-class", "x", "invalid int value: 'x'"),
        ("--seed", "-1", "expected 0 or more. Received: -1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, capsys, flag, value, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "out"), flag, value])
    assert stopped.value.code == 2
    assert f"argument {flag}: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def stop_at(monkeypatch, image, error):
    """Have `draw` raise `error` instead of drawing its `image`th one."""
    calls = iter(range(1000))

    def stopping(*arguments):
        if next(calls) == image:
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
    with pytest.raises(DataError, match="one that is filling it"):
        write_sample(tmp_path, per_class=1, seed=0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert (tmp_path / STAGING).exists()
    write_sample(tmp_path, per_class=1, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(LABELS)
    assert len(contents(tmp_path)) == 5
