"""train.py: the recipe, its flags, and the whole way from pictures to a named flower."""

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

import h5py
import numpy as np
import pytest
from conftest import ROOT

import train
from serving.models import ModelError, best_model
from train import FINE_TUNE, ORIGINAL, RECIPES
from training import generators
from training.backend import keras
from training.checkpoint import load_checkpoint, read_metadata, read_run, split_record
from training.dataset import Split, class_of, scan
from training.generators import Batches, Pictures
from training.model import (
    build_model,
    cut_at,
    load_base_weights,
    weights_digest,
    with_input_size,
)

# Small pictures and a base of random weights: quick, and nothing here asks for a good answer.
SMALL = replace(ORIGINAL, input_size=71, batch_size=8, steps_per_epoch=2, epochs=1, views=2)
SMALL_FINE_TUNE = {
    "first_block": 13,
    "selection_fraction": 0.25,
    "head": (),
    "head_epochs": 2,
    "label_smoothing": 0.1,
    "mixup": 0.3,
    "zoom_range": (0.5, 1.0),
    "warmup_epochs": 0.5,
    "epochs": 2,
    "inference_size": 80,
}


@pytest.fixture
def run(drawn, random_base, tmp_path, capsys):
    """Train in this process; returns (exit code, standard output)."""

    def start(*flags, **recipe):
        places = ["--data", drawn, "--models", tmp_path, "--cache", tmp_path / "cache"]
        weights = ["--weights", random_base]
        options = train.parse_arguments([str(word) for word in (*places, *weights, *flags)])
        capsys.readouterr()
        return train.train(replace(SMALL, **recipe), options), capsys.readouterr().out

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
    return weights_digest(cut_at(load_checkpoint(checkpoint)[0], None)[0])


def test_the_defaults_are_the_originals():
    settings = asdict(ORIGINAL)
    assert {
        "input_size": 299,
        "batch_size": 32,
        "validation_fraction": 0.2,
        "seed": 69420,
        "rotation_range": 40,
        "width_shift_range": 0.4,
        "height_shift_range": 0.4,
        "shear_range": 0.2,
        "zoom_range": 0.3,
        "horizontal_flip": True,
        "fill_mode": "nearest",
        "head": (512, 128, 32),
        "learning_rate": 0.01,
        "momentum": 0.75,
        "epochs": 30,
        "steps_per_epoch": 100,
    }.items() <= settings.items()
    # What the original did not have is switched off.
    assert {n: settings[n] for n in ("selection_fraction", "mixup", "head_epochs")} == {
        "selection_fraction": 0.0,
        "mixup": 0.0,
        "head_epochs": 0,
    }
    assert settings["first_block"] is settings["warmup_epochs"] is None
    assert train.parse_arguments([]).recipe == "original"


@pytest.mark.parametrize("name", RECIPES)
def test_flags_reach_the_recipe(name, monkeypatch):
    seen = {}
    monkeypatch.setattr(train, "train", lambda recipe, options: seen.update(asdict(recipe)) or 0)
    assert train.main(["--recipe", name]) == 0
    assert seen == asdict(RECIPES[name])
    flags = (
        "--epochs 2 --batch-size 4 --learning-rate 0.1 --momentum 0 --steps-per-epoch 3 --seed 1 "
        "--views 5 --first-block 11 --mixup 0.5 --label-smoothing 0.3 --inference-size 320 "
        "--head 64,16 --zoom-range 0.8,1.2"
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
        "views": 5,
        "first_block": 11,
        "mixup": 0.5,
        "label_smoothing": 0.3,
        "inference_size": 320,
        "head": (64, 16),
        "zoom_range": (0.8, 1.2),
    }
    assert train.parse_arguments(["--zoom-range", "0.25"]).zoom_range == 0.25
    assert train.parse_arguments(["--head", "none"]).head == ()


