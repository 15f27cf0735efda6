"""training.backend: Keras as this project needs it, whatever others have set."""

import json
import os
import subprocess
import sys

from conftest import ROOT

SHOW = """
from training.backend import keras
from training.images import ImageDataGenerator
from training.model import build_model

model = build_model((71, 71), (), 2)
convolution = model.layers[1].layers[1]
print(keras.backend.backend(), keras.config.epsilon(), keras.config.max_epochs())
print(convolution.data_format, convolution.compute_dtype, model.output.dtype)
"""


def test_settings_of_other_projects_do_not_count(tmp_path):
    (tmp_path / ".keras").mkdir()
    settings = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16"}
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(settings | {"epsilon": 1e-3}))
    environment = os.environ | {"HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    environment |= {"TF_USE_LEGACY_KERAS": "1", "KERAS_MAX_EPOCHS": "1"}
    environment.pop("KERAS_HOME", None)
    process = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert process.stdout.split("\n")[:2] == [
        "tensorflow 1e-07 None",
        "channels_last float32 float32",
    ], process.stderr
