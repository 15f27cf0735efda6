"""Quantize a float32 .tflite file to int8 with another quantizer than TensorFlow's.

    .cache/peers/bin/python -P benchmarks/peer_quantizers.py QUANTIZER MODEL INPUTS OUTPUT

QUANTIZER is "nncf", which writes OpenVINO's .xml and .bin, or "ai-edge-quantizer", which writes a
.tflite file. INPUTS is a .npy file of inputs to calibrate on, float32 (n, height, width, 3). This
file imports nothing of the project: its environment has other packages.
"""

import sys
from importlib import import_module

import numpy as np


def quantize_by_nncf(model: str, inputs: np.ndarray, output: str) -> None:
    """Write `model` in OpenVINO's format: weights symmetric, activations as they need it."""
    nncf, openvino = import_module("nncf"), import_module("openvino")
    network = openvino.Core().read_model(model)
    network.reshape([1, *inputs.shape[1:]])
    quantized = nncf.quantize(
        network,
        nncf.Dataset(inputs, lambda image: image[np.newaxis]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(inputs),
    )
    openvino.save_model(quantized, output, compress_to_fp16=False)


def quantize_by_ai_edge(model: str, inputs: np.ndarray, output: str) -> None:
    """Write `model` with int8 weights and activations; inputs, softmax and outputs stay float32."""
    quantizer = import_module("ai_edge_quantizer.quantizer").Quantizer(model)
    recipe = import_module("ai_edge_quantizer.recipe")
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model)
    [(signature, names)] = interpreter.get_signature_list().items()
    [name] = names["inputs"]
    quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
    operations = import_module("ai_edge_quantizer.qtyping").TFLOperationName
    for operation in (operations.INPUT, operations.OUTPUT, operations.SOFTMAX):
        quantizer.update_quantization_recipe(".*", operation, algorithm_key="no_quantize")
    calibrated = quantizer.calibrate({signature: [{name: image[np.newaxis]} for image in inputs]})
    quantizer.quantize(calibrated).export_model(output, overwrite=True)


QUANTIZERS = {"nncf": quantize_by_nncf, "ai-edge-quantizer": quantize_by_ai_edge}


def main() -> None:
    """Quantize as the command line says."""
    quantizer, model, inputs, output = sys.argv[1:]
    QUANTIZERS[quantizer](model, np.load(inputs), output)


if __name__ == "__main__":
    main()
