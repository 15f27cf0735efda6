"""Makes the models that benchmarks.peers compares: what ships, and what others make of it."""

import contextlib
import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks import serving
from benchmarks.load import LoadError
from benchmarks.peer_process import ONNX_RUNTIME
from serving.preprocess import scale
from training.backend import tf
from training.checkpoint import load_checkpoint
from training.export.compare import choose_images
from training.export.tflite import drop_outliers
from training.outputs import with_activations

QUANTIZERS = Path(__file__).with_name("peer_quantizers.py")


@dataclass(frozen=True)
class Peer:
    """A model and what runs it.

    Attributes:
        name: of the model, in tables.
        engine: as benchmarks.peer_process knows it.
        path: the model file.
        quantizer: of benchmarks/peer_quantizers.py that makes it, "" if none does.
    """

    name: str
    engine: str
    path: Path
    quantizer: str = ""

    @property
    def is_int8(self) -> bool:
        """Whether its weights and activations are int8."""
        return self.name.startswith("int8")

    @property
    def size(self) -> int:
        """Bytes of its files; OpenVINO's format has the weights in a second one."""
        weights = self.path.with_suffix(".bin")
        beside = weights if self.path.suffix == ".xml" else None
        return sum(path.stat().st_size for path in (self.path, beside) if path)


def make_peers(checkpoint: Path, data: Path, python: Path | None = None) -> list[Peer]:
    """Return all peers of `checkpoint`, what ships first; models are made where they are missing.

    int8 is calibrated on training images of `data`. `python` is that of an environment with NNCF
    and AI Edge Quantizer; for None their peers are left out.

    Raises:
        LoadError: a model cannot be made.
    """
    shipped = serving.convert(checkpoint, "int8", data)
    plain = serving.convert(checkpoint, "none", data)
    folder = serving.CONVERTED / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    base = Peer("float32", ONNX_RUNTIME, folder / f"{checkpoint.stem}.onnx")
    if _is_older(base.path, checkpoint):
        export_onnx(checkpoint, base.path)
    made = [
        replace(peer, path=folder / f"{checkpoint.stem}.{peer.path}")
        for peer in (*(ELSEWHERE if python else ()), *ONNX)
    ]
    missing = [peer for peer in made if _is_older(peer.path, checkpoint)]
    inputs = calibration_inputs(checkpoint, data) if missing else np.empty(0)
    for peer in missing:
        print(f"Quantize: {peer.name}; this takes a minute.", file=sys.stderr, flush=True)
        if python and peer.quantizer:
            quantize_elsewhere(python, plain, inputs, peer)
        else:
            quantize_onnx(base.path, inputs, peer)
    return [
        Peer("int8, as it ships", "openvino", shipped),
        Peer("int8, as it ships", "ai-edge-litert", shipped),
        *made,
        Peer("float32", "openvino", plain),
        Peer("float32", "ai-edge-litert", plain),
        Peer("float32, the default", "tflite-runtime", plain),
        base,
    ]


def _is_older(path: Path, checkpoint: Path) -> bool:
    return not path.exists() or path.stat().st_mtime < checkpoint.stat().st_mtime


def calibration_inputs(checkpoint: Path, data: Path) -> np.ndarray:
    """Return the inputs that convert_to_tflite.py calibrates int8 on.

    They are float32 (n, height, width, 3), -1 to 1.
    """
    model, _ = load_checkpoint(checkpoint)
    images, _ = choose_images(checkpoint, data, model.input_shape[1:3])
    return drop_outliers(model, np.stack([scale(load()) for load in images]))


def export_onnx(checkpoint: Path, path: Path) -> None:
    """Write `checkpoint` as ONNX to `path`, with the outputs that its .tflite file has."""
    model, _ = load_checkpoint(checkpoint)
    model = with_activations(model)
    model(tf.zeros((1, *model.input_shape[1:])))  # Keras exports only what was called
    with contextlib.redirect_stdout(io.StringIO()):
        model.export(str(path), format="onnx", verbose=False)


def quantize_onnx(source: Path, inputs: np.ndarray, peer: Peer) -> None:
    """Write `peer`, the ONNX model `source` with int8 operations, calibrated on `inputs`."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str):
            self._rows = ({name: image[np.newaxis]} for image in inputs)

        def get_next(self) -> dict[str, np.ndarray]:
            return next(self._rows, {})

    signed = peer.name.startswith("int8 S8S8")
    with tempfile.TemporaryDirectory(dir=peer.path.parent) as folder:
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "made.onnx")
        quant_pre_process(source, prepared)
        graph = onnx.load(prepared).graph
        quantize_static(
            prepared,
            made,
            Reader(graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Of 256 steps, none is left for small probabilities.
            nodes_to_exclude=[node.name for node in graph.node if node.op_type == "Softmax"],
            extra_options={"ActivationSymmetric": signed},
        )
        made.replace(peer.path)


def quantize_elsewhere(python: Path, source: Path, inputs: np.ndarray, peer: Peer) -> None:
    """Write `peer` from the .tflite file `source`, in the environment of `python`.

    Raises:
        LoadError: its quantizer fails.
    """
    with tempfile.TemporaryDirectory(dir=peer.path.parent) as folder:
        calibration = Path(folder, "inputs.npy")
        np.save(calibration, inputs)
        done = subprocess.run(
            [python, "-P", QUANTIZERS, peer.quantizer, source, calibration, peer.path],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise LoadError(f"Expected {peer.quantizer} to quantize a model. Received: {reason}")


ELSEWHERE = (
    Peer("int8 by NNCF", "openvino", Path("nncf.xml"), "nncf"),
    Peer(
        "int8 by AI Edge Quantizer", "ai-edge-litert", Path("ai_edge.tflite"), "ai-edge-quantizer"
    ),
)
ONNX = (
    Peer("int8 U8S8 QDQ", ONNX_RUNTIME, Path("u8s8.onnx")),
    Peer("int8 S8S8 QDQ", ONNX_RUNTIME, Path("s8s8.onnx")),
)