@pytest.mark.parametrize("text", ["1.2,0.8", "0.5,", "0.5,0.7,1", "1", "a,b", "-0.1", "0,1"])
def test_a_zoom_is_one_number_or_a_lower_and_an_upper_one(text, capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments([f"--zoom-range={text}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "argument --zoom-range: " in error


@pytest.mark.parametrize("text", ["0", "64,", "-1", "abc", "", "6.5"])
def test_a_head_is_numbers_of_units(text, capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments([f"--head={text}"])
    error = capsys.readouterr().err
    assert f"expected numbers above 0, or none. Received: {text}" in error


def test_the_learning_rate_warms_up_and_decays():
    assert train.schedule(ORIGINAL, 100) == 0.01
    rate = train.schedule(replace(FINE_TUNE, epochs=4, learning_rate=0.1, warmup_epochs=0.5), 10)
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
        "--mixup -0.1",
        "--epochs x",
        "--first-block 15",
        "--recipe best",
    ],
)
def test_numbers_out_of_range_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(flags.split())
    assert caught.value.code == 2
    assert f"argument {flags.split()[0]}" in capsys.readouterr().err


def test_without_pictures_it_says_how_to_get_them(tmp_path, capsys):
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
        f"Use it: python convert_to_tflite.py {checkpoint}",
    ]
    assert "daisy 10, dandelion 10, rose 10, sunflower 10, tulip 10" in out

    metadata = read_metadata(checkpoint)
    assert metadata.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert metadata.temperature > 0
    [row] = history(tmp_path)
    # A frozen base: what the epoch was judged by is what the checkpoint answers.
    assert float(row["val_accuracy"]) == pytest.approx(metadata.val_accuracy, abs=1e-6)

    parts = Split.read(split_record(checkpoint))
    assert (len(parts.train), len(parts.selection), len(parts.validation)) == (40, 0, 10)
    assert {class_of(p) for p in parts.validation} == set(metadata.class_names)
    assert all((drawn / p).exists() for p in parts.train + parts.validation)

    metrics = json.loads((checkpoint.with_suffix("") / "metrics.json").read_text())
    assert metrics["n"] == 10
    assert metrics["accuracy"] == pytest.approx(metadata.val_accuracy)
    assert f"accuracy {metadata.val_accuracy:.3f} (" in out
    assert any((tmp_path / train.TENSORBOARD).rglob("events.out.tfevents.*"))


def test_fine_tuning_picks_on_pictures_of_their_own(run, tmp_path, drawn):
    exit_code, out = run(**SMALL_FINE_TUNE)
    assert exit_code == 0
    assert "Xception with the weights of" in out
    assert "learning from block 13 on; a softmax layer" in out
    assert "30 to train, 10 to pick the epoch, 10 to validate" in out
    [checkpoint] = tmp_path.glob("xception_fin_*.h5")  # what was picked has got its name
    assert not list(tmp_path.glob("xception_fin.picked*"))
    parts = Split.read(split_record(checkpoint))
    assert not set(parts.train) & set(parts.selection) | set(parts.selection) & set(
        parts.validation
    )
    # The name tells the accuracy of what the file answers, asked as anybody would.
    model, metadata = load_checkpoint(checkpoint)
    assert "asking the best checkpoint, at 80×80 pixels" in out
    assert model.input_shape[1:3] == (80, 80)
    pictures = Pictures(scan(drawn), (80, 80))
    batches = Batches(pictures, parts.validation, 4)
    truth = np.concatenate([batches[i][1] for i in range(len(batches))])
    answers = model.predict(batches, verbose=0)
    assert (answers.argmax(1) == truth.argmax(1)).mean() == pytest.approx(metadata.val_accuracy)
    metrics = json.loads((checkpoint.with_suffix("") / "metrics.json").read_text())
    assert metrics["log_loss"] == pytest.approx(
        -np.log(np.clip((answers * truth).sum(1), 1e-7, 1)).mean(), abs=1e-3
    )
    # The lower blocks are as they were, the upper ones learned.
    model = with_input_size(model, (71, 71))
    frozen, _ = cut_at(model, 13)
    base = build_model((71, 71), (), 5)
    load_base_weights(base, out.split("the weights of ")[1].split(",")[0], tmp_path)
    before, _ = cut_at(base, 13)
    assert weights_digest(frozen) == weights_digest(before)
    assert weights_digest(cut_at(model, None)[0]) != weights_digest(cut_at(base, None)[0])


def test_a_finished_network_can_be_given_another_size(run, tmp_path):
    run(**SMALL_FINE_TUNE)
    [first] = tmp_path.glob("xception_fin_*.h5")
    base = base_digest(first)
    with pytest.raises(ModelError, match="or give the finished network another --inference-size"):
        run("--resume", **SMALL_FINE_TUNE)
    exit_code, out = run("--resume", **SMALL_FINE_TUNE | {"inference_size": 90})
    assert exit_code == 0
    assert "at 90×90 pixels" in out
    assert re.search(r"on the 10 pictures that picked the epoch: accuracy 0\.\d+, loss \d", out)
    [second] = tmp_path.glob("xception_fin_*.h5")
    assert load_checkpoint(second)[0].input_shape[1:3] == (90, 90)
    assert [path for path in tmp_path.glob("xception_fin_*") if path.is_dir()] == [
        second.with_suffix("")
    ]
    assert base_digest(second) == base


def test_the_second_run_computes_nothing_again(run, tmp_path, monkeypatch):
    run()
    monkeypatch.setattr(generators, "compile_forward", None)
    assert run(epochs=2)[0] == 0


def test_with_and_without_the_cache_the_same_is_learned(run, tmp_path):
    # As many views as rounds: the pictures are the same ones; the base's answers are rounded.
    recipe = {"epochs": 2, "steps_per_epoch": 5, "views": 2, "learning_rate": 0.1}
    run(**recipe)
    cached = history(tmp_path)
    run("--no-cache", **recipe)
    for one, other in zip(cached, history(tmp_path), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=0.02)
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.02)


