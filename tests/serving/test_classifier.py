"""serving.classifier, on every runtime, each in a process without TensorFlow."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from importlib.metadata import version
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving.classifier import Classifier, named_scores, read_labels
from serving.errors import ModelError
from serving.runtimes import RUNTIMES
from tests import seccomp

SCORES_OF_A_FILE = """
import json, os, sys
from tests import seccomp

if "guarded" in sys.argv:
    seccomp.forbid_writes_and_sockets()
from serving.classifier import Classifier, named_scores
from serving.image import open_image
from serving.preprocess import preprocess
classifier = Classifier(sys.argv[1], int(sys.argv[2]), sys.argv[3])
inputs = preprocess(open_image(sys.argv[4]), classifier.input_size)
scores = named_scores(classifier.labels, classifier.probabilities(inputs))
threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else None
print(json.dumps([classifier.input_size, classifier.runtime, scores, threads]))
"""
GUARDED = "import ctypes, os, socket; from tests.seccomp import *; forbid_writes_and_sockets(); "
MODEL = b"\x1c\0\0\0TFL3"  # how every .tflite file begins
TFLITE = ("tflite-runtime", "ai-edge-litert")
linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in seccomp.ARCHITECTURE,
    reason="needs Linux, on x86-64 or arm64",
)


def start(*arguments):
    """Return the finished process of Python with `arguments`, which leaves no byte code behind."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.fixture
def ask(small_tflite, tmp_path):
    """Return what a process says that shows an image to a runtime."""

    def show(runtime, color, threads=2, *more):
        Image.new("RGB", (100, 80), color).save(tmp_path / "image.png")
        where = (small_tflite, threads, runtime, tmp_path / "image.png")
        process = start("-c", SCORES_OF_A_FILE, *where, *more)
        assert process.returncode == 0, (process.returncode, process.stderr)
        return json.loads(process.stdout)

    return show


@linux
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_runtime_writes_a_file_or_opens_a_socket(ask, runtime, tmp_path, monkeypatch):
    """Neither its Python nor its C++: Linux would kill it.

    It comes first, and finds an empty home, since what is cached need not be written again.
    """
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert ask(runtime, "red", 2, "guarded")[1] == runtime


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_names_what_it_sees(ask, runtime):
    size, used, scores, _ = ask(runtime, (20, 240, 30))
    assert (size, used) == ([32, 48], runtime)
    assert list(scores) == ["red", "green", "blue"]
    assert scores["green"] > 0.9
    assert sum(scores.values()) == pytest.approx(1, abs=3e-5)
    assert all(score == round(score, 5) for score in scores.values())
    assert any(score != round(score, 4) for score in scores.values())


def test_every_runtime_answers_the_same(ask):
    """Processors that compute in bfloat16 too: the third decimal would differ."""
    answers = [ask(runtime, (121, 140, 130))[2] for runtime in RUNTIMES]
    assert 0.4 < answers[0]["green"] < 0.6
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], abs=2e-5)


@linux
@pytest.mark.parametrize("runtime", TFLITE)
def test_as_many_threads_run_as_are_asked_for(ask, runtime):
    one, two, four = (ask(runtime, "red", threads)[3] for threads in (1, 2, 4))
    assert (two - one, four - one) == (1, 3)


@linux
@pytest.mark.parametrize(
    "code",
    [
        "open('{0}', 'a')",
        "os.mkdir('{0}')",
        "socket.socket()",
        "ctypes.CDLL(None).fopen(b'{0}', b'w')",
        "ctypes.CDLL(None).creat(b'{0}', 0o600)",
        "ctypes.CDLL(None).socket(2, 1, 0)",
    ],
)
def test_what_writes_a_file_or_opens_a_socket_is_killed(code, tmp_path):
    assert start("-c", f"{GUARDED}print(open(os.devnull).read())").returncode == 0
    path = tmp_path / "written"
    assert start("-c", GUARDED + code.format(path)).returncode == -signal.SIGSYS
    assert not path.exists()


@pytest.mark.parametrize("runtime", ["tflite-runtime", "openvino"])
def test_scores_do_not_stick_to_the_image_before(small_tflite, runtime):
    classifier = Classifier(small_tflite, runtime=runtime)
    red, blue = (np.full((1, 32, 48, 3), color, np.float32) for color in ([1, 0, -1], [-1, 0, 1]))
    first = classifier.probabilities(red).copy()
    assert (classifier.probabilities(blue) != first).any()
    assert (classifier.probabilities(red) == first).all()


