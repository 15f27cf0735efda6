"""training.evaluation.unknowns: how well a model tells images of other things."""

import json
from dataclasses import replace

import numpy as np
import pytest

from training.evaluation import unknowns
from training.evaluation.familiarity import LabelledFeatures, SplitFeatures, fit_details
from training.evaluation.unknowns import measure
from training.sample.others import KINDS, draw_others

CHANNELS, CLASSES = 12, 3
NAMES = ("red", "green", "blue")


def images(count, seed):
    """Features of `count` images of the classes in turn."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % CLASSES
    centres = np.random.default_rng(7).uniform(0, 1, (CLASSES, CHANNELS))
    return LabelledFeatures(
        np.float32(centres[classes] + rng.normal(0, 0.05, (count, CHANNELS))), classes
    )


def scores(classes, seed):
    """Probabilities that are mostly right."""
    rng = np.random.default_rng(seed)
    logits = 3 * np.eye(CLASSES)[classes] + rng.normal(size=(len(classes), CLASSES))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


class Network:
    """Gives drawn images features that no image of a class has, and unsure scores."""

    input_shape, output_shape = (None, 20, 30, 3), (None, CLASSES)

    def predict(self, inputs, **_):
        assert inputs.shape[1:] == (20, 30, 3)
        rng = np.random.default_rng(len(inputs))
        shares = rng.dirichlet(np.full(CLASSES, 20), len(inputs))
        return np.hstack([shares, -rng.uniform(0, 1, (len(inputs), CHANNELS))])


@pytest.fixture
def found(monkeypatch):
    """Measure 300 test images with 200 for validation, or what is given."""
    monkeypatch.setattr(unknowns, "with_features", lambda model: model)
    monkeypatch.setattr(unknowns, "draw_others", lambda: draw_others(3))

    def run(has_test=True, validation=200, **changed):
        sets = SplitFeatures(images(150, 0), images(validation, 1), images(300, 2))
        if not has_test:
            sets = sets._replace(evaluated=sets.validation)
        details = fit_details(sets, scores(sets.validation.classes, 3))
        seed = 4 if has_test else 3
        probabilities = scores(sets.evaluated.classes, seed)
        details = replace(details, **changed)
        return measure(Network(), details, sets, probabilities, NAMES, has_test)

    return run


@pytest.mark.parametrize("has_test", [True, False], ids=["test set", "halves"])
def test_false_alarms_and_prediction_sets_are_as_promised(found, has_test):
    result = found(has_test)
    count = 300 if has_test else 200
    for row, promised in zip(result["false_alarms"], (0.05, 0.02), strict=True):
        assert (row["promised"], row["n"]) == (promised, count)
        assert row["interval"][0] <= row["found"] <= row["interval"][1]
        assert row["found"] < promised + 0.04
    sets = result["prediction_sets"]
    assert sets["interval"][0] <= 0.95 <= sets["interval"][1] + 0.02
    assert 1 <= sets["mean_size"] < CLASSES
    assert (result["training_images"], result["validation_images"]) == (150, 200)
    json.dumps(result)


@pytest.mark.parametrize(
    ("count", "levels"), [(50, [0.05]), (98, [0.05]), (99, [0.05]), (100, [0.05, 0.02])]
)
def test_a_level_that_half_the_validation_images_cannot_reach_has_no_false_alarms(
    found, count, levels
):
    alarms = found(has_test=False, validation=count)["false_alarms"]
    assert [row["promised"] for row in alarms] == levels
    alarms = found(has_test=True, validation=count)["false_alarms"]
    assert [row["promised"] for row in alarms] == [0.05, 0.02]


def test_classes_that_leave_too_few_validation_images_are_not_measured_at_each_level(found):
    rows = found(validation=72)["left_out"].values()
    assert [row["called_unknown"]["0.02"] for row in rows] == [None, None, None]
    assert all(row["called_unknown"]["0.05"] > 0 for row in rows)
    rows = found(validation=75)["left_out"].values()
    assert all(row["called_unknown"]["0.02"] > 0 for row in rows)


def test_without_a_test_set_no_image_is_compared_with_itself():
    values = np.array([5.0, 1.0, 2.0, 4.0, 0.0, 3.0])
    by_hand = [1 / 4, 3 / 4, 3 / 4, 2 / 4, 4 / 4, 2 / 4]
    assert unknowns._held_out(values, np.sort(values), values) == pytest.approx(by_hand)
    by_all = [(1 + (values >= value).sum()) / 7 for value in values]
    assert unknowns._held_out(values, np.sort(values), None) == pytest.approx(by_all)


def test_drawn_images_are_told_apart_by_distance_and_by_confidence(found):
    far = found()["far"]
    assert list(far) == [*KINDS, "all"]
    assert far["all"]["n"] == sum(row["n"] for kind, row in far.items() if kind != "all")
    assert far["all"]["auroc"] == 1
    assert far["all"]["called_unknown"] == {"0.05": 1, "0.02": 1}
    assert 0.9 < far["all"]["auroc_of_confidence"] < 1


def test_a_class_that_is_left_out_is_strange_to_the_others(found):
    left_out = found()["left_out"]
    assert list(left_out) == list(NAMES)
    assert all(row["n"] == 100 and row["auroc"] > 0.99 for row in left_out.values())
    assert all(0 < row["auroc_of_confidence"] < 1 for row in left_out.values())


def test_of_many_classes_five_are_left_out_and_of_two_there_is_no_confidence():
    def split(classes):
        sets = (LabelledFeatures(x.features, x.classes % classes) for x in (images(90, 0),) * 3)
        return SplitFeatures(*sets)

    many = SplitFeatures(
        *(LabelledFeatures(images(92, s).features, np.arange(92) % 23) for s in (0, 1, 2))
    )
    rows = unknowns._leave_classes_out(many, tuple(f"class {n}" for n in range(23)))
    assert list(rows) == ["class 0", "class 4", "class 8", "class 12", "class 16"]
    rows = unknowns._leave_classes_out(split(2), ("a", "b"))
    assert [row["auroc_of_confidence"] for row in rows.values()] == [None, None]


def test_with_too_few_images_nothing_is_measured(found):
    assert found(validation=49) == {}
    assert found(familiarity=None) == {}
    assert found(nonconformity=None) == {}
    assert found(validation=51) != {}
