"""training.evaluation.label_errors: labels that are probably wrong."""

import cleanlab.filter
import numpy as np
import pytest
import sklearn.model_selection
from PIL import Image

from training.dataset.scan import scan
from training.evaluation.label_errors import LabelIssue, list_label_issues, write_label_issues

NAMES = ("daisy", "rose", "tulip")


@pytest.fixture
def clusters():
    """Features of three classes that a line separates, 40 images each."""
    labels = np.repeat(np.arange(3), 40)
    features = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    features[np.arange(120), labels] += 12
    return features, labels, tuple(f"{NAMES[label]}/{i}.jpg" for i, label in enumerate(labels))


def test_labels_flipped_on_purpose_are_found(clusters):
    features, labels, images = clusters
    flipped = list(range(0, 120, 9))
    labels[flipped] = (labels[flipped] + 1) % 3
    label_issues = list_label_issues(features, images, labels, NAMES, seed=1)
    found = {label_issue.image for label_issue in label_issues}
    assert found <= {images[i] for i in flipped}
    assert len(found) >= 10  # it takes those only that are as sure as its average label
    for label_issue in label_issues:  # the name of the file has kept the right class
        assert label_issue.suggested == label_issue.image.split("/")[0]
        assert label_issue.label == NAMES[(NAMES.index(label_issue.suggested) + 1) % 3]
        assert 0.5 < label_issue.confidence <= 1
    sureness = [label_issue.confidence for label_issue in label_issues]
    assert sureness == sorted(sureness, reverse=True)
    assert list_label_issues(features, images, labels, NAMES, seed=1) == label_issues


def test_right_labels_are_not_suspected(clusters):
    features, labels, images = clusters
    assert list_label_issues(features, images, labels, NAMES, seed=0) == []


def test_not_every_contradiction_counts_where_classes_overlap(clusters):
    _, labels, images = clusters
    features = np.random.default_rng(0).normal(size=(120, 6))
    features[np.arange(120), labels] += 1.5
    # The cross-validated model contradicts 32 of these labels, all of which are right.
    label_issues = list_label_issues(features, images, labels, NAMES, seed=1)
    assert 0 < len(label_issues) < 16


def test_a_class_without_images_does_not_count(clusters):
    features, labels, images = clusters
    labels[5] = 1
    names = ("daisy", "iris", "rose", "tulip")
    labels = np.array([0, 2, 3])[labels]
    label_issues = list_label_issues(features, images, labels, names, seed=0)
    assert [(s.image, s.label, s.suggested) for s in label_issues] == [
        ("daisy/5.jpg", "rose", "daisy")
    ]


def test_one_class_has_nothing_to_be_taken_for():
    assert list_label_issues(np.ones((4, 2)), list("abcd"), np.zeros(4, int), ["a"], 0) == []


def test_a_class_of_few_images_gets_fewer_folds(clusters, recwarn):
    features, labels, images = clusters
    few = np.r_[:4, 40:50, 80:90]  # four of the first class, where there are five folds
    labels[45] = 2
    found = list_label_issues(features[few], [images[i] for i in few], labels[few], NAMES, seed=0)
    assert [(s.image, s.label, s.suggested) for s in found] == [("rose/45.jpg", "tulip", "rose")]
    # That a class has fewer images than there are folds; not of files that others left open.
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


def test_an_image_does_not_vouch_for_its_own_label():
    features = np.random.default_rng(0).normal(size=(60, 200))
    # Nothing but chance tells these classes apart; what is fitted to all has each of them right.
    labels = np.arange(60) % 3
    found = list_label_issues(features, [str(i) for i in range(60)], labels, NAMES, seed=0)
    assert len(found) > 20


