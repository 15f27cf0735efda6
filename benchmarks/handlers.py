"""A handler in a process of its own, for benchmarks.serving: it tells how it started, then answers.

    python -m benchmarks.handlers HOW MODEL RUNTIME    # an address a line on standard input

HOW is "original", the original's handler; "ours"; or "onnx", ours around ONNX Runtime. It prints a
JSON object of the seconds until its first answer, then for each further address the seconds
that the answer took, and at the end the kilobytes of memory that it has had at most.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

Handler = Callable[[str], dict]  # from an image's address to {label: score}


def original(model: str, runtime: str) -> tuple[Handler, float]:
    """Return the original's handler, written anew, and when its imports were done."""
    import tflite_runtime.interpreter as tflite
    from keras_image_helper import create_preprocessor

    from serving.classifier import read_labels

    imported = time.monotonic()
    classes = read_labels(Path(model))
    interpreter = tflite.Interpreter(model_path=model)
    interpreter.allocate_tensors()
    _, height, width, _ = map(int, interpreter.get_input_details()[0]["shape"])
    taken = interpreter.get_input_details()[0]["index"]
    given = interpreter.get_output_details()[0]["index"]
    preprocessor = create_preprocessor("xception", target_size=(width, height))

    def predict(url: str) -> dict:
        interpreter.set_tensor(taken, preprocessor.from_url(url))
        interpreter.invoke()
        scores = interpreter.get_tensor(given)[0].round(5).tolist()
        return dict(zip(classes, scores, strict=True))

    return predict, imported


def ours(model: str, runtime: str) -> tuple[Handler, float]:
    """Return our handler as lambda_function.py makes it, and when its imports were done."""
    from serving import fetch
    from serving.classifier import Classifier
    from serving.model_files import thread_count
    from serving.runtimes import find_runtime
    from serving.service import Service

    find_runtime(runtime)
    imported = time.monotonic()
    service = Service(Classifier(model, thread_count(), runtime), Path(model).stem)
    fetch.prepare()
    return lambda url: service.handle({"url": url}), imported


def onnx(model: str, runtime: str) -> tuple[Handler, float]:
    """Return our handler around ONNX Runtime, for `model` with its `.tflite` file beside it."""
    import onnxruntime

    from serving import fetch
    from serving.classifier import read_labels
    from serving.model_files import thread_count
    from serving.service import Service

    class OnnxClassifier:
        def __init__(self):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = thread_count()
            self._session = onnxruntime.InferenceSession(model, options)
            [taken] = self._session.get_inputs()
            self._name, self.input_size = taken.name, tuple(taken.shape[1:3])
            self.labels = read_labels(Path(model).with_suffix(".tflite"))

        def probabilities(self, inputs):
            return self._session.run(None, {self._name: inputs})[0][0]

    imported = time.monotonic()
    service = Service(OnnxClassifier(), Path(model).stem)
    fetch.prepare()
    return lambda url: service.handle({"url": url}), imported


HANDLERS = {"original": original, "ours": ours, "onnx": onnx}


def main() -> None:
    """Do as the command line says until standard input ends."""
    started = time.monotonic()
    how, model, runtime = sys.argv[1:]
    # What handlers log is not to get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    handler, imported = HANDLERS[how](model, runtime)
    loaded = time.monotonic()
    first = sys.stdin.readline().strip()
    asked = time.monotonic()
    check(handler(first))
    answered = time.monotonic()
    parts = {"imports": imported - started, "load": loaded - imported, "first": answered - asked}
    print(json.dumps(parts), file=answers)
    for line in sys.stdin:
        asked = time.monotonic()
        scores = handler(line.strip())
        print(time.monotonic() - asked, file=answers)
        check(scores)
    # Not getrusage's: that counts what the parent process had.
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s+(\d+) kB", status)[1], file=answers)


def check(scores: dict) -> None:
    """End the process if `scores` is no {label: score}."""
    if not all(isinstance(score, float) for score in scores.values()):
        sys.exit(f"Expected scores. Received: {scores}")


if __name__ == "__main__":
    main()
