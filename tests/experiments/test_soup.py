"""experiments.soup: the mean of weights, calibrated, beside what it was made of."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_tiny

from experiments import soup
from training.backend import keras
from training.batches import Batches
from training.checkpoint import (
    Metadata,
    load_checkpoint,
    read_metadata,
    read_split,
    save_checkpoint,
    split_record,
)
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.evaluation import evaluate, report
from training.evaluation.calibration import apply_temperature, bake_temperature, fit_temperature
from training.images import ImageSource

SIDE = 71
TEMPERATURES = (0.5, 2.0, 1.0)
RUN = {"command": "python train.py", "recipe": {"epochs": 4, "seed": 1}, "weights": "ImageNet"}


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    """Networks that are built here, for another size, are tiny; and no figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.model.build_model", build_tiny)
        patch.setattr(report, "_draw", lambda *_: [])
        patch.setattr(evaluate, "_measure_unknowns", lambda *_: {})
        yield


def near(weights, scale, seed):
    """Return `weights` with noise of `scale`, from a seed."""
    rng = np.random.default_rng(seed)
    return [values + rng.normal(0, scale, values.shape).astype("float32") for values in weights]


@pytest.fixture(scope="module")
def members(drawn, tmp_path_factory):
    """Three checkpoints of one split, each with a temperature, and their logits' weights."""
    dataset = scan(drawn)
    split = split_dataset(dataset, 1, validation_fraction=0.4, test_fraction=0.4)
    keras.utils.set_random_seed(0)
    network = build_tiny((SIDE, SIDE), (), len(dataset.class_names))
    start = network.get_weights()
    paths, uncalibrated = [], []
    for number, temperature in enumerate(TEMPERATURES):
        weights = near(start, 0.05, number)
        network.set_weights(weights)
        uncalibrated.append(weights)
        bake_temperature(network, temperature)
        path = tmp_path_factory.mktemp("member") / f"xception_fin_0{number + 1}_0.500.h5"
        metadata = Metadata(dataset.class_names, number + 1, 0.5, temperature)
        save_checkpoint(network, path, metadata)
        split.write(split_record(path))
        folder = path.with_suffix("")
        folder.mkdir()
        run = {**RUN, "recipe": RUN["recipe"] | {"seed": number}}
        (folder / "metrics.json").write_text(json.dumps({"run": run}))
        paths.append(path)
    return paths, uncalibrated


def make(paths, out, drawn, *flags):
    words = [*paths, "--out", out, "--data", drawn, *flags]
    code = soup.main(list(map(str, words)))
    return code, list(out.glob("*.h5")) if out.exists() else []


def answers(model, dataset, images):
    inputs = Batches(ImageSource(dataset, model.input_shape[1:3]), images, 8)
    return model.predict(inputs, verbose=0), dataset.labels(images)


def test_the_soup_is_the_mean_without_temperatures_and_calibrated_anew(
    members, drawn, tmp_path, capsys
):
    paths, uncalibrated = members
    before = [path.read_bytes() for path in paths]
    audit = tmp_path / "audit.txt"
    audit.write_text(read_split(paths[0]).test[0])
    code, [path] = make(paths, tmp_path / "soup", drawn, "--audit", audit)
    printed = capsys.readouterr().out
    assert code == 0
    assert [each.read_bytes() for each in paths] == before
    model, metadata = load_checkpoint(path)
    bake_temperature(model, 1 / metadata.temperature)
    for values, each in zip(model.get_weights(), zip(*uncalibrated, strict=True), strict=True):
        assert np.allclose(values, np.mean(each, axis=0), atol=1e-5)

    dataset, split = scan(drawn), read_split(path)
    assert split == read_split(paths[0])
    assert (metadata.class_names, metadata.epoch) == (dataset.class_names, 3)
    model, _ = load_checkpoint(path)
    assert fit_temperature(*answers(model, dataset, split.validation)) == pytest.approx(1, abs=0.02)
    probabilities, truth = answers(model, dataset, split.test)
    accuracy = (probabilities.argmax(axis=1) == truth).mean()
    assert metadata.val_accuracy == pytest.approx(accuracy)
    assert f"Test accuracy: {accuracy:.3f} on 20 images." in printed
    record = json.loads((path.with_suffix("") / "metrics.json").read_text())
    assert record["audited"]["n"] == 19
    assert record["run"]["command"].startswith("python -m experiments.soup ")
    assert record["run"]["recipe"] == {"epochs": 4}
    assert record["run"]["weights"] == "ImageNet"
    assert all(str(each) in record["run"]["picked_on"] for each in paths)


