"""training.checkpoint: what files hold, what beats what, and the sentences, whole."""

import json
import math
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from serving.details import Details, Familiarity
from serving.errors import ModelError
from serving.preprocess import preprocess
from training import checkpoint as module
from training.backend import keras
from training.checkpoint import (
    EARLIER,
    BestCheckpoint,
    CheckpointClassifier,
    Metadata,
    load_checkpoint,
    read_metadata,
    read_split,
    remove_checkpoint,
    save_checkpoint,
    set_aside,
    split_record,
    write_metadata,
)
from training.dataset.split import Split
from training.files import remove_unfinished, write_atomically
from training.resume import SaveState, TrainingState, restore_weights, trim_history

SPLIT = Split(1, ("a/1", "b/1"), ("a/2", "b/2"), validation_fraction=0.2)


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="categorical_crossentropy")
    return model


@pytest.fixture
def attributes(tmp_path):
    """Write a file with these attributes and no model; returns its path."""

    def write(**attributes):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            write_metadata(file, Metadata(("a", "b"), 3, 0.5, 1.5))
            for name, value in attributes.items():
                if value is None:
                    del file.attrs[name]
                else:
                    file.attrs[name] = value
        return path

    return write


# What a checkpoint says of itself.


def test_the_attributes_have_these_names(attributes):
    with h5py.File(attributes()) as file:
        assert dict(file.attrs) == {
            "class_names": '["a", "b"]',
            "input_scaling": "xception",
            "epoch": 3,
            "val_accuracy": 0.5,
            "temperature": 1.5,
        }
    assert read_metadata(attributes()) == Metadata(("a", "b"), 3, 0.5, 1.5)


def test_without_a_temperature_it_was_one(attributes):
    assert read_metadata(attributes(temperature=None)) == Metadata(("a", "b"), 3, 0.5, 1.0)


TOLD = Details(
    Familiarity(
        means=np.float32([[0.25, 0.5, 0.75], [0, 0, 1]]),
        directions=np.float32([[[1, 0], [0, 1], [0, 0]], np.zeros((3, 2))]),
        distances=np.float32([1, 2, 3, 3, 5]),
    ),
    np.float32([0.125, 0.25, 1]),
)


def pooling_model(channels=3):
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(channels, 1)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))


def test_what_tells_more_than_scores_is_kept(tmp_path):
    path, metadata = tmp_path / "a.h5", Metadata(("a", "b"), 3, 0.5, details=TOLD)
    save_checkpoint(pooling_model(), path, metadata)
    for read in (read_metadata(path), load_checkpoint(path)[1]):
        assert np.array_equal(read.details.nonconformity, TOLD.nonconformity)
        for name, values in vars(TOLD.familiarity).items():
            assert np.array_equal(getattr(read.details.familiarity, name), values), name
    with h5py.File(path) as file:
        assert file["details/directions"].dtype == np.float16
        assert file["details/directions"].compression == "gzip"
    classifier = CheckpointClassifier(path)
    assert classifier.details.familiarity.means.shape == (2, 3)
    assert [kernel.shape for kernel, _ in classifier.details.head] == [(3, 2)]
    assert keras.models.load_model(path, compile=False).output_shape == (None, 2)


def test_a_checkpoint_of_an_earlier_version_tells_scores_alone(attributes):
    with h5py.File(attributes()) as file:
        assert "details" not in file
    assert read_metadata(attributes()).details == Details()


@pytest.mark.parametrize(
    "damage",
    [
        lambda group: group.pop("means"),
        lambda group: group.pop("directions"),
        lambda group: group["distances"].write_direct(np.float32([np.nan] * 5)),
        lambda group: group.create_dataset("nonconformity_2", data=b"text"),
        lambda group: group.create_group("kernel_0"),
        lambda group: (group.pop("means"), group.create_dataset("means", data=[[1.0, 2.0]])),
    ],
    ids=["means", "directions", "nan", "text", "group", "shape"],
)
def test_damaged_details_are_told(tmp_path, damage):
    path = tmp_path / "a.h5"
    save_checkpoint(pooling_model(), path, Metadata(("a", "b"), 3, 0.5, details=TOLD))
    with h5py.File(path, "a") as file:
        damage(file["details"])
    assert refusal(read_metadata, path) == (
        "Expected a checkpoint with complete statistics of its own inside (details). "
        f"Received: {path} with damaged ones. Copy it again."
    )


def test_details_of_another_network_are_told(tmp_path):
    path = tmp_path / "a.h5"
    save_checkpoint(pooling_model(4), path, Metadata(("a", "b"), 3, 0.5, details=TOLD))
    assert "of its own inside (details)" in refusal(load_checkpoint, path)


