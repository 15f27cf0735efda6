"""training.checkpoint: whole files that say what they are."""

import errno
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import ROOT

from serving.errors import ModelError
from serving.model_files import best_model
from training import checkpoint, files
from training.backend import keras
from training.checkpoint import (
    BestCheckpoint,
    Metadata,
    file_size,
    load_checkpoint,
    read_metadata,
    remove_checkpoint,
    save_checkpoint,
    split_record,
)
from training.dataset.split import Split
from training.files import remove_unfinished, write_atomically
from training.resume import SaveState, TrainingState, restore_weights, trim_history

SPLIT = Split(1, ("a/1", "b/1"), ("a/2", "b/2"), validation_fraction=0.2)
PATTERN = "xception_fin_{epoch:02d}_{val_accuracy:.3f}.h5"


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="categorical_crossentropy")
    return model


def train(model, steps):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype("float32")
    for _ in range(steps):
        model.train_on_batch(x, np.eye(2)[(x.sum(axis=1) > 0).astype(int)])


def test_a_checkpoint_says_what_it_is(model, tmp_path):
    path = tmp_path / "a.h5"
    said = Metadata(("a", "b"), 3, 0.123456789, temperature=1.75)
    save_checkpoint(model, path, said)
    loaded, metadata = load_checkpoint(path)
    assert metadata == said
    x = np.ones((1, 4), "float32")
    assert np.array_equal(loaded(x), model(x))
    assert list(tmp_path.iterdir()) == [path]


def test_plain_keras_loads_it(small_checkpoint):
    model = keras.models.load_model(small_checkpoint)
    assert model.output_shape == (None, 3)


def test_input_scaling_is_written_and_checked(model, tmp_path):
    path = tmp_path / "a.h5"
    save_checkpoint(model, path, Metadata(("a", "b"), 1, 0.5))
    with h5py.File(path, "a") as file:
        assert file.attrs["input_scaling"] == "xception"
        file.attrs["input_scaling"] = "caffe"
    with pytest.raises(
        ModelError, match=r"trained on xception scaling. Received: .*a.h5 with caffe"
    ):
        read_metadata(path)


