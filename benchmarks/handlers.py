"""A handler in a process of its own, which benchmarks.serving times.

    python -m benchmarks.handlers HANDLER MODEL RUNTIME    # URLs on standard input, one a line

HANDLER is "original", the original's handler; "ours"; or "onnx", ours with ONNX Runtime. It prints
a JSON object with the seconds that imports, loading and the first prediction took, then the seconds
of each further prediction, and at the end its peak memory in kilobytes.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

Predict = Callable[[str], object]  # from an image's URL to {label: score}


def original(model: str, runtime: str) -> tuple[Predict, float]:
    """Return the original's handler, rewritten, and when its imports were done."""
    import tflite_runtime.interpreter as tflite
    from keras_image_helper import create_preprocessor

    from serving.classifier import read_labels

    imported = time.monotonic()
    classes = read_labels(Path(model))
    interpreter = tflite.Interpreter(model_path=model)
    interpreter.allocate_tensors()
    _, height, width, _ = map(int, interpreter.get_input_details()[0]["shape"])
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    preprocessor = create_preprocessor("xception", target_size=(width, height))

    def predict(url: str) -> dict:
        interpreter.set_tensor(input_index, preprocessor.from_url(url))
        interpreter.invoke()
        scores = interpreter.get_tensor(output_index)[0].round(5).tolist()
        return dict(zip(classes, scores, strict=True))

    return predict, imported


def ours(model: str, runtime: str) -> tuple[Predict, float]:
    """Return the handler of lambda_function.py, and when its imports were done."""
    from serving import fetch
    from serving.classifier import Classifier
    from serving.decoder import Decoder
    from serving.handler import Handler
    from serving.resources import thread_count
    from serving.runtimes import find_runtime
    from serving.service import Service

    find_runtime(runtime)
    imported = time.monotonic()
    decoder = Decoder()
    classifier = Classifier(model, thread_count(), runtime)
    handler = Handler(Service(classifier, Path(model).stem, decoder))
    fetch.prepare()
    return lambda url: handler.handle({"url": url}), imported


def onnx(model: str, runtime: str) -> tuple[Predict, float]:
    """Return our handler with ONNX Runtime; the .tflite file is beside `model`."""
    import numpy as np
    import onnxruntime

    from serving import fetch
    from serving.classifier import Classifier, read_labels
    from serving.decoder import Decoder
    from serving.details import Details
    from serving.handler import Handler
    from serving.resources import thread_count
    from serving.runtimes import Prediction
    from serving.service import Service

    class OnnxClassifier(Classifier):
        def __init__(self) -> None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = thread_count()
            self._session = onnxruntime.InferenceSession(model, options)
            [details] = self._session.get_inputs()
            self._name, self.input_size = details.name, tuple(details.shape[1:3])
            self.runtime = "onnxruntime"
            self.labels = read_labels(Path(model).with_suffix(".tflite"))

            self.details = Details()

        def predict(self, inputs: np.ndarray) -> Prediction:
            return Prediction(np.asarray(self._session.run(None, {self._name: inputs})[0])[0])

    imported = time.monotonic()
    handler = Handler(Service(OnnxClassifier(), Path(model).stem, Decoder()))
    fetch.prepare()
    return lambda url: handler.handle({"url": url}), imported


HANDLERS = {"original": original, "ours": ours, "onnx": onnx}


def main() -> None:
    """Predict as the command line says until standard input ends."""
    started = time.monotonic()
    how, model, runtime = sys.argv[1:]
    # Logs of the handlers must not mix with the results.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    predict, imported = HANDLERS[how](model, runtime)
    loaded = time.monotonic()
    first = sys.stdin.readline().strip()
    sent = time.monotonic()
    check_scores(predict(first))
    received = time.monotonic()
    parts = {"imports": imported - started, "load": loaded - imported, "first": received - sent}
    print(json.dumps(parts), file=results)
    for line in sys.stdin:
        sent = time.monotonic()
        scores = predict(line.strip())
        print(time.monotonic() - sent, file=results)
        check_scores(scores)
    # Not getrusage's: that includes the memory of the parent process.
    status = Path("/proc/self/status").read_text()
    print(*re.findall(r"VmHWM:\s+(\d+) kB", status), file=results)


def check_scores(scores: object) -> None:
    """End the process if `scores` is not {label: score}."""
    is_dict = isinstance(scores, dict)
    if not (is_dict and all(isinstance(score, float) for score in scores.values())):
        sys.exit(f"Expected scores. Received: {scores}")


if __name__ == "__main__":
    main()