def test_what_is_no_checkpoint_is_told(attributes, tmp_path):
    assert refusal(read_metadata, tmp_path / "none.h5") == (
        f"Expected a checkpoint (.h5). Received: {tmp_path / 'none.h5'}, which does not exist. "
        "Run python train.py first, or name another."
    )
    path = tmp_path / "a.h5"
    ours = (
        "Expected a checkpoint that train.py wrote, with its class names inside. "
        f"Received: {path} without them. If another program made it, only convert_to_tflite.py, "
        "predict.py and train.py --weights can use it."
    )
    keras_file = tmp_path / "b.keras"
    pooling_model().save(keras_file)
    assert refusal(read_metadata, keras_file) == ours.replace(str(path), str(keras_file))
    keras_file.write_bytes(keras_file.read_bytes()[:-100])
    assert f"Received: {keras_file}, which is damaged (" in refusal(read_metadata, keras_file)
    path.write_text("hello")
    assert refusal(read_metadata, path) == (
        "Expected a checkpoint that train.py wrote, or a plain Keras file. "
        f"Received: {path}, no model file. Download or copy it again."
    )
    for name in ("class_names", "epoch", "val_accuracy", "input_scaling"):
        assert refusal(read_metadata, attributes(**{name: None})) == ours
    assert refusal(read_metadata, attributes(class_names="[")) == ours
    assert refusal(read_metadata, attributes(input_scaling="caffe")) == (
        "Expected a checkpoint trained on xception scaling. "
        f"Received: {path} with caffe. Train it again with python train.py."
    )


def test_a_split_that_is_not_there_is_told(tmp_path):
    path = tmp_path / "a_1_0.500.h5"
    assert split_record(path) == tmp_path / "a_1_0.500.split.json"
    assert refusal(read_split, path) == (
        "Expected a_1_0.500.split.json beside the checkpoint. Received: no such file. "
        "Copy it there from the folder that it was trained in."
    )
    SPLIT.write(split_record(path))
    assert read_split(path) == SPLIT
    path.touch()
    remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_is_not_compiled(model, tmp_path):
    save_checkpoint(model, tmp_path / "a.h5", Metadata(("a", "b"), 1, 0.5))
    loaded, _ = load_checkpoint(tmp_path / "a.h5")
    assert model.compiled
    assert not loaded.compiled


def test_a_checkpoint_classifies_an_image_as_its_weights_do(small_checkpoint):
    # small_checkpoint averages the pixels, -1 to 1, multiplies them by 4 and takes the softmax.
    image = Image.new("RGB", (50, 40), (121, 140, 130))
    logits = preprocess(image, (32, 48)).mean(axis=(0, 1, 2)) * 4
    expected = np.exp(logits) / np.exp(logits).sum()
    classifier = CheckpointClassifier(small_checkpoint)
    assert classifier.labels == ("red", "green", "blue")
    assert classifier.input_size == (32, 48)
    prediction = classifier.predict(preprocess(image, (32, 48)))
    assert prediction.probabilities.shape == (3,)
    assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
    assert prediction.activations is None
    assert classifier.details == Details()


# Whole or not at all.


def test_a_file_is_filled_beside_its_place_brought_to_the_disk_then_renamed(tmp_path, monkeypatch):
    path, steps = tmp_path / "a.h5", []
    sync, replace = os.fsync, Path.replace

    def write(temporary):
        steps.append(("write", temporary.name, path.exists()))
        temporary.write_text("new")

    def fsync(descriptor):
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        steps.append(("fsync", name, path.exists()))
        sync(descriptor)

    def rename(source, target):
        steps.append(("rename", source.name, Path(target).name))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(path, write)
    assert steps == [
        ("write", ".unfinished_a.h5", False),
        ("fsync", ".unfinished_a.h5", False),
        ("rename", ".unfinished_a.h5", "a.h5"),
    ]
    assert path.read_text() == "new"


def test_only_unfinished_files_are_removed(tmp_path):
    for name in (".unfinished_a.h5", ".unfinished_b.json", ".other", "unfinished_c"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "unfinished_c"]


@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_what_convert_to_tflite_may_be_writing_is_not_removed(tmp_path, hours, stays):
    path, then = tmp_path / ".unfinished_a.int8.tflite", time.time() - hours * 3600
    path.touch()
    os.utime(path, (then, then))
    remove_unfinished(tmp_path)
    assert path.exists() == stays


@pytest.mark.parametrize(
    ("epochs", "kept"), [(0, "head\n"), (1, "head\n0,ü\n"), (9, "head\n0,ü\n1,2\n")]
)
def test_a_history_keeps_its_head_and_so_many_epochs(tmp_path, epochs, kept):
    path = tmp_path / "history.csv"
    path.write_text("head\n0,ü\n1,2\n", encoding="utf-8")
    trim_history(path, epochs)
    assert path.read_text(encoding="utf-8") == kept


