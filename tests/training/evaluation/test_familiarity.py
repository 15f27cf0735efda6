"""training.evaluation.familiarity: what is fitted to tell an image's familiarity."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from serving.details import Details
from training.evaluation import familiarity
from training.evaluation.familiarity import (
    MIN_TRAINING,
    MIN_VALIDATION,
    LabelledFeatures,
    SplitFeatures,
    compare_with,
    describe_shortage,
    distances,
    fit,
    fit_details,
)

CHANNELS = 40


def images(count, seed=0, spread=1.0):
    """Features of `count` images: positive, along a few directions, of any length."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(9).uniform(0, 1, (5, CHANNELS))
    mixed = rng.dirichlet(np.ones(5), count) @ kinds
    noise = rng.normal(0, 0.02 * spread, (count, CHANNELS))
    return np.float32((mixed + noise) * rng.uniform(1, 9, (count, 1)))


def mahalanobis(train, others):
    """The squared distance by the whole shrunk covariance of features of length 1."""
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    covariance, _ = ledoit_wolf(unit)
    offsets = others / np.linalg.norm(others, axis=1, keepdims=True) - unit.mean(axis=0)
    return np.einsum("ij,jk,ik->i", offsets, np.linalg.inv(covariance), offsets)


@pytest.mark.parametrize("count", [30, 500], ids=["fewer than channels", "more than channels"])
def test_with_all_directions_it_is_the_mahalanobis_distance(count):
    train, others = images(count), images(20, 1)
    fitted = fit(train, others, rank=CHANNELS)
    assert distances(fitted, others) == pytest.approx(mahalanobis(train, others), rel=0.02)


@pytest.mark.parametrize("rank", [2, 6, 10], ids="rank {}".format)
def test_fewer_directions_are_the_widest_and_the_rest_share_a_variance(rank):
    train = images(500)
    fitted, whole = fit(train, images(60, 1), rank), fit(train, images(60, 1), CHANNELS)
    assert fitted.directions.shape == (CHANNELS, rank)
    assert np.allclose(fitted.variances, whole.variances[:rank], rtol=1e-3)
    assert np.all(np.diff(fitted.variances) <= 0)
    assert fitted.rest == pytest.approx(whole.variances[rank:].mean(), rel=1e-2)
    same = np.abs((fitted.directions * whole.directions[:, :rank]).sum(axis=0))
    assert np.allclose(same, 1, atol=1e-2)


def test_how_bright_features_are_does_not_count():
    train, validation = images(300), images(60, 1)
    one, other = fit(train, validation), fit(train * np.float32(7), validation * np.float32(3))
    assert np.allclose(one.distances, other.distances, rtol=1e-3)


def test_the_distances_are_those_of_the_validation_images_in_order():
    validation = images(60, 1)
    fitted = fit(images(300), validation)
    assert np.array_equal(fitted.distances, np.sort(distances(fitted, validation)))
    again = compare_with(fitted, validation[:10])
    assert np.array_equal(again.distances, np.sort(distances(fitted, validation[:10])))


def test_it_is_the_same_each_time_and_after_it_was_stored():
    one, other = (fit(images(300), images(60, 1), rank=4) for _ in range(2))
    assert all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())
    stored = Details.from_arrays(Details(one).to_arrays()).familiarity
    strange = images(20, 2, spread=9)
    assert np.array_equal(distances(stored, strange), distances(one, strange))


def test_at_most_the_promised_share_of_images_is_called_unknown_and_strange_ones_are():
    fitted = fit(images(300), images(200, 1))
    p = np.array([fitted.known(row[None, None]) for row in images(1000, 2)])
    assert 0.02 < (p <= 0.05).mean() < 0.09
    assert max(fitted.known(row[None, None]) for row in images(50, 3, spread=9)) < 0.02


@pytest.mark.parametrize(
    ("train", "validation"),
    {
        "one too few": (images(MIN_TRAINING - 1), images(9)),
        "none": (np.empty((0, CHANNELS), np.float32), images(9)),
        "all the same": (np.repeat(images(1), 50, axis=0), images(9)),
        "all zero": (np.zeros((50, CHANNELS), np.float32), images(9)),
        "no numbers": (np.full((50, CHANNELS), np.nan), images(9)),
        "nothing to compare with": (images(50), images(9)[:0]),
        "no numbers to compare with": (images(50), images(9) * np.float32(np.inf)),
    }.values(),
    ids=[
        *("one too few", "none", "all the same", "all zero", "no numbers"),
        *("nothing to compare with", "no numbers to compare with"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_where_it_cannot_be_told_there_is_none(train, validation):
    assert fit(train, validation) is None


@pytest.mark.parametrize("channels", [1, 2], ids="{} channels".format)
def test_a_network_of_few_channels_and_images_that_differ_little(channels):
    train = images(MIN_TRAINING)[:, :channels]
    fitted = fit(train, images(9, 1)[:, :channels])
    if channels == 1:
        assert fitted is None, "features of length 1 are then all 1"
    else:
        assert np.isfinite(fitted.distances).all()


def test_a_channel_that_is_always_zero_does_no_harm():
    train, validation = images(300), images(60, 1)
    train[:, 3] = validation[:, 3] = 0
    fitted = fit(train, validation)
    assert np.isfinite(fitted.distances).all()
    strange = validation[:1].copy()
    strange[:, 3] = 0.2 * np.linalg.norm(strange)
    assert distances(fitted, strange) > fitted.distances[-1]


def split(train=60, validation=MIN_VALIDATION):
    sets = (images(train), images(validation, 1), images(30, 2))
    return SplitFeatures(*(LabelledFeatures(x, np.arange(len(x)) % 2) for x in sets))


def test_the_nonconformity_is_what_the_true_class_lacks():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet((1, 1), MIN_VALIDATION)
    details = fit_details(split(), probabilities)
    true = probabilities[np.arange(MIN_VALIDATION), np.arange(MIN_VALIDATION) % 2]
    assert np.allclose(details.nonconformity, np.sort(1 - true))
    assert details.head == ()
    probabilities[3] = np.nan
    assert fit_details(split(), probabilities).nonconformity is None


def test_without_training_images_an_earlier_familiarity_is_kept():
    probabilities = np.full((MIN_VALIDATION, 2), 0.5)
    earlier = fit(images(300), images(10, 5))
    kept = fit_details(split(train=0), probabilities, earlier).familiarity
    assert np.array_equal(kept.directions, earlier.directions)
    assert len(kept.distances) == MIN_VALIDATION
    assert fit_details(split(train=0), probabilities).familiarity is None


def test_what_is_missing_is_said_in_one_sentence():
    probabilities = np.full((MIN_VALIDATION, 2), 0.5)
    assert describe_shortage(fit_details(split(), probabilities), 60) is None
    few = describe_shortage(fit_details(split(validation=49), probabilities[:49]), 60)
    assert few == (
        "The model calls no image unknown: 49 validation images give no p-value below 0.020, and "
        "UNKNOWN_BELOW is 0.02. Use 50 or more, or set UNKNOWN_BELOW above 0.020."
    )
    none = describe_shortage(Details(), 3)
    assert none == (
        "The model will not say which images are unknown: it has 3 training images, of 8 or more."
    )
    assert "all the same or are no numbers" in describe_shortage(Details(), 8)


def test_fifty_validation_images_suffice_to_call_an_image_unknown():
    fitted = fit(images(300), images(MIN_VALIDATION, 1))
    assert fitted.known(images(1, 3, spread=50)[None]) < familiarity.UNKNOWN_BELOW
