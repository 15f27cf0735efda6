"""serving.service: a request to its result, without events and HTTP."""

import base64
import gc
import json
import threading
import time
import zipfile
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving import fetch
from serving import service as module
from serving.card import Card
from serving.classifier import Classifier
from serving.decoder import CpuLimitError, Decoded
from serving.details import Details
from serving.errors import (
    DeadlineError,
    ImageError,
    InternalError,
    InvalidRequestError,
    TooLargeError,
    UnsupportedTypeError,
)
from serving.events import Request, Source, parse
from serving.runtimes import Prediction
from serving.service import Service

LABELS = ("red", "green", "blue")
FOREVER = float("inf")


def encoded(color):
    buffer = BytesIO()
    Image.new("RGB", (60, 40), color).save(buffer, "PNG")
    return buffer.getvalue()


def mean_color(inputs):
    """Predict the shares of red, green and blue in the network's inputs."""
    shares = (inputs.mean((0, 1, 2)) + 1) / 2
    return Prediction(shares / shares.sum())


@pytest.fixture(params=[1, 2], ids=["one processor", "two processors"])
def service(decoder, monkeypatch, request):
    """A service whose model has run before."""
    return make_service(decoder, request.param, monkeypatch)


@pytest.fixture
def on_two(decoder, monkeypatch):
    """The same on two processors."""
    return make_service(decoder, 2, monkeypatch)


def make_service(decoder, processors, monkeypatch):
    monkeypatch.setattr(module.resources, "thread_count", lambda: processors)
    classifier = SimpleNamespace(
        labels=LABELS,
        input_size=(9, 9),
        runtime="numpy",
        predict=mean_color,
        details=Details(),
        card=None,
    )
    service = Service(classifier, "colors", decoder)
    service._longest_run = 1e-6
    return service


@pytest.fixture
def three_images():
    return Request(tuple(Source(image=encoded(color)) for color in LABELS), is_batch=True)


def test_one_image_has_the_scores_of_all_labels(service):
    result = service.classify(Request((Source(image=encoded("red")),)), FOREVER)
    assert result.body == {"red": 1.0, "green": 0.0, "blue": 0.0}
    assert result.error is None
    assert [image.answer for image in result.images] == [result.body]


def test_the_error_of_one_image_is_that_of_the_request(service):
    result = service.classify(Request((Source(image=encoded("red")[:50]),)), FOREVER)
    assert isinstance(result.error, ImageError)
    assert result.body == {"error": {"type": "ImageError", "message": str(result.error)}}


def test_a_batch_has_no_error_of_its_own(service):
    images = [base64.b64encode(data).decode() for data in (encoded("green"), b"no image")]
    result = service.classify(parse({"images": [*images, "?"]}), FOREVER)
    assert result.error is None
    assert result.body[0] == {"red": 0.0, "green": 1.0, "blue": 0.0}
    errors = [type(image.error) for image in result.images]
    assert errors == [type(None), UnsupportedTypeError, InvalidRequestError]


@pytest.mark.parametrize("details", [False, True])
def test_a_model_whose_scores_are_no_numbers_is_an_error(service, details):
    nan, red = Prediction(np.float32([np.nan] * 3)), Source(image=encoded("red"))
    service.classifier.predict = lambda inputs: nan if inputs.max() > 0.9 else mean_color(inputs)
    result = service.classify(Request((red,), details=details), FOREVER)
    assert type(result.error) is InternalError
    message = "The model's scores are no numbers (NaN). Train it again."
    assert result.body == {"error": {"type": "InternalError", "message": message}}
    black = Source(image=encoded((9, 9, 9)))
    batch = service.classify(Request((red, black), is_batch=True), FOREVER)
    assert batch.error is None
    assert [list(answer) for answer in batch.body] == [["error"], list(LABELS)]


def undecoded(*_, **__):
    pytest.fail("decoded")


def test_after_the_end_no_image_is_decoded(service, three_images, monkeypatch):
    monkeypatch.setattr(service.decoder, "decode", undecoded)
    result = service.classify(three_images, time.monotonic())
    assert {type(image.error) for image in result.images} == {DeadlineError}


@pytest.mark.parametrize(
    ("left", "run", "share", "reserve", "beside"),
    [
        (30, 0.0, 1.0, 1.3, 1.3),  # before the model has run
        (30, 0.0, 0.25, 4.3, 4.3),  # at a quarter of a processor
        (3, 0.0, 0.25, 1.5, 1.5),  # of so little, half
        (30, 0.2, 0.25, 0.6, 0.8),  # and as long as it takes, once that is known
        (30, 2.0, 1.0, 3.3, 5.3),
    ],
)
def test_time_is_kept_to_run_the_model(on_two, monkeypatch, left, run, share, reserve, beside):
    """And once more, for the image before, where that is still in the model."""
    monkeypatch.setattr(module.resources, "cpu_share", lambda: share)
    on_two._longest_run = run
    assert on_two._reserve(left, several=False) == pytest.approx(reserve)
    assert on_two._reserve(left, several=True) == pytest.approx(beside)
    on_two._overlaps = False
    assert on_two._reserve(left, several=True) == pytest.approx(reserve)