# Which epoch is kept.


class Saved:
    """Notes what would be saved, in place of files of some size."""

    def __init__(self, monkeypatch):
        self.saved = []
        monkeypatch.setattr(module, "save_checkpoint", self.save)

    def save(self, model, path, metadata):
        self.saved.append((model, path.name, metadata))
        path.touch()


def best_of(folder, monitor="val_accuracy", pattern="p_{epoch:02d}_{val_accuracy:.3f}.h5"):
    return BestCheckpoint(folder, pattern, lambda: "model", ("a", "b"), SPLIT, monitor)


def end(best, epoch, accuracy, loss):
    best.on_epoch_end(epoch, {"val_accuracy": accuracy, "val_loss": loss})


def test_a_better_epoch_is_saved_with_what_it_says_and_its_split(tmp_path, monkeypatch):
    saved = Saved(monkeypatch)
    best = best_of(tmp_path)
    assert (best.best, best.path) == ((0.0, math.inf), None)
    end(best, 4, 0.50000049, 1.25)
    assert saved.saved == [("model", "p_05_0.500.h5", Metadata(("a", "b"), 5, 0.5))]
    assert (best.best, best.path) == ((0.5, 1.25), tmp_path / "p_05_0.500.h5")
    assert read_split(best.path) == SPLIT


def test_without_validation_images_the_last_epoch_is_kept(tmp_path, monkeypatch):
    saved = Saved(monkeypatch)
    best = best_of(tmp_path, None, "picked.h5")
    for epoch in range(3):
        best.on_epoch_end(epoch, {"loss": 1.0 + epoch})
    assert [metadata.epoch for _, _, metadata in saved.saved] == [1, 2, 3]
    assert all(math.isnan(metadata.val_accuracy) for _, _, metadata in saved.saved)
    assert best.path == tmp_path / "picked.h5"


def test_the_first_epoch_counts_however_bad(tmp_path, monkeypatch):
    saved = Saved(monkeypatch)
    for monitor in ("val_accuracy", "val_loss"):
        end(best_of(tmp_path, monitor), 0, 0.0, math.nan)
    assert len(saved.saved) == 2


@pytest.mark.parametrize(
    ("monitor", "second", "better"),
    [
        ("val_accuracy", (0.5000014, 9.0), True),
        ("val_accuracy", (0.5000004, 1.0), False),
        ("val_accuracy", (0.5, 0.9), True),
        ("val_accuracy", (0.5, 1.0), False),
        ("val_accuracy", (0.5, math.nan), False),
        ("val_accuracy", (0.4, 0.1), False),
        ("val_loss", (0.1, 0.9), True),
        ("val_loss", (0.9, 1.1), False),
        ("val_loss", (0.6, 1.0), True),
        ("val_loss", (0.5, 1.0), False),
        ("val_loss", (0.9, math.nan), False),
    ],
)
def test_what_beats_an_accuracy_of_a_half_at_a_loss_of_one(
    tmp_path, monkeypatch, monitor, second, better
):
    saved = Saved(monkeypatch)
    best = best_of(tmp_path, monitor)
    end(best, 0, 0.5, 1.0)
    end(best, 1, *second)
    assert len(saved.saved) == 1 + better
    assert best.path == tmp_path / saved.saved[-1][1]
    assert (best.best == (0.5, 1.0)) == (not better)


@pytest.mark.parametrize(("accuracy", "temperature"), [(0.5003, 1.0), (0.5001, 0.8), (None, 1.0)])
def test_another_runs_checkpoint_of_this_name_moves_aside(
    tmp_path, monkeypatch, capsys, accuracy, temperature
):
    saved = Saved(monkeypatch)
    path, earlier = tmp_path / "p_01_0.500.h5", tmp_path / EARLIER
    if accuracy:
        with h5py.File(path, "w") as file:
            write_metadata(file, Metadata(("a", "b"), 1, accuracy, temperature))
    else:
        path.write_text("no checkpoint at all")
    content = path.read_bytes()
    (tmp_path / "p_01_0.500").mkdir()
    (tmp_path / "p_01_0.500" / "README.md").write_text("a report")
    best = best_of(tmp_path)
    end(best, 0, 0.5001, 1.0)
    assert len(saved.saved) == 1
    assert (best.best, best.path) == ((0.5001, 1.0), path)
    assert (earlier / path.name).read_bytes() == content
    assert (earlier / "p_01_0.500" / "README.md").read_text() == "a report"
    moved = f"{path}, another model, moves with its report to {earlier / path.name}.\n"
    assert capsys.readouterr().out == moved


