"""experiments.device_runs: the training of train.py, on an accelerator or, here, without one."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import ROOT

from experiments import cross_validate, device_network, device_runs, device_training
from experiments.cross_validate_report import fold_file, read_recipes
from training.backend import keras
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.errors import DataError
from training.fit import (
    Inputs,
    compile_model,
    fit_epochs,
    fit_head,
    learning_rate,
    training_batches,
)
from training.images import ImageSource
from training.model import BASE_LAYER, build_model, split_at_block, unfreeze
from training.recipes import FINE_TUNE, RECIPES

SIDE = 71
SMALL = replace(
    FINE_TUNE,
    input_size=SIDE,
    inference_size=None,
    batch_size=10,
    views=2,
    epochs=2,
    head_epochs=1,
    ema_momentum=0.6,
    learning_rate=0.05,
)


def load_base(model, *_):
    """Stand for pretrained weights: random ones, by which signals do not vanish."""
    rng = np.random.default_rng(0)
    for layer in model.get_layer(BASE_LAYER).layers:
        shapes = [each.shape for each in layer.get_weights()]
        if isinstance(layer, keras.layers.BatchNormalization):
            bounds = ((0.6, 1), (-0.3, 0.3), (-0.1, 0.1), (0.9, 1.1))
            layer.set_weights([rng.uniform(*b, s) for b, s in zip(bounds, shapes, strict=True)])
        else:
            # A depthwise kernel is (3, 3, channels, 1).
            fans = [9 if s[-1] == 1 else np.prod(s[:-1]) for s in shapes]
            scales = zip(fans, shapes, strict=True)
            layer.set_weights([rng.normal(0, fan**-0.5, s) for fan, s in scales])
    return "random weights"


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_training, "BATCH_SIZE", 25)
        yield


@pytest.fixture(scope="module")
def device(drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_training, "load_pretrained", load_base)
        return device_training.Device(scan(drawn), "none", processes=1)


@pytest.fixture(scope="module")
def run_(device):
    split = split_dataset(device.dataset, 1, validation_fraction=0.2, test_fraction=0.5)
    images = ImageSource(device.dataset, SMALL.image_size, SMALL.augmentation)
    return device_runs.start_run(SMALL, split, images)


class OnDevice:
    """The features of the device as a source of inputs for Keras."""

    def __init__(self, dataset, views):
        self.dataset, self.views = dataset, [np.asarray(view) for view in views]

    def inputs(self, samples):
        return np.stack([self.views[view - 1][index] for index, view in samples])


def test_it_learns_what_train_py_learns(device, run_):
    views = device.views(run_.images, [1, 2])
    assert all(view.shape == (len(device.dataset.images), 5, 5, 728) for view in views)
    learned = device_training.fit(device, run_, views, None)

    keras.utils.set_random_seed(SMALL.seed)
    model = build_model((SIDE, SIDE), (), len(device.dataset.class_names))
    load_base(model)
    frozen, _ = split_at_block(model, None)
    images = run_.images.inputs([(index, 0) for index in range(len(device.dataset.images))])
    fit_head(run_, model, frozen.predict(images, verbose=0), SMALL.head_epochs)
    head = model.layers[-1].get_weights()
    unfreeze(model, device_network.MIDDLE[0])
    _, part = split_at_block(model, device_network.MIDDLE[0])
    batches = training_batches(run_, Inputs(part, OnDevice(device.dataset, views), run_.images))
    rate = learning_rate(SMALL, batches.steps)
    compile_model(part, rate, SMALL.momentum, SMALL.nesterov, SMALL.label_smoothing, 0.6)
    fit_epochs(part, batches, None, epochs=(0, SMALL.epochs))
    assert batches.steps == 2
    averages = part.optimizer._model_variables_moving_average
    names = [variable.path for variable in part.trainable_variables]
    expected = {name: np.array(value) for name, value in zip(names, averages, strict=True)}
    kernel = next(v for n, v in expected.items() if n.startswith("dense") and "kernel" in n)
    ours, theirs = learned["head"][0] - head[0], kernel - head[0]
    assert np.abs(theirs).max() > 1e-4
    assert np.allclose(ours, theirs, atol=0.01 * np.abs(theirs).max())
    name = next(each for each in expected if "block9_sepconv2" in each and "pointwise" in each)
    before = device.network(5)[0]["middle"][1][4, 1]
    ours, theirs = learned["middle"][1][4, 1] - before, expected[name][0, 0] - before
    assert np.abs(theirs).max() > 1e-6
    assert np.allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


def test_the_learning_rates_are_train_pys():
    for epochs, warmup in ((3, 0.5), (2, 0.0)):
        recipe = replace(FINE_TUNE, epochs=epochs, warmup_epochs=warmup)
        schedule = learning_rate(recipe, 7)
        expected = [float(schedule(step)) for step in range(epochs * 7)]
        assert np.allclose(device_training.learning_rates(recipe, 7), expected, atol=1e-8)


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """The folder of a teacher and a student on two folds, and how to start again."""
    out = tmp_path_factory.mktemp("runs")
    jobs = [
        {"name": "A", "recipe": "fine-tune --epochs 1"},
        {"name": "student of A", "recipe": "fine-tune --epochs 1 --refit", "teachers": ["A"]},
    ]
    (out / "jobs.json").write_text(json.dumps(jobs))
    words = ["--jobs", out / "jobs.json", "--data", drawn, "--weights", "none", "--folds", 2]
    words += ["--processes", 1, "--split-seed", 3, "--out", out]

    def start():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(RECIPES, "fine-tune", replace(SMALL, head_epochs=0))
            return device_runs.main(list(map(str, words)))

    assert start() == 0
    return out, start


def test_its_predictions_are_read_by_cross_validate(trained, drawn, capsys):
    out, _ = trained
    found = read_recipes(out, None)
    assert [folds.name for folds in found] == ["A", "student-of-A"]
    for folds in found:
        assert folds.numbers == (1, 2)
        names = [name for part in folds.parts for name in part.names]
        assert sorted(names) == sorted(scan(drawn).images)
    assert not np.allclose(found[0].parts[0].probabilities, found[1].parts[0].probabilities)
    assert cross_validate.main(["--report", "--out", str(out)]) == 0
    assert "student-of-A (second) less A (first):" in capsys.readouterr().out


def test_what_is_finished_is_not_trained_again(trained, monkeypatch, capsys):
    out, start = trained
    path = fold_file(out, "student-of-A", 2)
    before, jobs = path.read_bytes(), []
    path.unlink()
    real = device_runs.train_job

    def train_job(device, job, split, teachers):
        jobs.append((job.name, teachers))
        return real(device, job, split, teachers)

    monkeypatch.setattr(device_runs, "train_job", train_job)
    assert start() == 0
    assert jobs == [("student of A", [out / "weights" / "A" / "fold_2.npz"])]
    assert path.read_bytes() == before
    assert capsys.readouterr().out.count("is finished.") == 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"recipe": "fine-tune --epochs 1 --refit --momentum 0.5"}, "momentum 0.5"),
        ({"teachers": []}, "teachers []"),
    ],
)
def test_another_job_of_the_same_name_is_refused(trained, capsys, changed, told):
    out, start = trained
    file = out / "jobs.json"
    before = file.read_text()
    first, student = json.loads(before)
    file.write_text(json.dumps([first, student | changed]))
    assert start() == 1
    file.write_text(before)
    assert f"Received: {told}. Give another --out." in capsys.readouterr().err


def test_blocks_below_the_first_that_learns_stay(device, run_):
    views = device.views(run_.images, [1, 2])
    recipe = replace(SMALL, fine_tune_at=9, ema_momentum=0.0)
    learned = device_training.fit(device, replace(run_, recipe=recipe), views, None)
    before = device.network(9)[0]
    for values, start in zip(learned["middle"], before["middle"], strict=True):
        changed = [not np.array_equal(*pair) for pair in zip(values, start, strict=True)]
        assert changed == [False] * 4 + [True] * 4  # of blocks 5 to 12
    assert not np.array_equal(learned["residual"], before["residual"])


def test_all_blocks_learn_from_pixels(device, run_):
    recipe = replace(SMALL, fine_tune_at=1, epochs=1, ema_momentum=0.0)
    views = device.views(run_.images, [1, 2], as_pixels=True)
    assert {(view.shape[1:], view.dtype) for view in views} == {
        ((SIDE, SIDE, 3), np.dtype("uint8"))
    }
    assert np.array_equal(views[1][3], device_training._pixels(run_.images, (3, 2)))
    learned = device_training.fit(device, replace(run_, recipe=recipe), views, None)
    before = device.network(1)[0]["low"]
    moved = {
        name: jax.tree.map(np.array_equal, learned["low"][name], before[name]) for name in before
    }
    assert not any(jax.tree.leaves(moved))
    # They see pixels as the frozen blocks do.
    head = {"head": (np.ones((2048, 5), "f"), np.arange(5, dtype="f"))}
    found = [
        device_training.probabilities_of(({**kernels, **head}, scales), rows, range(5))
        for (kernels, scales), rows in (
            (device.network(1), views[0]),
            (device.network(5), device.views(run_.images, [1])[0]),
        )
    ]
    assert np.allclose(*found, atol=1e-5)


def test_views_that_no_later_job_takes_leave_the_memory(device, run_):
    wanted = device_training.view_of(run_.images, 2, is_pixels=False)
    kept = dict(device.kept)
    device.views(run_.images, [1, 2])
    device.keep_only({wanted})
    assert set(device.kept) == {wanted}
    device.kept |= kept


def test_pixels_are_kept_beside_features_without_reading_twice(drawn, monkeypatch):
    monkeypatch.setattr(device_training, "load_pretrained", load_base)
    device = device_training.Device(scan(drawn), "none", processes=1)
    images = ImageSource(device.dataset, (SIDE, SIDE), FINE_TUNE.augmentation)
    device.keep_only({device_training.view_of(images, 1, is_pixels=True)})
    device.views(images, [2], as_pixels=True)
    assert len(device.kept) == 1  # and no features, which nothing wants
    [features] = device.views(images, [1])
    monkeypatch.setattr(device_training, "_pixels", None)  # nothing is read from here on
    [pixels] = device.views(images, [1], as_pixels=True)
    assert (features.shape[1:], pixels.shape[1:]) == ((5, 5, 728), (SIDE, SIDE, 3))


def test_wrong_labels_are_tested_but_not_learned(drawn, tmp_path, monkeypatch, capsys):
    images = scan(drawn).images
    wrong = images[::7]
    (tmp_path / "wrong.txt").write_text("\n".join(wrong))
    job = {"name": "A", "recipe": "fine-tune", "without_wrong_labels": True}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    words = ["--jobs", tmp_path / "jobs.json", "--data", drawn, "--weights", "none"]
    words += ["--folds", 2, "--processes", 1, "--out", tmp_path / "out"]
    assert device_runs.main(list(map(str, words))) == 1
    assert "Received: none. Name it with --audit." in capsys.readouterr().err

    splits = []

    def fit(device, run_, views, soft):
        splits.append(run_.split)
        return {**device.network(5)[0], "head": (np.zeros((2048, 5), "f"), np.zeros(5, "f"))}

    monkeypatch.setattr(device_runs, "fit", fit)
    monkeypatch.setattr(device_training, "load_pretrained", load_base)
    monkeypatch.setitem(RECIPES, "fine-tune", SMALL)
    words += ["--audit", tmp_path / "wrong.txt"]
    assert device_runs.main(list(map(str, words))) == 0
    for split in splits:
        assert not set(wrong).intersection(split.train + split.validation)
        assert set(split.train + split.validation + split.test) == set(images) - (
            set(wrong) - set(split.test)
        )
    assert sorted(splits[0].test + splits[1].test) == sorted(images)
    (tmp_path / "wrong.txt").write_text("\n".join(wrong[1:]))
    assert device_runs.main(list(map(str, words))) == 1
    assert "Give another --out." in capsys.readouterr().err


def test_a_second_training_has_all_the_views_that_it_shows(device, monkeypatch):
    """With more images, its last epoch may reach one more view."""
    recipe = replace(SMALL, batch_size=9, epochs=4, views=9, refit=True, head_epochs=0)
    split = split_dataset(device.dataset, 1, validation_fraction=0.4, test_fraction=0.2)
    counts = (len(split.train), len(split.train + split.validation))
    assert recipe.shown_views(counts[0]) < recipe.shown_views(counts[1])
    taken = []
    monkeypatch.setattr(
        device_training,
        "train_epoch",
        lambda state, frozen, pair, *_: taken.append(pair) or state,
    )
    device_runs.train_job(device, device_runs.Job("A", recipe), split, [])
    assert len(taken) == 8


def test_its_results_are_not_those_of_cross_validation(trained, drawn, capsys):
    out, _ = trained
    words = ["--recipes", "A", "--data", drawn, "--weights", "none", "--folds", 2]
    words += ["--split-seed", 3, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validate, "parse_recipe", lambda _: device_runs.Job("A", SMALL).named)
        assert cross_validate.main(list(map(str, words))) == 1
    assert "Give another --out." in capsys.readouterr().err


def test_soft_labels_are_the_mean_of_the_teachers(device, run_):
    views = device.views(run_.images, [1, 2])
    rng = np.random.default_rng(0)
    learning, scales = device.network(5)
    networks = [
        {**learning, "head": (rng.normal(0, 1, (2048, 5)).astype("float32"), np.zeros(5))}
        for _ in range(2)
    ]
    pairs = [(each, scales) for each in networks]
    labels = device_training.soft_labels(pairs, views, run_)
    assert labels.shape == (2, len(run_.split.train), 5)
    index = device.dataset.images.index(run_.split.train[3])
    scores = [
        jax.nn.softmax(device_network.logits(each, scales, views[1][index : index + 1]))
        for each in networks
    ]
    assert np.allclose(labels[1, 3], np.mean(scores, axis=0)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("[]", "Received: none in"),
        ('[{"name": 5, "recipe": "fine-tune"}]', "with the name 5, which is none"),
        ('[{"name": "--", "recipe": "fine-tune"}]', "with the name '--', which is none"),
        ("{", "Expected a list of jobs in JSON"),
        ('[{"name": "A"}]', "with 'recipe'"),
        ('[{"name": "A", "recipe": "fine-tune --epochs 0"}]', "0"),
        ('[{"name": "A", "recipe": "original"}]', "with A with fine_tune_at other than 1 or 5 to"),
        (
            '[{"name": "A", "recipe": "fine-tune"}, '
            '{"name": "B", "recipe": "fine-tune --fine-tune-at 1", "teachers": ["A"]}]',
            "with B with teachers that learn from block 1 on where it does not",
        ),
        ('[{"name": "A", "recipe": "fine-tune", "teachers": ["A"]}]', "not earlier jobs"),
        ('[{"name": "A", "recipe": "fine-tune", "teachers": ["B"]}]', "not earlier jobs"),
        (
            '[{"name": "A b", "recipe": "fine-tune"}, {"name": "A-b", "recipe": "fine-tune"}]',
            "with the name 'A-b', which is none or another job's",
        ),
        (
            '[{"name": "A", "recipe": "fine-tune"}, {"name": "A", "recipe": "fine-tune --seed 2"}]',
            "with the name 'A', which is none or another job's",
        ),
    ],
)
def test_jobs_that_cannot_be_trained_are_refused(text, received, tmp_path):
    path = tmp_path / "jobs.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        device_runs.read_jobs(path)
    assert received in str(caught.value)


def test_a_file_of_jobs_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe[")
    for name, reason in (
        ("missing.json", "No such file"),
        (".", "Is a directory"),
        ("binary", "UTF-8"),
    ):
        with pytest.raises(DataError, match=f"{reason}.*--jobs"):
            device_runs.read_jobs(tmp_path / name)


def test_it_needs_no_tensorflow(drawn, tmp_path):
    source = ImageSource(scan(drawn), (SIDE, SIDE), FINE_TUNE.augmentation)
    np.save(tmp_path / "expected.npy", source.inputs([(0, 1), (7, 2)]))
    code = f"""
import sys
sys.modules["tensorflow"] = None
import numpy as np
from experiments import device_runs
from training.backend import keras
from training.dataset.scan import scan
from training.images import ImageSource
from training.recipes import FINE_TUNE
from pathlib import Path
source = ImageSource(scan(Path({str(drawn)!r})), ({SIDE}, {SIDE}), FINE_TUNE.augmentation)
expected = np.load({str(tmp_path / "expected.npy")!r})
print(keras.backend.backend(), np.array_equal(source.inputs([(0, 1), (7, 2)]), expected))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["jax", "True"], done.stderr


def test_a_reader_of_several_processes_gives_the_same_pixels(drawn):
    source = ImageSource(scan(drawn), (SIDE, SIDE), FINE_TUNE.augmentation)
    samples = [(0, 1), (9, 2), (30, 0)]
    with device_training.pixels_of(source, 2) as read:
        several = list(read(samples))
    with device_training.pixels_of(source, 1) as read:
        one = list(read(samples))
    assert np.array_equal(one, several)
    assert np.array_equal(one[2], source.read(30))
    assert "xla_gpu_enable_triton_gemm" in os.environ["XLA_FLAGS"]
