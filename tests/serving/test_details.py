"""serving.details: what a model tells beside scores, and how its file holds it."""

import io
import struct
import zipfile

import numpy as np
import pytest

from serving.details import DETAILS_FILE, Details, Familiarity, p_value, read_details
from serving.errors import ModelError

CHANNELS, CLASSES = 6, 3
RANDOM = np.random.default_rng(0)
DIRECTIONS = np.float16(np.linalg.qr(RANDOM.normal(size=(CHANNELS, 2)))[0])
FAMILIARITY = Familiarity(
    means=np.float32([np.full(CHANNELS, 0.4), np.eye(CHANNELS)[0]]),
    directions=np.float32([DIRECTIONS, np.zeros(DIRECTIONS.shape)]),
    distances=np.float32([0.125, 0.25, 0.25, 0.5, 1]),
)
HEAD = (
    (np.float32(np.float16(RANDOM.normal(size=(CHANNELS, 4)))), np.float32([9, -9, 0, 9])),
    (np.float32(np.float16(RANDOM.normal(size=(4, CLASSES)))), np.zeros(CLASSES, np.float32)),
)
NONCONFORMITY = np.float32([0, 0.125, 0.25, 0.5])
DETAILS = Details(FAMILIARITY, NONCONFORMITY, HEAD)


def test_a_p_value_is_the_share_of_others_that_are_at_least_as_large():
    values = np.array([0, 0.125, 0.25, 0.375, 1, 1.5])
    assert p_value(values, FAMILIARITY.distances).tolist() == [1, 1, 5 / 6, 3 / 6, 2 / 6, 1 / 6]


def test_no_more_images_are_called_unknown_than_was_promised():
    calls = [
        p_value(samples[0], np.sort(samples[1:])) < 0.05
        for samples in np.random.default_rng(1).normal(size=(4000, 50))
    ]
    assert 0.03 < np.mean(calls) < 0.05


def test_the_distance_is_what_remains_beside_the_directions_of_the_nearest_class():
    along = np.float64(DIRECTIONS)
    for features in RANDOM.normal(size=(9, CHANNELS)):
        unit = features / np.linalg.norm(features)
        first = (np.eye(CHANNELS) - along @ along.T) @ (unit - 0.4)
        expected = min(first @ first, ((unit - np.eye(CHANNELS)[0]) ** 2).sum())
        assert FAMILIARITY.distance(features) == pytest.approx(expected, rel=1e-2)
        assert FAMILIARITY.distance(features * 9) == pytest.approx(FAMILIARITY.distance(features))
    assert FAMILIARITY.distance(np.eye(CHANNELS)[0]) == 0
    assert FAMILIARITY.distance(np.zeros(CHANNELS)) == pytest.approx(
        FAMILIARITY.distance(np.full(CHANNELS, 1e-20)), rel=1e-3
    )


def test_what_is_known_is_near_the_mean_of_the_activations():
    near = np.full((2, 3, CHANNELS), 5, np.float32)
    assert FAMILIARITY.known(near) == 1
    assert FAMILIARITY.known(-near) == 1 / 6
    assert FAMILIARITY.known(near * np.nan) == 1 / 6
    assert type(FAMILIARITY.known(near)) is float


@pytest.mark.parametrize(
    ("probabilities", "chosen"),
    [
        ([1, 0, 0], [True, False, False]),
        ([0.45, 0.45, 0.1], [True, False, False]),  # the likeliest in any case
        ([0.5, 0.4, 0.1], [True, False, False]),
        ([0.5, 0.5, 0], [True, True, False]),
    ],
)
def test_a_class_is_in_the_set_if_it_is_as_likely_as_true_ones_were(probabilities, chosen):
    details = Details(nonconformity=np.float32([*[0.25] * 18, 0.5]))
    assert details.prediction_set(np.float32(probabilities)).tolist() == chosen


def test_19_validation_images_are_too_few_to_leave_a_class_out_of_the_set():
    values = np.zeros(20, np.float32)
    every = Details(nonconformity=values[:18]).prediction_set(np.float32([1, 0, 0]))
    assert every.tolist() == [True, True, True]
    best = Details(nonconformity=values).prediction_set(np.float32([1, 0, 0]))
    assert best.tolist() == [True, False, False]


