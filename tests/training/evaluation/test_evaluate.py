"""training.evaluation.evaluate: a checkpoint is reported on once more, without training."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import build_tiny
from knowing_network import build_knowing

from training import model
from training.backend import keras
from training.batches import Batches
from training.checkpoint import (
    Metadata,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
    split_record,
)
from training.dataset.scan import scan
from training.dataset.split import Split, split_dataset
from training.evaluation import evaluate
from training.evaluation import report as report_module
from training.evaluation.__main__ import main
from training.evaluation.calibration import apply_temperature, fit_temperature
from training.evaluation.label_errors import LabelIssue
from training.evaluation.metrics import with_interval
from training.evaluation.run import RunInfo
from training.features import CachedFeatures
from training.images import ImageSource

SIDE = 71
RUN = {"command": "python train.py --epochs 4", "seed": 1, "picked_on": "the best of ours"}


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    """Networks that are built here, for another size, are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "build_model", build_tiny)
        yield


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory):
    """A checkpoint with its split and the report of its run; it knows a little of all images."""
    dataset = scan(drawn)
    network = build_knowing(dataset, SIDE)
    path = tmp_path_factory.mktemp("models") / "xception_fin_04_0.123.h5"
    save_checkpoint(network, path, Metadata(dataset.class_names, 4, 0.123, temperature=0.5))
    split_dataset(dataset, 1, validation_fraction=0.4, test_fraction=0.4).write(split_record(path))
    report = path.with_suffix("")
    report.mkdir()
    (report / "metrics.json").write_text(json.dumps({"run": RUN}))
    (report / "learning_curves.png").write_bytes(b"curves of the run")
    return path


def run(made, folder, drawn, *flags):
    exit_code = main([str(made), str(folder), "--data", str(drawn), *map(str, flags)])
    return exit_code, list(folder.glob("*.h5"))


def answers(path, drawn, images):
    network, _ = load_checkpoint(path)
    dataset = scan(drawn)
    inputs = Batches(ImageSource(dataset, network.input_shape[1:3]), images, 8)
    return network.predict(inputs, verbose=0), dataset.labels(images)


def test_only_another_model_of_the_same_name_moves_aside(made, drawn, tmp_path):
    _, [path] = run(made, tmp_path, drawn)
    _, [again] = run(made, tmp_path, drawn)
    assert again == path
    assert not (tmp_path / "earlier").exists(), "it was the same model"
    network, metadata = load_checkpoint(path)
    network.layers[-1].set_weights([weights * 2 for weights in network.layers[-1].get_weights()])
    save_checkpoint(network, path, metadata)
    other = path.read_bytes()
    _, [again] = run(made, tmp_path, drawn)
    assert (tmp_path / "earlier" / path.name).read_bytes() == other
    assert (tmp_path / "earlier" / path.stem / "README.md").exists()
    assert (path.with_suffix("") / "README.md").exists()
    _, [again] = run(path, tmp_path, drawn)  # in place
    assert len(list((tmp_path / "earlier").glob("*.h5"))) == 1


@pytest.mark.parametrize("inside", ["", "again"])
def test_a_report_is_not_written_among_the_images(made, drawn, inside, capsys):
    before = sorted(drawn.rglob("*"))
    assert run(made, drawn / inside, drawn) == (1, [])
    assert capsys.readouterr().err == (
        f"evaluation: Expected a folder to write to outside of {drawn}, where each folder is a "
        f"class. Received: {drawn / inside}. Name another folder.\n"
    )
    assert sorted(drawn.rglob("*")) == before


