"""What is checked before a run, and what a run that ended early leaves and says."""

import math
import os
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image

import train
from serving.errors import ModelError, UserError
from training import fit as module
from training.backend import keras
from training.checkpoint import EARLIER, UNNAMED_BEST, Metadata, read_metadata, write_metadata
from training.dataset.split import Split
from training.distribute.workers import Workers
from training.errors import DataError, TrainingError
from training.fit import advise_recipe, claim_models, fit_epochs, learning_rate, prepare_model
from training.images import read_pixels
from training.recipes import FINE_TUNE, ORIGINAL, RunOptions
from training.resume import (
    STATE,
    HistoryLogger,
    RequireFiniteLoss,
    SetAsideEarlierRun,
    TrainingState,
    describe_stop,
    how_to_rerun,
    unreported_checkpoints,
)


@pytest.fixture
def places(tmp_path):
    """Options of a run on two (empty) classes, which nothing prevents from starting."""
    for name in ("rose", "tulip"):
        (tmp_path / "my data" / name).mkdir(parents=True)
    return RunOptions(
        data=tmp_path / "my data",
        models=tmp_path / "models" / "mine",
        cache=tmp_path / "cache",
        command="python train.py --data 'my data'",
    )


def claim(options, workers=None):
    with claim_models(options, workers or Workers()):
        assert options.models.is_dir()


# Before the first epoch


@pytest.mark.parametrize(
    ("changed", "error", "sentence"),
    [
        ({"weights": "none.h5"}, ModelError, "Received: none.h5, which does not exist"),
        ({"resume": True}, ModelError, "Expected an interrupted run in .*mine. Received: none"),
        ({"data": Path("none")}, DataError, "Expected none to hold one folder"),
        ({"models": "my data"}, DataError, "Expected --models outside of .*my data"),
        ({"models": "my data/models"}, DataError, "Expected --models outside of .*my data"),
        ({"cache": "my data/a/b"}, DataError, "Expected --cache outside of .*my data"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(places, tmp_path, changed, error, sentence):
    changed = {n: tmp_path / v if n in {"models", "cache"} else v for n, v in changed.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=sentence) as caught:
        claim(replace(places, **changed))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before, "a failed start leaves nothing behind"


def test_a_full_disk_is_refused_at_once(places, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e8))
    with pytest.raises(DataError, match=r"Expected 600 MB .* Received: 100 MB"):
        claim(places)
    assert not places.models.parent.exists()


def test_hidden_folders_are_no_classes_so_a_cache_may_be_among_them(places):
    claim(replace(places, cache=places.data / ".cache" / "activations"))
    claim(replace(places, models=places.data.parent / "my data too"))


def test_a_process_beside_the_main_one_claims_nothing(places):
    with claim_models(replace(places, weights="none.h5"), Workers(1, 2, 2, True)):
        assert not places.models.exists()


def test_a_start_is_refused_before_the_images_are_read(places, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_dataset", lambda *_: pytest.fail("it reads the images"))
    flags = ["--data", places.data, "--models", places.models, "--weights", "gone.h5"]
    assert train.main(list(map(str, flags))) == 1
    assert "gone.h5, which does not exist" in capsys.readouterr().err
    assert not places.models.exists()


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--inference-size", "64", "expected 71 or more. Received: 64"),
        ("--inference-size", "100000", "expected at most 1024. Received: 100000"),
        ("--seed", "-1", "expected 0 or more. Received: -1"),
        ("--seed", "4294967296", "expected at most 4294967295. Received: 4294967296"),
        ("--batch-size", "1000000", "expected at most 4096. Received: 1000000"),
        ("--views", "100000", "expected at most 1000. Received: 100000"),
        ("--epochs", "1000000", "expected at most 100000. Received: 1000000"),
        ("--steps-per-epoch", "0", "expected a number above 0. Received: 0"),
        ("--head", "99999", "expected at most 16 layers of 16384 units. Received: 99999"),
        ("--head", ",".join("1" * 17), "expected at most 16 layers of 16384 units."),
    ],
)
def test_a_flag_that_cannot_work_is_refused_at_once(flag, value, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        train.main([flag, value])
    assert end.value.code == 2
    assert f"argument {flag}: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--seed", "0"], ["--seed", "4294967295"]])
def test_the_least_and_the_highest_seed_are_seeds(flags):
    seed = train.parse_arguments(flags).seed
    np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)