def test_without_statistics_there_is_no_set():
    assert Details().prediction_set(np.float32([1, 0])) is None


def test_the_map_is_the_class_s_activations_where_one_layer_follows():
    kernel = np.float32([[1, -1], [2, 0.5]])
    details = Details(head=((kernel, np.zeros(2, np.float32)),))
    activations = np.float32([[[1, 0], [0, 1]], [[4, 0], [0, 0]]])
    assert details.activation_map(activations, 0).tolist() == [[0.25, 0.5], [1, 0]]
    assert details.activation_map(activations, 1).tolist() == [[0, 1], [0, 0]]
    assert details.activation_map(-activations, 0).tolist() == [[0, 0], [0, 0]]
    assert details.activation_map(activations * np.nan, 0).tolist() == [[0, 0], [0, 0]]


def test_the_map_leaves_out_hidden_units_that_are_off():
    activations = np.abs(RANDOM.normal(size=(2, 3, CHANNELS))).astype(np.float32)
    (first, bias), (last, _) = HEAD
    on = activations.mean(axis=(0, 1)) @ first + bias > 0
    assert 0 < on.sum() < 4
    for index in range(CLASSES):
        found = np.maximum(activations @ (first[:, on] @ last[on, index]), 0)
        expected = found / found.max() if found.max() else found
        assert DETAILS.activation_map(activations, index) == pytest.approx(expected, abs=1e-5)


# In a file.


def model_file(path, content, **options):
    """Write what stands for a .tflite file, with `content` as its details."""
    path.write_bytes(b"\x1c\0\0\0TFL3")
    with zipfile.ZipFile(path, "a", **options) as archive:
        archive.writestr("labels.txt", "a\n")
        if content is not None:
            archive.writestr(DETAILS_FILE, content)
    return path


def npz(arrays, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, values in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.asarray(values), allow_pickle=True)
            archive.writestr(f"{name}.npy", data.getvalue())
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.tflite"


def arrays_of(details):
    with np.load(io.BytesIO(details.to_bytes())) as arrays:
        return dict(arrays)


def assert_equal(read, written):
    expected = arrays_of(written)
    assert arrays_of(read).keys() == expected.keys()
    for name, values in arrays_of(read).items():
        assert (values == expected[name]).all(), name


@pytest.mark.parametrize(
    ("details", "channels"),
    [
        (DETAILS, CHANNELS),
        (Details(FAMILIARITY), CHANNELS),
        (Details(nonconformity=NONCONFORMITY), CHANNELS),
        (Details(head=HEAD), CHANNELS),
        (Details(head=HEAD[1:]), 4),
    ],
    ids=["all", "familiarity", "sets", "head", "one layer"],
)
def test_what_is_written_is_read(path, details, channels):
    read = read_details(model_file(path, details.to_bytes()), channels, CLASSES)
    assert_equal(read, details)
    assert (read.familiarity is None) == (details.familiarity is None)
    assert read.familiarity is None or read.familiarity.distances.dtype == np.float32


def test_kernels_in_the_order_of_columns_are_read_as_well(path):
    head = ((np.asfortranarray(HEAD[0][0]), HEAD[0][1]), HEAD[1])
    read = read_details(model_file(path, Details(head=head).to_bytes()), CHANNELS, CLASSES)
    assert (read.head[0][0] == HEAD[0][0]).all()


def test_kernels_too_large_for_half_precision_stay_finite(path):
    large = ((np.full((CHANNELS, CLASSES), 1e6, np.float32), np.zeros(CLASSES)),)
    read = read_details(model_file(path, Details(head=large).to_bytes()), CHANNELS, CLASSES)
    assert np.isfinite(read.head[0][0]).all()


def test_a_file_without_details_tells_nothing_else(path):
    assert Details().to_bytes() == b""
    assert read_details(model_file(path, None), CHANNELS, CLASSES) == Details()


def test_without_activations_only_sets_are_told(path):
    read = read_details(model_file(path, DETAILS.to_bytes()), None, CLASSES)
    assert_equal(read, Details(nonconformity=NONCONFORMITY))


