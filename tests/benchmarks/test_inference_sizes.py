"""benchmarks.inference_sizes: accuracy is that of the files, and nothing is measured twice."""

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_tiny
from knowing_network import build_knowing
from PIL import Image

from benchmarks import inference_sizes
from benchmarks.inference_sizes import Candidate, Row, calibrate, measure, parse_arguments
from experiments.predictions import Predictions
from experiments.records import Records
from training import model
from training.batches import Batches
from training.checkpoint import Metadata, load_checkpoint, save_checkpoint, split_record
from training.dataset.scan import scan
from training.dataset.split import Split, split_dataset
from training.evaluation.metrics import wilson, with_interval
from training.evaluation.paired import compare_hits
from training.images import ImageSource

SIDE, OTHER = 71, 90


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    """Networks that are built here, for another size, are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "build_model", build_tiny)
        yield


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory):
    """A checkpoint with its split; it knows a little of all images."""
    dataset = scan(drawn)
    network = build_knowing(dataset, SIDE)
    path = tmp_path_factory.mktemp("models") / "xception_fin_04_0.123.h5"
    save_checkpoint(network, path, Metadata(dataset.class_names, 4, 0.123))
    split_dataset(dataset, 1, validation_fraction=0.4, test_fraction=0.4).write(split_record(path))
    return path


@pytest.fixture(scope="module")
def audit(made, tmp_path_factory):
    """A list with two test images, two validation images and a training image."""
    split = Split.read(split_record(made))
    listed = (*split.test[:2], *split.validation[:2], split.train[0])
    path = tmp_path_factory.mktemp("audit") / "wrong.txt"
    path.write_text("\n".join(listed))
    return path


@pytest.fixture(scope="module")
def flags(made, audit, drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    places = ["--checkpoint", made, "--audit", audit, "--data", drawn, "--out", out]
    return [*map(str, places), "--sizes", str(SIDE), str(OTHER)]


@pytest.fixture(scope="module")
def chart(flags, tmp_path_factory):
    """The chart of a whole run, whose results stay for those that follow."""
    path = tmp_path_factory.mktemp("chart") / "chart.png"
    assert inference_sizes.main([*flags, "--rounds", "1", "--chart", str(path)]) == 0
    return path


def printed(capsys):
    """Return the rows of the table that was printed, and its head."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    head, _, *rows = (line.strip("| ").split(" | ") for line in lines)
    return head, rows


def subject_of(flags):
    return inference_sizes.read_subject(parse_arguments(flags))


def keras_hits(made, drawn, size):
    """Return which of the test images the checkpoint classifies correctly at `size` in Keras."""
    network = model.with_input_size(load_checkpoint(made)[0], (size, size))
    dataset, test = scan(drawn), Split.read(split_record(made)).test
    found = network.predict(Batches(ImageSource(dataset, (size, size)), test, 8), verbose=0)
    return found.argmax(axis=1) == dataset.labels(test)


def accuracy(hits):
    return with_interval(hits.mean(), wilson(int(hits.sum()), len(hits)))


def test_the_table_has_the_checkpoints_accuracy_at_each_size(made, drawn, flags, chart, capsys):
    assert inference_sizes.main([*flags, "--rounds", "1"]) == 0
    head, rows = printed(capsys)
    assert head[2:4] == ["accuracy as labelled, n = 20", "audited, n = 18"]
    places = [(str(size), kind) for kind in ("float32", "int8") for size in (SIDE, OTHER)]
    assert [tuple(row[:2]) for row in rows] == places
    own, other = (keras_hits(made, drawn, size) for size in (SIDE, OTHER))
    assert 0.3 < own.mean() < 1, "or nothing could be told apart"
    assert [row[2] for row in rows[:2]] == [accuracy(own), accuracy(other)]
    assert [row[3] for row in rows[:2]] == [accuracy(own[2:]), accuracy(other[2:])]
    paired = compare_hits(own[2:], other[2:])
    assert rows[0][4:6] == ["", ""]
    assert rows[1][4:6] == [f"{100 * paired.difference:+.1f}", f"{paired.p_value:.2g}"]


def test_int8_is_timed_where_it_is_fast(flags, chart, capsys):
    assert inference_sizes.main([*flags, "--rounds", "1"]) == 0
    head, rows = printed(capsys)
    assert head[7:] == ["tflite-runtime ms", "ai-edge-litert ms", "openvino ms"]
    for row in rows:
        assert (row[7] == "–") == (row[1] == "int8")
        assert all(re.fullmatch(r"\d+\.\d", cell) for cell in row[8:])
    [finished] = inference_sizes.open_records(subject_of(flags)).rows
    assert len(finished) == 2 * 5
    for seconds in finished.values():
        assert len(seconds) == inference_sizes.REPEATS
        assert 0 < min(seconds) < 1


def test_the_chart_can_be_looked_at(chart):
    with Image.open(chart) as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_what_is_finished_is_not_measured_again(flags, chart, capsys, monkeypatch):
    assert inference_sizes.main([*flags, "--rounds", "1"]) == 0
    _, first = printed(capsys)
    timed = []
    monkeypatch.setattr(inference_sizes, "TFLiteProcess", None)
    monkeypatch.setattr(inference_sizes, "make_tflite", None)

    def time(path, candidate):
        timed.append(candidate)
        return [float(path.exists())] * 5

    monkeypatch.setattr(inference_sizes, "time", time)
    assert inference_sizes.main([*flags, "--rounds", "1"]) == 0
    assert printed(capsys)[1] == first
    assert not timed
    assert inference_sizes.main([*flags, "--rounds", "4"]) == 0
    assert len(timed) == 3 * len(set(timed)) == 3 * 2 * 5
    assert {float(cell) for row in printed(capsys)[1] for cell in row[8:]} == {1000.0}