@pytest.mark.parametrize(
    "change",
    [
        lambda features: np.tile(features, 100),
        lambda features: features * np.float32([1, 1000, 0.001, 1, 5, 1e6]),
        lambda features: features + 1000,
    ],
    ids=["more", "scaled", "shifted"],
)
def test_neither_the_number_nor_the_scale_of_features_matters(clusters, change):
    features, labels, images = clusters
    labels[::9] = (labels[::9] + 1) % 3
    expected = list_label_issues(features, images, labels, NAMES, seed=1)
    found = list_label_issues(change(features), images, labels, NAMES, seed=1)
    assert [s.image for s in found] == [s.image for s in expected]
    assert [s.confidence for s in found] == pytest.approx(
        [s.confidence for s in expected], abs=1e-3
    )


def test_classes_that_many_features_tell_apart_are_told_apart():
    labels = np.repeat(np.arange(12), 10)
    features = np.random.default_rng(0).normal(size=(120, 20))
    features[np.arange(120), labels] += 12
    labels[5] = 7
    names = [f"class {i}" for i in range(12)]
    found = list_label_issues(features, [str(i) for i in range(120)], labels, names, seed=0)
    assert [(s.image, s.label, s.suggested) for s in found] == [("5", "class 7", "class 0")]


@pytest.mark.parametrize(
    ("count", "labels", "sentence"),
    [
        (3, [0, 0, 1, 1], "as many features as images and labels. Received: 3, 4, 4."),
        (4, [0, 0, 0, 1], "at least two images of each class. Received: one."),
    ],
)
def test_what_cannot_be_judged_is_refused(count, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        list_label_issues(np.ones((count, 2)), list("abcd"), np.array(labels), "xy", 0)


def test_the_list_can_be_excluded_as_it_is(tmp_path):
    folder = tmp_path / "flowers"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (4, 4)).save(folder / name / f"{i} #1.png")
    path = tmp_path / "suspects.txt"
    write_label_issues(path, [LabelIssue("rose/3 #1.png", "rose", "tulip", 0.984)])
    assert "rose/3 #1.png  # looks like tulip, 0.98 confident\n" in path.read_text()
    assert scan(folder, path).skipped == (("rose/3 #1.png", f"excluded by {path}"),)
    write_label_issues(path, [])
    assert scan(folder, path).skipped == ()


def test_a_name_that_is_no_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "suspects.txt"
    write_label_issues(path, [LabelIssue("rose/caf\udce9.jpg", "rose", "tulip", 0.9)])
    assert b"rose/caf\xe9.jpg  # looks like tulip" in path.read_bytes()


@pytest.fixture
def clear_clusters():
    """Features of three classes that a line separates, 12 images each, and their labels."""
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


def test_each_image_is_judged_by_a_model_fitted_without_it(clear_clusters, judged):
    features, labels, images = clear_clusters
    list_label_issues(features, images, list(labels), NAMES, seed=7)
    [call] = judged
    assert (call["model"].C, call["model"].max_iter) == (0.3, 1000)
    assert call["method"] == "predict_proba"
    folds = call["cv"]
    assert (folds.get_n_splits(), folds.shuffle, folds.random_state) == (5, True, 7)
    assert call["labels"].tolist() == labels.tolist()


def test_features_are_brought_to_one_scale_and_to_as_many_as_say_something(clear_clusters, judged):
    features, labels, images = clear_clusters
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


def test_the_fewest_images_of_a_class_say_how_many_folds(clear_clusters, judged):
    features, labels, images = clear_clusters
    kept = [*range(12), *range(12, 24), 24, 25, 26]
    list_label_issues(features[kept], [images[i] for i in kept], labels[kept], NAMES, seed=7)
    assert judged[0]["cv"].get_n_splits() == 3
    kept = kept[:-1]
    list_label_issues(features[kept], [images[i] for i in kept], labels[kept], NAMES, seed=7)
    assert judged[1]["cv"].get_n_splits() == 2


def test_features_without_any_difference_are_judged_too():
    assert list_label_issues(np.ones((4, 3)), list("abcd"), [0, 0, 1, 1], "xy", 0) == []


def test_suspects_come_by_confidence_then_by_name(clear_clusters, monkeypatch):
    features, labels, images = clear_clusters
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