def test_members_and_soup_stand_side_by_side_on_the_validation_images(
    members, drawn, tmp_path, capsys
):
    paths, _ = members
    _, [path] = make(paths, tmp_path / "soup", drawn)
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) \(.+\) \| ([\d.]+) \|$", printed, re.M)
    assert [row[0] for row in rows] == [*map(str, paths), "soup"]
    dataset, images = scan(drawn), read_split(path).validation
    losses = []
    for row, each in zip(rows, [*paths, path], strict=True):
        model, metadata = load_checkpoint(each)
        probabilities, truth = answers(model, dataset, images)
        raw = apply_temperature(probabilities, 1 / metadata.temperature)
        temperature = fit_temperature(raw, truth)
        calibrated = apply_temperature(raw, temperature)
        losses.append(-np.log(calibrated[np.arange(len(truth)), truth]).mean())
        assert float(row[1]) == pytest.approx(losses[-1], abs=2e-4)
        assert row[2] == f"{(probabilities.argmax(axis=1) == truth).mean():.3f}"
        assert float(row[3]) == pytest.approx(temperature, rel=0.01)


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((0.3, 0.2, 0.25), r"The soup is worse than b.h5 .*: loss 0.2500 against 0.2000. Use that"),
        ((0.3, 0.2, 0.2), r"no worse than its best member .*: loss 0.2000 against 0.2000 of b.h5."),
    ],
)
def test_it_says_whether_the_soup_is_worse_than_the_best_member(losses, sentence, capsys):
    row = {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "temperature": 1.0}
    paths = [soup.Member(soup.Path(name), None, None, None) for name in ("a.h5", "b.h5")]
    rows = [row | {"log_loss": loss} for loss in losses]
    soup.print_comparison(paths, rows, soup.Path("soup.h5"))
    assert re.search(sentence, capsys.readouterr().out)


def test_another_input_size_is_that_of_the_soup(members, drawn, tmp_path):
    _, [path] = make(members[0][:2], tmp_path / "soup", drawn, "--inference-size", 80)
    assert load_checkpoint(path)[0].input_shape == (None, 80, 80, 3)


@pytest.fixture
def other(members, tmp_path):
    """Make another member; `change` is called with its path."""
    path = tmp_path / "other" / "xception_fin_09_0.900.h5"
    path.parent.mkdir()
    path.write_bytes(members[0][0].read_bytes())
    read_split(members[0][0]).write(split_record(path))
    return path


def test_checkpoints_that_do_not_belong_together_are_refused(
    members, other, drawn, tmp_path, capsys
):
    first, out = members[0][0], tmp_path / "soup"

    def refusal():
        code, made = make([first, other], out, drawn)
        assert (code, made) == (1, [])
        return capsys.readouterr().err

    split = read_split(first)
    replace(split, train=split.test, test=split.train).write(split_record(other))
    said = f"Expected checkpoints of one split, as {first} is. Received: {other} of another, so"
    assert said in refusal()
    split.with_validation_in_training().write(split_record(other))
    code, _ = make([other, first], out, drawn)
    assert code == 1
    assert f"Received: {other}, which has (--refit)." in capsys.readouterr().err
    split_record(other).unlink()
    assert f"Expected {split_record(other).name} beside the checkpoint." in refusal()
    split.write(split_record(other))
    metadata = read_metadata(first)

    save_checkpoint(build_tiny((SIDE, SIDE), (8,), 5), other, metadata)
    assert "Expected checkpoints of one architecture" in refusal()
    save_checkpoint(build_tiny((80, 80), (), 5), other, metadata)
    assert "of 71 pixels, as" in (said := refusal())
    assert "of 80. Give the soup's size with --inference-size." in said
    names = tuple("abcde")
    save_checkpoint(build_tiny((SIDE, SIDE), (), 5), other, replace(metadata, class_names=names))
    assert "of the classes a, b, c, d, e." in refusal()


def test_a_soup_is_not_written_among_the_images(members, drawn, capsys):
    assert make(members[0][:2], drawn / "soup", drawn) == (1, [])
    assert f"Expected --out outside of {drawn}" in capsys.readouterr().err
    assert not (drawn / "soup").exists()


def test_a_soup_is_not_written_into_the_folder_of_a_member(members, drawn, tmp_path, capsys):
    paths, _ = members
    linked = tmp_path / "linked"
    linked.symlink_to(paths[1].parent)
    for out, member in ((paths[0].parent, paths[0]), (linked, paths[1])):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        code, _ = make(paths, out, drawn)
        assert code == 1
        assert f"Received: {out}, which holds {member.name}." in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_soup_of_the_same_name_moves_aside(members, drawn, tmp_path):
    paths, _ = members
    _, [path] = make(paths, tmp_path / "soup", drawn)
    model, metadata = load_checkpoint(path)
    model.set_weights(near(model.get_weights(), 0.05, 9))
    save_checkpoint(model, path, metadata)
    other = path.read_bytes()
    _, [again] = make(paths, tmp_path / "soup", drawn)
    assert again == path
    assert (tmp_path / "soup" / "earlier" / path.name).read_bytes() == other


@pytest.mark.parametrize("words", [["a.h5"], ["a.h5", "./a.h5"]])
def test_one_checkpoint_is_no_soup(words, capsys):
    with pytest.raises(SystemExit) as caught:
        soup.main([*words, "--out", "soup"])
    assert caught.value.code == 2
    assert "expected two or more checkpoints that differ" in capsys.readouterr().err