def test_results_of_another_audit_are_not_taken_for_these(flags, chart, capsys):
    without = [*flags[:2], *flags[4:]]
    assert inference_sizes.main(without) == 1
    assert "audit" in capsys.readouterr().err


def test_without_rounds_nothing_is_timed(made, drawn, tmp_path, capsys):
    flags = ["--checkpoint", str(made), "--data", str(drawn), "--out", str(tmp_path / "out")]
    flags += ["--sizes", str(OTHER), "--runtimes", "ai-edge-litert", "--rounds", "0"]
    assert inference_sizes.main([*flags, "--chart", str(tmp_path / "chart.png")]) == 0
    _, rows = printed(capsys)
    assert [(row[1], row[4], row[7]) for row in rows] == [("float32", "", "–"), ("int8", "", "–")]
    assert rows[0][2] == rows[0][3] == accuracy(keras_hits(made, drawn, OTHER))
    assert not (tmp_path / "chart.png").exists()


def test_calibration_changes_no_class_and_leaves_wrong_labels_out(made, audit, flags, monkeypatch):
    subject, fitted = subject_of(flags), []

    def fit(probabilities, labels):
        fitted.append(len(labels))
        return 3.0

    monkeypatch.setattr(inference_sizes, "fit_temperature", fit)
    calibrated = calibrate(subject, OTHER)
    plain = model.with_input_size(load_checkpoint(made)[0], (OTHER, OTHER))
    images = Batches(ImageSource(subject.dataset, (OTHER, OTHER)), subject.split.test, 8)
    before, after = (each.predict(images, verbose=0) for each in (plain, calibrated))
    assert fitted == [len(subject.split.validation) - 2]
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert (after.max(axis=1) < before.max(axis=1)).all()


def test_what_the_report_left_out_is_measured_too(made, audit, flags, drawn):
    """As of the shipped checkpoint, whose split lacks what `--exclude` named."""
    whole, dataset = Split.read(split_record(made)), scan(drawn)
    listed = set(audit.read_text().splitlines())
    left = whole.without(listed)
    assert (len(left.validation), len(left.test)) == (len(whole.validation) - 2, 18)
    assert inference_sizes.with_excluded(left, dataset) == whole
    other = replace(left, seed=2)
    assert inference_sizes.with_excluded(other, dataset) == other


def test_sizes_take_turns_and_the_median_counts(flags, tmp_path, monkeypatch):
    subject = subject_of(flags)
    candidates = [Candidate(size, "none", "openvino") for size in (SIDE, OTHER)]
    taken, order = {SIDE: iter([[3, 1], [2, 9]]), OTHER: iter([[6], [8]])}, []

    def time(path, candidate):
        assert path == subject.tflite(candidate.size, "none")
        order.append(candidate.size)
        return next(taken[candidate.size])

    monkeypatch.setattr(inference_sizes, "time", time)
    records = Records(tmp_path / "rounds.jsonl", {})
    records.append({"71 none openvino": [100.0]})  # of other candidates
    found = measure(subject, candidates, 2, records)
    assert found == {candidates[0]: 2500.0, candidates[1]: 7000.0}
    assert sorted(order[:2]) == sorted(order[2:]) == [SIDE, OTHER]
    assert measure(subject, candidates, 0, Records(tmp_path / "others.jsonl", {})) == {}


def test_a_round_that_was_stopped_is_measured_again(flags, tmp_path, monkeypatch):
    subject = subject_of(flags)
    candidates = [Candidate(size, "none", "openvino") for size in (SIDE, OTHER)]
    left = iter([[1.0], [1.0], [1.0]])

    def time(path, candidate):
        try:
            return next(left)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(inference_sizes, "time", time)
    with pytest.raises(KeyboardInterrupt):
        measure(subject, candidates, 3, Records(tmp_path / "rounds.jsonl", {}))
    assert len(Records(tmp_path / "rounds.jsonl", {}).rows) == 1


def test_each_runtime_and_kind_has_a_line():
    names = ("a/1", "a/2", "b/3", "b/4")
    rows = []
    for place, (size, kind) in enumerate([(71, "none"), (90, "none"), (71, "int8"), (90, "int8")]):
        right = np.eye(2)[[0, 0, 1, 1]]
        right[:place] = right[:place, ::-1]  # the first are wrong
        times = {"openvino": 10.0 * place + 1} | ({"tflite-runtime": 99.0} if place < 2 else {})
        wrong = np.array([True, False, False, False])
        rows.append(Row(size, kind, Predictions(names, right, ("a", "b")), wrong, times))
    left, right = inference_sizes.draw(rows, ["tflite-runtime", "openvino"]).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn == {
        "tflite-runtime, float32": [[99, 1], [99, 0.75]],
        "openvino, float32": [[1, 1], [11, 0.75]],
        "openvino, int8": [[21, 0.5], [31, 0.25]],
    }
    audited = {line.get_label(): line.get_ydata().tolist() for line in right.lines}
    assert audited["openvino, float32"] == [1, 1]
    assert audited["openvino, int8"] == pytest.approx([2 / 3, 1 / 3])
    assert left.get_title("left") == "As labelled: 4 test images"
    assert right.get_title("left") == "Audited: 3 test images"
    assert [text.get_text() for text in left.texts] == ["71", "90"]