def test_weights_that_are_no_numbers_are_refused_before_features_are_made(places, monkeypatch):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.set_weights([np.full((4, 2), np.nan, "float32"), np.zeros(2)])
    monkeypatch.setattr(module, "load_pretrained", lambda *_: "the weights of a.h5")
    run = SimpleNamespace(recipe=ORIGINAL, options=places, workers=Workers(), state=None)
    with pytest.raises(ModelError, match="Received: the weights of a.h5, some of which are NaN"):
        prepare_model(run, model)


@pytest.mark.parametrize(
    ("weights", "origin", "said"),
    [
        ("imagenet", "the base of models/a.h5", True),
        ("imagenet", "ImageNet weights", False),
        ("models/a.h5", "the base of models/a.h5", False),
    ],
)
def test_a_stand_in_for_imagenet_is_said_to_be_one(
    places, monkeypatch, capsys, weights, origin, said
):
    monkeypatch.setattr(module, "load_pretrained", lambda *_: origin)
    options = replace(places, weights=weights, cache=None)
    run = SimpleNamespace(recipe=ORIGINAL, options=options, workers=Workers(), state=None)
    assert prepare_model(run, keras.Sequential()) == (origin, None)
    assert ("stands in for ImageNet" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    ("recipe", "count", "said"),
    [
        (ORIGINAL, 100, "try --recipe fine-tune"),
        (ORIGINAL, 2000, ""),
        (FINE_TUNE, 60, "an epoch is 1 batch. Raise --epochs above 18"),
        (FINE_TUNE, 100, "an epoch is 3 batches. Raise --epochs above 18"),
        (FINE_TUNE, 2000, ""),
    ],
)
def test_few_images_get_the_recipe_that_suits_them(recipe, count, said, capsys):
    split = Split(1, tuple(f"a/{i}" for i in range(count)), ())
    advise_recipe(SimpleNamespace(recipe=recipe, split=split))
    out = capsys.readouterr().out
    assert said in out if said else out == ""


def test_an_epoch_shorter_than_the_warm_up_has_learning_rates():
    for epochs, steps in ((1, 1), (1, 3), (2, 1)):
        rate = learning_rate(replace(FINE_TUNE, epochs=epochs), steps)
        rates = [float(rate(step)) for step in range(5)]
        assert all(-1e-9 <= value <= FINE_TUNE.learning_rate * 1.001 for value in rates)


# A loss that is not a number


@pytest.mark.parametrize(
    "logs", [{"loss": math.nan}, {"loss": math.inf, "val_loss": 1}, {"val_loss": math.nan}]
)
def test_a_loss_that_is_no_number_ends_training_with_what_to_lower(logs, tmp_path):
    guard = RequireFiniteLoss(0.01, SimpleNamespace(path=tmp_path / "a.h5"))
    guard.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0})
    with pytest.raises(TrainingError) as caught:
        guard.on_epoch_end(6, logs)
    assert "in epoch 7. Train anew with a lower --learning-rate than 0.01, such as 0.001." in str(
        caught.value
    )
    assert str(caught.value).endswith(f"The best epoch before it is kept: {tmp_path / 'a.h5'}.")


def test_of_such_an_epoch_nothing_is_kept():
    class Sums(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return np.full((2, 2), 1e30, "float32"), np.eye(2, dtype="float32")

        def begin_epoch(self, epoch, logs=None):
            pass

    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(inputs))
    module.compile_model(model, 1e30, 0.0)
    kept = []
    later = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(epoch))
    guard = RequireFiniteLoss(1e30, SimpleNamespace(path=None))
    with pytest.raises(TrainingError, match="Received: (nan|inf) in epoch"):
        fit_epochs(model, Sums(), Sums(), epochs=(0, 9), callbacks=[guard, later])
    assert len(kept) < 9


# Runs in one folder


def checkpoint(folder, name, *, temperature=1.0, split=True, report=False):
    path = folder / name
    with h5py.File(path, "w") as file:
        write_metadata(file, Metadata(("a", "b"), 1, 0.5, temperature))
    if split:
        path.with_suffix(".split.json").write_text("{}")
    if report:
        path.with_suffix("").mkdir()
    return path


