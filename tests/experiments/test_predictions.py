"""experiments.predictions: a file of predictions, and what is none."""

import numpy as np
import pytest

from experiments.predictions import Predictions, averaged, joined, read_predictions
from training.errors import DataError

NAMES = ("daisy/1.jpg", "rose/é.jpg", "rose/\udcff.jpg", "tulip/1.jpg")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0, 0, 1]])
CLASSES = ("daisy", "rose", "tulip")
WHOLE = Predictions(NAMES, PROBABILITIES, CLASSES)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "fold_1.npz"
    WHOLE.write(path)
    [found] = read_predictions([path])
    assert (found.names, found.class_names) == (NAMES, CLASSES)
    assert np.allclose(found.probabilities, PROBABILITIES)
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert found.hits.tolist() == [True, True, False, True]
    assert list(tmp_path.iterdir()) == [path]


def test_names_and_probabilities_are_enough_also_where_a_file_lacks_a_class(tmp_path):
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    half = PROBABILITIES.astype(np.float16)
    np.savez(paths[0], names=np.array(NAMES[:3]), probabilities=half[:3])
    np.savez(paths[1], names=np.array(NAMES[3:]), probabilities=half[3:])
    first, second = read_predictions(paths)
    assert first.class_names == second.class_names == CLASSES
    assert np.allclose(first.probabilities.sum(axis=1), 1, atol=1e-12)
    assert second.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"names": np.array(NAMES, object)}, "something else"),
        ({"names": np.array(NAMES[:3])}, r"probabilities \(4, 3\) for \(3, 2\)"),
        ({"names": np.array([*NAMES[:2], NAMES[1], NAMES[3]])}, "an image twice"),
        ({"names": np.arange(4)}, "names of type int64"),
        ({"probabilities": PROBABILITIES[:, :2]}, r"probabilities \(4, 2\) for \(4, 3\)"),
        ({"probabilities": PROBABILITIES * 3}, "their sum is not 1"),
        ({"probabilities": PROBABILITIES * np.nan}, "their sum is not 1"),
        ({"labels": np.array([0, 1, 1, 0])}, "labels that are not the places"),
        ({"class_names": np.array(["daisy", "rose", "lily"])}, "images of tulip"),
        ({"class_names": np.array(CLASSES[::-1]), "labels": np.array([0, 1, 1, 2])}, "labels that"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, sentence, tmp_path):
    path = tmp_path / "fold_1.npz"
    np.savez(path, **{"names": np.array(NAMES), "probabilities": PROBABILITIES} | changed)
    with pytest.raises(DataError, match=rf"{sentence}.* in {path}"):
        read_predictions([path])


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "fold_1.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="Received: something else"):
        read_predictions([path])


def test_files_of_other_classes_are_refused(tmp_path):
    WHOLE.write(tmp_path / "a.npz")
    Predictions(NAMES, PROBABILITIES, CLASSES[::-1]).write(tmp_path / "b.npz")
    with pytest.raises(DataError, match=r"b.npz of tulip, rose, daisy"):
        read_predictions([tmp_path / "a.npz", tmp_path / "b.npz"])


def test_folds_are_joined_and_repeats_averaged():
    parts = [
        Predictions(NAMES[:2], PROBABILITIES[:2], CLASSES),
        Predictions(NAMES[2:], PROBABILITIES[2:], CLASSES),
    ]
    assert joined(parts).names == NAMES
    assert np.array_equal(joined(parts).probabilities, PROBABILITIES)
    with pytest.raises(DataError, match="Received: daisy/1.jpg in two"):
        joined([parts[0], WHOLE])
    other = Predictions(NAMES[:1], np.array([[0.1, 0.2, 0.7]]), CLASSES)
    mean = averaged([WHOLE, other])
    assert mean.names == tuple(sorted(NAMES))
    assert mean.probabilities[0] == pytest.approx([0.4, 0.2, 0.4])
    others = [PROBABILITIES[NAMES.index(name)] for name in mean.names[1:]]
    assert np.array_equal(mean.probabilities[1:], others)
