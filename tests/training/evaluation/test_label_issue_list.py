"""training.evaluation.label_errors: how suspects are judged, sorted and written down."""

import cleanlab.filter
import numpy as np
import pytest
import sklearn.model_selection

from training.evaluation.label_errors import LabelIssue, list_label_issues, write_label_issues

NAMES = ("daisy", "rose", "tulip")


@pytest.fixture
def clusters():
    """Features of three classes that a line tells apart, 12 images each, and their labels."""
    labels = np.repeat(np.arange(3), 12)
    features = np.random.default_rng(0).normal(size=(36, 6)) * 40
    features[np.arange(36), labels] += 800
    return features, labels, [f"{NAMES[label]}/{i:02d}" for i, label in enumerate(labels)]


@pytest.fixture
def judged(monkeypatch):
    """Notes what the cross-validation was given, a dictionary a call."""
    calls = []
    predict = sklearn.model_selection.cross_val_predict

    def note(model, features, labels, **options):
        calls.append({"model": model, "features": features, "labels": labels, **options})
        return predict(model, features, labels, **options)

    monkeypatch.setattr(sklearn.model_selection, "cross_val_predict", note)
    return calls


def test_each_image_is_judged_by_a_model_fitted_without_it(clusters, judged):
    features, labels, images = clusters
    list_label_issues(features, images, list(labels), NAMES, seed=7)
    [call] = judged
    assert (call["model"].C, call["model"].max_iter) == (0.3, 1000)
    assert call["method"] == "predict_proba"
    folds = call["cv"]
    assert (folds.get_n_splits(), folds.shuffle, folds.random_state) == (5, True, 7)
    assert call["labels"].tolist() == labels.tolist()


def test_features_are_brought_to_one_scale_and_to_as_many_as_say_something(clusters, judged):
    features, labels, images = clusters
    for scaled in (features, features * 1000 + 5, np.tile(features, 100)):
        list_label_issues(scaled, images, labels, NAMES, seed=7)
    first, second, third = (call["features"] for call in judged)
    assert (first.shape, third.shape) == ((36, 6), (36, 36))
    assert first.dtype == np.float32
    assert first[:, 0].std() == pytest.approx(1, rel=1e-5)
    assert second == pytest.approx(first, abs=1e-3)
    list_label_issues(
        np.random.default_rng(1).normal(size=(400, 300)), ["a"] * 400, [0, 1] * 200, "xy", 0
    )
    assert judged[-1]["features"].shape == (400, 256)


def test_the_fewest_images_of_a_class_say_how_many_folds(clusters, judged):
    features, labels, images = clusters
    kept = [*range(12), *range(12, 24), 24, 25, 26]
    list_label_issues(features[kept], [images[i] for i in kept], labels[kept], NAMES, seed=7)
    assert judged[0]["cv"].get_n_splits() == 3
    kept = kept[:-1]
    list_label_issues(features[kept], [images[i] for i in kept], labels[kept], NAMES, seed=7)
    assert judged[1]["cv"].get_n_splits() == 2


def test_features_without_any_difference_are_judged_too():
    assert list_label_issues(np.ones((4, 3)), list("abcd"), [0, 0, 1, 1], "xy", 0) == []


def test_suspects_come_by_confidence_then_by_name(clusters, monkeypatch):
    features, labels, images = clusters
    probabilities = np.full((36, 3), 0.1)
    probabilities[np.arange(36), labels] = 0.8
    for index, best, confidence in ((1, 2, 0.6), (14, 0, 0.9), (3, 2, 0.6), (30, 1, 0.7)):
        probabilities[index] = (1 - confidence) / 2
        probabilities[index, best] = confidence
    monkeypatch.setattr(
        sklearn.model_selection, "cross_val_predict", lambda *_, **__: probabilities
    )
    asked = {}

    def find_label_issues(labels, probabilities, **options):
        asked.update(options)
        return np.isin(np.arange(36), [0, 1, 3, 14])  # 0 is suspected, but not contradicted

    monkeypatch.setattr(cleanlab.filter, "find_label_issues", find_label_issues)
    assert list_label_issues(features, images, labels, NAMES, seed=0) == [
        LabelIssue("rose/14", "rose", "daisy", 0.9),
        LabelIssue("daisy/01", "daisy", "tulip", 0.6),
        LabelIssue("daisy/03", "daisy", "tulip", 0.6),
    ]
    assert asked == {"filter_by": "low_self_confidence", "n_jobs": 1}


@pytest.mark.parametrize(
    ("features", "images", "labels", "sentence"),
    [
        (3, 4, [0, 0, 1, 1], "Received: 3, 4, 4."),
        (4, 3, [0, 0, 1, 1], "Received: 4, 3, 4."),
        (4, 4, [0, 1, 1], "Received: 4, 4, 3."),
    ],
)
def test_lengths_that_differ_are_told(features, images, labels, sentence):
    with pytest.raises(ValueError, match="as many") as caught:
        list_label_issues(np.ones((features, 2)), ["a"] * images, labels, "xy", 0)
    assert str(caught.value) == f"Expected as many features as images and labels. {sentence}"


def test_a_class_with_a_single_image_is_told():
    with pytest.raises(ValueError, match="two") as caught:
        list_label_issues(np.eye(4), list("abcd"), [0, 0, 0, 1], "xy", 0)
    assert str(caught.value) == "Expected at least two images of each class. Received: one."


def test_a_list_is_this_to_the_last_byte(tmp_path):
    label_issues = [
        LabelIssue("rose/caf\udce9.jpg", "rose", "tulip", 0.987),
        LabelIssue("rose/ü.jpg", "rose", "daisy", 0.5),
    ]
    write_label_issues(tmp_path / "suspects.txt", label_issues)
    assert (tmp_path / "suspects.txt").read_bytes() == (
        b"# Labels that are probably wrong, the most confident first. Look at the images, remove\n"
        b"# the lines of correct labels, then train without the others: --exclude with this file.\n"
        b"rose/caf\xe9.jpg  # looks like tulip, 0.99 confident\n"
        b"rose/\xc3\xbc.jpg  # looks like daisy, 0.50 confident\n"
    )
