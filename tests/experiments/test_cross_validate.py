"""experiments.cross_validate: each image tested once, nothing lost, and tables that are right."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import build_tiny

import training.fit
from experiments import cross_validate, cross_validate_report
from experiments.cross_validate import parse_recipe
from experiments.cross_validate_report import read_recipes
from experiments.predictions import Predictions, joined
from training.dataset.scan import scan
from training.evaluation.metrics import audited, describe_audited, summarize, with_interval
from training.evaluation.paired import compare_hits
from training.recipes import FINE_TUNE, ORIGINAL, RECIPES
from training.resume import STATE
from training.streams import counted

SHORT = "--epochs 2 --steps-per-epoch 2 --batch-size 8 --views 1 --head none"
PLAIN = f"original {SHORT} --learning-rate 0.5"
FINE = f"fine-tune {SHORT} --fine-tune-at 13"
FOLDS = 2


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    """Small images and networks: quick, and nothing here asks for a good one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validate, "build_model", build_tiny)
        patch.setattr("training.model.build_model", build_tiny)
        patch.setitem(RECIPES, "original", replace(ORIGINAL, input_size=71))
        small = replace(FINE_TUNE, input_size=71, inference_size=80, head_epochs=1)
        patch.setitem(RECIPES, "fine-tune", small)
        yield


@pytest.fixture(scope="module")
def flags(drawn, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    places = ["--data", str(drawn), "--cache", str(cache), "--weights", "none"]
    return [*places, "--folds", str(FOLDS), "--split-seed", "3"]


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    """The folder of a whole cross-validation of two recipes, and the runs that it was made of."""
    out, runs = tmp_path_factory.mktemp("trained"), []
    choose_inputs = cross_validate.choose_inputs

    def watch(run, model):
        runs.append(run)
        return choose_inputs(run, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validate, "choose_inputs", watch)
        arguments = [*flags, "--recipes", PLAIN, FINE, "--out", str(out)]
        assert cross_validate.main(arguments) == 0
    return out, runs


def predictions_of(out):
    return {folds.name: joined(folds.parts) for folds in read_recipes(out, None)}


def rows_of(out):
    _, *rows = map(json.loads, (out / cross_validate.ROWS).read_text().splitlines())
    return rows


def test_each_image_is_tested_once_by_a_network_that_did_not_see_it(trained, drawn):
    out, runs = trained
    dataset = scan(drawn)
    assert [run.recipe.fine_tune_at for run in runs] == [None] * FOLDS + [13] * FOLDS
    for recipe in (runs[:FOLDS], runs[FOLDS:]):
        tested = Counter(image for run in recipe for image in run.split.test)
        assert tested == dict.fromkeys(dataset.images, 1)
        for run in recipe:
            sets = (run.split.train, run.split.validation, run.split.test)
            assert sum(map(len, sets)) == len(dataset.images) == len({*sets[0], *sets[1], *sets[2]})
            assert all(sets)
    assert [run.split.test for run in runs[:FOLDS]] == [run.split.test for run in runs[FOLDS:]]
    fractions = [run.split.validation_fraction for run in runs]
    assert fractions == [ORIGINAL.validation_fraction] * FOLDS + [0.125] * FOLDS
    by_name = read_recipes(out, None)[::-1]
    for recipe, folds in zip((runs[:FOLDS], runs[FOLDS:]), by_name, strict=True):
        assert [run.split.test for run in recipe] == [part.names for part in folds.parts]


def test_a_finished_fold_has_a_record_and_leaves_no_weights(trained):
    out, runs = trained
    rows = rows_of(out)
    assert [(row["recipe"], row["fold"]) for row in rows] == [
        (parse_recipe(text).slug, number) for text in (PLAIN, FINE) for number in (1, 2)
    ]
    for row, run in zip(rows, runs, strict=True):
        [part] = cross_validate_report.read_predictions(
            [cross_validate_report.fold_file(out, row["recipe"], row["fold"])]
        )
        found = summarize(part.probabilities, part.labels)
        assert row["accuracy"] == found["accuracy"] == part.hits.mean()
        assert row["log_loss"] == pytest.approx(found["log_loss"], rel=1e-4)
        assert row["validation"]["n"] == len(run.split.validation)
        assert row["epoch"] in {1, 2}
        assert row["temperature"] > 0
    left = {path.name for path in (out / cross_validate.RUNS).glob("*/*/*")}
    assert left == {cross_validate.HISTORY}


def test_a_second_run_trains_nothing_and_prints_what_the_predictions_say(
    trained, flags, drawn, tmp_path, capsys, monkeypatch
):
    out, _ = trained
    monkeypatch.setattr(cross_validate, "train_fold", None)
    left = next((out / cross_validate.RUNS).glob("*/fold_2")) / STATE
    left.write_bytes(b"of a process that was killed after the record")
    wrong = scan(drawn).images[::7]
    (tmp_path / "audit.txt").write_text("\n".join(f"{image}  # a lamp" for image in wrong))
    audit = ["--audit", str(tmp_path / "audit.txt")]
    arguments = [*flags, *audit, "--recipes", PLAIN, FINE, "--out", str(out)]
    assert cross_validate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r": fold \d is finished\.", printed)) == 2 * FOLDS
    assert not left.exists()
    found = predictions_of(out)
    one, other = (found[parse_recipe(text).slug] for text in (PLAIN, FINE))
    for text, predictions in ((PLAIN, one), (FINE, other)):
        whole = summarize(predictions.probabilities, predictions.labels)
        accuracy = with_interval(whole["accuracy"], whole["accuracy_interval"])
        each = [row["accuracy"] for row in rows_of(out) if row["recipe"] == parse_recipe(text).slug]
        assert (
            f"| {text} | {', '.join(f'{value:.3f}' for value in each)} | {np.mean(each):.4f} ± "
            f"{np.std(each, ddof=1):.4f} | {accuracy}, n = 50 | {whole['log_loss']:.3f} | "
            f"{whole['expected_calibration_error']:.3f} |\n"
        ) in printed
        marked = np.isin(predictions.names, wrong)
        described = audited(predictions.probabilities, predictions.labels, marked)
        assert f"Audited, {text}: {describe_audited(described)}.\n" in printed
    assert one.names == other.names
    kept = ~np.isin(one.names, wrong)
    pairs = [compare_hits(one.hits, other.hits), compare_hits(one.hits[kept], other.hits[kept])]
    assert f"  as labelled: {pairs[0].describe()}.\n  audited: {pairs[1].describe()}.\n" in printed
    summary = json.loads((out / cross_validate.SUMMARY).read_text())
    [paired] = summary["paired"]
    assert paired["as_labelled"]["p_value"] == pairs[0].p_value
    assert paired["audited"]["n"] == kept.sum() == 50 - len(wrong)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("place", ["second epoch", "record"])
