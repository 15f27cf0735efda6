"""benchmarks/peers.py: each model answers in its own process, and the tables say what was found."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
import onnx
import pytest
from conftest import ROOT
from PIL import Image

from benchmarks import peer_models, peers, serving
from benchmarks.load import LoadError
from benchmarks.peer_models import Peer
from training.dataset.scan import scan
from training.dataset.split import Split, split_dataset

LABELS = ("red", "green", "blue")
WRONG = "red/90.png"  # which is blue
# Takes the quantizers' place: checks what it is given, and writes the model as it is.
FAKE = """
import sys
from pathlib import Path
import numpy as np, openvino
quantizer, model, inputs, output = sys.argv[1:]
inputs = np.load(inputs)
assert inputs.shape[1:] == (32, 48, 3) and inputs.dtype == np.float32 and abs(inputs).max() <= 1
if quantizer == "nncf":
    openvino.save_model(openvino.Core().read_model(model), output, compress_to_fp16=False)
else:
    Path(output).write_bytes(Path(model).read_bytes())
"""


@pytest.fixture
def flowers(telling, tmp_path):
    """A folder of ten images of each colour and one with a wrong label."""
    best = telling.images.mean(axis=(1, 2)).argmax(axis=1)
    for place, name in enumerate(LABELS):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for row in np.flatnonzero(best == place)[:10]:
            Image.fromarray(telling.images[row]).save(tmp_path / "flowers" / name / f"{row}.png")
    blue = telling.images[np.flatnonzero(best == 2)[10]]
    Image.fromarray(blue).save(tmp_path / "flowers" / WRONG)
    return tmp_path / "flowers"


def split_of(flowers, seed):
    return split_dataset(scan(flowers), seed, validation_fraction=0.2, test_fraction=0.4)


@pytest.fixture
def whole(flowers):
    """A split whose test set includes the image with a wrong label."""
    return next(split for seed in range(99) if WRONG in (split := split_of(flowers, seed)).test)


@pytest.fixture
def made(telling, whole, monkeypatch, tmp_path):
    """The command's flags, with a checkpoint that was trained without the wrong label."""
    monkeypatch.setattr(serving, "CONVERTED", tmp_path / "made")
    checkpoint = tmp_path / "models" / telling.checkpoint.name
    checkpoint.parent.mkdir()
    copy(telling.checkpoint, checkpoint)
    earlier = checkpoint.stat().st_mtime - 1  # than what is made of it, also where times are coarse
    os.utime(checkpoint, (earlier, earlier))
    whole.without({WRONG}).write(checkpoint.with_suffix(".split.json"))
    for kind, path in (("none", telling.tflite), ("int8", telling.int8)):
        (tmp_path / "made" / kind).mkdir(parents=True)
        copy(
            path, peer_models.serving.tflite_path(tmp_path / "made" / kind / checkpoint.name, kind)
        )
    (tmp_path / "quantizers.py").write_text(FAKE)
    monkeypatch.setattr(peer_models, "QUANTIZERS", tmp_path / "quantizers.py")
    (tmp_path / "wrong.txt").write_text(f"{WRONG}  # blue\n")
    return [
        *("--data", str(tmp_path / "flowers"), "--checkpoint", str(checkpoint)),
        *("--audit", str(tmp_path / "wrong.txt"), "--rounds", "3", "--starts", "2"),
        *("--python", sys.executable),
    ]


ROWS = [
    ("int8, as it ships", "openvino"),
    ("int8, as it ships", "ai-edge-litert"),
    ("int8 by NNCF", "openvino"),
    ("int8 by AI Edge Quantizer", "ai-edge-litert"),
    ("int8 U8S8 QDQ", "onnxruntime"),
    ("int8 S8S8 QDQ", "onnxruntime"),
    ("float32", "openvino"),
    ("float32", "ai-edge-litert"),
    ("float32, the default", "tflite-runtime"),
    ("float32", "onnxruntime"),
]


def test_each_model_is_measured_beside_what_ships(made, whole, capsys):
    assert peers.main(made) == 0
    out = capsys.readouterr().out
    n = len(whole.test)
    assert f"| as labelled, n = {n} | audited, n = {n - 1} |" in out
    accurate = re.findall(
        r"^\| (.+) \| (\S*) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        out,
        re.M,
    )
    assert [row[:2] for row in accurate] == [("the checkpoint", ""), *ROWS[:6]]
    # Every colour is told apart, and the wrong label is the one mistake.
    assert accurate[0][2:5] == (f"{(n - 1) / n:.3f}", "1.000", "1.000")
    assert all(float(row[4]) > 0.5 for row in accurate)
    fast = re.findall(r"^\| (.+) \| (\S+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", out, re.M)
    assert [row[:2] for row in fast] == ROWS
    assert fast[0][3] == "1.00"
    # A process with NumPy and a runtime has more than this, and this test's own far more.
    assert all(20 < int(row[5]) < 400 for row in fast)