def test_what_is_excluded_is_neither_reported_on_nor_fitted_to(made, drawn, tmp_path, capsys):
    whole = Split.read(split_record(made))
    out = {whole.evaluated[0], whole.validation[0], whole.train[0]}
    excluded = tmp_path / "wrong.txt"
    excluded.write_text("\n".join(out))
    before = made.read_bytes()

    exit_code, [path] = run(made, tmp_path / "again", drawn, "--exclude", excluded)

    assert exit_code == 0
    split = Split.read(split_record(path))
    assert split.train == whole.train, "what it was fitted to stays what it was"
    assert split.evaluated == whole.evaluated[1:]
    assert split.validation == whole.validation[1:]
    probabilities, truth = answers(path, drawn, split.evaluated)
    accuracy = (probabilities.argmax(axis=1) == truth).mean()
    metadata = read_metadata(path)
    assert path.name == f"xception_fin_04_{accuracy:.3f}.h5"
    assert metadata.val_accuracy == pytest.approx(accuracy)
    assert f"{accuracy:.3f} on {len(split.evaluated)} images" in capsys.readouterr().out
    with_excluded, labels = answers(path, drawn, whole.evaluated)
    record = json.loads((path.with_suffix("") / "metrics.json").read_text())["run"]
    as_labelled = (with_excluded.argmax(axis=1) == labels).mean()
    assert record["as_labelled"]["accuracy"] == pytest.approx(as_labelled)
    assert (record["as_labelled"]["n"], record["as_labelled"]["excluded"]) == (len(labels), 1)
    assert made.read_bytes() == before

    # The temperature is fitted on the images that picked the epoch, less the one excluded:
    # there no other makes the classes likelier, while with it or on others one would.
    assert fit_temperature(*answers(path, drawn, split.validation)) == pytest.approx(1, abs=0.01)
    for others in (whole.validation, split.evaluated, whole.train):
        assert abs(fit_temperature(*answers(path, drawn, others)) - 1) > 0.05

    old, _ = answers(made, drawn, split.evaluated)
    fitted = np.log(np.maximum(old, 1e-30)) * 0.5 / metadata.temperature
    fitted = np.exp(fitted - fitted.max(axis=1, keepdims=True))
    fitted /= fitted.sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, fitted, atol=1e-3), "the same network at its temperature"

    report = path.with_suffix("")
    run_info = (report / "README.md").read_text()
    assert "    python train.py --epochs 4" in run_info
    assert "The best of ours." in run_info
    assert "- report written again by: python -m training.evaluation" in run_info
    assert "3 excluded by" in run_info
    assert "- excluded images: after training, which 1 of them took part in" in run_info
    assert (report / "learning_curves.png").read_bytes() == b"curves of the run"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["run"]["split"] == split.sizes
    assert metrics["run"]["calibrated_on"].startswith("The temperature was fitted on 9 validation")
    assert (metrics["n"], metrics["accuracy"]) == (19, pytest.approx(accuracy))
    rows = np.arange(19)
    assert metrics["log_loss"] == pytest.approx(-np.log(probabilities[rows, truth]).mean(), 1e-3)
    before = apply_temperature(old, 1 / 0.5)  # what the checkpoint says it was divided by
    assert metrics["before_temperature"]["log_loss"] == pytest.approx(
        -np.log(before[rows, truth]).mean(), rel=1e-3
    )


def test_an_audit_changes_no_number_but_adds_those_without_its_images(
    made, drawn, tmp_path, capsys
):
    whole = Split.read(split_record(made))
    wrong = (whole.test[0], whole.test[5], whole.validation[0], whole.train[0])
    audit = tmp_path / "audit.txt"
    audit.write_text("\n".join(wrong))
    exit_code, [path] = run(made, tmp_path / "again", drawn, "--audit", audit)
    assert exit_code == 0
    split = Split.read(split_record(path))
    assert split == whole
    probabilities, truth = answers(path, drawn, split.test)
    hits = probabilities.argmax(axis=1) == truth
    kept = hits[[image not in wrong for image in split.test]]
    metrics = json.loads((path.with_suffix("") / "metrics.json").read_text())
    assert (metrics["n"], metrics["accuracy"]) == (20, pytest.approx(hits.mean()))
    assert metrics["audited"]["n"] == len(kept) == 18
    assert metrics["audited"]["accuracy"] == pytest.approx(kept.mean())
    assert metrics["audited"]["wrong_labels"] == 2
    assert fit_temperature(*answers(path, drawn, whole.validation)) == pytest.approx(1, abs=0.01)
    assert re.search(
        rf"\nTest accuracy: {hits.mean():.3f} on 20 images.\n"
        rf"Audited test accuracy: {kept.mean():.3f} \(.+\) on 18 images, without 2 whose labels "
        r"are wrong; loss .+, ECE .+\.\n",
        capsys.readouterr().out,
    )