def test_a_killed_run_continues_and_comes_to_the_same(
    place, trained, flags, tmp_path, capsys, monkeypatch
):
    arguments = [*flags, "--recipes", FINE, "--out", str(tmp_path)]
    folds = []

    def fit_epochs(model, training_, validation, *, epochs, **named):
        folds.append(epochs)
        if place == "second epoch" and len(folds) == 2:
            fit_whole(model, training_, validation, epochs=(0, 1), **named)
            raise Killed
        return fit_whole(model, training_, validation, epochs=epochs, **named)

    fit_whole, append = training.fit.fit_epochs, cross_validate.Records.append

    def append_first(records, row):
        if row["fold"] == 2:
            raise Killed
        append(records, row)

    with monkeypatch.context() as patch:
        patch.setattr(training.fit, "fit_epochs", fit_epochs)
        if place == "record":
            patch.setattr(cross_validate.Records, "append", append_first)
        with pytest.raises(Killed):
            cross_validate.main(arguments)
    states = list(tmp_path.rglob(STATE))
    assert [path.parent.name for path in states] == ["fold_2"]
    assert len(rows_of(tmp_path)) == 1

    monkeypatch.setattr(training.fit, "fit_epochs", fit_epochs)
    folds[:] = [None, None]
    assert cross_validate.main(arguments) == 0
    printed = capsys.readouterr().out
    done = 1 if place == "second epoch" else 2
    assert folds[2:] == [(done, 2)] * (done < 2)  # and nothing where all epochs are finished
    assert f"Resume: after {counted(done, 'finished epoch')} of" in printed
    name = parse_recipe(FINE).slug
    whole, resumed = predictions_of(trained[0])[name], predictions_of(tmp_path)[name]
    assert whole.names == resumed.names
    assert np.allclose(whole.probabilities, resumed.probabilities, atol=2e-3)
    assert not list(tmp_path.rglob(STATE))


