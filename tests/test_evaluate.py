"""training.evaluate: a checkpoint is reported on once more, without training."""

import json

import numpy as np
import pytest

from training import evaluate
from training.backend import keras
from training.calibration import bake_temperature
from training.checkpoint import (
    Metadata,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
    split_record,
)
from training.dataset import Split, scan, split
from training.generators import Batches, Pictures
from training.model import build_model

SIDE = 71
RUN = {"command": "python train.py --epochs 4", "seed": 1, "picked_on": "the best of ours"}


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory):
    """A checkpoint with its split and the report of its run."""
    dataset = scan(drawn)
    keras.utils.set_random_seed(3)
    model = build_model((SIDE, SIDE), (), len(dataset.class_names))
    bake_temperature(model, 0.01)  # as untrained as it is, all its answers would be alike
    path = tmp_path_factory.mktemp("models") / "xception_fin_04_0.123.h5"
    save_checkpoint(model, path, Metadata(dataset.class_names, 4, 0.123, temperature=0.5))
    split(dataset, 0.4, seed=1, selection=0.4).write(split_record(path))
    report = path.with_suffix("")
    report.mkdir()
    (report / "metrics.json").write_text(json.dumps({"run": RUN}))
    (report / "learning_curves.png").write_bytes(b"curves of the run")
    return path


def run(made, folder, drawn, *flags):
    exit_code = evaluate.main([str(made), str(folder), "--data", str(drawn), *map(str, flags)])
    return exit_code, list(folder.glob("*.h5"))


def answers(path, drawn, pictures):
    model, _ = load_checkpoint(path)
    dataset = scan(drawn)
    inputs = Batches(Pictures(dataset, model.input_shape[1:3]), pictures, 8)
    return model.predict(inputs, verbose=0), dataset.labels(pictures)


def test_what_is_excluded_is_neither_reported_on_nor_fitted_to(made, drawn, tmp_path, capsys):
    whole = Split.read(split_record(made))
    out = {whole.validation[0], whole.selection[0], whole.train[0]}
    excluded = tmp_path / "wrong.txt"
    excluded.write_text("\n".join(out))
    before = made.read_bytes()

    exit_code, [path] = run(made, tmp_path / "again", drawn, "--exclude", excluded)

    assert exit_code == 0
    parts = Split.read(split_record(path))
    assert parts.train == whole.train, "what it was fitted to stays what it was"
    assert parts.validation == whole.validation[1:]
    assert parts.selection == whole.selection[1:]
    probabilities, truth = answers(path, drawn, parts.validation)
    accuracy = (probabilities.argmax(axis=1) == truth).mean()
    metadata = read_metadata(path)
    assert path.name == f"xception_fin_04_{accuracy:.3f}.h5"
    assert metadata.val_accuracy == pytest.approx(accuracy)
    assert f"{accuracy:.3f} on {len(parts.validation)} pictures" in capsys.readouterr().out
    assert made.read_bytes() == before

    old, _ = answers(made, drawn, parts.validation)
    fitted = np.log(np.maximum(old, 1e-30)) * 0.5 / metadata.temperature
    fitted = np.exp(fitted - fitted.max(axis=1, keepdims=True))
    fitted /= fitted.sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, fitted, atol=1e-3), "the same network at its temperature"

    report = path.with_suffix("")
    card = (report / "README.md").read_text()
    assert "    python train.py --epochs 4" in card
    assert "The best of ours." in card
    assert "- reported again by: python -m training.evaluate" in card
    assert "3 excluded by" in card
    assert "- excluded: after training, in which 1 of them took part" in card
    assert (report / "learning_curves.png").read_bytes() == b"curves of the run"
    assert json.loads((report / "metrics.json").read_text())["run"]["split"] == parts.sizes


def test_once_more_changes_nothing(made, drawn, tmp_path):
    _, [first] = run(made, tmp_path / "1", drawn)
    _, [second] = run(first, tmp_path / "2", drawn)
    assert first.name == second.name
    assert read_metadata(second).temperature == pytest.approx(
        read_metadata(first).temperature, rel=1e-3
    )
    pictures = Split.read(split_record(first)).validation
    one, _ = answers(first, drawn, pictures)
    assert np.allclose(one, answers(second, drawn, pictures)[0], atol=1e-3)


def test_at_another_size(made, drawn, tmp_path):
    exit_code, [path] = run(made, tmp_path, drawn, "--inference-size", "75")
    assert exit_code == 0
    assert load_checkpoint(path)[0].input_shape == (None, 75, 75, 3)


def test_what_cannot_be_reported_on_ends_with_one_sentence(made, drawn, tmp_path, capsys):
    (tmp_path / "all.txt").write_text("\n".join(Split.read(split_record(made)).validation))
    alone = tmp_path / "xception_fin_01_0.500.h5"
    alone.write_bytes(made.read_bytes())
    few, fewer = tmp_path / "few", tmp_path / "fewer"
    for folder, names in ((few, scan(drawn).class_names), (fewer, ("rose", "tulip"))):
        for name in names:
            (folder / name).mkdir(parents=True)
            for picture in sorted((drawn / name).iterdir())[:5]:
                (folder / name / picture.name).write_bytes(picture.read_bytes())
    for checkpoint, data, flags, sentence in (
        (made, drawn, ["--exclude", str(tmp_path / "all.txt")], "Take some out of"),
        (made, few, [], "Name the right one with --data."),
        (made, fewer, [], "Received: rose, tulip. Name the right folder with --data."),
        (alone, drawn, [], "Expected xception_fin_01_0.500.split.json beside the checkpoint."),
        (tmp_path / "no.h5", drawn, [], "no.h5"),
    ):
        command = [str(checkpoint), str(tmp_path / "new"), "--data", str(data), *flags]
        assert evaluate.main(command) == 1
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
        assert not list((tmp_path / "new").glob("*"))


def test_stopped_by_hand_it_says_so_in_one_line(made, drawn, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "calibrate", stop)
    assert run(made, tmp_path, drawn)[0] == 130
    assert capsys.readouterr().err == "\nevaluate: Stopped.\n"


def test_a_size_is_one_that_the_network_takes(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([str(made), str(tmp_path), "--inference-size", "70"])
    assert "expected 71 or more. Received: 70" in capsys.readouterr().err
