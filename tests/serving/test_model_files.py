"""serving.model_files: which file, how many threads."""

import os

import pytest

from serving.errors import ModelError
from serving.model_files import QUANTIZED, best_model, kind_of, tflite_path


def make(folder, *names):
    """Make empty files, the first the newest."""
    for age, name in enumerate(names):
        path = folder / name
        path.touch()
        os.utime(path, (1_000_000 - age, 1_000_000 - age))


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    return str(caught.value)


def test_the_highest_accuracy_wins(tmp_path):
    make(tmp_path, "xception_fin_30_0.880.h5", "xception_fin_02_0.901.h5", "xception_fin_1_0.9.h5")
    assert best_model(tmp_path, ".h5").name == "xception_fin_02_0.901.h5"


def test_of_equals_the_first_suffix_then_the_newer(tmp_path):
    make(tmp_path, "xception_fin_01_1.000.tflite", "xception_fin_03_1.000.h5")
    assert best_model(tmp_path, ".tflite", ".h5").suffix == ".tflite"
    make(tmp_path, "xception_fin_03_1.000.h5", "xception_fin_09_1.000.h5")
    assert best_model(tmp_path, ".h5").name == "xception_fin_03_1.000.h5"


def test_what_is_no_model_is_not_taken_for_one(tmp_path):
    make(
        tmp_path,
        ".xception_fin_09_0.999.h5",
        "xception_fin.resume.weights.h5",
        "xception_fin_09_0.999.split.json",
        "xception_fin_01_0.500.h5",
    )
    assert best_model(tmp_path, ".h5").name == "xception_fin_01_0.500.h5"


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["xception_fin_23_0_880.h5", "xception_fin_02_0.879.h5"], "xception_fin_23_0_880.h5"),
        (["xception_fin_23_0.999.h5", "xception_fin_02_1_000.h5"], "xception_fin_02_1_000.h5"),
        (["mine.h5"], "mine.h5"),
        (["mine.h5", "mine.tflite"], "mine.tflite"),
        (["mine.h5", "xception_fin_02_0.100.h5"], "xception_fin_02_0.100.h5"),
        (["mine.h5", "mine.weights.h5"], "mine.h5"),
        (["a_1_0.500.int8.tflite", "a_1_0.500.tflite"], "a_1_0.500.int8.tflite"),
        (["a_1_0.500.tflite", "a_1_0.500.float16.tflite"], "a_1_0.500.tflite"),
        (["a_1_0.500.dynamic.tflite", "a_2_0.600.tflite"], "a_2_0.600.tflite"),
    ],
)
def test_how_a_model_is_named_decides_and_then_which_is_newer(tmp_path, names, best):
    make(tmp_path, *names)
    assert best_model(tmp_path, ".tflite", ".h5").name == best


def test_kinds_of_one_checkpoint_have_names_of_their_own(tmp_path):
    checkpoint = tmp_path / "xception_fin_07_0.750.h5"
    assert tflite_path(checkpoint) == tmp_path / "xception_fin_07_0.750.tflite"
    for kind in ("none", *QUANTIZED):
        assert kind_of(tflite_path(checkpoint, kind)) == kind
    assert tflite_path(checkpoint, "int8") == tmp_path / "xception_fin_07_0.750.int8.tflite"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.h5").touch()
    assert "Received: a file; name its folder." in refusal(best_model, tmp_path / "a.h5", ".h5")


def test_without_a_model_the_sentence_says_what_to_run(tmp_path):
    with pytest.raises(ModelError, match=r"Received: none. Run python convert_to_tflite.py first"):
        best_model(tmp_path, ".tflite")
    with pytest.raises(ModelError, match=r"Run python train.py first"):
        best_model(tmp_path / "missing", ".h5")


def test_models_without_an_accuracy_in_their_names_are_named(tmp_path):
    for name in ("b.h5", "a.h5", "c.tflite"):
        (tmp_path / name).touch()
    assert refusal(best_model, tmp_path, ".h5", ".tflite") == (
        f"Expected a model such as xception_fin_01_0.900.h5 in {tmp_path}. "
        "Received: a.h5, b.h5, c.tflite. Run python train.py first, or name a model."
    )
    assert refusal(best_model, str(tmp_path / "none"), ".tflite") == (
        f"Expected a model such as xception_fin_01_0.900.tflite in {tmp_path / 'none'}. "
        "Received: none. Run python convert_to_tflite.py first, or name a model."
    )