def test_the_longest_run_of_the_model_counts(service, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seconds = iter([0.5, 2.0, 0.25])

    def predict(inputs):
        now[0] += next(seconds)
        return mean_color(inputs)

    monkeypatch.setattr(service.classifier, "predict", predict)
    for longest in (0.5, 2.0, 2.0):
        service.classify(Request((Source(image=encoded("red")),)), FOREVER)
        assert service._longest_run == longest


class Slow:
    """Stands for the decoder; each file says how many seconds of CPU time it takes."""

    def __init__(self):
        self.asked = []

    def decode(self, data, size, *, memory, cpu_s, deadline):
        self.asked.append((data, cpu_s))
        if float(data) > cpu_s:
            raise CpuLimitError
        return Decoded(np.full((*size, 3), 9, np.uint8), "PNG", (1, 1), float(data))


def test_slow_images_come_last_and_cost_the_others_nothing(service):
    service.decoder = Slow()
    files = (b"2", b"0.1", b"9", b"0.2")
    sources = tuple(Source(image=file) for file in files)
    result = service.classify(Request(sources, is_batch=True), FOREVER)
    quick, most = module.QUICK_CPU_S, module.MAX_CPU_S
    assert service.decoder.asked == [*((f, quick) for f in files), (b"2", most), (b"9", most)]
    errors = [type(image.error) for image in result.images]
    assert errors == [type(None), type(None), TooLargeError, type(None)]
    assert result.body[2]["error"]["message"] == (
        "Expected an image that is decoded in at most 4 seconds. Received: one that takes longer. "
        "Use a smaller image, or save it again as JPEG."
    )


def test_each_of_several_has_a_share_of_the_time(service, monkeypatch):
    """So the last is answered, whatever the others do."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(service, "_reserve", lambda *_: 0.0)
    deadlines = []

    def decode(data, size, *, memory, cpu_s, deadline):
        deadlines.append(deadline)
        if data == b"slow":
            clock[0] = deadline
            raise DeadlineError("No time.")
        clock[0] += 0.5
        return Decoded(np.full((*size, 3), 9, np.uint8), "PNG", (1, 1), 0.0)

    monkeypatch.setattr(service.decoder, "decode", decode)
    sources = tuple(Source(image=data) for data in (b"slow", b"slow", b"quick", b"slow"))
    result = service.classify(Request(sources, is_batch=True), 108.0)
    assert deadlines == [102.0, 104.0, 106.0, 108.0]
    errors = [type(image.error) for image in result.images]
    assert errors == [DeadlineError, DeadlineError, type(None), DeadlineError]


class Watched:
    """A decoder and a model that note what is done at the same time.

    Attributes:
        most: images that were decoded and not yet through the model.
        beside: whether the next image was decoded before the model was done, for each run.
        threads: that did something.
    """

    def __init__(self, service, count, seconds=5.0):
        self._seconds = seconds
        self.most, self.beside, self.threads = 0, [], set()
        self._count, self._decoded, self._done = count, 0, 0
        self._changed = threading.Condition()
        service.decoder, service.classifier.predict = self, self.predict

    def decode(self, data, size, **_):
        with self._changed:
            self._decoded += 1
            self.most = max(self.most, self._decoded - self._done)
            self.threads.add(threading.current_thread())
            self._changed.notify_all()
        return Decoded(np.full((*size, 3), int(data), np.uint8), "PNG", (1, 1), 0.0)

    def predict(self, inputs):
        """Wait until the next image is decoded, or for a while."""
        with self._changed:
            if self._done + 1 < self._count:
                next_one = self._done + 2
                self._changed.wait_for(lambda: self._decoded == next_one, self._seconds)
                self.beside.append(self._decoded - self._done - 1)
            self.threads.add(threading.current_thread())
            self._done += 1
        return Prediction((inputs.mean() + 1) * 127.5 * np.eye(3)[0])


EIGHT = Request(tuple(Source(image=b"%d" % n) for n in range(8)), is_batch=True)


def test_with_two_processors_the_next_image_is_decoded_while_the_model_runs(on_two):
    watched = Watched(on_two, 8)
    result = on_two.classify(EIGHT, FOREVER)
    assert min(watched.beside) == 1
    assert watched.most == 2  # a long list takes no more memory than a short one
    assert [round(answer["red"]) for answer in result.body] == list(range(8))


def test_before_its_first_run_is_over_no_other_image_is_decoded(on_two):
    """Which may take the memory that the model takes then."""
    on_two._longest_run = 0.0
    watched = Watched(on_two, 8, seconds=0.1)
    on_two.classify(EIGHT, FOREVER)
    assert watched.beside[0] == 0


def test_with_one_processor_nothing_is_done_beside_the_model(decoder, monkeypatch):
    service = make_service(decoder, 1, monkeypatch)
    watched = Watched(service, 8, seconds=0.01)
    service.classify(EIGHT, FOREVER)
    assert set(watched.beside) == {0}
    assert watched.threads == {threading.current_thread()}


def test_one_image_needs_no_other_thread(on_two):
    watched = Watched(on_two, 1)
    on_two.classify(Request(EIGHT.sources[:1]), FOREVER)
    assert watched.threads == {threading.current_thread()}


def test_an_image_alone_has_all_the_time_at_once(service):
    service.decoder = Slow()
    service.classify(Request((Source(image=b"2"),), is_batch=True), FOREVER)
    assert service.decoder.asked == [(b"2", module.MAX_CPU_S)]


def test_the_decoder_has_what_is_left_of_time_and_memory(service, monkeypatch):
    asked = []

    def decode(*_, **limits):
        asked.append(limits)
        raise ImageError("Broken.")

    monkeypatch.setattr(service.decoder, "decode", decode)
    monkeypatch.setattr(module.resources, "decoding_memory", lambda: 123)
    monkeypatch.setattr(service, "_reserve", lambda *_: 2.5)
    service.classify(Request((Source(image=b"a"),)), 1e9)
    assert asked == [{"memory": 123, "cpu_s": module.MAX_CPU_S, "deadline": 1e9 - 2.5}]


def test_urls_are_fetched_until_the_reserve(service, monkeypatch):
    calls = []

    def fetch_all(urls, latest):
        calls.append((urls, latest))
        return [encoded("blue"), InvalidRequestError("no url")]

    monkeypatch.setattr(module, "fetch_all", fetch_all)
    sources = (Source(url="http://a"), Source(image=encoded("red")), Source(url="b"))
    monkeypatch.setattr(service, "_reserve", lambda *_: 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    result = service.classify(Request(sources, is_batch=True), 160.0)
    [(urls, latest)] = calls
    assert urls == ["http://a", "b"]
    assert latest == 129.75  # half of what is left without the reserve
    assert [max(image.answer, key=image.answer.get) for image in result.images] == [
        "blue",
        "red",
        "error",
    ]


def test_an_unexpected_error_costs_its_own_image_only(service, three_images, monkeypatch, capsys):
    def fail_on_green(inputs):
        prediction = mean_color(inputs)
        if np.argmax(prediction.probabilities) == 1:
            raise ZeroDivisionError
        return prediction

    monkeypatch.setattr(service.classifier, "predict", fail_on_green)
    result = service.classify(three_images, FOREVER, "id-1")
    assert [type(image.error) for image in result.images] == [type(None), InternalError, type(None)]
    [line] = capsys.readouterr().out.splitlines()
    assert '"request_id": "id-1"' in line
    assert "ZeroDivisionError" in line


def test_files_are_not_kept_nor_what_their_errors_refer_to(service, three_images):
    sources = (*three_images.sources, Source(image=b"no image"))
    result = service.classify(Request(sources, is_batch=True), FOREVER)
    assert [image.data for image in result.images] == [b""] * 4
    assert result.images[3].error.__traceback__ is None
    assert result.images[3].error.__cause__ is None


def test_a_failure_leaves_nothing_to_the_garbage_collector(service):
    """Which comes late: until then, files of 10 MB would add up."""
    request = Request((Source(image=encoded("red")[:50]), Source(image=b"no image")), is_batch=True)
    service.classify(request, FOREVER)
    gc.collect()
    gc.disable()
    try:
        service.classify(request, FOREVER)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_an_image_of_more_bytes_than_a_url_may_have_is_refused(service, monkeypatch):
    monkeypatch.setattr(service.decoder, "decode", undecoded)
    result = service.classify(Request((Source(image=bytes(fetch.MAX_BYTES + 1)),)), FOREVER)
    assert result.error.status == 413


def test_health_tells_what_there_is_to_know_of_the_model(service, monkeypatch):
    told = {
        "status": "ready",
        "model": "colors",
        "runtime": "numpy",
        "classes": ["red", "green", "blue"],
        "input_size": [9, 9],
        "details": False,
        "unknown_below": 0.02,
        "card": None,
    }
    assert service.health() == told
    service.classifier.details = Details(nonconformity=np.float32([0.1]))
    service.classifier.card = Card(0.9, (0.8, 0.95), 100, "test", "Measured.")
    card = {"accuracy": 0.9, "interval": [0.8, 0.95], "images": 100, "set": "test"}
    expected = told | {"details": True, "card": card | {"text": "Measured."}}
    assert json.loads(json.dumps(service.health())) == expected
    monkeypatch.setenv("UNKNOWN_BELOW", "0.5")
    assert Service(service.classifier, "colors", None).health()["unknown_below"] == 0.5


def test_a_card_that_is_malformed_does_no_harm(small_tflite, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(small_tflite.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("card.json", b'{"accuracy": "high"}')
    classifier = Classifier(path)
    assert Service(classifier, "small", None).health()["card"] is None
    assert Service(Classifier(small_tflite), "small", None).health()["input_size"] == [32, 48]
