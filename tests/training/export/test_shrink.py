"""training.export.shrink: a smaller checkpoint that says the same."""

import h5py
import numpy as np
import pytest

from serving.details import Details
from training.backend import keras
from training.checkpoint import (
    Metadata,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
    split_record,
)
from training.dataset.scan import scan
from training.dataset.split import Split, split_dataset
from training.evaluation.report import CARD, FIGURES, METRICS
from training.export import shrink
from training.files import claim_folder

# Figures of numbers and of drawn images. All others of a report show photographs, whose authors did
# not agree to that.
PUBLISHED = {
    *("per_class.png", "confusion_matrix.png", "reliability.png", "risk_coverage.png"),
    *("learning_curves.png", "activation_maps.png"),
}
DETAILS = Details(nonconformity=np.linspace(0, 1, 30, dtype=np.float32))
METADATA = Metadata(("daisy", "dandelion", "rose", "sunflower", "tulip"), 4, 0.5, details=DETAILS)


@pytest.fixture
def checkpoint(tmp_path, drawn):
    """A trained-like checkpoint, with an optimizer's variables and a split."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((24, 24, 3))
    x = keras.layers.Conv2D(64, 3, activation="relu")(inputs)
    x = keras.layers.Conv2D(64, 3, activation="relu")(x)
    outputs = keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss="categorical_crossentropy")
    model.train_on_batch(np.ones((1, 24, 24, 3)), np.eye(5)[:1])
    path = tmp_path / "xception_fin_04_0.500.h5"
    save_checkpoint(model, path, METADATA)
    split_dataset(scan(drawn), 1, validation_fraction=0.2).write(split_record(path))
    report = path.with_suffix("")
    report.mkdir()
    (report / METRICS).write_text("{}")
    lines = ["Card.", *(f"![{shows}]({name})" for name, shows in FIGURES.items())]
    (report / CARD).write_text("\n\n".join(lines) + "\n")
    for name in FIGURES:
        (report / name).write_text("figure")
    return path


def test_it_is_smaller_and_plain_keras_opens_it(checkpoint, drawn, tmp_path, capsys):
    small = tmp_path / "small" / checkpoint.name
    assert shrink.main([str(checkpoint), str(small.parent), "--data", str(drawn)]) == 0
    assert "Predicted class changed: 0 of 10 images" in capsys.readouterr().out
    assert small.stat().st_size < 0.4 * checkpoint.stat().st_size
    assert read_metadata(small) == METADATA
    assert np.array_equal(read_metadata(small).details.nonconformity, DETAILS.nonconformity)
    assert Split.read(split_record(small)) == Split.read(split_record(checkpoint))
    x = np.random.default_rng(0).uniform(-1, 1, (4, 24, 24, 3)).astype("float32")
    original, _ = load_checkpoint(checkpoint)
    assert np.allclose(keras.models.load_model(small)(x), original(x), atol=1e-3)
    with h5py.File(small) as file:
        assert "optimizer_weights" not in file
        assert "training_config" not in file.attrs


def test_figures_of_photographs_are_not_published(checkpoint, drawn, tmp_path):
    assert shrink.main([str(checkpoint), str(tmp_path / "small"), "--data", str(drawn)]) == 0
    report = (tmp_path / "small" / checkpoint.name).with_suffix("")
    assert {path.name for path in report.iterdir()} == {METRICS, CARD, *PUBLISHED}
    card = (report / CARD).read_text()
    assert {name for name in FIGURES if name in card} == PUBLISHED
    assert card.count(shrink.NOT_PUBLISHED) == len(FIGURES) - len(PUBLISHED)


def test_labels_are_compared_on_the_images_set_apart(checkpoint, drawn, tmp_path, monkeypatch):
    compared = []

    class Watched(shrink.Batches):
        def __init__(self, source, names, batch_size):
            compared.append(names)
            super().__init__(source, names, batch_size)

    monkeypatch.setattr(shrink, "Batches", Watched)
    assert shrink.main([str(checkpoint), str(tmp_path / "small"), "--data", str(drawn)]) == 0
    assert compared == [Split.read(split_record(checkpoint)).evaluated]


def test_a_changed_label_is_refused(checkpoint, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shrink, "rounded", lambda values: values * -1)
    assert shrink.main([str(checkpoint), str(tmp_path / "small"), "--data", str(drawn)]) == 1
    assert "Expected no predicted class to change" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_other_images_are_refused(checkpoint, tmp_path, drawn, capsys):
    Split(1, ("rose/a.jpg",), ("rose/b.jpg",), validation_fraction=0.2).write(
        split_record(checkpoint)
    )
    assert shrink.main([str(checkpoint), str(tmp_path / "small"), "--data", str(drawn)]) == 1
    assert "to hold the 1 image of the split" in capsys.readouterr().err


def test_nothing_is_written_where_a_run_writes(checkpoint, drawn, tmp_path, capsys):
    with claim_folder(tmp_path / "small"):
        assert shrink.main([str(checkpoint), str(tmp_path / "small"), "--data", str(drawn)]) == 1
    assert "Expected no other run to write to" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_nothing_is_written_among_the_images(checkpoint, drawn, capsys):
    assert shrink.main([str(checkpoint), str(drawn / "small"), "--data", str(drawn)]) == 1
    assert f"Expected a folder to write to outside of {drawn}" in capsys.readouterr().err
    assert not (drawn / "small").exists()


def test_rounding_keeps_thirteen_bits_of_kernels_and_all_of_vectors():
    values = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    lost = np.abs(shrink.rounded(values) / values - 1)
    assert 2**-16 < lost.max() <= 2**-14
    assert not (shrink.rounded(values).view(np.uint32) & 0x3FF).any()
    assert np.array_equal(shrink.rounded(values[0]), values[0])
