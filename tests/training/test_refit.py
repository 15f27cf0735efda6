"""training/refit.py and what becomes of it: the second network, and what it is calibrated by."""

import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import build_tiny

import train
from serving.errors import ModelError
from serving.model_files import best_model
from training.backend import keras
from training.checkpoint import EARLIER, load_checkpoint, read_metadata, read_split
from training.dataset.scan import scan
from training.dataset.split import Split, split_dataset
from training.errors import DataError
from training.evaluation import evaluate
from training.evaluation.evaluate import Reevaluation, reevaluate
from training.features import CachedFeatures, infer_once
from training.fit import REFIT, UNNAMED_BEST
from training.images import ImageSource
from training.model import split_at_block
from training.recipes import ORIGINAL, RunOptions
from training.resume import STATE, TrainingState

RECIPE = replace(
    ORIGINAL,
    input_size=40,
    inference_size=48,
    batch_size=8,
    test_fraction=0.2,
    validation_fraction=0.25,
    fine_tune_at=5,
    head=(),
    head_epochs=2,
    views=2,
    learning_rate=0.05,
    label_smoothing=0.1,
    ema_momentum=0.5,
    epochs=3,
    steps_per_epoch=None,
    warmup_epochs=0.5,
    monitor="val_loss",
    refit=True,
)


class StoppedError(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="module")
def start(drawn, tmp_path_factory):
    """Train the tiny network by train.py into a folder; returns what its fits were given."""
    cache = tmp_path_factory.mktemp("cache")

    def run(models, recipe=RECIPE, resume=False, stop_after=None):
        options = RunOptions(data=drawn, weights="none", models=models, cache=cache, resume=resume)
        fits, real_fit = [], keras.Model.fit

        def fit(model, x, y=None, **given):
            if y is None:  # not the head alone
                fits.append((x, given))
                end = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: stop(epoch))
                given["callbacks"] = [*given["callbacks"], end]
            return real_fit(model, x, y, **given)

        def stop(epoch):
            if (len(fits), epoch + 1) == stop_after:
                raise StoppedError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "build_model", build_tiny)
            patch.setattr("training.fit.MIXED_PARAMETERS", 200)
            patch.setattr("training.model.build_model", build_tiny)
            patch.setattr(evaluate, "report", lambda *given: fits.append(given))
            patch.setattr(keras.Model, "fit", fit)
            if stop_after:
                with pytest.raises(StoppedError):
                    train.train(recipe, options)
            else:
                train.train(recipe, options)
        return fits

    return run


@pytest.fixture(scope="module")
def refitted(start, tmp_path_factory):
    """The folder of a whole run, and what its two fits and its report were given."""
    models = tmp_path_factory.mktemp("refitted")
    return models, start(models)


def names(batches):
    images = batches.source.dataset.images
    return {images[index] for index in batches.image_indices}


