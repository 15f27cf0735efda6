"""benchmarks/details.py: each file is compared with a copy without details."""

from benchmarks import details
from serving.classifier import Classifier
from serving.details import Details
from serving.preprocess import scale


def test_each_file_is_timed_with_and_without_details(telling, capsys):
    runtimes = ["ai-edge-litert", "openvino"]
    assert details.main([str(telling.int8), "--rounds", "2", "--runtimes", *runtimes]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    rows = [row.strip("| ").split(" | ") for row in rows]
    assert [row[:2] for row in rows] == [["telling.int8.tflite", name] for name in runtimes]
    for row in rows:
        assert min(float(row[place]) for place in (2, 3, 5, 7)) >= 0
        assert all(abs(float(row[place])) < 100 for place in (4, 6))
        assert 1000 < int(row[9].replace(",", "")) < telling.int8.stat().st_size
        assert 100 < int(row[10]) < 1000


def test_the_copy_gives_the_same_scores_and_nothing_else(telling, tmp_path):
    copy = tmp_path / "copy.tflite"
    details.write_without_details(telling.tflite, copy)
    bare, full = (Classifier(path, 1, "ai-edge-litert") for path in (copy, telling.tflite))
    inputs = scale(telling.images[:1])
    assert bare.details == Details()
    assert bare.predict(inputs).activations is None
    assert bare.labels == full.labels
    assert (bare.probabilities(inputs) == full.probabilities(inputs)).all()
