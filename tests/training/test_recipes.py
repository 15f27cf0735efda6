"""training/recipes.py: the flags of a recipe, what they take, and what help says of them."""

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.batches import TrainingBatches, shown_samples
from training.recipes import (
    FINE_TUNE,
    ORIGINAL,
    RECIPES,
    Recipe,
    RunOptions,
    add_recipe_flags,
    read_recipe,
)

# What each flag is given, and what the recipe then holds.
FLAGS = {
    "head": ("64, 16", (64, 16)),
    "input_size": ("224", 224),
    "inference_size": ("320", 320),
    "epochs": ("2", 2),
    "batch_size": ("4", 4),
    "learning_rate": ("0.25", 0.25),
    "momentum": ("0", 0.0),
    "label_smoothing": ("0.3", 0.3),
    "ema_momentum": ("0.98", 0.98),
    "mixup_alpha": ("0.5", 0.5),
    "steps_per_epoch": ("3", 3),
    "refit_epochs": ("7", 7),
    "final_head_epochs": ("5", 5),
    "views": ("5", 5),
    "zoom_range": ("0.8,1.2", (0.8, 1.2)),
    "brightness_range": ("0.8,1.2", (0.8, 1.2)),
    "channel_shift_range": ("20", 20.0),
    "erasing": ("0.25", 0.25),
    "fine_tune_at": ("14", 14),
    "split_seed": ("0", 0),
    "seed": ("0", 0),
}
# ImageDataGenerator's arguments in the original.
AUGMENTATION = {
    "rotation_range": 40,
    "width_shift_range": 0.4,
    "height_shift_range": 0.4,
    "shear_range": 0.2,
    "zoom_range": 0.3,
    "horizontal_flip": True,
    "fill_mode": "nearest",
}


@pytest.fixture
def parser():
    made = argparse.ArgumentParser(prog="train.py")
    add_recipe_flags(made)
    return made


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_changes_its_own_setting_only(name, recipe, parser):
    text, value = FLAGS[name]
    options = parser.parse_args(["--recipe", recipe, f"--{name.replace('_', '-')}", text])
    expected = asdict(RECIPES[recipe]) | {name: value}
    assert asdict(read_recipe(options)) == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_second_training_is_asked_for_or_not(recipe, parser):
    for flag, value in (("--refit", True), ("--no-refit", False)):
        options = parser.parse_args(["--recipe", recipe, flag])
        assert read_recipe(options) == replace(RECIPES[recipe], refit=value)


def test_the_defaults_are_the_originals():
    settings = asdict(ORIGINAL)
    assert {
        "input_size": 299,
        "batch_size": 32,
        "validation_fraction": 0.2,
        "split_seed": 69420,
        "seed": 69420,
        **AUGMENTATION,
        "head": (512, 128, 32),
        "learning_rate": 0.01,
        "momentum": 0.75,
        "epochs": 30,
        "steps_per_epoch": 100,
    }.items() <= settings.items()
    # What the original did not have is switched off.
    assert {n: settings[n] for n in ("test_fraction", "mixup_alpha", "head_epochs")} == {
        "test_fraction": 0.0,
        "mixup_alpha": 0.0,
        "head_epochs": 0,
    }
    assert settings["fine_tune_at"] is settings["warmup_epochs"] is None


def test_without_flags_it_is_the_originals_recipe(parser):
    assert read_recipe(parser.parse_args([])) == ORIGINAL