def weights_in(path):
    """Return {name: values}, without the numbers that Keras gives to layers of one process."""
    found = {}

    def note(name, item):
        if hasattr(item, "shape"):
            found[re.sub(r"(dense|input_layer|functional)_\d+", r"\1", name)] = item[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        if name.startswith("details/"):
            assert np.allclose(values, other[name], rtol=1e-4, atol=1e-5), name
        else:
            assert np.array_equal(values, other[name]), name


def split_of(drawn):
    return split_dataset(
        scan(drawn), RECIPE.split_seed, validation_fraction=0.25, test_fraction=0.2
    )


def test_the_second_network_learns_the_validation_images_for_as_many_epochs(refitted, drawn):
    models, [first, second, _] = refitted
    split = split_of(drawn)
    assert names(first[0]) == set(split.train)
    assert names(first[1]["validation_data"]) == set(split.validation)
    assert names(second[0]) == {*split.train, *split.validation}
    assert second[1]["validation_data"] is None
    picked = read_metadata(models / UNNAMED_BEST).epoch
    assert (second[1]["initial_epoch"], second[1]["epochs"]) == (0, picked)
    assert second[0].seed == first[0].seed == RECIPE.seed
    assert len(second[0]) == 40 // 8
    assert len(first[0]) == 30 // 8
    [path] = models.glob("xception_fin_*.h5")
    assert path.name.startswith(f"xception_fin_{picked:02d}_")
    kept = read_split(path)
    assert set(kept.train) == {*split.train, *split.validation}
    assert (kept.validation, kept.test) == ((), split.test)


def test_it_is_calibrated_by_what_the_first_one_made_of_images_that_it_had_not_learned(
    refitted, drawn
):
    models, [*_, reported] = refitted
    split, dataset = split_of(drawn), scan(drawn)
    [path] = models.glob("xception_fin_*.h5")
    model, metadata = load_checkpoint(path)
    # The first network, calibrated as without --refit.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.model.build_model", build_tiny)
        images = ImageSource(dataset, (48, 48))
        known = evaluate.calibrate(*load_checkpoint(models / UNNAMED_BEST), dataset, split, images)
    assert metadata.temperature == pytest.approx(known.metadata.temperature, rel=1e-4)
    details = metadata.details
    assert np.allclose(details.nonconformity, known.metadata.details.nonconformity, atol=1e-5)
    assert np.allclose(
        details.familiarity.distances, known.metadata.details.familiarity.distances, rtol=1e-3
    )
    # The statistics of the features are its own.
    raw, second = load_checkpoint(models / REFIT / UNNAMED_BEST)
    assert second.temperature == 1
    assert np.isnan(second.val_accuracy)
    train_images = tuple(sorted((*split.train, *split.validation)))
    frozen, _ = split_at_block(model, None)
    features = infer_once(frozen, images, train_images)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    classes = dataset.labels(train_images)
    for index, mean in enumerate(details.familiarity.means):
        assert np.allclose(mean, unit[classes == index].mean(axis=0), atol=1e-2)
    # Only the last layer differs from the network as it was trained: by the temperature.
    *others, kernel, bias = raw.get_weights()
    *same, divided, shifted = model.get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(others, same, strict=True))
    assert np.allclose(divided, kernel / metadata.temperature, rtol=1e-5)
    assert np.allclose(shifted, bias / metadata.temperature, rtol=1e-5)
    # Its accuracy is that on the test images, and the report says how it was calibrated.
    result, reported_path, _, reported_split, sources = reported
    assert reported_path == path
    assert reported_split == read_split(path)
    inputs = images.inputs([(dataset.images.index(name), 0) for name in split.test])
    answers = model.predict(inputs, verbose=0)
    accuracy = (answers.argmax(axis=1) == dataset.labels(split.test)).mean()
    assert metadata.val_accuracy == pytest.approx(accuracy)
    assert np.allclose(result.probabilities, answers, atol=1e-5)
    assert "without the 10 validation images" in sources.info.picked_on
    assert "which it had not learned" in sources.info.calibrated_on
    assert sources.info.calibrated_on.endswith("they are approximate")
    assert sources.info.split == {"train": 40, "validation": 0, "test": 10}
    assert sources.history == models / train.HISTORY


def test_without_refit_a_run_is_what_the_first_half_is(start, refitted, tmp_path):
    models, _ = refitted
    start(tmp_path, replace(RECIPE, refit=False))
    assert_equal(weights_in(tmp_path / STATE), weights_in(models / STATE))
    assert not (tmp_path / REFIT).exists()
    # What is finished may be refitted, and ends as if that had been asked for at once.
    start(tmp_path, resume=True)
    state = TrainingState.load(tmp_path / REFIT / STATE)
    assert state.reported == 48
    assert_equal(weights_in(tmp_path / REFIT / STATE), weights_in(models / REFIT / STATE))


@pytest.fixture(scope="module")
def two_epochs(start, refitted, tmp_path_factory):
    """The folder of that run with two epochs of the second training."""
    models = tmp_path_factory.mktemp("two") / "models"
    shutil.copytree(refitted[0], models)
    *_, (_, given), _ = start(models, replace(RECIPE, refit_epochs=2), resume=True)
    assert (given["initial_epoch"], given["epochs"]) == (0, 2)
    for path in models.glob("xception_fin_*.h5"):
        if not path.name.startswith("xception_fin_02_"):
            path.unlink()
    return models


