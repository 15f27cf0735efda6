"""serving.exported, and what serving.runtimes does with it: a start without compiling the model."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from importlib import import_module

import numpy as np
import pytest
from conftest import ROOT

from serving import image_build
from serving.classifier import Classifier
from serving.exported import HEAD_BYTES, export_path, read_export, write_export
from serving.runtimes import RUNTIMES, export_openvino

openvino = import_module("openvino")


@pytest.fixture
def model(small_tflite, tmp_path):
    """A copy of a model, in a folder of its own."""
    return shutil.copy(small_tflite, tmp_path / "small_01_0.500.tflite")


@pytest.fixture(scope="module")
def exported(small_tflite):
    """The model as OpenVINO exports it on this machine."""
    return export_openvino(openvino, small_tflite)


@pytest.fixture
def calls(monkeypatch):
    """Whether each model was read and compiled, or imported, in order."""
    called = []
    for name in ("read_model", "import_model"):
        original = getattr(openvino.Core, name)

        def note(core, *arguments, name=name, original=original):
            result = original(core, *arguments)  # a failure is not noted
            called.append(name)
            return result

        monkeypatch.setattr(openvino.Core, name, note)
    return called


def inputs():
    return np.random.default_rng(0).uniform(-1, 1, (1, 32, 48, 3)).astype(np.float32)


def scores(model, threads=1):
    return Classifier(model, threads, "openvino").probabilities(inputs())


# The files


def blobs(export):
    return [blob.tobytes() for blob in export.blobs()]


def test_exports_that_begin_differently_share_the_rest(model):
    rest = os.urandom(100_000)
    exports = [b"meta=1;isa=AVX-512 " + rest, b"meta=1;isa=AVX2 " + rest, b"" + rest]
    written = write_export(model, exports)
    assert blobs(written) == exports
    assert read_export(model) == written
    size = export_path(model).stat().st_size
    assert len(rest) < size <= HEAD_BYTES + len(rest)


def test_an_export_that_differs_further_on_is_left_out(model):
    first, other = bytes(3 * HEAD_BYTES), b"1" * 3 * HEAD_BYTES
    assert blobs(write_export(model, [first, other])) == [first]
    longer = bytes(HEAD_BYTES) + first  # its head is too long
    assert blobs(write_export(model, [first, longer, b"2" + first])) == [first, b"2" + first]


@pytest.mark.parametrize("exports", [[b"a"], [b"a" * 5000, b"a" * 5000], [b"", b"a"]])
def test_equal_exports_are_one(model, exports):
    assert blobs(write_export(model, exports)) == list(dict.fromkeys(exports))


def test_reading_changes_no_file(model):
    written = write_export(model, [b"one" + bytes(9999), b"two" + bytes(9999)])
    before = export_path(model).read_bytes()
    assert len(blobs(written)) == 2
    assert export_path(model).read_bytes() == before


def test_a_model_without_an_export(model):
    assert read_export(model) is None


# OpenVINO


@pytest.mark.parametrize("threads", [1, 2])
def test_an_export_is_imported_and_computes_the_same(model, exported, calls, threads):
    compiled = scores(model, threads)
    assert calls == ["read_model"]
    write_export(model, [exported])
    assert np.array_equal(scores(model, threads), compiled)
    assert calls == ["read_model", "import_model"]


def test_what_a_model_tells_beside_scores_is_the_same(telling, tmp_path, calls):
    model = shutil.copy(telling.int8, tmp_path / "a.tflite")
    image = telling.images[:1].astype(np.float32) / 127.5 - 1
    compiled = Classifier(model, 1, "openvino").predict(image)
    write_export(model, [export_openvino(openvino, model)])
    imported = Classifier(model, 1, "openvino").predict(image)
    assert calls[-1] == "import_model"
    assert compiled.activations is not None
    assert all(map(np.array_equal, imported, compiled))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_import_has_the_settings_of_this_start(model, exported, monkeypatch, threads):
    made, import_model = [], openvino.Core.import_model

    def note(core, *arguments):
        made.append(import_model(core, *arguments))
        return made[-1]

    monkeypatch.setattr(openvino.Core, "import_model", note)
    write_export(model, [exported])
    scores(model, threads)
    [imported] = made
    assert imported.get_property("INFERENCE_NUM_THREADS") == threads
    assert imported.get_property("PERFORMANCE_HINT") == "LATENCY"
    assert imported.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert imported.get_property("ENABLE_CPU_PINNING") is False


VERSION = openvino.__version__.split("-")[0].encode()
WRONG = {
    "another version": lambda export: export.replace(VERSION, b"1" + VERSION[1:], 1),
    "another processor": lambda export: export.replace(b"isa=", b"isb=", 1),
    "truncated": lambda export: export[: len(export) // 2],
    "damaged at the end": lambda export: export[:-200] + bytes(200),
    "no export": lambda export: b"not an export at all",
    "empty": lambda export: b"",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_openvino_does_not_import_is_compiled(model, exported, calls, wrong):
    compiled = scores(model)
    changed = WRONG[wrong](exported)
    assert changed != exported
    write_export(model, [changed])
    assert np.array_equal(scores(model), compiled)
    assert calls == ["read_model"] * 2


def test_the_head_for_this_processor_is_found(model, exported, calls):
    others = [WRONG["another processor"](exported), WRONG["another version"](exported)]
    write_export(model, [*others, exported])
    scores(model)
    assert calls == ["import_model"]


def test_the_export_of_another_model_of_this_name_is_not_used(model, exported, telling, calls):
    write_export(model, [exported])
    shutil.copy(telling.tflite, model)
    classifier = Classifier(model, 1, "openvino")
    assert calls == ["import_model", "read_model"]
    expected = Classifier(telling.tflite, 1, "openvino")
    assert np.array_equal(*(each.probabilities(inputs()) for each in (classifier, expected)))


def test_other_runtimes_ignore_it(model, exported, monkeypatch):
    write_export(model, [exported])
    monkeypatch.setattr("serving.runtimes.read_export", lambda _: pytest.fail("it was read"))
    for runtime in ("tflite-runtime", "ai-edge-litert"):
        assert Classifier(model, 1, runtime).runtime == runtime


def test_the_memory_of_the_file_is_kept_as_long_as_the_model_is(model, exported, monkeypatch):
    """OpenVINO reads from it without holding it; a process where it was gone crashed."""
    given, tensor = [], openvino.Tensor

    def note(array, **options):
        given.append(weakref.ref(array))
        return tensor(array, **options)

    monkeypatch.setattr(openvino, "Tensor", note)
    write_export(model, [exported])
    classifier = Classifier(model, 1, "openvino")
    gc.collect()
    [array] = given
    assert array() is not None
    del classifier
    gc.collect()
    assert array() is None


ANSWER = """
import json, sys
import numpy as np, openvino
from serving.classifier import Classifier
imported, import_model = [], openvino.Core.import_model
def note(*arguments):
    imported.append(import_model(*arguments))
    return imported[-1]