def test_a_second_training_on_validation_images_keeps_the_temperature_and_continues(
    flags, tmp_path, capsys, monkeypatch
):
    recipe = f"{FINE} --refit --refit-epochs 2 --final-head-epochs 1"
    arguments = [*flags, "--recipes", recipe, "--out", str(tmp_path)]
    fits, networks = [], []
    fit_whole, train_network = training.fit.fit_epochs, cross_validate.train_network

    def fit_epochs(model, training_, validation, *, epochs, **named):
        fits.append(epochs)
        if len(fits) == 2:  # the second network of the first fold
            fit_whole(model, training_, validation, epochs=(0, 1), **named)
            raise Killed
        return fit_whole(model, training_, validation, epochs=epochs, **named)

    def watch(run):
        networks.append(run)
        return train_network(run)

    monkeypatch.setattr(training.fit, "fit_epochs", fit_epochs)
    monkeypatch.setattr(cross_validate, "train_network", watch)
    with pytest.raises(Killed):
        cross_validate.main(arguments)
    networks.clear()
    assert cross_validate.main(arguments) == 0
    assert fits[2:] == [(1, 2), (0, 2), (0, 2)]  # the first network of the first fold is finished
    first, second, *_ = networks
    assert second.split.validation == ()
    assert {*second.split.train} == {*first.split.train, *first.split.validation}
    assert second.split.test == first.split.test
    row = rows_of(tmp_path)[0]
    assert (row["n"], row["validation"]["n"]) == (
        len(first.split.test),
        len(first.split.validation),
    )
    assert row["temperature"] != 1


def test_a_fold_whose_predictions_are_gone_is_trained_again(trained, flags, monkeypatch, tmp_path):
    out, _ = trained
    (tmp_path / cross_validate.ROWS).write_bytes((out / cross_validate.ROWS).read_bytes())
    named = parse_recipe(PLAIN)
    records = cross_validate.Records(
        tmp_path / cross_validate.ROWS, json.loads((out / "rows.jsonl").read_text().split("\n")[0])
    )
    settings = cross_validate.recipe_settings(named)
    assert not cross_validate.is_finished(records, named, settings, 1, tmp_path)
    assert cross_validate.is_finished(records, named, settings, 1, out)


def test_other_folds_and_other_settings_are_not_mixed_in(trained, flags, capsys, monkeypatch):
    out, _ = trained
    place = ["--recipes", PLAIN, "--out", str(out)]
    assert cross_validate.main([*flags, *place, "--split-seed", "4"]) == 1
    assert "(split_seed 3, images " in (error := capsys.readouterr().err)
    assert "Give the same, or another --out." in error
    monkeypatch.setitem(RECIPES, "original", replace(ORIGINAL, input_size=72))
    assert cross_validate.main([*flags, *place]) == 1
    assert "(input_size 71). Received: input_size 72. Give another --out." in (
        capsys.readouterr().err
    )


# Predictions from elsewhere

NAMES = [f"{name}/{i}.jpg" for name in ("daisy", "rose") for i in range(30)]


def write_fold(out, slug, number, names, right):
    """Write a fold as another program would: only names and probabilities, in float16."""
    labels = np.array([name.startswith("rose") for name in names], int)
    predicted = np.where(right, labels, 1 - labels)
    probabilities = np.where(np.arange(2) == predicted[:, None], 0.9, 0.1).astype(np.float16)
    folder = out / "predictions" / slug
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"fold_{number}.npz", names=np.array(names), probabilities=probabilities)


def report(out, *words):
    return cross_validate.main(["--report", "--out", str(out), *map(str, words)])


def test_predictions_from_elsewhere_are_reported_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    order = rng.permutation(NAMES).tolist()
    right = {slug: rng.random(60) < share for slug, share in (("a", 0.8), ("b-0.5", 0.95))}
    for slug, hits in right.items():
        for number, place in enumerate((slice(0, 20), slice(20, 60)), 1):
            write_fold(tmp_path, slug, number, order[place], hits[place])
    assert report(tmp_path) == 0
    printed = capsys.readouterr().out
    each = [f"{right['a'][place].mean():.3f}" for place in (slice(0, 20), slice(20, 60))]
    assert f"| a | {each[0]}, {each[1]} | " in printed
    assert f"{right['b-0.5'].mean():.3f} (" in printed
    assert "Audited" not in printed
    assert "b-0.5 (second) less a (first):\n" in printed
    assert f"  as labelled: {compare_hits(*right.values()).describe()}.\n" in printed
    write_fold(tmp_path, "c", 1, order[:20], np.zeros(20, bool))
    assert report(tmp_path, "--recipes", "a", "b 0.5") == 0  # whatever they are called
    printed = capsys.readouterr().out
    assert "b 0.5 (second) less a (first):\n" in printed
    assert "| c |" not in printed
    both = ~(right["a"] | right["b-0.5"])
    assert f"All 2 recipes are wrong on {both.sum()} of 60 images, as labelled: " in printed
    assert report(tmp_path) == 0
    printed = capsys.readouterr().out
    choice = f"would reach {1 - both[:20].mean():.4f}."
    assert f"All 3 recipes are wrong on {both[:20].sum()} of 20 images, as labelled" in printed
    assert choice in printed
    assert report(tmp_path, "--recipes", "original") == 1
    assert "Received: none of original. Run it without --report" in capsys.readouterr().err