def test_checkpoints_of_a_replaced_run_move_aside_and_others_stay(tmp_path):
    checkpoint(tmp_path, "xception_fin_09_0.900.h5")
    last = checkpoint(tmp_path, "xception_fin_22_0.917.h5")
    for suffix in (".tflite", ".int8.tflite"):
        last.with_suffix(suffix).touch()
    staying = [
        checkpoint(tmp_path, "xception_fin_15_0.966.h5", report=True, temperature=0.5),
        checkpoint(tmp_path, "xception_fin_16_0.967.h5", temperature=0.5),  # its report is deleted
        checkpoint(tmp_path, "xception_fin_23_0.880.h5", split=False),  # the original's
        tmp_path / "xception_fin_24_0.900.h5",
        tmp_path / "xception_fin_22_0.917_notes.txt",
    ]
    staying[-2].write_text("no checkpoint")
    staying[-1].touch()
    found = unreported_checkpoints(tmp_path)
    assert [path.name for path in found] == ["xception_fin_09_0.900.h5", last.name]
    outdated = tmp_path / "second" / STATE
    outdated.parent.mkdir()
    outdated.touch()
    callback = SetAsideEarlierRun(found, outdated)
    callback.on_epoch_end(0)
    moved = [path.name for path in sorted((tmp_path / EARLIER).iterdir())]
    assert moved == [
        "xception_fin_09_0.900.h5",
        "xception_fin_09_0.900.split.json",
        "xception_fin_22_0.917.h5",
        "xception_fin_22_0.917.int8.tflite",
        "xception_fin_22_0.917.split.json",
        "xception_fin_22_0.917.tflite",
    ]
    assert all(path.exists() for path in staying)
    assert not outdated.exists()
    checkpoint(tmp_path, "xception_fin_01_0.800.h5")  # of the new run
    callback.on_epoch_end(1)
    assert (tmp_path / "xception_fin_01_0.800.h5").exists()


def test_the_best_epoch_of_a_stopped_run_moves_aside_under_a_name_of_its_own(tmp_path):
    for accuracy in (0.5, 0.75):
        path = tmp_path / UNNAMED_BEST
        with h5py.File(path, "w") as file:
            write_metadata(file, Metadata(("a", "b"), 15, accuracy))
        path.with_suffix(".split.json").write_text(str(accuracy))
        [found] = unreported_checkpoints(tmp_path)
        assert found == path
        SetAsideEarlierRun([found], tmp_path / "none").on_epoch_end(0)
        assert not path.exists()
    moved = {path.name: path for path in (tmp_path / EARLIER).iterdir()}
    stems = ["xception_fin_15_0.500", "xception_fin_15_0.750"]
    assert sorted(moved) == [f"{stem}.{end}" for stem in stems for end in ("h5", "split.json")]
    for stem, accuracy in zip(stems, (0.5, 0.75), strict=True):
        assert read_metadata(moved[f"{stem}.h5"]).val_accuracy == accuracy
        assert moved[f"{stem}.split.json"].read_text() == str(accuracy)