openvino.Core.import_model = note
classifier = Classifier(sys.argv[1], 1, "openvino")
inputs = np.random.default_rng(0).uniform(-1, 1, (1, 32, 48, 3)).astype(np.float32)
print(json.dumps([len(imported), classifier.probabilities(inputs).tolist()]))
"""


def answer(model, **environment):
    """Return how often a process of its own imported `model`, and its scores."""
    process = subprocess.run(
        [sys.executable, "-c", ANSWER, model],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


# The step of the Dockerfile


@pytest.fixture
def only_openvino(monkeypatch):
    for name in ("tflite-runtime", "ai-edge-litert"):
        monkeypatch.setitem(RUNTIMES, name, "no_such_module")


@pytest.mark.usefixtures("only_openvino")
def test_the_image_holds_exports_for_lesser_processors_too(model, capfd):
    """Every processor that OpenVINO supports has AVX2; this machine may have no more than that."""
    image_build.export(str(model.parent))
    written = read_export(model)
    said = f"Export: {written.path.name}; kinds of processors: {len(written.heads)}\n"
    assert said in capfd.readouterr().out
    for processor in ("AVX2", "ALL"):
        count, with_export = answer(model, ONEDNN_MAX_CPU_ISA=processor)
        assert count == 1
        os.rename(written.path.with_suffix(".openvino.json"), model.parent / "away")
        assert answer(model, ONEDNN_MAX_CPU_ISA=processor) == [0, with_export]
        os.rename(model.parent / "away", written.path.with_suffix(".openvino.json"))


@pytest.mark.usefixtures("only_openvino")
@pytest.mark.parametrize(("least", "count"), [("1", 2), ("2", 7)])
def test_nothing_is_exported_for_processors_between_two_that_are_alike(
    model, monkeypatch, least, count
):
    """As on one that has no more than OpenVINO needs, or where it is emulated, slowly."""
    asked = []

    def export(processor, path):
        asked.append(processor)
        return {"ALL": b"1", "AVX2": least.encode()}.get(processor, b"3") + bytes(9999)

    monkeypatch.setattr(image_build, "_export_for", export)
    image_build.export(str(model.parent))
    assert len(asked) == count
    assert len(read_export(model).heads) == min(count - 1, 3)


def test_other_runtimes_have_no_export(model):
    image_build.export(str(model.parent))
    assert not export_path(model).exists()


@pytest.mark.usefixtures("only_openvino")
def test_an_export_that_computes_otherwise_is_a_sentence(model, monkeypatch, exported, telling):
    imported = export_openvino(openvino, telling.tflite)
    import_model = openvino.Core.import_model
    monkeypatch.setattr(
        openvino.Core, "import_model", lambda core, _, *rest: import_model(core, imported, *rest)
    )
    with pytest.raises(SystemExit, match="^ModelError: Expected the export of small_01_0.500"):
        image_build.main("export_once", str(model), str(model.parent / "a"))
    assert not (model.parent / "a").exists()