@pytest.mark.usefixtures("only_text")
def test_what_an_earlier_report_excluded_still_counts_as_labelled(made, drawn, tmp_path, capsys):
    whole = Split.read(split_record(made))
    excluded = tmp_path / "wrong.txt"
    excluded.write_text(f"{whole.test[0]}\n{whole.validation[0]}\n")
    _, [path] = run(made, tmp_path / "first", drawn, "--exclude", excluded)

    def as_labelled(checkpoint):
        record = json.loads((checkpoint.with_suffix("") / "metrics.json").read_text())
        return record["run"]["as_labelled"]

    once = as_labelled(path)
    assert once["images"] == [whole.test[0]]
    assert (
        f"As labelled: {with_interval(once['accuracy'], once['interval'])} on 20 images, with the "
        "1 excluded one.\n"
    ) in capsys.readouterr().out
    _, [same] = run(path, tmp_path / "same", drawn, "--exclude", excluded)
    assert as_labelled(same) == once
    _, [without] = run(path, tmp_path / "without", drawn)
    assert as_labelled(without) == once
    excluded.write_text(f"{whole.test[0]}\n{whole.test[1]}\n")
    _, [more] = run(path, tmp_path / "more", drawn, "--exclude", excluded)
    assert set(as_labelled(more)["images"]) == set(whole.test[:2])
    assert (as_labelled(more)["n"], as_labelled(more)["excluded"]) == (20, 2)


