"""training.dataset.split: folds, each of which tests other images."""

from collections import Counter

import pytest

from training.dataset.scan import Dataset, class_of
from training.dataset.split import split_folds
from training.errors import DataError


def dataset_of(same=(), **sizes):
    """Return a data set of so many images a class; the files of each of `same` are equal."""
    images = tuple(f"{name}/{i:03}" for name, count in sizes.items() for i in range(count))
    digests = {image: image for image in images}
    for group in same:
        digests |= dict.fromkeys(group, group[0])
    return Dataset("folder", tuple(sizes), images, (), digests)


DATASET = dataset_of(daisy=53, rose=20, tulip=31)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_image_is_tested_once_and_the_others_train_or_validate(folds):
    splits = split_folds(DATASET, 7, folds, 0.25)
    assert len(splits) == folds
    assert sorted(image for split in splits for image in split.test) == sorted(DATASET.images)
    for split in splits:
        every = [*split.train, *split.validation, *split.test]
        assert sorted(every) == sorted(DATASET.images)
        rest = Counter(map(class_of, (*split.train, *split.validation)))
        validating = Counter(map(class_of, split.validation))
        assert all(validating[name] == round(rest[name] / 4) for name in DATASET.class_names)
        assert (split.seed, split.validation_fraction) == (7, 0.25)
        assert split.evaluated_name == "test"


def test_folds_have_equal_shares_of_each_class_and_in_all():
    splits = split_folds(DATASET, 7, 5, 0.25)
    for name in DATASET.class_names:
        counts = [sum(class_of(image) == name for image in split.test) for split in splits]
        assert max(counts) - min(counts) <= 1
    sizes = [len(split.test) for split in splits]
    assert max(sizes) - min(sizes) <= 1


def test_the_folds_follow_their_seed():
    assert split_folds(DATASET, 7, 5, 0.25) == split_folds(DATASET, 7, 5, 0.25)
    tests = {split_folds(DATASET, seed, 5, 0.25)[0].test for seed in range(5)}
    assert len(tests) == 5
    validations = {split.validation for split in split_folds(DATASET, 7, 5, 0.25)}
    assert len(validations) == 5


def test_copies_are_in_one_set_of_each_split_also_across_classes():
    groups = (
        ("daisy/000", "daisy/001", "rose/004"),
        ("rose/000", "tulip/000"),
        tuple(f"tulip/{i:03}" for i in range(5, 12)),
    )
    dataset = dataset_of(groups, daisy=53, rose=20, tulip=31)
    for seed in range(10):
        splits = split_folds(dataset, seed, 5, 0.2)
        assert Counter(image for split in splits for image in split.test) == dict.fromkeys(
            dataset.images, 1
        )
        for split in splits:
            for group in groups:
                sets = (split.train, split.validation, split.test)
                assert sum(any(image in images for image in group) for images in sets) == 1
        for name in ("daisy", "rose"):
            counts = [sum(class_of(image) == name for image in split.test) for split in splits]
            assert max(counts) - min(counts) <= 2


def test_more_folds_than_images_of_a_class_are_refused():
    with pytest.raises(DataError, match="Expected images of rose for each of 3 sets"):
        split_folds(dataset_of(daisy=20, rose=4), 1, 5, 0.25)
