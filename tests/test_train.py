"""train.py: the recipe, its flags, and the whole way from pictures to a named flower."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
from conftest import ROOT

import train
from serving.models import best_model
from train import Recipe
from training.checkpoint import Split, read_metadata, split_record
from training.dataset import class_of

# Small pictures and a base of random weights: quick, and nothing here asks for a good answer.
SMALL = replace(Recipe(), input_size=71, batch_size=8, steps_per_epoch=2, epochs=1)


@pytest.fixture
def run(drawn, tmp_path, capsys):
    """Train in this process; returns (exit code, standard output)."""

    def start(*flags, **recipe):
        options = train.parse_arguments(
            ["--data", str(drawn), "--models", str(tmp_path), "--weights", "none", *flags]
        )
        capsys.readouterr()
        return train.train(replace(SMALL, **recipe), options), capsys.readouterr().out

    return start


def history(folder):
    with open(folder / train.HISTORY, newline="") as file:
        return list(csv.DictReader(file))


def test_the_defaults_are_the_originals():
    assert asdict(Recipe()) == {
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
    }


def test_flags_reach_the_recipe(monkeypatch):
    seen = {}
    monkeypatch.setattr(train, "train", lambda recipe, options: seen.update(asdict(recipe)) or 0)
    flags = (
        "--epochs 2 --batch-size 4 --learning-rate 0.1 --momentum 0 --steps-per-epoch 3 --seed 1"
    )
    assert train.main(flags.split()) == 0
    changed = {name for name, value in asdict(Recipe()).items() if seen[name] != value}
    assert {name: seen[name] for name in changed} == {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.1,
        "momentum": 0.0,
        "steps_per_epoch": 3,
        "seed": 1,
    }


@pytest.mark.parametrize(
    "flags", ["--epochs 0", "--batch-size -1", "--learning-rate nan", "--momentum 1", "--epochs x"]
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


def test_a_run_leaves_checkpoint_split_and_history(run, tmp_path, drawn):
    exit_code, out = run()
    assert exit_code == 0
    checkpoint = best_model(tmp_path, ".h5")
    assert out.splitlines()[-1] == f"Use it: python convert_to_tflite.py {checkpoint}"
    assert "daisy 10, dandelion 10, rose 10, sunflower 10, tulip 10" in out

    metadata = read_metadata(checkpoint)
    assert metadata.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    [row] = history(tmp_path)
    assert float(row["val_accuracy"]) == pytest.approx(metadata.val_accuracy, abs=1e-6)

    parts = Split.read(split_record(checkpoint))
    assert (len(parts.train), len(parts.validation)) == (40, 10)
    assert {class_of(p) for p in parts.validation} == set(metadata.class_names)
    assert all((drawn / p).exists() for p in parts.train + parts.validation)


def test_a_resumed_run_ends_as_one_that_never_stopped(run, tmp_path):
    run(epochs=3)
    whole = history(tmp_path)
    weights = read_weights(tmp_path / train.STATE)
    for path in tmp_path.glob("xception_fin*"):
        path.unlink()

    run(epochs=1)
    (tmp_path / train.HISTORY).write_text(  # as if killed between history and state
        (tmp_path / train.HISTORY).read_text() + "1,0,0,0,0\n"
    )
    exit_code, out = run("--resume", epochs=3)

    assert exit_code == 0
    assert "the interrupted run's, after 1 epochs" in out
    resumed = history(tmp_path)
    assert [row["epoch"] for row in resumed] == ["0", "1", "2"]
    for one, other in zip(whole, resumed, strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx(
            {k: float(v) for k, v in other.items()}, rel=1e-4
        )
    for name, values in read_weights(tmp_path / train.STATE).items():
        assert np.allclose(values, weights[name], rtol=1e-4, atol=1e-6), name


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


def test_ctrl_c_keeps_the_best_checkpoint(run, tmp_path, monkeypatch):
    write = train.RunState.on_epoch_end

    def write_and_interrupt(self, epoch, logs=None):
        write(self, epoch, logs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.RunState, "on_epoch_end", write_and_interrupt)
    exit_code, out = run(epochs=5)
    assert exit_code == 130
    assert "Go on after the last finished epoch with --resume" in out
    assert out.splitlines()[-1].endswith(str(best_model(tmp_path, ".h5")))
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