def test_excluded_images_of_which_a_late_one_is_gone_give_no_accuracy_as_labelled(drawn):
    dataset, inputs = scan(drawn), keras.Input((71, 71, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(len(dataset.class_names))(pooled))
    result = SimpleNamespace(model=model, probabilities=np.eye(5)[:1])
    split = Split(1, (), dataset.images[:1])
    excluded = [*dataset.images[1:]] * 5
    found = evaluate.accuracy_as_labelled(result, dataset, split, excluded)
    assert found["n"] == len(excluded) + 1
    gone = [*excluded, f"{dataset.class_names[0]}/gone.jpg"]
    assert evaluate.accuracy_as_labelled(result, dataset, split, gone) == {}


@pytest.fixture
def only_text(monkeypatch):
    """Reports without figures, which take as long as all else."""
    monkeypatch.setattr(report_module, "_draw", lambda *_: [])


@pytest.fixture
def written(monkeypatch):
    """Fills with what `write_report` is given, which then draws nothing."""
    given = {}

    def write(folder, run):
        folder.mkdir(exist_ok=True)
        given.update({field.name: getattr(run, field.name) for field in fields(run)})
        given["folder"] = folder
        return evaluate.evaluate(run.probabilities, run.true_classes, run.dataset.class_names)

    monkeypatch.setattr(evaluate, "write_report", write)
    return given


@pytest.mark.usefixtures("written")
def test_what_it_answers_to_the_images_that_picked_the_epoch_is_told(made, drawn, tmp_path, capsys):
    _, [path] = run(made, tmp_path, drawn)
    probabilities, truth = answers(path, drawn, Split.read(split_record(path)).validation)
    accuracy = (probabilities.argmax(axis=1) == truth).mean()
    loss = -np.log(probabilities[np.arange(10), truth]).mean()
    assert (
        f"Validation accuracy: {accuracy:.3f} on 10 images, loss {loss:.3f}.\n"
    ) in capsys.readouterr().out


def test_without_a_report_of_the_run_the_split_says_what_picked_the_epoch(
    made, drawn, tmp_path, written
):
    checkpoint = tmp_path / made.name
    checkpoint.write_bytes(made.read_bytes())
    whole = Split.read(split_record(made))
    whole.write(split_record(checkpoint))
    (tmp_path / "wrong.txt").write_text(whole.validation[0])
    run(checkpoint, tmp_path / "own", drawn, "--exclude", tmp_path / "wrong.txt")
    own = "validation images, which are in neither the training nor the test set"
    assert written["info"].picked_on == f"The best epoch was picked on 10 {own}"
    assert written["info"].calibrated_on == f"The temperature was fitted on 9 {own}"
    assert written["info"].excluded is None, "it was none of those trained on"
    assert written["curves"] is None
    assert written["history"] is None
    assert written["set_name"] == "test"

    replace(whole, validation=whole.test, test=()).write(split_record(checkpoint))
    _, [path] = run(checkpoint, tmp_path / "same", drawn)
    same = "the 20 validation images that this report is about"
    assert written["info"].picked_on == f"The best epoch was picked on {same}"
    assert written["info"].calibrated_on == f"The temperature was fitted on {same}"
    assert written["set_name"] == "validation"
    assert fit_temperature(*answers(path, drawn, whole.evaluated)) == pytest.approx(1, abs=0.01)


def test_the_report_is_given_what_was_found_and_probable_wrong_labels(
    made, drawn, tmp_path, written, capsys
):
    dataset, split = scan(drawn), Split.read(split_record(made))
    network, metadata = load_checkpoint(made)
    uncalibrated = np.eye(5)[dataset.labels(split.evaluated)] * 0.5 + 0.1
    probabilities = np.eye(5)[dataset.labels(split.evaluated)] * 0.9 + 0.02
    result = evaluate.CalibratedModel(
        network, metadata, uncalibrated, probabilities, uncalibrated[:10]
    )
    features = np.random.default_rng(0).normal(0, 0.1, (50, 5))
    features += np.eye(5)[dataset.labels(dataset.images)] * 3
    features[12] = features[40]
    path = tmp_path / "a.h5"
    arguments = result, path, dataset, split
    history, curves = tmp_path / "history.csv", tmp_path / "curves.png"
    info = RunInfo(seed=1, calibrated_on="none")
    better = tmp_path / "xception_fin_01_0.900.h5"
    better.touch()
    evaluate.report(*arguments, evaluate.ReportSources(info, history, curves, features, 3))

    [label_issue] = written.pop("label_issues")
    assert label_issue.image == dataset.images[12]
    assert label_issue.image in (tmp_path / "a" / evaluate.LABEL_ISSUES).read_text()
    out = capsys.readouterr().out
    assert "Probably wrong labels: 1, in" in out
    assert f"{better}, of another run, has a higher accuracy in its name" in out
    assert out.endswith(f"Use it: python convert_to_tflite.py {path} --data {drawn}\n")
    own = "10 validation images, which are in neither the training nor the test set"
    assert written.pop("info") == RunInfo(
        seed=1,
        picked_on=f"The best epoch was picked on {own}",
        calibrated_on=f"The temperature was fitted on {own}",
    )
    expected = {
        "folder": tmp_path / "a",
        "checkpoint": path,
        "model": network,
        "dataset": dataset,
        "images": split.evaluated,
        "probabilities": probabilities,
        "uncalibrated": uncalibrated,
        "temperature": 0.5,
        "history": history,
        "kept_epoch": 3,
        "curves": curves,
        "set_name": "test",
        "details": metadata.details,
        "unknowns": {},
    }
    assert written.keys() == expected.keys()
    assert all(written[name] is value or written[name] == value for name, value in expected.items())

    evaluate.report(*arguments, evaluate.ReportSources(info))
    assert (written["label_issues"], written["curves"]) == ([], None)


def test_labels_that_are_as_probably_right_are_not_listed(monkeypatch, drawn):
    found = [LabelIssue("rose/1", "rose", "tulip", confidence) for confidence in (0.51, 0.5, 0.4)]
    monkeypatch.setattr(evaluate, "list_label_issues", lambda *_: found)
    assert evaluate._probable_label_issues(np.ones((50, 2)), scan(drawn), 1) == found[:1]
    assert evaluate._probable_label_issues(None, scan(drawn), 1) == []


def test_the_summary_gives_false_alarms_only_where_they_were_measured():
    unknowns = {
        "validation_images": 60,
        "false_alarms": [
            {"promised": 0.05, "found": 0.04, "n": 60},
            {"promised": 0.02, "found": 0.01, "n": 60},
        ],
        "far": {"all": {"called_unknown": {"0.05": 1.0, "0.02": 0.98}, "n": 168}},
    }
    drawn = "Called unknown: 98 % of 168 drawn images of other things"
    known = "1.0 % of 60 validation images (promised: at most 2 %)."
    assert evaluate._describe_unknowns(unknowns, "validation") == f"{drawn}, {known}"
    del unknowns["false_alarms"][1]
    assert evaluate._describe_unknowns(unknowns, "validation") == (
        f"{drawn}. How many of the 60 validation images are called unknown at 2 % is not "
        "measured: each half of them is compared with the other half, and that takes 100 or more."
    )


def test_the_next_command_is_quoted_and_names_the_images(tmp_path):
    checkpoint = Path("my models/a.h5")
    command = "python convert_to_tflite.py 'my models/a.h5'"
    assert evaluate.convert_command(checkpoint, Path("flowers")) == command
    assert evaluate.convert_command(checkpoint, Path("my data")) == f"{command} --data 'my data'"


@pytest.mark.parametrize("accuracy", [0.79, 0.81])
def test_a_poor_result_comes_with_what_to_look_at(accuracy, capsys):
    metrics = {
        "confusion_matrix": [[5, 1, 0], [4, 5, 3], [0, 0, 9]],
        "class_names": ["aster", "rose", "tulip"],
    }
    result = SimpleNamespace(metadata=Metadata((), 1, accuracy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "table", lambda metrics: "")
        evaluate.print_summary(result, metrics, None, Split(1, (), ("a",) * 10))
    out = capsys.readouterr().out
    said = "Most frequent mistake: rose predicted as aster (4). What to try: docs/training.md#few"
    assert (said in out) == (accuracy < 0.8)


def test_activations_stand_for_their_images(made, drawn, tmp_path):
    dataset, split = scan(drawn), Split.read(split_record(made))
    images = ImageSource(dataset, (SIDE, SIDE))
    frozen, _ = model.split_at_block(load_checkpoint(made)[0], None)
    activations = CachedFeatures(images, frozen, "float32", tmp_path)
    activations.compute([(i, 0) for i in range(len(dataset.images))])
    features = activations.inputs([(i, 0) for i in range(len(dataset.images))])
    one, other = (
        evaluate.calibrate(*load_checkpoint(made), dataset, split, source, known)
        for source, known in ((images, None), (activations, features))
    )
    assert other.metadata.temperature == pytest.approx(one.metadata.temperature, rel=1e-3)
    assert other.metadata.val_accuracy == one.metadata.val_accuracy
    for name in ("uncalibrated", "probabilities", "val_probabilities"):
        assert np.allclose(getattr(other, name), getattr(one, name), atol=1e-4)
    for mine, same in zip(one.features, other.features, strict=True):
        assert np.allclose(mine.features, same.features, atol=0.02)  # bfloat16 in training images
        assert np.array_equal(mine.classes, same.classes)
    assert len(one.features.train.classes) == len(split.train)
    sets = [result.metadata.details for result in (one, other)]
    assert np.allclose(*(each.nonconformity for each in sets), atol=1e-4)
    assert len(sets[0].familiarity.distances) == len(sets[1].familiarity.distances) == 10
    inputs = images.inputs([(i, 0) for i in range(5)])
    assert np.allclose(other.model(inputs), one.model(inputs), atol=1e-4)


@pytest.fixture
def details_of(made, drawn):
    """Calibrate with or without the training images in the folder; returns the details."""

    def calibrate(metadata=None, has_train=True, side=SIDE):
        network, first = load_checkpoint(made)
        dataset, split = scan(drawn), Split.read(split_record(made))
        if not has_train:
            dataset = replace(dataset, images=tuple(sorted(split.validation + split.test)))
        source = ImageSource(dataset, (side, side))
        result = evaluate.calibrate(network, metadata or first, dataset, split, source)
        return result.metadata

    return calibrate


def test_details_are_fitted_to_the_images_of_each_set(details_of, made, drawn, capsys):
    metadata = details_of()
    out = capsys.readouterr().out
    split = Split.read(split_record(made))
    count = len(split.train)
    assert f"Features: running the network once on {count} training images.\n" in out
    assert "  The model calls no image unknown: 10 validation images give no p-value below" in out
    network, first = load_checkpoint(made)
    probabilities, truth = answers(made, drawn, split.validation)
    before = apply_temperature(probabilities, metadata.temperature / first.temperature)
    assert metadata.details.nonconformity == pytest.approx(
        np.sort(1 - before[np.arange(10), truth]), abs=1e-4
    )
    frozen, _ = model.split_at_block(network, None)
    inputs = Batches(ImageSource(scan(drawn), (SIDE, SIDE)), split.validation, 8)
    features = frozen.predict(inputs, verbose=0)
    found = [metadata.details.familiarity.distance(row) for row in features]
    assert metadata.details.familiarity.distances == pytest.approx(np.sort(found), rel=1e-3)


def test_without_training_images_a_checkpoint_of_this_size_keeps_its_familiarity(
    details_of, capsys
):
    first = details_of()
    kept = details_of(first, has_train=False).details.familiarity
    assert np.array_equal(kept.directions, first.details.familiarity.directions)
    assert "it has 0 training images" not in capsys.readouterr().out
    for metadata, side in ((first, SIDE + 4), (None, SIDE)):
        assert details_of(metadata, has_train=False, side=side).details.familiarity is None
        assert "it has 0 training images, of 8 or more.\n" in capsys.readouterr().out


@pytest.mark.usefixtures("written")
def test_once_more_changes_nothing(made, drawn, tmp_path):
    _, [first] = run(made, tmp_path / "1", drawn)
    _, [second] = run(first, tmp_path / "2", drawn)
    assert first.name == second.name
    assert read_metadata(second).temperature == pytest.approx(
        read_metadata(first).temperature, rel=1e-3
    )
    images = Split.read(split_record(first)).evaluated
    one, _ = answers(first, drawn, images)
    assert np.allclose(one, answers(second, drawn, images)[0], atol=1e-3)


def test_at_another_size(made, drawn, tmp_path):
    exit_code, [path] = run(made, tmp_path, drawn, "--inference-size", "75")
    assert exit_code == 0
    assert load_checkpoint(path)[0].input_shape == (None, 75, 75, 3)
    probabilities, truth = answers(path, drawn, Split.read(split_record(path)).evaluated)
    accuracy = (probabilities.argmax(axis=1) == truth).mean()
    assert read_metadata(path).val_accuracy == pytest.approx(accuracy)


def test_what_cannot_be_reported_on_ends_with_one_sentence(made, drawn, tmp_path, capsys):
    (tmp_path / "all.txt").write_text("\n".join(Split.read(split_record(made)).evaluated))
    alone = tmp_path / "xception_fin_01_0.500.h5"
    alone.write_bytes(made.read_bytes())
    few, fewer = tmp_path / "few", tmp_path / "fewer"
    whole = Split.read(split_record(made))
    without = {}
    for part in ("test", "validation"):
        without[part] = tmp_path / part
        for name in set(scan(drawn).images) - set(getattr(whole, part)):
            (without[part] / name).parent.mkdir(parents=True, exist_ok=True)
            (without[part] / name).symlink_to(drawn / name)
    for folder, names in ((few, scan(drawn).class_names), (fewer, ("rose", "tulip"))):
        for name in names:
            (folder / name).mkdir(parents=True)
            for image in sorted((drawn / name).iterdir())[:5]:
                (folder / name / image.name).write_bytes(image.read_bytes())
    for checkpoint, data, flags, sentence in (
        (made, drawn, ["--exclude", str(tmp_path / "all.txt")], "Remove some from"),
        (made, few, [], "Name the right one with --data."),
        (made, without["test"], [], "Received: a folder without 20 of them."),
        (made, without["validation"], [], "Received: a folder without 10 of them."),
        (made, fewer, [], "Received: rose, tulip. Name the right folder with --data."),
        (alone, drawn, [], "Expected xception_fin_01_0.500.split.json beside the checkpoint."),
        (tmp_path / "no.h5", drawn, [], "no.h5"),
    ):
        command = [str(checkpoint), str(tmp_path / "new"), "--data", str(data), *flags]
        assert main(command) == 1
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_stopped_by_hand_it_says_so_in_one_line(made, drawn, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "calibrate", stop)
    assert run(made, tmp_path, drawn)[0] == 130
    assert capsys.readouterr().err == "\nevaluation: Stopped.\n"


def test_a_size_is_one_that_the_network_takes(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(made), str(tmp_path), "--inference-size", "70"])
    assert "expected 71 or more. Received: 70" in capsys.readouterr().err
