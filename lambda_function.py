"""The AWS Lambda entry point: an event in, class scores out.

    {"url": "https://..."} or {"image": "<base64 of an image file>"}
    -> {"daisy": 0.00012, "dandelion": 0.00003, "rose": 0.99821, ...}
    -> {"error": {"type": "FetchError", "message": "..."}}
    {"urls": [...]} or {"images": [...]} -> a list of these, in order
    HTTP requests from API Gateway, Function URLs and load balancers -> the same as JSON

The model is the best .tflite file in models/ next to this file, unless MODEL_PATH names another.
"""

import os
from pathlib import Path

from serving import fetch, snapshot
from serving.classifier import Classifier
from serving.decoder import Decoder
from serving.handler import Handler
from serving.model_files import best_model
from serving.resources import thread_count
from serving.service import Service

MODEL_PATH = os.environ.get("MODEL_PATH") or best_model(Path(__file__).parent / "models", ".tflite")
decoder = Decoder()  # before the model, which its processes need not hold
classifier = Classifier(MODEL_PATH, threads=thread_count())
handler = Handler(Service(classifier, Path(MODEL_PATH).stem, decoder))
fetch.prepare()
snapshot.register(handler.service)


def lambda_handler(event: object, context: object) -> dict | list:
    """Return the scores of the images in `event`, or an error.

    See docs/serving.md. Scores are between 0 and 1, rounded to five decimals. Of `context`, only
    the remaining time and the request's ID are used.
    """
    return handler.handle(event, context)
