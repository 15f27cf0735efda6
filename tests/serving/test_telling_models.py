"""Models that tell more than scores, converted, on every runtime; and through the service."""

import base64
import io
import json
import zipfile
from importlib import import_module

import numpy as np
import pytest
from conftest import stripes
from PIL import Image

from serving.answers import describe
from serving.classifier import Classifier
from serving.details import DETAILS_FILE
from serving.errors import ModelError
from serving.handler import Handler
from serving.preprocess import scale
from serving.runtimes import RUNTIMES
from serving.service import Service
from training.evaluation.grad_cam import grad_cam

# Differences from Keras: of activations (0 to 1), on average, since int8 cuts off what is above
# nearly all of its calibration images; and the largest of a p-value, and of a map (0 to 1).
TOLERANCES = {"tflite": (1e-6, 0.01, 1e-3), "int8": (0.01, 0.2, 0.2)}
BELOW = 0.02

per_file = pytest.mark.parametrize("kind", TOLERANCES)
per_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


@pytest.fixture(scope="module")
def reference(telling):
    """The model in Keras, and the images that int8 was calibrated on."""
    from training.checkpoint import CheckpointClassifier

    return CheckpointClassifier(telling.checkpoint), telling.images[:100]


@per_file
@per_runtime
def test_every_runtime_returns_what_keras_does(telling, reference, kind, runtime):
    keras, images = reference
    classifier = Classifier(getattr(telling, kind), runtime=runtime)
    activation, p, heat = TOLERANCES[kind]
    for image in images:
        inputs = scale(image)[np.newaxis]
        expected, found = keras.predict(inputs), classifier.predict(inputs)
        assert found.activations.shape == (8, 12, 5)
        assert (found.probabilities.dtype, found.activations.dtype) == (np.float32, np.float32)
        assert np.abs(found.activations - expected.activations).mean() < activation
        told = [
            classifier.details.familiarity.known(each.activations) for each in (expected, found)
        ]
        assert abs(told[0] - told[1]) <= p
        index = int(expected.probabilities.argmax())
        if index == found.probabilities.argmax():
            maps = [
                classifier.details.activation_map(found.activations, index),
                grad_cam(telling.model, inputs, np.array([index]))[0],
            ]
            assert np.abs(maps[0] - maps[1]).max() < heat


@per_file
@per_runtime
def test_what_it_does_not_know_is_unknown_and_else_it_is_right(telling, kind, runtime):
    classifier = Classifier(getattr(telling, kind), runtime=runtime)

    def tell(image):
        prediction = classifier.predict(scale(image)[np.newaxis])
        return describe(classifier.labels, classifier.details, prediction, BELOW)

    told = [tell(image) for image in telling.images[-60:]]
    assert sum(each["unknown"] for each in told) <= 6
    colours = telling.images[-60:].mean(axis=(1, 2)).argmax(axis=1)
    right = [
        classifier.labels[c] in each["prediction_set"]
        for c, each in zip(colours, told, strict=True)
    ]
    assert np.mean(right) > 0.9
    strange = tell(stripes())
    assert (strange["known"], strange["unknown"]) == (0.0079, True)  # 1 of 126


def test_the_map_is_hot_where_the_colour_is(telling):
    image = np.zeros((32, 48, 3), np.uint8)
    image[8:16, 24:32, 1] = 255
    classifier = Classifier(telling.tflite)
    prediction = classifier.predict(scale(image)[np.newaxis])
    told = describe(classifier.labels, classifier.details, prediction, BELOW)
    heat = np.reshape(told["heatmap"]["values"], (8, 12))
    assert told["label"] == "green"
    assert (heat[2:4, 6:8] == 1).all()
    assert heat.sum() == 4


@per_file
@pytest.mark.parametrize("runtime", ["tflite-runtime", "ai-edge-litert"])
def test_programs_that_take_the_first_output_get_the_scores(telling, kind, runtime):
    module = import_module(RUNTIMES[runtime])
    interpreter = module.Interpreter(model_path=str(getattr(telling, kind)))
    outputs = interpreter.get_output_details()
    assert [output["name"] for output in outputs] == ["probabilities", "activations"]
    assert [len(output["shape"]) for output in outputs] == [2, 4]
    assert [output["dtype"] for output in outputs] == [np.float32, np.float32]


def test_openvino_finds_the_outputs_by_name(telling):
    model = import_module("openvino").Core().read_model(telling.tflite)
    assert [port.get_any_name() for port in model.outputs] == ["probabilities", "activations"]


def test_a_program_that_unpacks_the_file_finds_names_and_statistics(telling):
    with zipfile.ZipFile(telling.tflite) as archive:
        assert archive.namelist() == ["labels.txt", DETAILS_FILE]
        with np.load(io.BytesIO(archive.read(DETAILS_FILE))) as arrays:
            assert arrays["distances"].shape == (125,)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@per_runtime
