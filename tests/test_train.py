"""train.py: the recipe, its flags, and the whole way from images to a named flower."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import ROOT, build_tiny

import train
from serving.errors import ModelError, UserError
from serving.model_files import best_model
from training.backend import keras
from training.batches import Batches, PaddedBatches
from training.checkpoint import CHECKPOINT, load_checkpoint, read_metadata, split_record
from training.dataset.scan import class_of, scan
from training.dataset.split import Split, split_dataset
from training.distribute.workers import Workers
from training.errors import CacheError, DataError
from training.evaluation import evaluate
from training.evaluation.run import RunInfo
from training.fit import UNNAMED_BEST, Run, describe, frozen_digest, learning_rate, start_run
from training.images import ImageSource
from training.inference import dtype_policy
from training.model import BASE_LAYER, build_model, split_at_block, weights_digest, with_input_size
from training.pretrained import load_pretrained
from training.recipes import FINE_TUNE, ORIGINAL, RECIPES, RunOptions
from training.refit import Trained
from training.resume import TrainingState

# Small images and a base of random weights: quick, and nothing here asks for a good answer.
SMALL = replace(ORIGINAL, input_size=71, batch_size=8, steps_per_epoch=2, epochs=1, views=2)
SMALL_FINE_TUNE = {
    "fine_tune_at": 13,
    "test_fraction": 0.2,
    "validation_fraction": 0.25,
    "head": (),
    "head_epochs": 2,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.3,
    "zoom_range": (0.5, 1.0),
    "warmup_epochs": 0.5,
    "epochs": 2,
    "inference_size": 80,
}


@pytest.fixture
def run(drawn, random_base, tmp_path, capsys):
    """Train in this process; returns (exit code, standard output).

    Without `reported`, the report is left out, which takes as long as all before it. `tiny` trains
    a network that compiles in a moment.
    """

    def start(*flags, reported=True, tiny=False, **recipe):
        places = ["--data", drawn, "--models", tmp_path, "--cache", tmp_path / "cache"]
        weights = ["--weights", "none" if tiny else random_base]
        options = train.parse_arguments([str(word) for word in (*places, *weights, *flags)])
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if not reported:
                patch.setattr(train, "report", lambda *_: None)
            if tiny:
                patch.setattr(train, "build_model", build_tiny)
            train.train(replace(SMALL, **recipe), RunOptions.read(options))
        return 0, capsys.readouterr().out

    return start


@pytest.fixture(scope="module")
def random_base(tmp_path_factory):
    """Weights of the base, random but the same for every run, so that its activations are kept."""
    keras.utils.set_random_seed(0)
    base_model = keras.applications.Xception(weights=None, include_top=False)
    path = tmp_path_factory.mktemp("base") / "random.weights.h5"
    base_model.save_weights(path)
    return path


def history(folder):
    with open(folder / train.HISTORY, newline="") as file:
        return list(csv.DictReader(file))


def base_digest(checkpoint):
    return weights_digest(split_at_block(load_checkpoint(checkpoint)[0], None)[0])


@pytest.mark.parametrize("name", RECIPES)
def test_flags_reach_the_recipe(name, monkeypatch):
    seen = {}
    monkeypatch.setattr(train, "train", lambda recipe, *_: seen.update(asdict(recipe)))
    assert train.main(["--recipe", name]) == 0
    assert seen == asdict(RECIPES[name])
    flags = (
        "--epochs 2 --batch-size 4 --learning-rate 0.1 --momentum 0 --steps-per-epoch 3 --seed 1 "
        "--split-seed 2 --views 5 --fine-tune-at 11 --mixup-alpha 0.5 --label-smoothing 0.3 "
        "--input-size 224 --inference-size 320 --head 64,16 --zoom-range 0.8,1.2"
    )
    assert train.main(["--recipe", name, *flags.split()]) == 0
    changed = {n for n, value in asdict(RECIPES[name]).items() if seen[n] != value}
    assert {n: seen[n] for n in changed} == {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.1,
        "momentum": 0.0,
        "steps_per_epoch": 3,
        "seed": 1,
        "split_seed": 2,
        "views": 5,
        "fine_tune_at": 11,
        "mixup_alpha": 0.5,
        "label_smoothing": 0.3,
        "input_size": 224,
        "inference_size": 320,
        "head": (64, 16),
        "zoom_range": (0.8, 1.2),
    }
    assert train.parse_arguments(["--zoom-range", "0.25"]).zoom_range == 0.25
    assert train.parse_arguments(["--head", "none"]).head == ()


def test_the_learning_rate_warms_up_and_decays():
    assert learning_rate(ORIGINAL, 100) == 0.01
    rate = learning_rate(replace(FINE_TUNE, epochs=4, learning_rate=0.1, warmup_epochs=0.5), 10)
    assert [round(float(rate(step)), 4) for step in (0, 1, 5)] == [0.0, 0.02, 0.1]
    later = [float(rate(step)) for step in range(5, 41)]
    assert later == sorted(later, reverse=True)
    assert later[-1] < 1e-6


@pytest.mark.parametrize(
    "flags",
    [
        "--epochs 0",
        "--batch-size -1",
        "--learning-rate nan",
        "--momentum 1",
        "--mixup-alpha -0.1",
        "--epochs x",
        "--fine-tune-at 15",
        "--recipe best",
    ],
)
def test_numbers_out_of_range_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(flags.split())
    assert caught.value.code == 2
    assert f"argument {flags.split()[0]}" in capsys.readouterr().err


def test_without_images_it_says_how_to_get_them(tmp_path, capsys):
    assert train.main(["--data", str(tmp_path), "--models", str(tmp_path / "models")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("train.py: Expected")
    assert error.count("\n") == 1
    assert "make data" in error


def test_a_run_leaves_checkpoint_split_history_and_report(run, tmp_path, drawn):
    exit_code, out = run("--tensorboard")
    assert exit_code == 0
    checkpoint = best_model(tmp_path, ".h5")
    assert out.splitlines()[-2:] == [
        f"Report: {checkpoint.with_suffix('') / 'README.md'}",
        f"Use it: python convert_to_tflite.py {checkpoint} --data {drawn}",
    ]
    assert "daisy 10, dandelion 10, rose 10, sunflower 10, tulip 10" in out

    metadata = read_metadata(checkpoint)
    assert metadata.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert metadata.details.familiarity.directions.shape == (5, 2048, 16)
    assert "running the network once" not in out, "the features of a frozen base are known"
    assert metadata.temperature > 0
    [row] = history(tmp_path)
    # A frozen base: what the epoch was judged by is what the checkpoint answers.
    assert float(row["val_accuracy"]) == pytest.approx(metadata.val_accuracy, abs=1e-6)

    split = Split.read(split_record(checkpoint))
    assert (len(split.train), len(split.validation), len(split.test)) == (40, 10, 0)
    assert {class_of(p) for p in split.evaluated} == set(metadata.class_names)
    assert all((drawn / p).exists() for p in split.train + split.evaluated)

    metrics = json.loads((checkpoint.with_suffix("") / "metrics.json").read_text())
    assert metrics["n"] == 10
    assert metrics["accuracy"] == pytest.approx(metadata.val_accuracy)
    assert f"accuracy {metadata.val_accuracy:.3f} (" in out
    assert any((tmp_path / train.TENSORBOARD).rglob("events.out.tfevents.*"))


def test_fine_tuning_picks_on_images_of_their_own(run, tmp_path, drawn, monkeypatch):
    fit, validated = keras.Model.fit, []

    def watched_fit(model, *inputs, **given):
        validated.append(given.get("validation_data"))
        return fit(model, *inputs, **given)

    monkeypatch.setattr(keras.Model, "fit", watched_fit)
    exit_code, out = run(**SMALL_FINE_TUNE)
    assert exit_code == 0
    assert "Xception with the weights of" in out
    assert "learning from block 13 on; a softmax layer" in out
    assert "  30 train, 10 validation, 10 test images." in out
    [checkpoint] = tmp_path.glob("xception_fin_*.h5")  # what was picked has got its name
    assert not list(tmp_path.glob("xception_fin.picked*"))
    split = Split.read(split_record(checkpoint))
    assert len({*split.train, *split.validation, *split.test}) == 50
    [head, picking] = validated
    assert head is None
    assert names(picking) == split.validation
    # The name tells the accuracy of what the file answers, asked as anybody would.
    model, metadata = load_checkpoint(checkpoint)
    assert "evaluating the best checkpoint at 80×80 pixels" in out
    assert model.input_shape[1:3] == (80, 80)
    images = ImageSource(scan(drawn), (80, 80))
    batches = Batches(images, split.evaluated, 4)
    truth = np.concatenate([batches[i][1] for i in range(len(batches))])
    answers = model.predict(batches, verbose=0)
    assert (answers.argmax(1) == truth.argmax(1)).mean() == pytest.approx(metadata.val_accuracy)
    metrics = json.loads((checkpoint.with_suffix("") / "metrics.json").read_text())
    assert metrics["log_loss"] == pytest.approx(
        -np.log(np.clip((answers * truth).sum(1), 1e-7, 1)).mean(), abs=1e-3
    )
    # What tells unknown images is fitted to features of the final network at its final size.
    assert "Features: running the network once on 30 training images." in out
    assert len(metadata.details.familiarity.distances) == 10
    assert metadata.details.familiarity.directions.shape == (5, 2048, 16)
    # The lower blocks are as they were, the upper ones learned.
    model = with_input_size(model, (71, 71))
    frozen, _ = split_at_block(model, 13)
    base = build_model((71, 71), (), 5)
    load_pretrained(base, out.split("the weights of ")[1].split(",")[0], tmp_path)
    before, _ = split_at_block(base, 13)
    assert weights_digest(frozen) == weights_digest(before)
    assert weights_digest(split_at_block(model, None)[0]) != weights_digest(
        split_at_block(base, None)[0]
    )


def test_a_finished_network_can_be_given_another_size(run, tmp_path):
    run(**SMALL_FINE_TUNE)
    [first] = tmp_path.glob("xception_fin_*.h5")
    base = base_digest(first)
    with pytest.raises(ModelError, match="Give the finished network another --inference-size"):
        run("--resume", **SMALL_FINE_TUNE)
    exit_code, out = run("--resume", **SMALL_FINE_TUNE | {"inference_size": 90})
    assert exit_code == 0
    assert "at 90×90 pixels" in out
    assert re.search(r"Validation accuracy: 0\.\d+ on 10 images, loss \d", out)
    assert re.search(r"Test accuracy: 0\.\d+ on 10 images\.", out)
    [second] = tmp_path.glob("xception_fin_*.h5")
    assert load_checkpoint(second)[0].input_shape[1:3] == (90, 90)
    assert [path for path in tmp_path.glob("xception_fin_*") if path.is_dir()] == [
        second.with_suffix("")
    ]
    assert base_digest(second) == base


def test_the_second_run_computes_nothing_again(run, tmp_path, monkeypatch):
    run(epochs=2, reported=False)
    monkeypatch.setattr("training.features.compile_inference", None)
    assert run(epochs=2)[0] == 0


def test_with_and_without_the_cache_the_same_is_learned(run, tmp_path):
    # As many views as rounds: the images are the same ones; the base's answers are rounded.
    recipe = {"epochs": 2, "steps_per_epoch": 5, "views": 2, "learning_rate": 0.1}
    run(**recipe, reported=False)
    cached = history(tmp_path)
    run("--no-cache", **recipe, reported=False)
    for one, other in zip(cached, history(tmp_path), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=0.02)
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.02)


MODES = {
    "frozen": ((), {"epochs": 3}),
    "frozen without cache": (("--no-cache",), {"epochs": 3, "tiny": True}),
    "fine-tune": ((), SMALL_FINE_TUNE | {"epochs": 3, "ema_momentum": 0.8}),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_model(mode, run, tmp_path):
    flags, recipe = MODES[mode]
    run(*flags, **recipe, reported=False)
    weights = read_weights(tmp_path / train.STATE)
    run(*flags, **recipe, reported=False)
    assert_equal(read_weights(tmp_path / train.STATE), weights)
    run(*flags, "--seed", "1", **recipe | {"seed": 1}, reported=False)
    other = read_weights(tmp_path / train.STATE)
    assert any(not np.array_equal(other[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ((), {}),
        (("--no-cache",), {}),
        ((), {"ema_momentum": 0.7}),
        ((), {"ema_momentum": 0.7, "fine_tune_at": 5, "test_fraction": 0.2}),
    ],
    ids=["cached", "not cached", "averaged", "averaged copy in mixed precision"],
)
def test_a_run_in_two_parts_ends_as_one_in_one_part(flags, changed, run, tmp_path, monkeypatch):
    # So many steps that they are hardly ever in order by chance.
    small = {"steps_per_epoch": 5, "tiny": True, "reported": False} | changed
    monkeypatch.setattr("training.fit.MIXED_PARAMETERS", 200)  # blocks 5 to 14 have more
    run(*flags, epochs=3, **small)
    whole, weights = history(tmp_path), read_weights(tmp_path / train.STATE)
    picked = picked_weights(tmp_path)
    for path in [tmp_path / train.STATE, tmp_path / train.HISTORY, *tmp_path.glob("*.h5")]:
        path.unlink(missing_ok=True)

    run(*flags, epochs=1, **small)
    (tmp_path / train.HISTORY).write_text(  # as if killed between history and state
        (tmp_path / train.HISTORY).read_text() + "1,0,0,0,0\n"
    )
    exit_code, out = run("--resume", *flags, epochs=3, **small)

    assert exit_code == 0
    assert "Resume: after 1 finished epoch of" in out
    assert [row["epoch"] for row in whole] == ["0", "1", "2"]
    assert history(tmp_path) == whole
    assert_equal(read_weights(tmp_path / train.STATE), weights)
    for one, other in zip(picked_weights(tmp_path), picked, strict=True):
        assert np.array_equal(one, other)


def picked_weights(folder):
    """Return the weights of the best epoch, in the order of the layers, whose names may differ."""
    checkpoint = folder / TrainingState.load(folder / train.STATE).checkpoint
    return load_checkpoint(checkpoint)[0].get_weights()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        if name.startswith("details/"):  # what was measured, whose last bits may differ
            assert np.allclose(values, other[name], rtol=1e-4, atol=1e-5), name
        else:
            assert np.array_equal(values, other[name]), name


RUN = """
import json, resource, sys
import training.model
from dataclasses import replace
from tests.conftest import build_tiny
from training.recipes import ORIGINAL, RECIPES
flags, recipe, limits = json.loads(sys.argv[1])
if flags[flags.index("--weights") + 1] == "none":
    training.model.build_model = build_tiny
