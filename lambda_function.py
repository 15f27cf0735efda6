"""The AWS Lambda entry point: an event in, scores out.

    {"url": "https://..."} or {"image": "<base64 of an image file>"}
    -> {"daisy": 0.00012, "dandelion": 0.00003, "rose": 0.99821, ...}
    -> {"error": {"type": "FetchError", "message": "..."}}
    {"urls": [...]} or {"images": [...]} -> a list of these, in order
    HTTP requests of API Gateway, Function URLs and load balancers -> the same as JSON

The model is the best .tflite file of models/ beside this file; MODEL_PATH names another one.
"""

import os
from pathlib import Path

from serving import fetch
from serving.classifier import Classifier
from serving.model_files import best_model, thread_count
from serving.service import Service

MODEL_PATH = os.environ.get("MODEL_PATH") or best_model(Path(__file__).parent / "models", ".tflite")
classifier = Classifier(MODEL_PATH, threads=thread_count())
service = Service(classifier, Path(MODEL_PATH).stem)
fetch.prepare()


def lambda_handler(event: object, context: object) -> dict | list:
    """Return what `event` asks for, or why there is none: see README, "Serve".

    Scores go from 0 to 1 and are rounded to five decimals. Of `context` the remaining time and
    the request's id are used, where it has them.
    """
    return service.handle(event, context)