def test_statistics_of_another_model_are_refused_at_once(telling, small_tflite, tmp_path, runtime):
    path = tmp_path / "a.tflite"
    path.write_bytes(telling.tflite.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(DETAILS_FILE, b"hello")
    with pytest.raises(ModelError, match="complete statistics of its own"):
        Classifier(path, runtime=runtime)
    with zipfile.ZipFile(telling.tflite) as archive:
        statistics = archive.read(DETAILS_FILE)
    path.write_bytes(small_tflite.read_bytes())  # which returns no activations
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(DETAILS_FILE, statistics)
    details = Classifier(path, runtime=runtime).details
    assert (details.familiarity, details.head) == (None, ())
    assert len(details.nonconformity) == 250


# Through the service.


@pytest.fixture
def handler(telling, decoder):
    return Handler(Service(Classifier(telling.tflite), "telling", decoder))


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def base64_of(pixels):
    return base64.b64encode(encoded(pixels)).decode()


def http(body, kind="image/png", query=None):
    return {
        "version": "2.0",
        "rawPath": "/",
        "requestContext": {"http": {"method": "POST"}},
        "headers": {"content-type": kind},
        "queryStringParameters": query or {},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def test_details_are_told_only_if_asked_for(telling, handler, capsys):
    event = {"image": base64_of(telling.images[-1])}
    plain = handler.handle(event)
    assert list(plain) == ["red", "green", "blue"]
    for absent in (False, None):
        assert json.dumps(handler.handle(event | {"details": absent})) == json.dumps(plain)
    told = handler.handle(event | {"details": True})
    assert told["scores"] == plain
    assert told["label"] == max(plain, key=plain.get)
    assert told["label"] in told["prediction_set"]
    assert (told["heatmap"]["rows"], told["heatmap"]["columns"]) == (8, 12)
    assert len(told["heatmap"]["values"]) == 96
    best = handler.handle(event | {"details": True, "top": 1})
    assert best == told | {"scores": {told["label"]: plain[told["label"]]}}


def test_each_image_of_several_has_its_own(telling, handler):
    images = [base64_of(telling.images[-1]), "?", base64_of(stripes())]
    known, error, unknown = handler.handle({"images": images, "details": True})
    assert (known["unknown"], unknown["unknown"]) == (False, True)
    assert list(error) == ["error"]
    [single] = handler.handle({"urls": ["data:;base64," + images[0]], "details": True})
    assert single == known


def test_over_http_the_query_wins(telling, handler):
    image = encoded(telling.images[-1])
    event = json.dumps({"image": base64.b64encode(image).decode(), "details": True}).encode()
    form = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    parts = form % (b"a", b'; filename="a"', image), form % (b"details", b"", b"on"), b"--b--\r\n"
    answers = {
        "a query": http(image, query={"details": "1"}),
        "JSON": http(event, "application/json"),
        "a form": http(b"".join(parts), "multipart/form-data; boundary=b"),
        "a query against JSON": http(event, "application/json", {"details": "false"}),
        "nothing": http(image),
    }
    told = {name: json.loads(handler.handle(e)["body"]) for name, e in answers.items()}
    assert [name for name, answer in told.items() if "label" in answer] == list(answers)[:3]
    assert told["a query"] == told["JSON"] == told["a form"]
    assert told["nothing"] == told["a query"]["scores"]


def test_the_log_counts_what_is_unknown(telling, handler, capsys, monkeypatch):
    monkeypatch.setenv("METRICS_NAMESPACE", "colours")
    images = [base64_of(telling.images[-1]), "?", base64_of(stripes())]
    handler.handle({"images": images})
    line = json.loads(capsys.readouterr().out)
    assert (line["classified"], line["unknown"], line["errors"]) == (2, 1, 1)
    assert [image.get("unknown") for image in line["images"]] == [False, None, True]
    assert line["images"][2]["known"] == 0.0079
    metrics = line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
    assert {"Name": "unknown", "Unit": "Count"} in metrics
    handler.handle({"image": "?"})
    assert "classified" not in json.loads(capsys.readouterr().out)


def test_a_model_that_tells_nothing_logs_nothing_of_it(small_tflite, decoder, capsys, telling):
    handler = Handler(Service(Classifier(small_tflite), "small", decoder))
    told = handler.handle({"image": base64_of(telling.images[-1]), "details": True})
    nulls = dict.fromkeys(("known", "unknown", "prediction_set", "heatmap"))
    assert told == {"label": told["label"], "scores": told["scores"]} | nulls
    line = json.loads(capsys.readouterr().out)
    assert not {"known", "unknown", "classified"} & {*line, *line["images"][0]}


def test_unknown_below_decides(telling, decoder, monkeypatch):
    event = {"image": base64_of(stripes()), "details": True}
    for below, unknown in (("0.02", True), ("0.005", False)):
        monkeypatch.setenv("UNKNOWN_BELOW", below)
        handler = Handler(Service(Classifier(telling.tflite), "telling", decoder))
        assert handler.handle(event)["unknown"] is unknown
