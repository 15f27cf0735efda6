"""training.inference: whichever engine computes it, the same answers."""

import numpy as np
import pytest

from training import inference
from training.backend import keras
from training.inference import ENGINES, best_engine, compile_inference, dtype_policy


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((40, 40, 3))
    x = keras.layers.SeparableConv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.SeparableConv2D(8, 3, strides=2)(x)
    return keras.Model(inputs, x)


@pytest.fixture
def inputs():
    return np.random.default_rng(0).uniform(-1, 1, (5, 40, 40, 3)).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 4])
def test_it_answers_as_keras_does(model, inputs, engine, rows):
    answers = compile_inference(model, "float32", 4, engine)(inputs[:rows])
    assert answers.shape == (rows, 18, 18, 8)
    assert np.allclose(answers, model(inputs[:rows], training=False), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_mixed_precision_is_near(model, inputs, engine):
    expected = np.asarray(model(inputs, training=False))
    answers = compile_inference(model, "mixed_bfloat16", 5, engine)(inputs)
    assert np.abs(answers.astype(np.float32) - expected).max() < 0.03 * np.abs(expected).max()
    if engine == "keras":  # OpenVINO has it only where the processor does
        assert not np.array_equal(answers.astype(np.float32), expected)


@pytest.mark.parametrize(
    ("policy", "precision"),
    [("float32", "f32"), ("mixed_bfloat16", "bf16"), ("mixed_float16", "f32")],
)
def test_openvino_computes_in_the_precision_of_the_policy(model, policy, precision, monkeypatch):
    given = []

    class Core:
        def compile_model(self, network, device, settings):
            given.append((device, settings["INFERENCE_PRECISION_HINT"]))

    monkeypatch.setattr(inference, "openvino_core", lambda _: Core())
    compile_inference(model, policy, 2, "openvino")
    assert given == [("CPU", precision)]


def test_openvino_is_used_where_it_is_installed(monkeypatch):
    assert best_engine() == "openvino"
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    assert best_engine() == "keras"
    monkeypatch.undo()
    monkeypatch.setattr(inference, "accelerator", lambda: object())
    assert best_engine() == "keras"
    monkeypatch.undo()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert best_engine() == "keras"


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ("avx2 avx512_bf16 fma", "mixed_bfloat16"),
        ("amx_bf16", "mixed_bfloat16"),
        ("avx2", "float32"),
    ],
)
def test_the_policy_follows_the_processor(flags, policy, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(inference, "CPU_INFO", tmp_path / "cpuinfo")
    assert dtype_policy() == policy
    monkeypatch.setattr(inference, "CPU_INFO", tmp_path / "none")
    assert dtype_policy() == "float32"


@pytest.mark.parametrize(
    ("generation", "policy"),
    [(7.5, "mixed_float16"), (8, "mixed_bfloat16"), (9, "mixed_bfloat16")],
)
def test_the_policy_follows_the_gpu(generation, policy, monkeypatch):
    from training.backend import Accelerator

    monkeypatch.setattr(inference, "accelerator", lambda: Accelerator(generation))
    assert dtype_policy() == policy