def refusal(path, channels=CHANNELS, classes=CLASSES):
    with pytest.raises(ModelError) as caught:
        read_details(path, channels, classes)
    return str(caught.value)


SENTENCE = (
    "Expected a .tflite file with complete statistics of its own inside (details.npz). "
    "Received: a.tflite with damaged ones. Convert it again with convert_to_tflite.py."
)


@pytest.mark.parametrize(
    "changed",
    [
        {"means": np.zeros((2, CHANNELS + 1))},
        {"means": np.zeros(CHANNELS)},
        {"means": np.zeros((1, CHANNELS))},
        {"means": np.full((2, CHANNELS), np.nan)},
        {"means": np.full((2, CHANNELS), np.inf)},
        {"directions": np.zeros(CHANNELS)},
        {"directions": np.zeros((3, CHANNELS, 2))},
        {"means": np.zeros((0, CHANNELS)), "directions": np.zeros((0, CHANNELS, 2))},
        {"distances": np.zeros(0)},
        {"distances": np.float32([2, 1])},
        {"distances": np.zeros((2, 2))},
        {"nonconformity": np.float32([0.5, 0.25])},
        {"nonconformity": np.float32(0.5)},
        {"kernel_0": np.zeros((CHANNELS, 5))},
        {"kernel_0": np.zeros((CHANNELS + 1, 4))},
        {"kernel_0": np.zeros(4)},
        {"kernel_0": np.array(["a"])},
        {"kernel_0": np.array([None])},
        {"kernel_1": np.zeros((4, CLASSES + 1)), "bias_1": np.zeros(CLASSES + 1)},
        {"bias_1": np.zeros(())},
        {"kernel_2": np.zeros((CLASSES, CLASSES))},
    ],
    ids=lambda changed: " ".join(f"{n} {np.shape(v)}" for n, v in changed.items()),
)
def test_statistics_that_do_not_fit_are_refused(path, changed):
    content = npz(arrays_of(DETAILS) | changed)
    assert refusal(model_file(path, content)) == SENTENCE


@pytest.mark.parametrize("missing", [*vars(FAMILIARITY), "bias_0", "kernel_0"])
def test_statistics_of_which_one_is_missing_are_refused(path, missing):
    arrays = arrays_of(DETAILS)
    del arrays[missing]
    if missing == "mean":  # by which the others are looked for
        assert read_details(model_file(path, npz(arrays)), CHANNELS, CLASSES).familiarity is None
    else:
        assert refusal(model_file(path, npz(arrays))) == SENTENCE


@pytest.mark.parametrize(("channels", "classes"), [(CHANNELS + 1, CLASSES), (CHANNELS, 2)])
def test_statistics_of_another_model_are_refused(path, channels, classes):
    assert refusal(model_file(path, DETAILS.to_bytes()), channels, classes) == SENTENCE


def test_whichever_byte_is_damaged_is_noticed_or_harmless(path):
    content = model_file(path, DETAILS.to_bytes()).read_bytes()
    generator, refused = np.random.default_rng(2), 0
    for place in generator.integers(8, len(content), 400):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            read = read_details(path, CHANNELS, CLASSES)
        except ModelError:
            refused += 1
        else:
            assert read == Details() or arrays_of(read).keys() == arrays_of(DETAILS).keys()
    assert refused > 200


def test_a_file_that_is_cut_off_is_refused(path):
    whole = DETAILS.to_bytes()
    for length in range(0, len(whole), 97):
        assert refusal(model_file(path, whole[:length])) == SENTENCE


def test_bombs_are_refused_before_they_are_unpacked(path):
    zeros = np.zeros(3_000_000, np.float32)
    packed = {"compression": zipfile.ZIP_DEFLATED}
    bombs = {
        "entry": model_file(path, npz({"nonconformity": zeros}), **packed).read_bytes(),
        "array": model_file(path, npz({"nonconformity": zeros}, **packed)).read_bytes(),
    }
    for content in bombs.values():
        assert len(content) < 50_000
        path.write_bytes(content)
        assert refusal(path) == SENTENCE


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(3,)", "(1, 0)", "(" * 200, "-" * 3000])
def test_a_header_that_lies_is_refused(path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("nonconformity.npy", data)
    assert refusal(model_file(path, file.getvalue())) == SENTENCE
