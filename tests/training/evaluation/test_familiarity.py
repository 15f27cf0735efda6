"""training.evaluation.familiarity: what is fitted to tell an image's familiarity."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

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
    transfer_details,
)

CHANNELS = 40


def images(count, seed=0, spread=1.0):
    """Features of `count` images: positive, along a few directions, of any length."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(9).uniform(0, 1, (5, CHANNELS))
    mixed = rng.dirichlet(np.ones(5), count) @ kinds
    noise = rng.normal(0, 0.02 * spread, (count, CHANNELS))
    return np.float32((mixed + noise) * rng.uniform(1, 9, (count, 1)))


def labelled(count, seed=0, spread=1.0):
    """Features of `count` images of two classes, by turns."""
    features = images(count, seed, spread)
    features[1::2, :4] += 2
    return LabelledFeatures(features, np.arange(count) % 2)


def residuals(train, others, rank):
    """What remains of `others` beside the principal components of their nearest class."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.features, others)]
    found = []
    for index in (0, 1):
        components = PCA(rank, svd_solver="full").fit(unit[0][train.classes == index])
        rebuilt = components.inverse_transform(components.transform(unit[1]))
        found.append(((unit[1] - rebuilt) ** 2).sum(axis=1))
    return np.min(found, axis=0)


@pytest.mark.parametrize("count", [60, 500], ids=["fewer than channels", "more than channels"])
@pytest.mark.parametrize("rank", [1, 6, 10], ids="rank {}".format)
def test_the_distance_is_what_remains_beside_the_principal_components(count, rank):
    train, others = labelled(count), labelled(20, 1).features
    fitted = fit(train, others, rank)
    assert fitted.directions.shape == (2, CHANNELS, rank)
    assert distances(fitted, others) == pytest.approx(residuals(train, others, rank), rel=0.02)


def test_a_class_of_few_images_has_fewer_directions():
    train = labelled(500)
    few = LabelledFeatures(train.features[:-240], train.classes[:-240])
    kept = np.flatnonzero((few.classes == 0) | (np.arange(len(few.classes)) < 10))
    fitted = fit(LabelledFeatures(few.features[kept], few.classes[kept]), images(60, 1))
    used = np.linalg.norm(fitted.directions, axis=1) > 0.5
    assert used.sum(axis=1).tolist() == [10, 3]
    single = LabelledFeatures(train.features[:9], np.array([0] * 8 + [1]))
    assert not fit(single, images(60, 1)).directions[1].any()


def test_many_classes_share_one_megabyte():
    count = 300
    features = np.abs(np.random.default_rng(0).normal(size=(count, 2048))).astype(np.float32)
    fitted = fit(LabelledFeatures(features, np.arange(count) % 100), features)
    assert fitted.directions.shape == (100, 2048, 1)
    assert len(Details(fitted).to_bytes()) < 1_300_000


def test_how_bright_features_are_does_not_count():
    train, validation = labelled(300), labelled(60, 1).features
    brighter = LabelledFeatures(train.features * np.float32(7), train.classes)
    one, other = fit(train, validation), fit(brighter, validation * np.float32(3))
    assert np.allclose(one.distances, other.distances, rtol=1e-2)


def test_the_distances_are_those_of_the_validation_images_in_order():
    validation = labelled(60, 1).features
    fitted = fit(labelled(300), validation)
    assert np.array_equal(fitted.distances, np.sort(distances(fitted, validation)))
    again = compare_with(fitted, validation[:10])
    assert np.array_equal(again.distances, np.sort(distances(fitted, validation[:10])))


def test_it_is_the_same_each_time_and_after_it_was_stored():
    one, other = (fit(labelled(300), images(60, 1), rank=4) for _ in range(2))
    assert all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())
    stored = Details.from_arrays(Details(one).to_arrays()).familiarity
    strange = images(20, 2, spread=9)
    assert np.array_equal(distances(stored, strange), distances(one, strange))


def test_at_most_the_promised_share_of_images_is_called_unknown_and_strange_ones_are():
    fitted = fit(labelled(300), labelled(200, 1).features)
    p = np.array([fitted.known(row[None, None]) for row in labelled(1000, 2).features])
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
@pytest.mark.filterwarnings("error::RuntimeWarning")  # not those of files that others left open
def test_where_it_cannot_be_told_there_is_none(train, validation):
    assert fit(LabelledFeatures(train, np.arange(len(train)) % 2), validation) is None


@pytest.mark.parametrize("channels", [1, 2], ids="{} channels".format)
def test_a_network_of_few_channels_and_images_that_differ_little(channels):
    train = LabelledFeatures(images(MIN_TRAINING)[:, :channels], np.arange(MIN_TRAINING) % 2)
    fitted = fit(train, images(9, 1)[:, :channels])
    if channels == 1:
        assert fitted is None, "features of length 1 are then all 1"
    else:
        assert np.isfinite(fitted.distances).all()


def test_a_channel_that_is_always_zero_does_no_harm():
    train, validation = labelled(300), labelled(60, 1).features
    train.features[:, 3] = validation[:, 3] = 0
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
    earlier = fit(labelled(300), images(10, 5))
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
    fitted = fit(labelled(300), labelled(MIN_VALIDATION, 1).features)
    assert fitted.known(images(1, 3, spread=50)[None]) < familiarity.UNKNOWN_BELOW


def test_a_network_that_learned_all_images_is_compared_with_what_another_had_not_learned():
    first = fit_details(
        SplitFeatures(labelled(300), labelled(100, 1), labelled(100, 2)), np.full((100, 2), 0.5)
    )
    own = labelled(400, 7)
    found = transfer_details(own, first)
    expected = fit(own, images(60, 3))
    assert np.array_equal(found.familiarity.means, expected.means)
    assert np.array_equal(found.familiarity.directions, expected.directions)
    assert np.array_equal(found.familiarity.distances, first.familiarity.distances)
    assert np.array_equal(found.nonconformity, first.nonconformity)
    # Without training images it stays what it is; of features that say nothing it tells nothing.
    assert transfer_details(LabelledFeatures(np.empty((0, 0)), np.empty(0, int)), first) is first
    same = LabelledFeatures(np.ones((40, CHANNELS), np.float32), np.arange(40) % 2)
    assert transfer_details(same, first).familiarity is None
    assert transfer_details(own, Details()) == Details()