MODES = {
    "frozen": ((), {"epochs": 3}),
    "frozen without cache": (("--no-cache",), {"epochs": 3}),
    "fine-tune": ((), SMALL_FINE_TUNE | {"epochs": 3}),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_model(mode, run, tmp_path):
    flags, recipe = MODES[mode]
    run(*flags, **recipe)
    weights = read_weights(tmp_path / train.STATE)
    run(*flags, **recipe)
    assert_equal(read_weights(tmp_path / train.STATE), weights)
    run(*flags, "--seed", "1", **recipe | {"seed": 1})
    other = read_weights(tmp_path / train.STATE)
    assert any(not np.array_equal(other[name], weights[name]) for name in weights)


@pytest.mark.parametrize("flags", [(), ("--no-cache",)])
def test_a_run_in_two_parts_ends_as_one_in_one_part(flags, run, tmp_path):
    run(*flags, epochs=3)
    whole, weights = history(tmp_path), read_weights(tmp_path / train.STATE)
    for path in [tmp_path / train.STATE, tmp_path / train.HISTORY, *tmp_path.glob("*.h5")]:
        path.unlink(missing_ok=True)

    run(*flags, epochs=1)
    (tmp_path / train.HISTORY).write_text(  # as if killed between history and state
        (tmp_path / train.HISTORY).read_text() + "1,0,0,0,0\n"
    )
    exit_code, out = run("--resume", *flags, epochs=3)

    assert exit_code == 0
    assert "Resume: after 1 finished epochs" in out
    assert [row["epoch"] for row in whole] == ["0", "1", "2"]
    assert history(tmp_path) == whole
    assert_equal(read_weights(tmp_path / train.STATE), weights)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert np.array_equal(values, other[name]), name


RUN = """
import json, resource, sys
import train
from dataclasses import replace
flags, recipe, limits = json.loads(sys.argv[1])
train.RECIPES["original"] = replace(train.ORIGINAL, **recipe)
for name, limit in limits.items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
sys.exit(train.main(flags))
"""


@pytest.fixture
def start(drawn, random_base, tmp_path):
    """Start train.py in a process of its own, with another recipe and limits; returns it."""

    def start_process(folder, *flags, recipe=None, **limits):
        places = ["--data", drawn, "--models", folder, "--cache", tmp_path / "cache"]
        words = [str(word) for word in (*places, "--weights", random_base, *flags)]
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
    lines = [line for line in error.splitlines() if line and "activations:" not in line]
    assert len(lines) == 1, error
    [line] = lines
    return line


def test_a_full_disk_ends_with_one_sentence_and_what_was_best_stays(start, tmp_path):
    start(tmp_path).communicate()
    checkpoint = best_model(tmp_path, ".h5")
    before = checkpoint.read_bytes()
    # As on a full disk, the file breaks off while it is written.
    process = start(tmp_path, "--resume", "--epochs", "2", RLIMIT_FSIZE=1_000_000)
    sentence = sentence_of(process)
    assert sentence.startswith("train.py: Expected to read")
    assert "File too large" in sentence
    assert "go on with --resume" in sentence
    assert checkpoint.read_bytes() == before
    assert read_run(tmp_path / train.STATE)["epochs"] == 1
    assert not list(tmp_path.glob(".*"))
    process = start(tmp_path, "--resume", "--epochs", "2")
    _, error = process.communicate()
    assert process.returncode == 0, error


def test_a_folder_that_cannot_be_written(start):
    assert "train.py: Expected to read" in sentence_of(start(Path("/proc/models")))


def test_too_large_a_batch_ends_with_one_sentence(start, tmp_path):
    batch_size = 4_000_000  # 2,048 activations of 4 bytes each: 33 GB
    process = start(tmp_path, recipe={"batch_size": batch_size}, RLIMIT_AS=30 * 2**30)
    sentence = sentence_of(process)
    assert sentence.startswith(f"train.py: Expected batches of {batch_size} pictures to fit into")
    assert "smaller --batch-size" in sentence


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
    assert "--resume" not in run()[1]
    assert "a run of 1 finished epochs that --resume would go on with" in run()[1]


@pytest.mark.parametrize(
    ("flags", "recipe", "sentence"),
    [
        (["--seed", "7"], {"epochs": 2, "seed": 7}, "Received: seed 7"),
        ([], {"epochs": 2, "momentum": 0.5}, "(momentum 0.75). Received: momentum 0.5"),
        ([], {"epochs": 1}, "more epochs than the 1 that are finished"),
    ],
)
def test_only_the_same_run_is_resumed(run, flags, recipe, sentence):
    run()
    with pytest.raises(train.ModelError) as caught:
        run("--resume", *flags, **recipe)
    assert sentence in str(caught.value)


def test_there_is_nothing_to_resume(run):
    with pytest.raises(train.ModelError, match="Expected an interrupted run .* Received: none"):
        run("--resume")


def test_ctrl_c_keeps_the_best_checkpoint(start, tmp_path):
    process = start(tmp_path, "--epochs", "1000")
    while not (tmp_path / train.STATE).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "Go on after the last finished epoch with --resume" in out
    assert out.splitlines()[-1] == f"The best epoch so far: {best_model(tmp_path, '.h5')}"
    assert not list(tmp_path.glob(".*"))


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


def test_from_pictures_to_names(trained, drawn):
    pictures = Split.read(split_record(trained)).validation
    answers = predict(trained.with_suffix(".tflite"), *(drawn / p for p in pictures))
    right = sum(a["label"] == class_of(p) for a, p in zip(answers, pictures, strict=True))
    assert right >= 0.8 * len(pictures)
    assert right / len(pictures) == pytest.approx(read_metadata(trained).val_accuracy, abs=0.11)


def test_h5_and_tflite_agree(trained, drawn):
    pictures = [drawn / p for p in Split.read(split_record(trained)).validation]
    for one, other in zip(
        predict(trained, *pictures), predict(trained.with_suffix(".tflite"), *pictures), strict=True
    ):
        assert one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-3)