@pytest.mark.parametrize(
    "stops", [[(1, 2)], [(2, 1)], [(1, 1), (2, 1)]], ids=["first", "second", "both"]
)
def test_killed_in_either_training_it_resumes_to_the_same_network(
    stops, start, two_epochs, tmp_path
):
    models, recipe = two_epochs, replace(RECIPE, refit_epochs=2)
    for number, stop in enumerate(stops):
        start(tmp_path, recipe, resume=number > 0, stop_after=stop)
    fits = start(tmp_path, recipe, resume=True)
    for place in (STATE, UNNAMED_BEST, f"{REFIT}/{STATE}", f"{REFIT}/{UNNAMED_BEST}"):
        assert_equal(weights_in(tmp_path / place), weights_in(models / place))
    [one], [other] = (list(folder.glob("xception_fin_*.h5")) for folder in (tmp_path, models))
    assert one.name == other.name
    assert_equal(weights_in(one), weights_in(other))
    if stops[-1][0] == 2:
        [(_, given), _] = fits  # the first training is finished
        assert given["initial_epoch"] == 1


def test_a_finished_one_is_resumed_for_other_sizes_or_epochs_only(start, refitted, tmp_path):
    models = tmp_path / "copy"
    shutil.copytree(refitted[0], models)
    with pytest.raises(ModelError, match="left to do after 3 finished epochs") as end:
        start(models, resume=True)
    # A schedule depends on the number of epochs, so raising it is no advice.
    assert "epochs 3. Give the finished network another --inference-size" in str(end.value)
    [(result, *_)] = start(models, replace(RECIPE, inference_size=56), resume=True)
    assert result.model.input_shape[1:3] == (56, 56)
    (_, given), (*_, sources) = start(models, replace(RECIPE, refit_epochs=2), resume=True)
    assert (given["initial_epoch"], given["epochs"]) == (0, 2)
    # The history is that of the first network.
    assert sources.kept_epoch == read_metadata(models / UNNAMED_BEST).epoch
    assert TrainingState.load(models / REFIT / STATE).epochs == 2
    with pytest.raises(ModelError, match="after 3 finished epochs"):
        start(models, replace(RECIPE, refit_epochs=2), resume=True)


def test_a_second_training_of_an_earlier_run_is_not_continued(start, refitted, tmp_path):
    models = tmp_path / "copy"
    shutil.copytree(refitted[0], models)
    start(models, stop_after=(1, 1))
    assert not (models / REFIT / STATE).exists()
    _, (_, given), _ = start(models, resume=True)
    assert given["initial_epoch"] == 0


def test_without_test_images_it_is_refused(start, tmp_path):
    with pytest.raises(DataError, match="Expected a recipe with test images for --refit"):
        start(tmp_path, replace(RECIPE, test_fraction=0.0))
    assert not list(tmp_path.iterdir())