@pytest.mark.parametrize("runtime", ["tflite-runtime", "openvino"])
def test_probabilities_stay_when_the_next_image_comes(small_tflite, runtime):
    classifier = Classifier(small_tflite, runtime=runtime)
    first = classifier.probabilities(np.full((1, 32, 48, 3), [1, 0, -1], np.float32))
    kept = first.copy()
    classifier.probabilities(np.full((1, 32, 48, 3), [-1, 0, 1], np.float32))
    assert (first == kept).all()


def test_labels_are_read_from_the_file(small_tflite):
    assert read_labels(small_tflite) == ("red", "green", "blue")


def with_labels(path, content, labels):
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", labels)
    return path


def test_scores_are_rounded_to_five_decimals_and_one_for_each_label():
    scores = named_scores(("a", "b"), np.float32([0.123456789, 1e-6]))
    assert scores == {"a": 0.12346, "b": 0.0}
    scores = named_scores(("a", "b", "c"), np.float32([0.123456, 0.876539, 0.000005001]))
    assert scores == {"a": 0.12346, "b": 0.87654, "c": 1e-5}
    for labels in (("a",), ("a", "b", "c")):
        with pytest.raises(ValueError, match="zip"):
            named_scores(labels, np.float32([0.5, 0.5]))


def test_a_file_that_is_no_model_is_refused_with_the_runtimes_that_might_load_it(tmp_path):
    path = with_labels(tmp_path / "a.tflite", b"no model at all", "red\n")
    for runtime, others in {
        "tflite-runtime": "ai-edge-litert or openvino",
        "openvino": "tflite-runtime or ai-edge-litert",
    }.items():
        sentence = refusal(Classifier, path, 1, runtime)
        assert "\n" not in sentence
        assert ".cpp" not in sentence
        start = f"Expected a model that {runtime} {version(runtime)} can load. Received: a.tflite "
        assert re.match(rf"{re.escape(start)}\(\w+ .+\)", sentence)
        assert sentence.endswith(
            f"). Use another runtime, {others} (predict.py --runtime, make build RUNTIME=), or "
            "convert it with another --quantize."
        )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_labels_that_do_not_fit_the_outputs_are_refused(small_tflite, tmp_path):
    for labels in ("red\ngreen\n", "red\ngreen\nblue\nyellow\n"):
        path = with_labels(tmp_path / "a.tflite", small_tflite.read_bytes(), labels)
        for runtime in ("tflite-runtime", "openvino"):
            assert refusal(Classifier, path, 1, runtime) == (
                "Expected one class name for each of the 3 outputs of a.tflite. "
                f"Received: {labels.count(chr(10))}. Convert it again with convert_to_tflite.py."
            )