import train
RECIPES["original"] = replace(ORIGINAL, **recipe)
for name, limit in limits.items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
sys.exit(train.main(flags))
"""


@pytest.fixture
def start(drawn, random_base, tmp_path):
    """Start train.py in a process of its own, with another recipe and limits; returns it.

    It trains the tiny network or, if asked to, the real one.
    """

    def start_process(folder, *flags, real=False, recipe=None, **limits):
        places = ["--data", drawn, "--models", folder, "--cache", tmp_path / "cache"]
        weights = random_base if real else "none"
        words = [str(word) for word in (*places, "--weights", weights, *flags)]
        settings = json.dumps([words, asdict(SMALL) | (recipe or {}), limits])
        return subprocess.Popen(
            [sys.executable, "-c", RUN, settings],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_process


def sentence_of(process):
    """Return the one line on standard error that a process ends with, apart from progress."""
    _, error = process.communicate()
    assert process.returncode == 1, error
    lines = [line for line in error.splitlines() if line and "features:" not in line]
    assert len(lines) == 1, error
    [line] = lines
    return line


def test_a_full_disk_ends_with_one_sentence_and_what_was_best_stays(start, tmp_path):
    start(tmp_path, real=True).communicate()
    checkpoint = best_model(tmp_path, ".h5")
    before = checkpoint.read_bytes()
    # As on a full disk, the file breaks off while it is written.
    process = start(tmp_path, "--resume", "--epochs", "2", real=True, RLIMIT_FSIZE=1_000_000)
    sentence = sentence_of(process)
    assert sentence.startswith("train.py: Expected to read")
    assert "File too large" in sentence
    assert "rerun with --resume" in sentence
    assert checkpoint.read_bytes() == before
    assert TrainingState.load(tmp_path / train.STATE).epochs == 1
    assert not list(tmp_path.glob(".*"))
    process = start(tmp_path, "--resume", "--epochs", "2", real=True)
    _, error = process.communicate()
    assert process.returncode == 0, error


def test_a_folder_that_cannot_be_written(start):
    assert "train.py: Expected to read" in sentence_of(start(Path("/proc/models")))


def test_too_large_a_batch_ends_with_one_sentence(start, tmp_path):
    batch_size = 4_000_000  # 2,048 activations of 4 bytes each: 33 GB
    process = start(tmp_path, real=True, recipe={"batch_size": batch_size}, RLIMIT_AS=30 * 2**30)
    sentence = sentence_of(process)
    assert sentence.startswith("train.py: Memory ran out.")
    assert f"Use a --batch-size below {batch_size}" in sentence


def test_killed_at_any_moment_it_resumes_to_the_same_model(start, tmp_path):
    """The process itself is killed: in the cache, after an epoch, while it reports."""
    recipe = SMALL_FINE_TUNE | {"epochs": 3, "steps_per_epoch": 8}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, recipe=recipe)
    assert (process.communicate(), process.returncode)[1] == 0
    shutil.rmtree(tmp_path / "cache")
    moments = {
        "cache/*/index.txt": 0.0,  # the cache is being filled
        f"killed/{train.STATE}": 0.2,  # after the first epoch
        "killed/xception_fin_*.h5": 0.0,  # what was picked has just got its name
    }
    for name, seconds in moments.items():
        flags = ["--resume"] if (killed / train.STATE).exists() else []
        process = start(killed, *flags, recipe=recipe)
        while not any(tmp_path.glob(name)) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        assert process.poll() is None
        process.kill()
        process.communicate()
    process = start(killed, "--resume", recipe=recipe)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert_equal(read_weights(killed / train.STATE), read_weights(whole / train.STATE))
    [one], [other] = ([*folder.glob("xception_fin_*.h5")] for folder in (killed, whole))
    assert one.name == other.name
    assert_equal(read_weights(one), read_weights(other))
    assert (killed / one.stem / "README.md").exists()
    assert not list(killed.glob(".*"))


def read_weights(path):
    values = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: values.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return values


def test_a_new_run_says_that_it_replaces_an_old_one(run):
    assert "--resume" not in run(reported=False)[1]
    assert "a run of 1 finished epoch, which --resume would continue" in run(reported=False)[1]


def test_only_the_same_run_is_resumed(run):
    run()
    for flags, recipe, sentence in (
        (["--seed", "7"], {"epochs": 2, "seed": 7}, "Received: seed 7"),
        ([], {"epochs": 2, "momentum": 0.5}, "(momentum 0.75). Received: momentum 0.5"),
        (
            [],
            {"epochs": 1},
            "left to do after 1 finished epoch. Received: --epochs 1. ",
        ),
        ([], {"epochs": 1}, "Raise it to train on, or give the finished network another"),
    ):
        with pytest.raises(UserError) as caught:
            run("--resume", *flags, **recipe)
        assert sentence in str(caught.value)


def test_a_run_does_not_go_on_from_other_pretrained_weights(run, random_base, tmp_path):
    shutil.copy(random_base, tmp_path / "base.weights.h5")
    flags = ["--weights", tmp_path / "base.weights.h5"]
    run(*flags, reported=False)
    before = (tmp_path / train.STATE).read_bytes()
    keras.utils.set_random_seed(1)
    other = keras.applications.Xception(weights=None, include_top=False)
    other.save_weights(tmp_path / "base.weights.h5")  # as where the download has changed
    with pytest.raises(ModelError, match="weights that the interrupted run started from. Received"):
        run("--resume", *flags, epochs=2)
    assert (tmp_path / train.STATE).read_bytes() == before
    shutil.copy(random_base, tmp_path / "base.weights.h5")
    assert run("--resume", *flags, epochs=2, reported=False)[0] == 0


def test_there_is_nothing_to_resume(run):
    with pytest.raises(ModelError, match="Expected an interrupted run .* Received: none"):
        run("--resume")


def test_ctrl_c_keeps_the_best_checkpoint(start, tmp_path):
    process = start(tmp_path, "--epochs", "1000")
    while not (tmp_path / train.STATE).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "Rerun with --resume to continue after the last finished epoch:\n  python " in error
    assert f"The best epoch so far: {best_model(tmp_path, '.h5')}." in error
    assert "  python -m training.evaluation " in error
    assert not list(tmp_path.glob(".*"))


# What the parts of a run are given: on a network of Xception's blocks, one small convolution each


TINY_FINE_TUNE = {
    "inference_size": 48,
    "test_fraction": 0.2,
    "validation_fraction": 0.25,
    "split_seed": 6,
    "seed": 7,
    "rotation_range": 25,
    "width_shift_range": 0.1,
    "height_shift_range": 0.15,
    "shear_range": 0.3,
    "zoom_range": (0.5, 1.0),
    "horizontal_flip": False,
    "fill_mode": "reflect",
    "views": 3,
    "mixup_alpha": 0.3,
    "fine_tune_at": 5,
    "head": (),
    "head_epochs": 2,
    "learning_rate": 0.02,
    "momentum": 0.6,
    "nesterov": True,
    "label_smoothing": 0.1,
    "epochs": 4,
    "steps_per_epoch": None,
    "warmup_epochs": 0.5,
    "monitor": "val_loss",
}


@pytest.fixture(scope="module")
def record(drawn, tmp_path_factory):
    """Run train.py on the tiny network; returns what its fits and its report were given.

    `fit` gets nothing done but with `fitting`. `workers` stands for those that it finds.
    """

    def start(*flags, models=None, fitting=False, workers=None, **recipe):
        folder = models or tmp_path_factory.mktemp("recorded")
        places = ["--data", drawn, "--models", folder, "--cache", folder / "cache"]
        words = [str(word) for word in (*places, "--weights", "none", *flags)]
        options = train.parse_arguments(words)
        settings = {"input_size": 40, "batch_size": 4, "steps_per_epoch": 2, "epochs": 1}
        recipe = replace(ORIGINAL, **settings | recipe)
        flags, options = train.distribute.read_flags(options), RunOptions.read(options)
        found = SimpleNamespace(folder=folder, recipe=recipe, options=options, fits=[])
        real_fit = keras.Model.fit

        def fit(model, x, y=None, **given):
            found.fits.append(SimpleNamespace(model=model, x=x, y=y, **given))
            found.weights = model.get_weights()
            if fitting:
                real_fit(model, x, y, **given)

        def report(first, second):
            given = SimpleNamespace(**vars(first), second=second)
            given.dataset, given.split = given.run.images.dataset, given.run.split
            given.val_source = train.report_source(given.run, given.inputs)
            given.info = train.describe_run(first)
            found.report = given

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "build_model", build_tiny)
            patch.setattr("training.fit.MIXED_PARAMETERS", 200)  # blocks 5 to 14 and a softmax: 225
            patch.setattr(train, "report", report)
            patch.setattr(keras.Model, "fit", fit)
            patch.setattr(sys, "argv", ["train.py", *words])
            if workers:
                patch.setattr(train.distribute, "initialize", lambda flags: workers)
            train.train(recipe, options, flags)
        found.callbacks = {type(c).__name__: c for c in found.fits[-1].callbacks}
        return found

    return start


@pytest.fixture(scope="module")
def fine_tuned(record):
    return record(**TINY_FINE_TUNE)


@pytest.fixture(scope="module")
def frozen(record):
    return record(views=3)


def names(batches):
    """Return "class/file" of the images that `batches` serve."""
    images = batches.source.dataset.images
    return tuple(images[index] for index in batches.image_indices)


def rate_at(model, step):
    model.optimizer.iterations.assign(step)
    return float(model.optimizer.learning_rate)


def test_the_head_alone_learns_the_training_images_by_their_features(fine_tuned, drawn):
    head, _ = fine_tuned.fits
    report = fine_tuned.report
    dataset, split = report.dataset, report.split
    images = ImageSource(dataset, (40, 40))
    base_model, _ = split_at_block(fine_tuned.callbacks["BestCheckpoint"].full_model(), None)
    expected = base_model.predict(images.inputs([(i, 0) for i in range(50)]), verbose=0)
    assert np.allclose(report.features, expected, atol=0.02)  # the cache may be of bfloat16
    train_indices = [dataset.images.index(name) for name in split.train]
    assert np.array_equal(head.x, report.features[train_indices])
    assert np.array_equal(head.y.argmax(axis=1), dataset.labels(split.train))
    assert np.array_equal(head.y.sum(axis=1), np.ones(30))
    assert (head.epochs, head.batch_size) == (2, 4)
    compiled = head.model.get_compile_config()
    assert compiled["optimizer"]["class_name"] == "Adam"
    assert compiled["optimizer"]["config"]["learning_rate"] == pytest.approx(1e-3)
    assert compiled["loss"]["class_name"] == "CategoricalCrossentropy"
    assert compiled["loss"]["config"]["label_smoothing"] == 0.1


def test_training_is_given_its_images_and_all_of_their_settings(fine_tuned):
    _, fit = fine_tuned.fits
    split, recipe = fine_tuned.report.split, fine_tuned.recipe
    assert split == split_dataset(
        scan(fine_tuned.options.data), 6, validation_fraction=0.25, test_fraction=0.2
    )
    assert names(fit.x) == split.train
    assert [len(part) for part in (split.train, split.validation, split.evaluated)] == [30, 10, 10]
    expected = {"batch_size": 4, "steps": 7, "seed": 7, "views": 3, "mixup_alpha": 0.3}
    assert {name: getattr(fit.x, name) for name in expected} == expected
    assert fit.x.rows == slice(0, 4)
    images = fit.x.source.images
    assert images.size == (40, 40)
    assert images.settings == {
        name: getattr(recipe, name)
        for name in (
            *("rotation_range", "width_shift_range", "height_shift_range", "shear_range"),
            *("zoom_range", "horizontal_flip", "fill_mode"),
        )
    }
    # All that an epoch asks for has been computed: every view that it can draw.
    views = [(i, view) for i in fit.x.image_indices for view in (1, 2, 3)]
    assert len(fit.x.source.inputs(views)) == 90
    fit.callbacks[0].on_epoch_begin(3)
    assert fit.x.epoch == 3


def test_the_epoch_is_picked_on_images_that_are_not_reported_on(fine_tuned):
    fit = fine_tuned.fits[-1]
    split = fine_tuned.report.split
    assert names(fit.validation_data) == split.validation
    assert set(split.validation).isdisjoint(split.train + split.evaluated)
    assert fit.validation_data.batch_size == 4
    assert len(fit.validation_data[0][0]) == 4
    best = fine_tuned.callbacks["BestCheckpoint"]
    assert (best.folder, best.pattern) == (fine_tuned.folder, UNNAMED_BEST)
    assert (best.monitor, best.split) == ("val_loss", split)
    assert best.class_names == fine_tuned.report.dataset.class_names


def test_without_such_images_it_is_picked_on_those_that_are_reported_on(frozen):
    fit, split = frozen.fits[-1], frozen.report.split
    assert split == split_dataset(scan(frozen.options.data), 69420, validation_fraction=0.2)
    assert names(fit.validation_data) == split.evaluated
    best = frozen.callbacks["BestCheckpoint"]
    assert (best.monitor, best.pattern) == ("val_accuracy", CHECKPOINT)


def test_training_is_compiled_by_the_recipe(fine_tuned, frozen):
    model = fine_tuned.fits[-1].model
    compiled = model.get_compile_config()
    optimizer = compiled["optimizer"]
    assert optimizer["class_name"] == "SGD"
    assert (optimizer["config"]["momentum"], optimizer["config"]["nesterov"]) == (0.6, True)
    assert compiled["loss"]["class_name"] == "CategoricalCrossentropy"
    assert compiled["loss"]["config"]["label_smoothing"] == 0.1
    assert compiled["weighted_metrics"] == ["accuracy"]
    # Half of 7 batches to warm up, 4 epochs of them in all.
    assert rate_at(model, 4) == pytest.approx(0.02)
    assert rate_at(model, 16) == pytest.approx(0.01)
    assert rate_at(model, 28) == pytest.approx(0, abs=1e-6)

    model = frozen.fits[-1].model
    compiled = model.get_compile_config()
    optimizer = compiled["optimizer"]["config"]
    assert (optimizer["momentum"], optimizer["nesterov"]) == (0.75, False)
    assert compiled["loss"]["config"]["label_smoothing"] == 0
    assert [rate_at(model, step) for step in (0, 999)] == pytest.approx([0.01, 0.01])


def test_keras_is_asked_for_the_epochs_in_order(fine_tuned):
    fit = fine_tuned.fits[-1]
    assert (fit.initial_epoch, fit.epochs) == (0, 4)
    assert fit.shuffle is False
    assert fit.verbose == 2
    callbacks = fine_tuned.callbacks
    assert list(callbacks) == [
        *("LambdaCallback", "RequireFiniteLoss", "SetAsideEarlierRun"),
        *("BestCheckpoint", "HistoryLogger", "SaveState"),
    ]
    assert callbacks["HistoryLogger"].filename == str(fine_tuned.folder / train.HISTORY)
    assert not callbacks["HistoryLogger"].append
    state = callbacks["SaveState"]
    assert state.path == fine_tuned.folder / train.STATE
    assert state.checkpoint is callbacks["BestCheckpoint"]
    frozen = frozen_digest(fine_tuned.recipe, callbacks["BestCheckpoint"].full_model())
    assert state.settings == fine_tuned.report.run.settings | {"frozen": frozen}


def test_what_learns_is_the_part_above_the_frozen_blocks_and_is_kept(record, fine_tuned):
    run = record(**TINY_FINE_TUNE)
    trained = run.fits[-1].model
    for one, other in zip(run.weights, fine_tuned.weights, strict=True):
        assert np.array_equal(one, other), "the same seed begins with the same weights"
    whole = run.callbacks["BestCheckpoint"].full_model()
    before = {v.path: v.numpy() for v in whole.variables}
    assert trained.input_shape == (None, 10, 10, 4)
    assert len(trained.trainable_variables) == 2 * (10 + 1)
    upper = trained.get_layer("upper").layers
    computing = {layer.dtype_policy.name for layer in upper if layer.weights}
    assert computing == {dtype_policy()}
    for variable in trained.trainable_variables:
        variable.assign_add(np.ones(variable.shape))
    assert run.callbacks["BestCheckpoint"].full_model() is whole
    changed = {v.path for v in whole.variables if not np.array_equal(v.numpy(), before[v.path])}
    learning = {f"block{block}_conv" for block in range(5, 15)}
    assert {path.split("/")[-2] for path in changed} == learning | {whole.layers[-1].name}
    assert all(
        np.allclose(whole.get_layer(BASE_LAYER).get_layer(name).bias, 1) for name in learning
    )


def test_a_head_alone_learns_in_float32_and_is_judged_by_what_it_will_answer(frozen):
    fit = frozen.fits[-1]
    assert fit.model.input_shape == (None, 4)
    assert len(fit.model.trainable_variables) == 2 * 4
    assert {layer.dtype_policy.name for layer in fit.model.layers} == {"float32"}
    assert (fit.x.source.policy, fit.validation_data.source.policy) == (dtype_policy(), "float32")
    assert (fit.x.views, fit.x.steps, fit.x.mixup_alpha) == (3, 2, 0)
    assert frozen.report.val_source is fit.validation_data.source
    assert (
        len(frozen.report.val_source.inputs([(i, 0) for i in fit.validation_data.image_indices]))
        == 10
    )


def test_few_blocks_learn_in_float32_as_well(record):
    fit = record(**TINY_FINE_TUNE | {"fine_tune_at": 12}).fits[-1]
    assert {layer.dtype_policy.name for layer in fit.model.get_layer("upper").layers} == {"float32"}


@pytest.mark.parametrize(
    ("flags", "recipe"), [(["--no-cache"], {}), ([], {"fine_tune_at": 1}), (["--distribute"], {})]
)
def test_the_plain_path_shows_new_views_of_the_images_to_all_of_the_network(record, flags, recipe):
    run = record(*flags, workers=Workers(), views=3, **recipe)
    [fit] = run.fits
    assert fit.model.input_shape == (None, 40, 40, 3)
    assert isinstance(fit.x.source, ImageSource)
    assert fit.x.source is fit.validation_data.source is run.report.val_source
    assert fit.x.source.settings == ORIGINAL.augmentation
    assert fit.x.views is None
    assert (run.report.features is None) == bool(flags)


@pytest.mark.parametrize("flags", [[], ["--no-cache"]])
def test_a_fine_tuned_network_is_judged_on_images_not_on_its_activations(record, flags):
    run = record(*flags, **TINY_FINE_TUNE | {"inference_size": None})
    assert isinstance(run.report.val_source, ImageSource)
    assert run.report.val_source.size == (40, 40)
    assert run.report.features.shape == (50, 4)  # for the head, also without a cache
    _, fit = run.fits
    assert len(fit.model.trainable_variables) == 2 * (10 + 1)  # blocks 5 to 14 and the softmax


def test_the_report_is_given_the_run(fine_tuned, frozen, drawn):
    report = fine_tuned.report
    assert report.val_source.size == (48, 48)
    assert report.val_source.settings == {}
    assert report.val_source.dataset is report.dataset
    assert report.checkpoint == fine_tuned.callbacks["BestCheckpoint"].path
    assert report.run.options is fine_tuned.options
    seconds = report.info.seconds
    assert report.info == RunInfo(
        command=f"python train.py --data {drawn} --models {fine_tuned.folder} "
        f"--cache {fine_tuned.folder / 'cache'} --weights none",
        recipe=asdict(fine_tuned.recipe),
        seed=7,
        weights="random weights",
        split={"train": 30, "validation": 10, "test": 10},
        seconds=seconds,
    )
    assert 0 <= seconds < 600
    assert frozen.report.features.shape == (50, 4)


def test_a_resumed_run_goes_on_where_the_other_ended(record, tmp_path, capsys):
    first = record(models=tmp_path, fitting=True, **TINY_FINE_TUNE | {"warmup_epochs": None})
    facts = TrainingState.load(tmp_path / train.STATE)
    steps = int(first.fits[-1].model.optimizer.iterations)
    with open(tmp_path / train.HISTORY, "a") as file:
        file.write("4,0,0,0,0\n")  # as if killed before its state was written
    capsys.readouterr()

    recipe = TINY_FINE_TUNE | {"warmup_epochs": None, "epochs": 6}
    run = record("--resume", models=tmp_path, **recipe)

    out = capsys.readouterr().out
    assert "Resume: after 4 finished epochs" in out
    assert "Fit: epochs 5 to 6 of 7 batches of 4" in out
    [fit] = run.fits  # and none of the head alone
    assert (fit.initial_epoch, fit.epochs) == (4, 6)
    assert int(fit.model.optimizer.iterations) == steps == 28
    for one, other in zip(run.weights, first.fits[-1].model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    best = run.callbacks["BestCheckpoint"]
    assert (best.best, best.path.name) == (facts.best, facts.checkpoint)
    assert run.callbacks["HistoryLogger"].append
    assert [row["epoch"] for row in history(tmp_path)] == ["0", "1", "2", "3"]


class OneOfTwo(Workers):
    """One of two processes, with nobody to talk to."""

    def check_same(self, settings):
        self.compared.append(settings)

    def replicate(self, model, seed):
        self.compared.append(seed)
        return model

    def broadcast_file(self, path):
        return path

    def shutdown(self):
        self.compared.append("parted")


@pytest.mark.parametrize("index", [0, 1])
def test_each_process_serves_its_rows_and_the_chief_does_the_rest(record, tmp_path, index):
    models = tmp_path / "models"
    workers = OneOfTwo(index, 2, 2, True)
    object.__setattr__(workers, "compared", [])
    run = record(
        "--distribute", models=models, workers=workers, **TINY_FINE_TUNE | {"batch_size": 6}
    )
    fit = run.fits[-1]
    rows = slice(3 * index, 3 * index + 3)
    assert (fit.x.batch_size, fit.x.rows) == (6, rows)
    assert isinstance(fit.validation_data, PaddedBatches)
    assert (fit.validation_data.batch_size, fit.validation_data.rows) == (6, rows)
    settings, seed, parted = workers.compared
    assert settings["precision"] == dtype_policy()
    assert settings["seed"] == seed == 7
    assert len(settings["images"]) == 16
    assert parted == "parted"
    chief = index == 0
    assert (len(run.fits), fit.verbose) == ((2, 2) if chief else (1, 0))
    assert ("BestCheckpoint" in run.callbacks) == chief
    assert hasattr(run, "report") == chief
    assert "RequireFiniteLoss" in run.callbacks


def test_what_is_excluded_takes_no_part(record, tmp_path, drawn):
    lines = [f"rose/{path.name}" for path in sorted((drawn / "rose").iterdir())[:3]]
    (tmp_path / "wrong.txt").write_text("\n".join(lines))
    run = record("--exclude", tmp_path / "wrong.txt")
    assert run.report.dataset.excluded == set(lines)
    split = run.report.split
    assert set(lines).isdisjoint(split.train + split.evaluated)
    assert sum(run.report.split.sizes.values()) == 47


def test_what_an_audit_lists_takes_part_as_without_it(record, tmp_path, drawn):
    lines = [f"rose/{path.name}" for path in sorted((drawn / "rose").iterdir())[:3]]
    (tmp_path / "audit.txt").write_text("\n".join(lines))
    run = record("--audit", tmp_path / "audit.txt")
    assert run.report.dataset.wrong_labels == set(lines)
    assert run.report.split == record().report.split
    assert set(lines) <= {*run.report.split.train, *run.report.split.evaluated}


# What two parts of one run have in common


def other_value(value):
    if value is None:
        return 3
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}, another"
    return (9,) if isinstance(value, tuple) else value + 1


SPLIT = Split(1, ("a/1", "b/1"), ("a/2", "b/2"), validation_fraction=0.2)


def settings_of(recipe, options, split=SPLIT):
    return Run(recipe, options, Workers(), None, split).settings


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", asdict(ORIGINAL))
def test_a_run_goes_on_by_the_same_recipe_only(recipe, name):
    settings = settings_of(recipe, RunOptions())
    assert json.loads(json.dumps(settings)) == settings  # as it comes back from the file
    other = replace(recipe, **{name: other_value(getattr(recipe, name))})
    free = {"inference_size", "refit", "refit_epochs", "final_head_epochs"}
    free |= {"epochs"} if recipe is ORIGINAL else set()
    assert (settings_of(other, RunOptions()) == settings) == (name in free)


def test_a_run_goes_on_from_the_same_images_weights_and_cache_only():
    def settings(*flags, split=SPLIT):
        options = RunOptions.read(train.parse_arguments(list(flags)))
        return settings_of(ORIGINAL, options, split)

    assert settings("--models", "others", "--cache", "elsewhere", "--resume") == settings()
    others = [
        settings(split=replace(SPLIT, train=("a/1", "b/3"))),
        settings(split=replace(SPLIT, validation=("a/2", "b/3"))),
        settings("--weights", "none"),
        settings("--no-cache"),
    ]
    assert settings() not in others


@pytest.fixture
def found(tmp_path):
    """Start a run where one of five finished epochs was; returns the state that it continues."""

    def find(*flags, epochs=5, size=None, recorded=None, **facts):
        recipe = replace(ORIGINAL, epochs=epochs, inference_size=size)
        options = RunOptions.read(train.parse_arguments(["--models", str(tmp_path), *flags]))
        state = {
            "settings": settings_of(recipe, options) | (recorded or {}),
            "epochs": 5,
            "best": [0.5, 1.0],
            "checkpoint": None,
            "reported": False,
        }
        with h5py.File(tmp_path / train.STATE, "w") as file:
            file.attrs["run"] = json.dumps(state | facts)
        return start_run(recipe, options, Workers(), None, SPLIT).state

    return find


def test_a_run_is_resumed_where_epochs_or_the_report_are_missing(found):
    assert found() is None  # nobody asked for it
    assert found("--resume").epochs == 5  # killed before its report
    assert found("--resume", epochs=6, reported=299).reported == 299
    assert found("--resume", size=320, reported=299)
    for epochs, size, reported in ((5, None, 299), (5, 320, 320), (4, None, False), (4, 320, 299)):
        with pytest.raises(ModelError, match=f"after 5 finished epochs.* --epochs {epochs}"):
            found("--resume", epochs=epochs, size=size, reported=reported)


def test_a_run_of_the_last_release_where_one_seed_drew_all_is_resumed(tmp_path):
    def resume(seed, **changed):
        recipe = replace(ORIGINAL, seed=seed)
        settings = settings_of(replace(recipe, split_seed=seed), RunOptions())
        del settings["split_seed"]
        state = TrainingState(settings, 5, (0.5, 1.0), None)
        with h5py.File(tmp_path / train.STATE, "w") as file:
            file.attrs["run"] = json.dumps(asdict(state))
        options = RunOptions(models=tmp_path, resume=True)
        return start_run(replace(recipe, **changed), options, Workers(), None, SPLIT).state

    assert resume(69420).epochs == 5
    assert resume(1, split_seed=1).epochs == 5
    with pytest.raises(DataError, match=r"\(split_seed 1\)\. Received: split_seed 69420\. Resume"):
        resume(1)


def test_all_settings_that_differ_are_named(found):
    with pytest.raises(DataError) as caught:
        found("--resume", recorded={"seed": 1, "mixup_alpha": None})
    sentence = "(seed 1, mixup_alpha None). Received: seed 69420, mixup_alpha 0.0."
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (ORIGINAL, "frozen; dense layers (512, 128, 32) and a softmax"),
        (FINE_TUNE, "learning from block 5 on; a softmax layer"),
        (replace(ORIGINAL, fine_tune_at=1, head=(8,)), "all of it learning; dense layers (8,) and"),
    ],
)
def test_the_network_is_described(recipe, text):
    assert describe(recipe, "weights").startswith(f"Xception with weights, {text}")


def test_places_have_defaults_and_flags():
    options = train.parse_arguments([])
    assert (options.data, options.models) == (Path("flowers"), Path("models"))
    assert (options.cache, options.weights) == (Path(".cache/activations"), "imagenet")
    assert (options.exclude, options.audit) == (None, None)
    assert [options.resume, options.tensorboard, options.distribute] == [False] * 3
    flags = "--data a --models b --cache c --weights d --exclude e --audit f --resume"
    options = train.parse_arguments([*flags.split(), "--tensorboard"])
    places = (options.data, options.models, options.cache, options.exclude, options.audit)
    assert places == tuple(map(Path, "abcef"))
    assert (options.weights, options.resume, options.tensorboard) == ("d", True, True)
    assert train.parse_arguments(["--no-cache"]).cache is None
    assert train.parse_arguments(["--cache", "c", "--distribute"]).cache is None


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "\ntrain.py: Stopped before the first epoch ended. "),
        (MemoryError(), 1, "Memory ran out. Use a --batch-size below 4 and train anew"),
        (ModelError("No model."), 1, "train.py: No model.\n"),
        (CacheError("No room."), 1, "train.py: No room.\n"),
        (OSError(28, "", "a.h5"), 1, "Received: No space left on device (a.h5). Free disk space"),
    ],
)
def test_what_ends_a_run_early_is_one_sentence(error, exit_code, sentence, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(train, "train", fail)
    assert train.main(["--batch-size", "4"]) == exit_code
    assert sentence in capsys.readouterr().err


def test_a_defect_is_not_taken_for_lack_of_memory(monkeypatch):
    def fail(*_):
        raise ValueError("a defect")

    monkeypatch.setattr(train, "train", fail)
    with pytest.raises(ValueError, match="a defect"):
        train.main([])


@pytest.mark.parametrize(
    ("renamed", "changed"),
    [(True, {}), (False, {}), (False, {"fine_tune_at": 5}), (False, {"inference_size": 320})],
    ids=["renamed", "frozen", "fine-tuned", "of another size"],
)
def test_the_best_epoch_is_calibrated_named_and_reported_on(
    monkeypatch, tmp_path, renamed, changed
):
    """Its parts are stand-ins that note what they get; all of it with files runs above."""
    named = tmp_path / "xception_fin_02_0.800.h5"
    path = tmp_path / UNNAMED_BEST if renamed else named
    report_before = path.with_suffix("") / "README.md"
    report_before.parent.mkdir()
    for file in (path, split_record(path), report_before):
        file.write_text("a")
    noted, calls = {}, []
    calibrated = SimpleNamespace(model=SimpleNamespace(input_shape=(None, 48, 44, 3)))
    dataset, split = SimpleNamespace(), SimpleNamespace(sizes={"train": 3})
    images = SimpleNamespace(dataset=dataset)
    recipe = replace(ORIGINAL, **changed)
    run = Run(recipe, RunOptions(models=tmp_path), Workers(), images, split)
    inputs = SimpleNamespace(val_source="features for validation")
    monkeypatch.setattr(train, "report_source", lambda *_: inputs.val_source)
    # Those of the pretrained base are the final network's only if it stayed as it was.
    features = None if changed else "features"

    def save(*arguments):
        calls.append(("save", *arguments))
        named.write_text("b")
        return named

    side = recipe.final_size
    model = SimpleNamespace(name=path.name, input_shape=(None, side, side, 3))
    monkeypatch.setattr(
        train,
        "load_checkpoint",
        lambda path: (SimpleNamespace(name=path.name, input_shape=model.input_shape), "facts"),
    )
    monkeypatch.setattr(Run, "seconds", lambda _: 1.4)
    monkeypatch.setattr(
        train.TrainingState,
        "update",
        lambda state, **facts: noted.update({(state, n): v for n, v in facts.items()}),
    )
    monkeypatch.setattr(
        evaluate, "calibrate", lambda *a: calls.append(("calibrate", *a)) or calibrated
    )
    monkeypatch.setattr(evaluate, "save", save)
    monkeypatch.setattr(evaluate, "report", lambda *a: calls.append(("report", *a)))
    trained = Trained(run, inputs, path, "weights", "features")
    train.report(trained, None)

    state = tmp_path / train.STATE
    info = train.describe_run(trained)
    assert info.seconds == 1
    sources = evaluate.ReportSources(info, tmp_path / train.HISTORY, features="features")
    assert calls == [
        (
            *("calibrate", model, "facts", dataset, split),
            *("features for validation", features),
        ),
        ("save", calibrated, tmp_path, split, path),
        ("report", calibrated, named, dataset, split, sources),
    ]
    assert noted == {
        (state, "reported"): 48,
        (state, "final_head_epochs"): 0,
        (state, "seconds"): 1.4,
    } | ({(state, "checkpoint"): named.name} if renamed else {})
    assert named.exists()
    assert split_record(path).exists() != renamed
    assert path.exists() != renamed
    assert (named.with_suffix("") / "README.md").exists()
    assert len([folder for folder in tmp_path.iterdir() if folder.is_dir()]) == 1


def test_without_a_best_checkpoint_nothing_is_reported():
    images = SimpleNamespace(dataset=None)
    run = Run(ORIGINAL, RunOptions(), Workers(), images, SPLIT)
    with pytest.raises(ModelError, match=r"Received: none\. Train anew, without --resume"):
        train.report(Trained(run, None, None, "weights"), None)


# The real network, from the command line


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """The real network, trained for an epoch on drawn flowers by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    weights = best_model(ROOT / "models", ".h5")
    command = [sys.executable, ROOT / "train.py", "--data", drawn, "--models", folder]
    flags = f"--epochs 2 --batch-size 8 --steps-per-epoch 10 --weights {weights}".split()
    subprocess.run([*command, *flags], cwd=ROOT, check=True)
    checkpoint = best_model(folder, ".h5")
    command = [sys.executable, ROOT / "convert_to_tflite.py", checkpoint, "--data", drawn]
    subprocess.run(command, cwd=ROOT, check=True)
    return checkpoint


def predict(model, *images):
    process = subprocess.run(
        [sys.executable, ROOT / "predict.py", "--json", "--model", model, *images],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_from_images_to_names(trained, drawn):
    images = Split.read(split_record(trained)).evaluated
    answers = predict(trained.with_suffix(".tflite"), *(drawn / p for p in images))
    right = sum(a["label"] == class_of(p) for a, p in zip(answers, images, strict=True))
    assert right >= 0.8 * len(images)
    assert right / len(images) == pytest.approx(read_metadata(trained).val_accuracy, abs=0.11)


def test_h5_and_tflite_agree(trained, drawn):
    images = [drawn / p for p in Split.read(split_record(trained)).evaluated]
    for one, other in zip(
        predict(trained, *images), predict(trained.with_suffix(".tflite"), *images), strict=True
    ):
        assert one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-3)