def test_evaluated_again_it_keeps_its_calibration(refitted, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr("training.model.build_model", build_tiny)
    written = []
    monkeypatch.setattr(evaluate, "report", lambda *given: written.append(given))
    path = best_model(refitted[0], ".h5")
    _, first = load_checkpoint(path)
    reevaluate(path, tmp_path, Reevaluation(drawn, command="again"))
    _, again = load_checkpoint(best_model(tmp_path, ".h5"))
    assert again.temperature == first.temperature
    assert again.val_accuracy == first.val_accuracy
    assert np.array_equal(again.details.nonconformity, first.details.nonconformity)
    assert np.array_equal(again.details.familiarity.distances, first.details.familiarity.distances)
    [(result, *_)] = written
    one, other = (load_checkpoint(each)[0].get_weights() for each in (path, written[0][1]))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(result.val_probabilities) == 0
    with pytest.raises(
        ModelError, match=r"calibrated at, 48×48, .* Received: 56×56\. Give the run"
    ):
        reevaluate(path, tmp_path / "other", Reevaluation(drawn, input_size=56))


def test_all_but_the_test_images_train():
    split = Split(1, ("a/2", "b/1"), ("a/1", "b/2"), ("a/3",), 0.5, 0.2)
    joined = split.with_validation_in_training()
    assert joined.train == ("a/1", "a/2", "b/1", "b/2")
    assert (joined.validation, joined.test, joined.seed) == ((), ("a/3",), 1)
    assert joined.fingerprint != split.fingerprint


def test_the_head_is_trained_at_the_final_size_and_what_was_picked_stays(start, refitted, tmp_path):
    models, recipe = tmp_path / "copy", replace(RECIPE, refit=False, final_head_epochs=2)
    shutil.copytree(refitted[0], models)
    before = weights_in(models / UNNAMED_BEST)
    *_, (result, path, _, split, _) = start(models, recipe, resume=True)
    assert_equal(weights_in(models / UNNAMED_BEST), before)
    assert TrainingState.load(models / STATE).checkpoint == UNNAMED_BEST
    assert len(split.validation) == 10
    *base, kernel, _ = result.model.get_weights()
    *same, raw, _ = load_checkpoint(models / UNNAMED_BEST)[0].get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(base, same, strict=True))
    assert not np.allclose(kernel * result.metadata.temperature, raw, atol=1e-4)
    with pytest.raises(ModelError, match="another --inference-size or --final-head-epochs"):
        start(models, recipe, resume=True)
    # It begins with what was picked each time, so it ends the same.
    start(models, replace(recipe, final_head_epochs=1), resume=True)
    *_, (again, *_) = start(models, recipe, resume=True)
    for one, other in zip(again.model.get_weights(), result.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert read_split(path) == split


@pytest.mark.parametrize("changes", [{"final_head_epochs": 2}, {"refit": True, "refit_epochs": 1}])
def test_a_report_of_the_same_name_does_not_take_the_place_of_what_was_picked(
    changes, start, drawn, tmp_path, monkeypatch
):
    # All have the same accuracy in their names, and the second network its number of epochs.
    monkeypatch.setattr(evaluate, "CHECKPOINT", "xception_fin_01_0.500.h5")
    recipe = replace(RECIPE, refit=False, epochs=1)
    start(tmp_path, recipe)
    [path] = tmp_path.glob("xception_fin_*.h5")
    assert not (tmp_path / UNNAMED_BEST).exists()
    picked = load_checkpoint(path)[0].get_weights()
    first, again = (
        start(tmp_path, replace(recipe, **changes, inference_size=size), resume=True)[-1][0]
        for size in (48, 56)
    )
    kept = load_checkpoint(tmp_path / UNNAMED_BEST)[0].get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(kept, picked, strict=True))
    assert read_split(tmp_path / UNNAMED_BEST) == split_of(drawn)
    assert TrainingState.load(tmp_path / STATE).checkpoint == UNNAMED_BEST
    # What was reported first is still there, and what is at that name now is another network.
    assert (tmp_path / EARLIER / path.name).exists()
    base, base_again = (network.model.get_weights()[:-2] for network in (first, again))
    assert all(np.array_equal(one, other) for one, other in zip(base, base_again, strict=True))
    assert not np.array_equal(load_checkpoint(path)[0].get_weights()[-2], picked[-2])


def test_a_finished_run_computes_no_features_to_train_by(start, tmp_path, monkeypatch):
    recipe = replace(RECIPE, refit=False, epochs=1)
    start(tmp_path, recipe)
    asked = []
    monkeypatch.setattr(CachedFeatures, "compute", lambda _, samples: asked.extend(samples))
    [(result, *_)] = start(tmp_path, replace(recipe, inference_size=56), resume=True)
    assert result.model.input_shape[1:3] == (56, 56)
    assert set(asked) == {(index, 0) for index in range(50)}, "for the search of wrong labels"


def test_a_network_that_was_reported_at_another_size_gets_that_of_its_features(start, tmp_path):
    recipe = replace(
        RECIPE,
        inference_size=None,
        test_fraction=0.0,
        fine_tune_at=None,
        refit=False,
        epochs=1,
        warmup_epochs=None,
        monitor="val_accuracy",
    )
    *_, (expected, *_) = start(tmp_path / "at once", recipe)
    start(tmp_path / "later", replace(recipe, inference_size=56))
    [(found, path, *_)] = start(tmp_path / "later", recipe, resume=True)
    assert found.model.input_shape[1:3] == (40, 40)
    assert load_checkpoint(path)[0].input_shape[1:3] == (40, 40)
    assert np.allclose(found.probabilities, expected.probabilities, atol=1e-5)
    one, other = (each.metadata.details.familiarity.distances for each in (found, expected))
    assert np.allclose(one, other, rtol=1e-4)
    assert TrainingState.load(tmp_path / "later" / STATE).reported == 40
