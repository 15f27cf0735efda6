"""experiments.distill: teachers label the views that their student sees, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_tiny

from experiments import distill
from experiments.members import read_members
from experiments.soft_labels import SoftLabels
from training.backend import keras
from training.checkpoint import Metadata, load_checkpoint, read_split, save_checkpoint, split_record
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.evaluation import evaluate, report
from training.evaluation.calibration import bake_temperature
from training.fit import HISTORY
from training.images import ImageSource
from training.recipes import FINE_TUNE, RECIPES
from training.resume import STATE, TrainingState

SIDE, SIZES = 71, (71, 80)
TEMPERATURES = (0.5, 2.0)
SMALL = replace(FINE_TUNE, input_size=SIDE, inference_size=80, head_epochs=1, fine_tune_at=13)
SHORT = ["--epochs", "2", "--batch-size", "8", "--views", "2", "--learning-rate", "0.05"]


class StoppedError(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    """Small images and networks, and no figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "build_model", build_tiny)
        patch.setattr("training.model.build_model", build_tiny)
        patch.setattr("training.fit.MIXED_PARAMETERS", 200)
        patch.setattr("experiments.soft_labels.dtype_policy", lambda: "float32")
        patch.setattr(report, "_draw", lambda *_: [])
        patch.setattr(evaluate, "_measure_unknowns", lambda *_: {})
        patch.setitem(RECIPES, "fine-tune", SMALL)
        yield


@pytest.fixture(scope="module")
def teachers(drawn, tmp_path_factory):
    """Two checkpoints of one split, calibrated; and the same networks before that."""
    dataset = scan(drawn)
    split = split_dataset(dataset, 1, validation_fraction=0.4, test_fraction=0.4)
    paths, networks = [], []
    for number, temperature in enumerate(TEMPERATURES):
        keras.utils.set_random_seed(number)
        network = build_tiny((SIDE, SIDE), (), len(dataset.class_names))
        kernel, bias = network.layers[-1].get_weights()
        network.layers[-1].set_weights([8 * kernel, bias])  # they are sure, and disagree
        networks.append(keras.models.clone_model(network))
        networks[-1].set_weights(network.get_weights())
        bake_temperature(network, temperature)
        path = tmp_path_factory.mktemp("teacher") / "xception_fin_01_0.500.h5"
        save_checkpoint(network, path, Metadata(dataset.class_names, 1, 0.5, temperature))
        split.write(split_record(path))
        paths.append(path)
    return paths, networks


@pytest.fixture(scope="module")
def start(teachers, drawn, tmp_path_factory):
    """Distill into a folder; returns the exit code."""
    cache = tmp_path_factory.mktemp("cache")
    places = ["--data", drawn, "--cache", cache, "--weights", "none"]

    def run(out, *flags):
        words = [*teachers[0], *places, "--out", out, "--sizes", *SIZES, *SHORT, *flags]
        return distill.main(list(map(str, words)))

    return run


def watch_batches(patch):
    """Let the training batches of each fit that follows be kept in the list that is returned."""
    seen, real_fit = [], keras.Model.fit

    def fit(model, x, y=None, **given):
        if y is None:  # not the head alone
            seen.append((x, model.loss))
        return real_fit(model, x, y, **given)

    patch.setattr(keras.Model, "fit", fit)
    return seen


@pytest.fixture(scope="module")
def distilled(start, tmp_path_factory):
    """The folder of a whole run, its training batches and its loss."""
    out = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as patch:
        seen = watch_batches(patch)
        assert start(out) == 0
    [(batches, loss)] = seen
    return out, batches, loss


def mean_of(networks, source, sample):
    """What `networks` make of a view of a `source`, plain and mirrored: probabilities."""
    size = source.size
    inputs = source.inputs([sample])
    found = []
    for network in networks:
        copy = build_tiny(size, (), network.output_shape[-1])
        copy.set_weights(network.get_weights())
        found += [copy.predict(each, verbose=0)[0] for each in (inputs, inputs[:, :, ::-1])]
    return np.mean(found, axis=0)


def test_each_view_is_labelled_by_what_uncalibrated_teachers_make_of_it_on_average(
    distilled, teachers, drawn
):
    _, batches, _ = distilled
    dataset, split = scan(drawn), read_split(teachers[0][0])
    labels = batches.soft_labels
    assert labels.shape == (2, len(split.train), len(dataset.class_names))
    assert np.allclose(labels.sum(axis=-1), 1, atol=1e-5)
    sources = [ImageSource(dataset, (size, size), SMALL.augmentation) for size in SIZES]
    for view, place in ((1, 0), (2, 3)):
        sample = (dataset.images.index(split.train[place]), view)
        expected = np.mean([mean_of(teachers[1], source, sample) for source in sources], axis=0)
        assert np.allclose(labels[view - 1, place], expected, atol=1e-4)
    assert np.abs(labels[0] - labels[1]).max() > 1e-3  # another view, another label