def test_the_recipes_have_the_flags_above_and_no_others(parser):
    given = set(vars(parser.parse_args([]))) - {"recipe", "refit"}
    assert given == set(FLAGS)
    assert given <= {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(
    ("old", "name", "text", "value"),
    [("--mixup", "mixup_alpha", "0.3", 0.3), ("--first-block", "fine_tune_at", "13", 13)],
)
def test_flags_of_the_last_release_still_work_and_are_not_advertised(
    old, name, text, value, parser
):
    options = parser.parse_args([old, text])
    assert getattr(read_recipe(options), name) == value
    assert f"{old} " not in parser.format_help()


def test_help_gives_both_recipes_values(parser):
    text = " ".join(parser.format_help().split())
    for expected in (
        "--recipe {original,fine-tune} which settings [original]",
        "settings of the recipe: [original / fine-tune]",
        "or none [(512, 128, 32) / ()]",
        "of the finished network; None: as trained [None / 363]",
        "--epochs EPOCHS [30 / 18]",
        "--batch-size BATCH_SIZE [32 / 32]",
        "[0.01 / 0.008]",
        "--momentum MOMENTUM 0 to 1 [0.75 / 0.9]",
        "batches an epoch; None: all training images [100 / None]",
        "augmented views of each image in the cache [4 / 9]",
        "below 1 is closer [0.3 / (0.5, 1.0)]",
        "from which the base learns [None / 5]",
        "of the split into training, validation and test images [69420 / 69420]",
        "of new weights, order and mixup, on the same split [69420 / 69420]",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("flag", "text", "sentence"),
    [
        *(("head", t, "expected numbers above 0, or none") for t in ("0", "64,", "-1", "a", "")),
        ("zoom-range", "1.2,0.8", "expected one number, or a lower and an upper one"),
        ("zoom-range", "0.5,0.7,1", "expected one number, or a lower and an upper one"),
        ("zoom-range", "1", "expected a number from 0 to below 1"),
        ("zoom-range", "-0.1", "expected a number from 0 to below 1"),
        ("brightness-range", "1.2,0.8", "expected one number, or a lower and an upper one"),
        ("channel-shift-range", "256", "expected a number from 0 to 255"),
        ("channel-shift-range", "-1", "expected a number from 0 to 255"),
        ("channel-shift-range", "nan", "expected a number from 0 to 255"),
        ("erasing", "1", "expected a number from 0 to below 1"),
        ("momentum", "1", "expected a number from 0 to below 1"),
        ("label-smoothing", "nan", "expected a number from 0 to below 1"),
        *(("epochs", t, "expected a number above 0") for t in ("0", "-2")),
        *(("learning-rate", t, "expected a number above 0") for t in ("0", "nan", "inf")),
        *(("fine-tune-at", t, "expected a block from 1 to 14") for t in ("0", "15", "-1")),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_sentence(flag, text, sentence, parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([f"--{flag}={text}"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith(f"train.py: error: argument --{flag}: {sentence}. Received: {text}\n")


@pytest.mark.parametrize(
    ("flag", "text"), [("epochs", "2.5"), ("seed", "x"), ("zoom-range", "a,b")]
)
def test_what_is_no_number_is_refused(flag, text, parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args([f"--{flag}={text}"])
    assert f"argument --{flag}: invalid " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("head", "none", ()),
        ("head", "1", (1,)),
        ("zoom-range", "0.25", 0.25),
        ("zoom-range", "0", 0.0),
        ("zoom-range", "1,1", (1.0, 1.0)),
        ("fine-tune-at", "1", 1),
    ],
)
def test_the_least_and_the_plainest_values_are_taken(flag, text, value, parser):
    options = parser.parse_args([f"--{flag}={text}"])
    assert getattr(options, flag.replace("-", "_")) == value


def test_sizes_are_in_pixels_of_height_and_width():
    assert ORIGINAL.image_size == (299, 299)
    assert (ORIGINAL.final_size, FINE_TUNE.final_size) == (299, 363)


@pytest.mark.parametrize(
    ("changes", "count", "steps", "views"),
    [
        ({}, 2422, 75, 9),
        ({"epochs": 7}, 2422, 75, 7),  # the last one of nearly all images
        ({"epochs": 1}, 2422, 75, 1),
        ({"epochs": 3, "views": 2}, 2422, 75, 2),
        ({"epochs": 2}, 33, 1, 2),  # 64 of 66 images
        ({"epochs": 2}, 20, 1, 4),  # 64 are three rounds and four images
        ({"epochs": 2, "steps_per_epoch": 100}, 3200, 100, 2),
        ({"epochs": 2, "steps_per_epoch": 100}, 3199, 100, 3),
    ],
)
def test_a_short_run_needs_only_the_views_that_it_shows(changes, count, steps, views):
    recipe = replace(FINE_TUNE, **changes)
    assert (recipe.steps(count), recipe.shown_views(count)) == (steps, views)


@given(
    count=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 5),
    steps_per_epoch=st.none() | st.integers(1, 9),
    views=st.integers(1, 6),
)
def test_what_is_computed_is_what_batches_draw(count, **settings):
    recipe = replace(ORIGINAL, **settings)
    steps, names = recipe.steps(count), [f"a/{n}" for n in range(count)]
    dataset = SimpleNamespace(images=names, class_names=("a",), labels=lambda _: [0] * count)
    source = SimpleNamespace(dataset=dataset)
    batches = TrainingBatches(
        source, names, recipe.batch_size, steps=steps, seed=1, views=recipe.views
    )
    drawn = set()
    for epoch in range(recipe.epochs):
        batches.begin_epoch(epoch)
        drawn.update(*(batches.drawn(index) for index in range(steps)))
    shown = shown_samples(range(count), recipe.views, recipe.rows(count), 1)
    assert sorted(shown) == sorted(drawn), "each sample once"
    assert {view for _, view in shown} == set(range(1, recipe.shown_views(count) + 1))


def test_augmentation_is_what_keras_is_given():
    assert ORIGINAL.augmentation == AUGMENTATION


def test_augmentation_holds_what_is_switched_on_only():
    for name in ("brightness_range", "channel_shift_range", "erasing"):
        assert not {name} & (set(ORIGINAL.augmentation) | set(FINE_TUNE.augmentation))
    changed = replace(ORIGINAL, brightness_range=0.25, channel_shift_range=20.0, erasing=0.5)
    assert changed.augmentation == AUGMENTATION | {
        "brightness_range": (0.75, 1.25),
        "channel_shift_range": 20.0,
        "erasing": 0.5,
    }
    changed = replace(ORIGINAL, brightness_range=(0.5, 1.0))
    assert changed.augmentation == AUGMENTATION | {"brightness_range": (0.5, 1.0)}


def test_places_are_read_from_the_command_line():
    values = {
        "data": Path("a"),
        "exclude": Path("b"),
        "audit": Path("d"),
        "weights": "none",
        "models": Path("c"),
        "cache": None,
        "cache_days": 7,
        "resume": True,
        "tensorboard": True,
    }
    read = RunOptions.read(argparse.Namespace(**values, recipe="original"))
    assert asdict(read) == values | {"command": "python train.py"}