@pytest.mark.parametrize("read", [read_labels, Classifier])
def test_a_missing_file_and_one_without_labels_are_refused(tmp_path, read):
    path = tmp_path / "a.tflite"
    assert refusal(read, path) == (
        f"Expected a .tflite file. Received: {path}, which does not exist. "
        "Run python convert_to_tflite.py first."
    )
    without = (
        "Expected a .tflite file with its class names inside (labels.txt). "
        "Received: a.tflite without them. Make it with python convert_to_tflite.py."
    )
    path.write_bytes(MODEL)
    assert refusal(read, path) == without
    for name in ("other.txt", "labels.txt/", "a/labels.txt"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"red")
        path.write_bytes(MODEL + path.read_bytes())
        assert refusal(read, path) == without


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer in place of the"),
        (b"\r\n<html>", "an HTML page. Download the file itself."),
        (
            b"\x89HDF\r\n\x1a\n",
            "an HDF5 file such as Keras' .h5. Convert it with python convert_to",
        ),
        (b"PK\x03\x04", "a zip archive. Unpack it, or convert it first if it is Keras' (.keras)."),
        (b"hello", "no model file. Download or copy it again."),
        (b"", "an empty file. Copy it again."),
        (None, "a folder. Name a file in it."),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, said):
    path = tmp_path / "a.tflite"
    path.mkdir() if content is None else path.write_bytes(content)
    assert f"Received: a.tflite, {said}" in refusal(Classifier, path)


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"red\ngreen", ("red", "green")),
        (b"red\r\ngreen\r\n", ("red", "green")),
        (b"\xef\xbb\xbfred\ngreen\n\n\r\n", ("red", "green")),
        ("0 rosé\n\u200d🌹\nlily of\u00a0the valley".encode(), None),
    ],
    ids=["two", "Windows", "byte order mark", "other scripts"],
)
def test_each_line_is_a_class_name(content, labels, tmp_path):
    path = with_labels(tmp_path / "a.tflite", MODEL, content)
    assert read_labels(path) == (labels or tuple(content.decode().split("\n")))


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"red\xff", "another encoding than UTF-8"),
        ("red\ngreen\n".encode("utf-16"), "another encoding than UTF-8"),
        (b"", "a line without a name"),
        (b"\r\n\n", "a line without a name"),
        (b"red\n\ngreen", "a line without a name"),
        (b"red\n \ngreen", "a line without a name"),
        (b"red\ngr\0een", "control characters"),
        (b"red\n\x1b[2Jgreen", "control characters"),
        (b"red\ngreen\nred\ngreen", "'red' more than once"),
        (b"x" * 500 + b"\n" + b"x" * 500, f"'{'x' * 100}' more than once"),
        (b"x\n" * 500_001, "more than 1 MB"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_lines_that_are_no_class_names_are_refused(content, received, compression, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(MODEL)
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("labels.txt", content)
    assert refusal(read_labels, path) == (
        "Expected a different class name on each line of labels.txt in a.tflite. "
        f"Received: {received}. Convert it again with convert_to_tflite.py."
    )


def test_a_megabyte_of_class_names_is_read(tmp_path):
    content = "\n".join(f"{n:0>99}" for n in range(10_000))
    assert len(read_labels(with_labels(tmp_path / "a.tflite", MODEL, content))) == 10_000


def test_what_unpacks_to_more_than_it_says_costs_no_memory(tmp_path):
    path = tmp_path / "a.tflite"
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path.write_bytes(MODEL)
        with zipfile.ZipFile(path, "a", compression) as archive:
            archive.writestr("labels.txt", bytes(40_000_000))
        size, told = ((n).to_bytes(4, "little") for n in (40_000_000, 1000))
        path.write_bytes(path.read_bytes().replace(size, told))
        tracemalloc.start()
        refusal(read_labels, path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5_000_000


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry[:6] + b"\xff" + entry[7:],
        lambda entry: entry[:8] + b"\x01" + entry[9:],
        lambda entry: entry[:8] + b"\x20" + entry[9:],
        lambda entry: entry[:8] + b"\x40" + entry[9:],
        lambda entry: entry[:10] + b"\x63" + entry[11:],
    ],
    ids=["a later version", "encrypted", "a patch", "strongly encrypted", "unknown compression"],
)
def test_what_cannot_be_unpacked_is_refused(change, tmp_path):
    path = with_labels(tmp_path / "a.tflite", MODEL, "red")
    data = path.read_bytes()
    place = data.rindex(b"PK\x01\x02")
    path.write_bytes(data[:place] + change(data[place:]))
    assert "Received: a file that is encrypted, or compressed in an unusual way. " in refusal(
        read_labels, path
    )


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_file_that_is_cut_off_is_refused(cut, tmp_path):
    path = with_labels(tmp_path / "a.tflite", MODEL, "red")
    path.write_bytes(path.read_bytes()[:-cut])
    assert "class names inside (labels.txt)" in refusal(read_labels, path)


def test_the_sentence_has_the_telling_line_of_the_runtimes_reason(tmp_path, monkeypatch):
    path = with_labels(tmp_path / "a.tflite", b"", "red\n")

    def reading(reason):
        def read_model(*_):
            raise RuntimeError(reason)

        module = ModuleType("openvino")
        module.Core = lambda: SimpleNamespace(read_model=read_model)
        return module

    monkeypatch.setattr(
        "serving.runtimes.import_module", lambda _: reading("at a.cpp:7\nat b.cpp\nodd file\n")
    )
    assert "Received: a.tflite (odd file). " in refusal(Classifier, path, 1, "openvino")

    def interpreter(**_):
        raise ValueError("\nodd file\nand more of it")

    monkeypatch.setattr(
        "serving.runtimes.import_module",
        lambda name: SimpleNamespace(__name__=name, Interpreter=interpreter),
    )
    assert "Received: a.tflite (odd file). " in refusal(Classifier, path, 1, "tflite-runtime")