def test_what_moved_aside_before_stays_as_it_is(tmp_path, capsys):
    earlier = tmp_path / EARLIER
    for number, ends in enumerate(((".h5", ".tflite", ""), (".h5",), (".h5", ".split.json")), 1):
        for end_of_name in ends:
            path = tmp_path / f"p_01_0.500{end_of_name}"
            path = path if end_of_name else path / "README.md"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"of run {number}")
        set_aside(tmp_path / "p_01_0.500.h5")
    found = {str(path.relative_to(earlier)): path for path in earlier.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == {
        "p_01_0.500.h5": "of run 1",
        "p_01_0.500.tflite": "of run 1",
        "p_01_0.500/README.md": "of run 1",
        "p_01_0.500_2.h5": "of run 2",
        "p_01_0.500_3.h5": "of run 3",
        "p_01_0.500_3.split.json": "of run 3",
    }
    assert capsys.readouterr().out.count("moves with its report") == 1
    (tmp_path / "picked.h5").write_text("of run 4")
    set_aside(tmp_path / "picked.h5", "p_01_0.500.h5")
    assert (earlier / "p_01_0.500_4.h5").read_text() == "of run 4"


def test_an_epoch_that_is_repeated_replaces_its_checkpoint(tmp_path, monkeypatch):
    saved = Saved(monkeypatch)
    with h5py.File(tmp_path / "p_01_0.500.h5", "w") as file:
        write_metadata(file, Metadata(("a", "b"), 1, 0.5001))
    end(best_of(tmp_path), 0, 0.5001, 1.0)
    assert len(saved.saved) == 1
    assert not (tmp_path / EARLIER).exists()


@pytest.mark.parametrize("checkpoint", [None, "gone.h5"])
def test_without_an_earlier_checkpoint_a_run_begins_at_nothing(tmp_path, checkpoint):
    best = best_of(tmp_path)
    best.restore((0.8, 1.0), checkpoint)
    assert (best.best, best.path) == ((0.0, math.inf), None)


def test_an_earlier_checkpoint_is_to_be_beaten(tmp_path, monkeypatch):
    saved = Saved(monkeypatch)
    (tmp_path / "old.h5").touch()
    best = best_of(tmp_path)
    best.restore((0.8, 1.0), "old.h5")
    assert (best.best, best.path) == ((0.8, 1.0), tmp_path / "old.h5")
    end(best, 0, 0.8, 1.0)
    assert saved.saved == []


# The state of a run.

STATE = {
    "settings": {"seed": 1},
    "epochs": 2,
    "best": [0.5, 1.0],
    "checkpoint": "a.h5",
    "reported": False,
    "final_head_epochs": 0,
}


def test_before_the_first_checkpoint_a_state_says_none(model, tmp_path):
    path = tmp_path / "a.weights.h5"
    model.optimizer.build(model.trainable_variables)
    state = SaveState(path, {"seed": 1}, best_of(tmp_path), lambda: 0)
    state.set_model(model)
    state.on_epoch_end(0)
    assert TrainingState.load(path) == TrainingState({"seed": 1}, 1, (0.0, math.inf), None, False)
    TrainingState.update(path, reported=96)
    assert TrainingState.load(path).reported == 96
    assert TrainingState.load(path).epochs == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    model.layers[-1].set_weights([np.zeros((4, 2)), np.zeros(2)])
    fresh = keras.models.clone_model(model)
    fresh.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="categorical_crossentropy")
    restore_weights(fresh, path)
    assert not np.array_equal(fresh.layers[-1].get_weights()[0], np.zeros((4, 2)))


def test_a_file_that_is_no_state_is_told(tmp_path):
    path = tmp_path / "a.weights.h5"
    sentence = (
        f"Expected the state of a training run. Received: {path}, which is something else. "
        "Delete it and train anew."
    )
    path.write_text("hello")
    assert refusal(TrainingState.load, path) == sentence
    for run in (None, "{", "[]", json.dumps({"epochs": 1}), json.dumps(STATE | {"more": 1})):
        with h5py.File(path, "w") as file:
            if run:
                file.attrs["run"] = run
        assert refusal(TrainingState.load, path) == sentence


def test_a_run_is_noted_as_json(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["run"] = json.dumps(STATE)
        file["values"] = [1, 2, 3]
    TrainingState.update(path, epochs=3, checkpoint=None)
    with h5py.File(path) as file:
        changed = STATE | {"epochs": 3, "checkpoint": None, "seconds": 0.0}
        assert json.loads(file.attrs["run"]) == changed
        assert file["values"][()].tolist() == [1, 2, 3]