def test_what_is_no_checkpoint(model, tmp_path):
    with pytest.raises(ModelError, match="which does not exist. Run python train.py first"):
        read_metadata(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    model.save(tmp_path / "plain.h5")
    for name in ("text.h5", "plain.h5"):
        with pytest.raises(ModelError, match="^Expected a checkpoint that train.py wrote"):
            read_metadata(tmp_path / name)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_has_the_old_file_open_goes_on_reading_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with path.open() as reader:
        write_atomically(path, lambda new: new.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.json", []
    path.write_text("old")

    def fsync(number):
        # Linux' name of an open file.
        synced.append((Path(f"/proc/self/fd/{number}").read_text(), path.read_text()))

    monkeypatch.setattr("training.files.os.fsync", fsync)
    write_atomically(path, lambda new: new.write_text("new"))
    assert synced == [("new", "old")]
    assert path.read_text() == "new"


def test_a_checkpoint_that_cannot_be_finished_leaves_the_one_before(model, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    save_checkpoint(model, path, Metadata(("a", "b"), 3, 0.5))
    before = path.read_bytes()
    train(model, 1)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_metadata", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(model, path, Metadata(("a", "b"), 4, 0.6))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", ["checkpoint", "state", "changed state"])
def test_a_disk_without_room_is_told_before_hdf5_writes(model, tmp_path, monkeypatch, what):
    train(model, 1)
    path, state = tmp_path / "a.weights.h5", TrainingState({}, 1, (0.5, 1.0), None)
    state.save(path, model)
    before, needed = path.read_bytes(), path.stat().st_size
    write = {
        "checkpoint": lambda: save_checkpoint(model, path, Metadata(("a", "b"), 4, 0.6)),
        "state": lambda: state.save(path, model),
        "changed state": lambda: TrainingState.update(path, epochs=2),
    }[what]
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write()
    assert path.read_bytes() != before or what == "state"


def test_a_checkpoint_takes_no_more_than_is_asked_for(tmp_path):
    inputs = keras.Input((500,))
    large = keras.Model(inputs, keras.layers.Dense(900)(keras.layers.Dense(900)(inputs)))
    large.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
    large.optimizer.build(large.trainable_variables)
    TrainingState({}, 1, (0.5, 1.0), None).save(tmp_path / "a.weights.h5", large)
    save_checkpoint(large, tmp_path / "b.h5", Metadata(("a", "b"), 4, 0.6))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    variables = 2 * 4 * large.count_params()  # and as many of momentum
    assert variables < min(sizes) <= max(sizes) < file_size(large) < 1.1 * variables + 2e6


def test_what_a_killed_process_left_is_removed(tmp_path):
    code = "import os, sys; from pathlib import Path; from training import files as c; "
    code += "c.write_atomically(Path(sys.argv[1]), lambda p: (p.write_text('half'), os._exit(9)))"
    command = [sys.executable, "-c", code, tmp_path / "a_1_0.500.h5"]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    [left] = tmp_path.iterdir()
    with pytest.raises(ModelError):
        best_model(tmp_path, ".h5")
    remove_unfinished(tmp_path)
    assert not left.exists()


def best_checkpoint(model, folder):
    return BestCheckpoint(folder, PATTERN, lambda: model, ("a", "b"), SPLIT)


def test_only_better_epochs_are_kept(model, tmp_path):
    best = best_checkpoint(model, tmp_path)
    for epoch, accuracy in enumerate([0.5, 0.4, 0.5, 0.75]):
        best.on_epoch_end(epoch, {"val_accuracy": accuracy, "val_loss": 1.0})
    names = sorted(path.name for path in tmp_path.glob("*.h5"))
    assert names == ["xception_fin_01_0.500.h5", "xception_fin_04_0.750.h5"]
    assert (best.best, best.path) == ((0.75, 1.0), tmp_path / names[1])
    assert Split.read(split_record(best.path)) == SPLIT
    assert read_metadata(best.path).class_names == ("a", "b")


def test_of_equal_epochs_the_one_with_the_lower_loss_is_kept(model, tmp_path):
    best = best_checkpoint(model, tmp_path)
    for epoch, loss in enumerate([0.6, 0.5, 0.5, 0.7]):
        best.on_epoch_end(epoch, {"val_accuracy": 0.5, "val_loss": loss})
    assert best.path.name == "xception_fin_02_0.500.h5"


def test_accuracies_that_differ_by_less_than_an_image_are_equal(model, tmp_path):
    best = best_checkpoint(model, tmp_path)
    best.on_epoch_end(0, {"val_accuracy": 0.8, "val_loss": 0.6})
    # Summed in another order: as many images, and the lower loss.
    best.on_epoch_end(1, {"val_accuracy": 0.8 - 1e-8, "val_loss": 0.5})
    assert best.path.name == "xception_fin_02_0.800.h5"
    best.on_epoch_end(2, {"val_accuracy": 0.8 + 1e-8, "val_loss": 0.7})
    assert best.path.name == "xception_fin_02_0.800.h5"


def test_a_name_without_fields_is_written_over(model, tmp_path):
    best = BestCheckpoint(tmp_path, "picked.h5", lambda: model, ("a", "b"), SPLIT)
    for epoch, accuracy in enumerate([0.5, 0.75, 0.6]):
        best.on_epoch_end(epoch, {"val_accuracy": accuracy, "val_loss": 1.0})
    assert [path.name for path in tmp_path.glob("*.h5")] == ["picked.h5"]
    assert read_metadata(tmp_path / "picked.h5") == Metadata(("a", "b"), 2, 0.75)
    # Another run's, however good, is in the way of this one's best.
    BestCheckpoint(tmp_path, "picked.h5", lambda: model, ("a", "b"), SPLIT).on_epoch_end(
        0, {"val_accuracy": 0.1, "val_loss": 1.0}
    )
    assert read_metadata(tmp_path / "picked.h5").val_accuracy == 0.1


def test_the_lowest_loss_can_pick_too(model, tmp_path):
    best = BestCheckpoint(tmp_path, "picked.h5", lambda: model, ("a", "b"), SPLIT, "val_loss")
    epochs = [(0.5, math.nan), (0.75, 1.0), (0.9, 1.1), (0.6, 0.9), (0.9, math.nan)]
    for epoch, (accuracy, loss) in enumerate(epochs):
        best.on_epoch_end(epoch, {"val_accuracy": accuracy, "val_loss": loss})
        assert read_metadata(tmp_path / "picked.h5").epoch == (1, 2, 2, 4, 4)[epoch]
    assert best.best == (0.6, 0.9)


def test_facts_of_a_run_can_be_changed(model, tmp_path):
    path = tmp_path / "a.weights.h5"
    TrainingState.update(path, reported=299)  # there is no run
    assert not path.exists()
    best = best_checkpoint(model, tmp_path)
    best.on_epoch_end(0, {"val_accuracy": 0.5, "val_loss": 1.0})
    state = SaveState(path, {"seed": 1}, best, lambda: 60.5)
    state.set_model(model)
    state.on_epoch_end(0)
    before, content = TrainingState.load(path), path.read_bytes()
    assert before.seconds == 60.5
    with path.open("rb") as reader:
        TrainingState.update(path, checkpoint="other.h5", reported=299)
        assert reader.read() == content  # a kill would have left the file as it was
    assert TrainingState.load(path) == replace(before, checkpoint="other.h5", reported=299)
    restore_weights(model, path)


def test_a_checkpoint_is_removed_with_its_split(model, tmp_path):
    best = best_checkpoint(model, tmp_path)
    best.on_epoch_end(0, {"val_accuracy": 0.5, "val_loss": 1.0})
    for _ in range(2):
        remove_checkpoint(best.path)
        assert not list(tmp_path.iterdir())


def test_a_resumed_run_remembers_its_best(model, tmp_path):
    best_checkpoint(model, tmp_path).on_epoch_end(1, {"val_accuracy": 0.8, "val_loss": 1.0})
    best = best_checkpoint(model, tmp_path)
    best.restore((0.8, 1.0), "xception_fin_02_0.800.h5")
    best.on_epoch_end(2, {"val_accuracy": 0.7, "val_loss": 1.0})
    assert best.path.name == "xception_fin_02_0.800.h5"
    assert len(list(tmp_path.glob("*.h5"))) == 1


def test_a_resumed_run_whose_best_was_removed_keeps_the_next_one(model, tmp_path):
    best = best_checkpoint(model, tmp_path)
    best.restore((0.8, 1.0), "xception_fin_02_0.800.h5")
    assert best.path is None
    best.on_epoch_end(2, {"val_accuracy": 0.7, "val_loss": 1.0})
    assert best.path.name == "xception_fin_03_0.700.h5"
    assert best.path.exists()


def test_another_checkpoint_of_the_same_name_is_not_overwritten(model, tmp_path):
    best_checkpoint(model, tmp_path).on_epoch_end(0, {"val_accuracy": 0.8004, "val_loss": 1.0})
    before = (tmp_path / "xception_fin_01_0.800.h5").read_bytes()
    train(model, 3)
    best_checkpoint(model, tmp_path).on_epoch_end(0, {"val_accuracy": 0.8001, "val_loss": 1.0})
    assert (tmp_path / "earlier" / "xception_fin_01_0.800.h5").read_bytes() == before
    assert read_metadata(tmp_path / "xception_fin_01_0.800.h5").val_accuracy == 0.8001


def test_a_run_goes_on_exactly(model, tmp_path):
    train(model, 3)
    best = best_checkpoint(model, tmp_path)
    best.on_epoch_end(4, {"val_accuracy": 0.5, "val_loss": 1.0})
    state = SaveState(tmp_path / "a.weights.h5", {"seed": 1}, best, lambda: 0)
    state.set_model(model)
    state.on_epoch_end(4)

    resumed = keras.models.clone_model(model)
    resumed.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="categorical_crossentropy")
    restore_weights(resumed, tmp_path / "a.weights.h5")
    for each in (model, resumed):
        train(each, 2)  # with the momentum of before
    for one, other in zip(model.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert TrainingState.load(tmp_path / "a.weights.h5") == TrainingState(
        {"seed": 1}, 5, (0.5, 1.0), "xception_fin_05_0.500.h5", reported=False
    )


def test_the_state_of_no_run(tmp_path):
    assert TrainingState.load(tmp_path / "none.weights.h5") is None
    (tmp_path / "a.weights.h5").write_text("hello")
    with pytest.raises(ModelError, match="^Expected the state of a training run"):
        TrainingState.load(tmp_path / "a.weights.h5")


def test_the_history_loses_what_will_be_repeated(tmp_path):
    path = tmp_path / "history.csv"
    trim_history(path, 1)
    assert not path.exists()
    path.write_text("epoch,loss\n0,3\n1,2\n2,1\n")
    trim_history(path, 2)
    assert path.read_text() == "epoch,loss\n0,3\n1,2\n"


def test_metadata_is_json_that_others_can_read(small_checkpoint):
    with h5py.File(small_checkpoint) as file:
        assert json.loads(file.attrs["class_names"]) == ["red", "green", "blue"]