class EndlessZeros(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.zeros((1, 2), "float32"), np.zeros((1, 1), "float32")

    def begin_epoch(self, epoch, logs=None):
        pass


def test_the_history_of_an_earlier_run_stays_until_the_first_epoch_has_ended(tmp_path):
    path = tmp_path / "history.csv"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")

    def stop(batch, logs):
        raise KeyboardInterrupt

    def fit(epochs, *others, append=False):
        callbacks = [HistoryLogger(path, append=append), *others]
        fit_epochs(model, EndlessZeros(), None, epochs=epochs, callbacks=callbacks)

    fit((0, 2))
    before = path.read_text()
    assert [line.split(",")[0] for line in before.splitlines()] == ["epoch", "0", "1"]
    with pytest.raises(KeyboardInterrupt):
        fit((0, 2), keras.callbacks.LambdaCallback(on_train_batch_end=stop))
    assert path.read_text() == before
    fit((2, 3), append=True)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["epoch", *"012"]
    fit((0, 1))
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["epoch", "0"]


def test_the_time_of_a_run_is_that_of_all_its_processes(places):
    run = module.Run(ORIGINAL, places, Workers(), None, None)
    state = TrainingState({}, 1, (0.5, 1.0), None, seconds=100.0)
    again = module.continue_run(run, state, None)
    assert 0 <= run.seconds() < 50
    assert 100 <= again.seconds() < 150
    # The second training of the same process began no later than the first.
    assert module.continue_run(again, replace(state, seconds=1.0), None).seconds() >= 100
    old = TrainingState({}, 1, (0.5, 1.0), None)
    assert module.continue_run(run, old, None).seconds() < 50


@pytest.mark.parametrize(
    ("cached", "written"), [(True, "{0.models} and {0.cache}"), (False, "{0.models}")]
)
def test_an_error_of_the_disk_names_what_is_written(places, cached, written):
    options = places if cached else replace(places, cache=None)
    error = train.interrupted(OSError(28, "No space left on device"), options, 0.0)
    assert f"write to {written.format(places)}. Received: No space left" in str(error)


def test_a_new_run_names_what_will_move_aside(tmp_path, capsys):
    checkpoint(tmp_path, "xception_fin_22_0.917.h5")
    options = RunOptions(models=tmp_path)
    run = module.start_run(ORIGINAL, options, Workers(), None, Split(1, ("a/1",), ("a/2",)))
    assert run.replaced == (tmp_path / "xception_fin_22_0.917.h5",)
    out = capsys.readouterr().out
    assert "xception_fin_22_0.917.h5 of an earlier run, without a report, will move to" in out
    assert f"{tmp_path / EARLIER}/" in out


# A run that ended early


def state_of(options, checkpoint=None):
    options.models.mkdir(parents=True, exist_ok=True)
    state = TrainingState({}, 3, (0.5, 1.0), checkpoint)
    state._write_into(options.models / STATE)


def test_before_the_first_epoch_the_same_command_starts_again(places):
    said = describe_stop(ORIGINAL, places, 0.0)
    assert said == (
        f"Stopped before the first epoch ended. Finished features are kept in {places.cache}. "
        "To start it again:\n  python train.py --data 'my data'"
    )
    assert "kept" not in describe_stop(ORIGINAL, replace(places, cache=None), 0.0)
    assert how_to_rerun(places, 0.0) == "start it again: python train.py --data 'my data'"


def test_after_an_epoch_the_whole_commands_to_go_on_are_printed(places):
    name = "xception_fin_22_0.917.h5"
    state_of(places, name)
    (places.models / name).touch()
    options = replace(places, exclude=Path("wrong.txt"), audit=Path("audit.txt"))
    said = describe_stop(FINE_TUNE, options, 0.0).splitlines()
    assert said[:2] == [
        "Stopped. Rerun with --resume to continue after the last finished epoch:",
        "  python train.py --data 'my data' --resume",
    ]
    assert said[2].startswith(f"The best epoch so far: {places.models / name}. ")
    assert shlex.split(said[3]) == [
        *("python", "-m", "training.evaluation", str(places.models / name), str(places.models)),
        *("--data", str(places.data), "--exclude", "wrong.txt", "--audit", "audit.txt"),
        *("--inference-size", "363"),
    ]
    assert how_to_rerun(places, 0.0).startswith("rerun with --resume: python train.py --data 'my")


def test_without_a_checkpoint_only_the_rerun_is_printed(places):
    state_of(places, "gone.h5")
    assert len(describe_stop(ORIGINAL, places, 0.0).splitlines()) == 2


def test_the_state_of_an_earlier_run_is_not_taken_for_this_ones(places):
    state_of(places)
    os.utime(places.models / STATE, (1000, 1000))
    assert "before the first epoch" in describe_stop(ORIGINAL, places, 2000.0)
    resumed = replace(places, resume=True, command="python train.py --resume")
    assert "  python train.py --resume" in describe_stop(ORIGINAL, resumed, 2000.0).splitlines()


def test_an_error_of_the_disk_ends_with_the_whole_command(places, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "", "a.h5")

    monkeypatch.setattr(train, "train", fail)
    flags = ["--data", "my data", "--models", str(places.models)]
    assert train.main(flags) == 1
    command = shlex.join(["python", "train.py", *flags])
    assert capsys.readouterr().err.endswith(
        "Received: No space left on device (a.h5). Free disk space or fix the permissions, then "
        f"start it again: {command}\n"
    )


def test_an_image_that_is_damaged_meanwhile_is_named_with_the_whole_command(
    places, monkeypatch, capsys
):
    path = places.data / "rose" / "a.jpg"
    Image.new("RGB", (99, 99)).save(path)
    path.write_bytes(path.read_bytes()[:-50])
    monkeypatch.setattr(train, "train", lambda *_: read_pixels(path, (71, 71)))
    flags = ["--data", str(places.data), "--models", str(places.models)]
    assert train.main(flags) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"train.py: Cannot read {path}. Expected a complete image. Received: ")
    assert err.endswith(
        f"or PNG. Then start it again: {shlex.join(['python', 'train.py', *flags])}\n"
    )


def test_a_reader_that_has_ended_is_no_error_of_the_disk(monkeypatch):
    def fail(*_):
        raise BrokenPipeError(32, "Broken pipe")

    seen = []
    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(train.cli, "run_command", lambda command, *_, **__: seen.append(command))
    train.main([])
    with pytest.raises(BrokenPipeError):
        seen[0]()


def test_every_early_end_is_a_users_error():
    assert issubclass(TrainingError, UserError)