def test_only_images_that_both_recipes_have_are_compared(tmp_path, capsys):
    write_fold(tmp_path, "a", 1, NAMES, np.arange(60) % 3 > 0)
    write_fold(tmp_path, "b", 2, NAMES[40:][::-1], np.ones(20, bool))
    assert report(tmp_path) == 0
    expected = compare_hits(np.arange(40, 60) % 3 > 0, np.ones(20, bool))
    assert f"as labelled: {expected.describe()}." in capsys.readouterr().out
    assert expected.n == 20
    (tmp_path / "predictions" / "b" / "fold_2.npz").unlink()
    write_fold(tmp_path, "b", 1, ["daisy/other.jpg", "rose/other.jpg"], np.ones(2, bool))
    assert report(tmp_path) == 1
    assert "Received: none in common of a and b." in capsys.readouterr().err


def test_folders_without_predictions_are_not_reported_on(tmp_path, capsys):
    for slug in ("a", "my run"):
        write_fold(tmp_path, slug, 1, NAMES, np.ones(60, bool))
    for name in ("empty", ".ipynb_checkpoints"):
        (tmp_path / "predictions" / name).mkdir()
    assert report(tmp_path) == 0
    assert "my run (second) less a (first):" in capsys.readouterr().out


def test_what_cannot_be_reported_on_ends_with_a_sentence(tmp_path, capsys):
    assert report(tmp_path) == 1
    assert "Received: none of any recipe." in capsys.readouterr().err
    write_fold(tmp_path, "a", 1, NAMES[:40], np.ones(40, bool))
    write_fold(tmp_path, "a", 2, NAMES[30:], np.ones(30, bool))
    assert report(tmp_path) == 1
    assert "Received: rose/0.jpg in two." in capsys.readouterr().err
    (tmp_path / "predictions" / "a" / "fold_2.npz").write_bytes(b"text")
    assert report(tmp_path) == 1
    assert "Received: something else in" in capsys.readouterr().err
    (tmp_path / "predictions" / "a" / "fold_2.npz").unlink()
    (tmp_path / "audit.txt").write_text("tulip/1.jpg\n")
    assert report(tmp_path, "--audit", tmp_path / "audit.txt") == 1
    assert "Expected a list of images among the 40 predicted ones." in capsys.readouterr().err
    assert report(tmp_path, "--audit", tmp_path / "no.txt") == 1
    assert "(No such file or directory). Correct its name, or omit" in capsys.readouterr().err
    (tmp_path / "audit.txt").write_text("tulip/1.jpg\ndaisy/3.jpg # no\n")
    assert report(tmp_path, "--audit", tmp_path / "audit.txt") == 0
    assert "Audit: 1 of the 2 images in" in capsys.readouterr().out


# Recipes on the command line


def test_a_recipe_is_a_name_and_flags_of_train_py():
    named = parse_recipe("fine-tune  --epochs 9 --zoom-range 0.5,1")
    assert named.recipe == replace(RECIPES["fine-tune"], epochs=9, zoom_range=(0.5, 1.0))
    assert named.name == "fine-tune --epochs 9 --zoom-range 0.5,1"
    assert named.slug == "fine-tune-epochs-9-zoom-range-0.5-1"
    assert cross_validate.parse_arguments([]).recipes == [parse_recipe("fine-tune")]
    assert cross_validate.parse_arguments(["--report"]).names is None


@pytest.mark.parametrize(
    ("recipes", "sentence"),
    [
        (["best"], "argument --recipe: invalid choice: 'best'"),
        ([""], "argument --recipe: invalid choice"),
        (["fine-tune --epochs 0"], "argument --epochs: expected a number above 0"),
        (["fine-tune --no-such 1"], "unrecognized arguments: --no-such 1"),
        (["fine-tune --split-seed 1"], "give --split-seed to the command itself"),
        (["original", "original"], "Received: two of the same name"),
        (["fine-tune --epochs '9"], "argument --recipes: No closing quotation"),
    ],
)
def test_recipes_that_are_none_are_refused(recipes, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        cross_validate.main(["--recipes", *recipes])
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_predictions_are_those_of_the_format(trained):
    out, _ = trained
    [path, *_] = sorted((out / "predictions" / parse_recipe(PLAIN).slug).iterdir())
    with np.load(path) as archive:
        assert set(archive.files) == {"names", "labels", "probabilities", "class_names"}
    assert isinstance(cross_validate_report.read_predictions([path])[0], Predictions)


def test_a_list_that_is_not_there_is_told_before_anything_is_trained(
    flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cross_validate, "train_fold", lambda *_: pytest.fail("it trains"))
    place = ["--recipes", PLAIN, "--out", str(tmp_path), "--audit", str(tmp_path / "none.txt")]
    assert cross_validate.main([*flags, *place]) == 1
    assert "none.txt" in capsys.readouterr().err
