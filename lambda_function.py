"""The AWS Lambda entry point: an event in, scores out.

    {"url": "https://..."} or {"image": "<base64 of a picture file>"}
    -> {"daisy": 0.00012, "dandelion": 0.00003, "rose": 0.99821, ...}
    -> {"error": {"type": "FetchError", "message": "..."}}

The model is the best .tflite file of models/ beside this file; MODEL_PATH names another one.
"""

import logging
import os
from pathlib import Path

from serving import events
from serving.classifier import Classifier
from serving.errors import InternalError, ServingError, as_answer
from serving.fetch import fetch
from serving.image import open_picture
from serving.models import best_model, thread_count

log = logging.getLogger(__name__)

MODEL_PATH = os.environ.get("MODEL_PATH") or best_model(Path(__file__).parent / "models", ".tflite")
classifier = Classifier(MODEL_PATH, threads=thread_count())


def lambda_handler(event: object, context: object) -> dict:
    """Return {label: score} of the picture that `event` names or holds, or why there is none.

    Scores go from 0 to 1 and are rounded to five decimals. `context` is not used.
    """
    try:
        request = events.parse(event)
        data = request.image if request.url is None else fetch(request.url)
        return classifier.classify(open_picture(data))
    except ServingError as error:
        return as_answer(error)
    except Exception:
        # The caller learns nothing of our insides; the log keeps all of it.
        log.exception("a request failed")
        return as_answer(InternalError("The service failed on this request; its log says why."))
