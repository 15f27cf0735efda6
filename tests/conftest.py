"""What several tests need: a web server, small models, drawn images."""

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from serving.decoder import Decoder

if TYPE_CHECKING:
    from serving.details import Familiarity

# Before TensorFlow: once that is imported, tflite-runtime loads no model any more.
with contextlib.suppress(ImportError):
    import tflite_runtime.interpreter  # noqa: F401

# A shell's background job ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
Answer = tuple[int, dict[str, str], bytes]
Routes = dict[str, Answer | Callable[[BaseHTTPRequestHandler], Answer]]


@pytest.fixture
def http_server() -> Iterator[Callable[[Routes], str]]:
    """Start a server on this machine that answers {path: (status, headers, body)}.

    A function of the request may stand for the answer. Returns the server's URL.
    """
    servers = []

    def start(routes: Routes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = routes.get(self.path, (404, {}, b""))
                status, headers, body = answer(self) if callable(answer) else answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def reserve_port() -> Iterator[Callable[[], int]]:
    """Return a port of 127.0.0.1 that no other program is given until the test ends.

    Nothing listens there. Servers that set SO_REUSEADDR, as nearly all do, can.
    """
    with contextlib.ExitStack() as sockets:

        def reserve() -> int:
            holder = sockets.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            return holder.getsockname()[1]

        yield reserve


@pytest.fixture
def no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no-such-host.invalid be looked up at once, as name servers take their time."""
    resolve = socket.getaddrinfo

    def look_up(host: str, *args: object, **options: object) -> list[tuple]:
        if host == "no-such-host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def own_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the results of checked images apart from those of other tests."""
    module = sys.modules.get("training.dataset.check_cache")
    if not module:
        yield
        return
    path = request.getfixturevalue("tmp_path_factory").getbasetemp() / "checks.sqlite3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECKS", path)
        yield
    path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """The process that decodes images."""
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn flowers, ten of each."""
    from training.sample import write_sample

    folder = tmp_path_factory.mktemp("drawn") / "flowers"
    write_sample(folder, per_class=10, seed=0)
    return folder


def build_tiny(input_size, head, class_count):
    """Return a stand-in for `training.model.build_model`'s network that learns in a second.

    It has the same parts: each block of its base is a convolution of four channels.
    """
    from training.backend import keras
    from training.model import BASE_LAYER, add_head

    inputs = keras.Input((*input_size, 3))
    x = base_inputs = keras.Input((*input_size, 3))
    for block in range(1, 15):
        strides = 2 if block < 3 else 1
        x = keras.layers.Conv2D(4, 1, strides, activation="tanh", name=f"block{block}_conv")(x)
    base_model = keras.Model(base_inputs, x, name=BASE_LAYER)
    base_model.trainable = False
    x = keras.layers.GlobalAveragePooling2D()(base_model(inputs, training=False))
    return keras.Model(inputs, add_head(x, head, class_count))


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that tells colours apart: red, green, blue; 32×48 pixels."""
    from training.backend import keras
    from training.checkpoint import Metadata, save_checkpoint

    inputs = keras.Input((32, 48, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(3, activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    model.layers[-1].set_weights([np.eye(3) * 4, np.zeros(3)])
    path = tmp_path_factory.mktemp("models") / "xception_fin_07_0.750.h5"
    save_checkpoint(model, path, Metadata(("red", "green", "blue"), 7, 0.75))
    return path


@pytest.fixture(scope="session")
def small_tflite(small_checkpoint: Path) -> Path:
    """The `.tflite` file of `small_checkpoint`."""
    import convert_to_tflite

    with contextlib.chdir(small_checkpoint.parent):  # where no flowers/ is
        assert convert_to_tflite.main([str(small_checkpoint)]) == 0
    return small_checkpoint.with_suffix(".tflite")


class Telling(NamedTuple):
    """A model that tells more than scores: in Keras, its files, and images that it knows.

    Its last convolution, 8×12, has the mean red, green and blue of each 4×4 pixels, and how much
    two patterns of single pixels are in them, which no image has that it knows.
    """

    model: Any
    checkpoint: Path
    tflite: Path
    int8: Path
    images: np.ndarray  # uint8 (n, 32, 48, 3)


@pytest.fixture(scope="session")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Telling:
    """A network that tells colours apart and strange images from others; 32×48 pixels."""
    from serving.details import Details
    from serving.preprocess import scale
    from training.backend import keras
    from training.checkpoint import Metadata, save_checkpoint
    from training.export.tflite import make_tflite
    from training.model import BASE_LAYER

    labels = ("red", "green", "blue")
    inside, inputs = keras.Input((32, 48, 3)), keras.Input((32, 48, 3))
    convolution = keras.layers.Conv2D(5, 4, 4, activation="relu")
    base = keras.Model(inside, convolution(inside), name=BASE_LAYER)
    x = keras.layers.GlobalAveragePooling2D()(base(inputs))
    x = keras.layers.Dense(4, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    kernel = np.zeros((4, 4, 3, 5), np.float32)
    kernel[..., [0, 1, 2], [0, 1, 2]] = 1 / 32
    kernel[::2, :, :, 3], kernel[1::2, :, :, 3] = 1 / 48, -1 / 48
    kernel[:, ::2, :, 4], kernel[:, 1::2, :, 4] = 1 / 48, -1 / 48
    convolution.set_weights([kernel, np.float32([0.5, 0.5, 0.5, 0, 0])])
    model.layers[-2].set_weights([np.eye(5, 4), np.zeros(4)])
    model.layers[-1].set_weights([np.eye(4, 3) * 8, np.zeros(3)])

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (250, 4, 6, 3)).repeat(8, axis=1).repeat(8, axis=2)
    images = np.uint8(coarse * generator.uniform(0.2, 1, (250, 1, 1, 3)))
    activations = np.asarray(base(scale(images)))
    scores, best = np.asarray(model(scale(images))), images.mean(axis=(1, 2)).argmax(axis=1)
    details = Details(
        fit_familiarity(activations.mean(axis=(1, 2))),
        np.sort(1 - scores[np.arange(250), best]),
    )
    folder = tmp_path_factory.mktemp("telling")
    checkpoint = folder / "xception_fin_05_0.900.h5"
    save_checkpoint(model, checkpoint, Metadata(labels, 5, 0.9))
    files = {"none": folder / "telling.tflite", "int8": folder / "telling.int8.tflite"}
    loaders = [lambda image=image: image for image in images[:100]]
    for kind, path in files.items():
        path.write_bytes(make_tflite(model, labels, kind, loaders, details))
    return Telling(model, checkpoint, *files.values(), images)


def fit_familiarity(features: np.ndarray) -> "Familiarity":
    """Return the familiarity of `features` (n, channels) with half of them."""
    from serving.details import Familiarity

    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    training, validation = features[::2], features[1::2]
    mean = training.mean(axis=0)
    directions = np.linalg.svd(training - mean, full_matrices=False)[2]
    fitted = Familiarity(
        means=np.float32([mean]),
        directions=np.float32([directions[:2].T]),
        distances=np.zeros(1, np.float32),
    )
    distances = np.sort([fitted.distance(each) for each in validation])
    return dataclasses.replace(fitted, distances=np.float32(distances))


def stripes() -> np.ndarray:
    """Return an image that `telling` does not know, uint8 (32, 48, 3): stripes of one pixel."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[::2] = 255
    return image


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Count a skipped test as failed where REQUIRE_ALL says that everything has to run."""
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Count a skipped module as failed where REQUIRE_ALL says that everything has to run."""
    report = yield
    fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that says why, if REQUIRE_ALL is set; xfail stays xfail."""
    if report.skipped and os.environ.get("REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_ALL is set, so this may not be skipped. {reason}"
