"""training.evaluation.label_errors: labels that are probably wrong."""

import numpy as np
import pytest
from PIL import Image

from training.dataset.scan import scan
from training.evaluation.label_errors import LabelIssue, list_label_issues, write_label_issues

NAMES = ("daisy", "rose", "tulip")


@pytest.fixture
def clusters():
    """Features of three classes that a line tells apart, 40 images each."""
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
    assert not recwarn.list  # that a class has fewer images than there are folds


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