def test_the_student_learns_these_labels_and_smoothes_them_no_further(distilled):
    _, batches, loss = distilled
    batches.begin_epoch(0)
    batches.mixup_alpha = 0.0
    drawn_ = [batches._draw(row) for row in range(8)]
    _, targets = batches[0]
    for target, (place, view) in zip(targets, drawn_, strict=True):
        assert np.array_equal(target, batches.soft_labels[view - 1, place])
    assert loss.label_smoothing == 0


def test_nothing_but_training_images_is_labelled(distilled, teachers, drawn):
    out, _, _ = distilled
    dataset, split = scan(drawn), read_split(teachers[0][0])
    [index] = (out / distill.LABELS).glob("*/index.txt")
    digests = {line.split("/")[0] for line in index.read_text().splitlines()}
    assert digests == {dataset.digests[image] for image in split.train}
    assert not digests & {dataset.digests[name] for name in (*split.validation, *split.test)}


def test_the_checkpoint_has_the_split_of_its_teachers_and_a_report(distilled, teachers):
    out, _, _ = distilled
    [path] = out.glob("xception_fin_*.h5")
    model, metadata = load_checkpoint(path)
    assert model.input_shape == (None, 80, 80, 3)
    assert read_split(path) == read_split(teachers[0][0])
    assert path.name == f"xception_fin_{metadata.epoch:02d}_{metadata.val_accuracy:.3f}.h5"
    record = json.loads((path.with_suffix("") / "metrics.json").read_text())["run"]
    assert all(str(each) in record["labels"] for each in teachers[0])
    assert "for each view and its mirror image at 71 and 80 pixels" in record["labels"]
    assert record["command"].startswith("python -m experiments.distill ")
    assert "labels of the training images" in (path.with_suffix("") / "README.md").read_text()


def test_a_stopped_run_keeps_its_labels_and_ends_as_if_it_had_not_stopped(
    start, distilled, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "stopped"
    real = distill.fit

    def stop(run, inputs, model, best):
        callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: raise_stopped())
        monkeypatch.setattr(
            "training.fit.make_callbacks",
            lambda *given: [*make_callbacks(*given), callback],
        )
        real(run, inputs, model, best)

    def raise_stopped():
        raise StoppedError

    make_callbacks = distill.fit.__globals__["make_callbacks"]
    with monkeypatch.context() as patch:
        patch.setattr(distill, "fit", stop)
        with pytest.raises(StoppedError):
            start(out)
    monkeypatch.setattr("training.fit.make_callbacks", make_callbacks)
    assert TrainingState.load(out / STATE).epochs == 1

    assert start(out, "--resume", "--no-mirror") == 1
    assert "Expected the settings of the interrupted run (labels " in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(SoftLabels, "_compile", None)  # nothing is labelled again
        assert start(out, "--resume") == 0
    whole = distilled[0]
    assert (out / HISTORY).read_text() == (whole / HISTORY).read_text()
    models = [load_checkpoint(next(each.glob("xception_fin_*.h5")))[0] for each in (out, whole)]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        assert np.array_equal(one, other)
    assert start(out, "--resume") == 1
    assert "Expected something left to do after 2 finished epochs." in capsys.readouterr().err


def test_other_teachers_sizes_or_views_have_labels_of_their_own(teachers, drawn, tmp_path):
    dataset = scan(drawn)

    def name(paths, sizes=SIZES, mirror=True, **augmentation):
        views = [ImageSource(dataset, (size, size), augmentation) for size in sizes]
        return SoftLabels(read_members(paths), views, mirror, tmp_path).name

    paths = teachers[0]
    names = [
        name(paths),
        name(paths[:1]),
        name(paths, SIZES[:1]),
        name(paths, mirror=False),
        name(paths, rotation_range=5),
    ]
    assert len(set(names)) == len(names)
    assert name(paths) == names[0]


def test_teachers_of_another_split_are_refused(teachers, drawn, tmp_path, capsys):
    first, other = teachers[0][0], tmp_path / "xception_fin_09_0.900.h5"
    other.write_bytes(first.read_bytes())
    split = read_split(first)
    replace(split, train=split.test, test=split.train).write(split_record(other))
    words = [first, other, "--data", drawn, "--out", tmp_path / "out", "--weights", "none"]
    assert distill.main(list(map(str, words))) == 1
    assert "Expected checkpoints of one split, as" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["a.h5", "./a.h5"], "expected teachers that differ"),
        (["a.h5", "--split-seed", "1"], "expected no --split-seed: the student has the split of"),
        (["a.h5", "--refit"], "expected a recipe without --refit and --final-head-epochs"),
        (["a.h5", "--final-head-epochs", "2"], "expected a recipe without --refit and"),
        (["a.h5", "--fine-tune-at", "1"], "expected --fine-tune-at 2 to 14: only cached views"),
    ],
)
def test_flags_that_do_not_go_with_soft_labels_are_refused(flags, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        distill.main([*flags, "--out", "out"])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err