def test_models_are_made_once_and_of_each_checkpoint(made, monkeypatch, capsys):
    flags = [*made[:-2], "--images", "0", "--rounds", "1", "--starts", "1"]
    assert peers.main(flags) == 0
    captured = capsys.readouterr()
    assert captured.err.count("Quantize: ") == 2
    assert "NNCF" not in captured.out  # without --python
    assert peers.main(flags) == 0
    assert capsys.readouterr().err.count("Quantize: ") == 0
    checkpoint = Path(made[3])
    later = checkpoint.stat().st_mtime + 60
    os.utime(checkpoint, (later, later))
    monkeypatch.setattr(
        serving, "convert", lambda _, kind, data: next((serving.CONVERTED / kind).glob("*.tflite"))
    )
    assert peers.main(flags) == 0
    assert capsys.readouterr().err.count("Quantize: ") == 2


@pytest.mark.parametrize(
    ("peer", "activations", "zero_point"),
    [(peer_models.ONNX[0], "uint8", None), (peer_models.ONNX[1], "int8", 0)],
)
def test_onnx_is_int8_with_a_scale_for_each_channel(
    telling, tmp_path, peer, activations, zero_point
):
    source, path = tmp_path / "float32.onnx", tmp_path / "int8.onnx"
    peer_models.export_onnx(telling.checkpoint, source)
    inputs = np.float32(telling.images[:8] / 127.5 - 1)
    peer_models.quantize_onnx(source, inputs, replace(peer, path=path))
    graph = onnx.load(path).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantized
    for node in quantized:
        assert values[node.input[2]].dtype == activations
        assert zero_point is None or values[node.input[2]] == zero_point
    [convolution] = [node for node in graph.node if node.op_type == "Conv"]
    [weights] = [node for node in graph.node if convolution.input[1] in node.output]
    assert weights.op_type == "DequantizeLinear"
    assert values[weights.input[0]].dtype == np.int8
    assert values[weights.input[1]].shape == (5,)
    assert [len(output.type.tensor_type.shape.dim) for output in graph.output] == [2, 4]


def test_images_that_training_excluded_are_evaluated_as_labelled(flowers, whole):
    dataset = scan(flowers)
    recorded = whole.without({WRONG})
    assert peers.evaluated_images(recorded, dataset) == sorted(whole.test)
    # Of another split, nothing is known about them.
    moved = Split(
        recorded.seed, recorded.train + recorded.test[:1], (), recorded.test[1:], 0.2, 0.4
    )
    assert peers.evaluated_images(moved, dataset) == sorted(recorded.test[1:])


def test_a_ratio_is_the_median_of_the_rounds(capsys):
    ships = peers.Timing([1.0, 3.0, 2.0], [0.010, 0.020, 0.090], 100_000)
    other = peers.Timing([0.5], [0.005, 0.005, 0.090], 200_000)
    paths = [Peer("a", "openvino", Path("a")), Peer("b", "onnxruntime", Path("b"))]
    peers.print_speed(paths, [ships, other])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first == "| a | openvino | 20.0 | 1.00 | 2000 | 100 |"
    assert second == "| b | onnxruntime | 5.0 | 2.00 | 500 | 200 |"


def test_accuracy_is_counted_with_and_without_the_wrong_labels():
    expected = np.eye(2)[[0, 0, 1, 1]]
    received = np.array([[0.6, 0.4], [0.4, 0.6], [0.4, 0.6], [0.4, 0.6]])
    cells = peers.accuracy_cells(
        received, expected, np.array([0, 1, 1, 0]), np.array([False, False, False, True])
    )
    assert cells == ["0.750", "1.000", "0.750", "0.400"]
    assert peers.accuracy_cells(received, expected, np.zeros(4, int), np.ones(4, bool)) == [
        *("0.250", "", "0.750", "")
    ]


def test_openvinos_weights_count_in_the_size(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"123")
    (tmp_path / "a.bin").write_bytes(b"12345")
    assert Peer("a", "openvino", tmp_path / "a.xml").size == 8
    assert Peer("a", "openvino", tmp_path / "a.bin").size == 5


def test_a_quantizer_that_fails_is_reported(made, capsys):
    peer_models.QUANTIZERS.write_text("raise ValueError('not today')")
    assert peers.main(made) == 1
    assert capsys.readouterr().err.endswith(
        "benchmarks.peers: Expected nncf to quantize a model. Received: ValueError: not today\n"
    )


def test_a_model_that_does_not_run_is_reported(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"no model")
    np.save(tmp_path / "inputs.npy", np.zeros((1, 32, 48, 3), np.float32))
    for engine in ("openvino", "ai-edge-litert", "onnxruntime"):
        with pytest.raises(LoadError, match=rf"Expected {engine} to run a.tflite. Received: \w+"):
            peers.PeerProcess(Peer("a", engine, path), tmp_path / "inputs.npy", 1)


def test_a_checkpoint_without_its_split_is_one_sentence(made, capsys):
    Path(made[3]).with_suffix(".split.json").unlink()
    assert peers.main(made) == 1
    assert capsys.readouterr().err.startswith("benchmarks.peers: Expected xception_fin_05_0.900.sp")


def test_the_quantizers_need_nothing_of_the_project():
    source = (ROOT / "benchmarks" / "peer_quantizers.py").read_text(encoding="utf-8")
    imported = re.findall(r"^(?:from|import) (\w+)", source, re.M)
    assert set(imported) == {"sys", "importlib", "numpy"}
