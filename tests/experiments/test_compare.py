"""experiments.compare: one budget, one split, nothing lost, and a table that is right."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

import train
from experiments import (
    command,
    compare,
    cross_validate,
    device_runs,
    distill,
    explore,
    labels,
    networks,
    search,
    soup,
    tune,
    unknown,
)
from serving.errors import ModelError
from training.backend import keras
from training.checkpoint import load_checkpoint
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.evaluation.figures import read_history
from training.export.tflite_process import tell_once
from training.model import build_model, split_at_block, weights_digest
from training.recipes import FINE_TUNE, ORIGINAL

EPOCHS = 6


@pytest.fixture(scope="module")
def flags(drawn, tmp_path_factory):
    """Small images and random weights: quick, and nothing here asks for a good network."""
    cache = tmp_path_factory.mktemp("cache")
    common = f"--epochs {EPOCHS} --size 48 --weights none --split-seed 4 --seed 3"
    return ["--data", str(drawn), "--cache", str(cache), *common.split()]


@pytest.fixture(scope="module")
def compared(flags, tmp_path_factory):
    """The folder of a whole comparison, and what its networks were given.

    `fitted` and `judged` are the images of `TrainingBatches` and `Batches` in the order of their
    making, `batches` the batch sizes of the former; `sources`, `optimizers`, `base_seconds` are of
    each network.
    """
    out = tmp_path_factory.mktemp("compared")
    given = {
        name: []
        for name in ("fitted", "judged", "batches", "seeds", "views", "optimizers", "base_seconds")
    }
    given["sources"] = {}

    class Fitted(compare.TrainingBatches):
        def __init__(self, source, names, batch_size, **named):
            given["fitted"].append(set(names))
            given["batches"].append(batch_size)
            given["seeds"].append(named["seed"])
            given["views"].append(named["views"])
            super().__init__(source, names, batch_size, **named)

    class Judged(compare.Batches):
        def __init__(self, source, names, *positional, **named):
            given["judged"].append(set(names))
            super().__init__(source, names, *positional, **named)

    fit, time_base = compare.fit, compare.time_base

    def watch_fit(network, candidate, *positional):
        given["sources"][network.name] = candidate.source
        best = fit(network, candidate, *positional)
        given["optimizers"].append(candidate.trainable_part.optimizer.get_config())
        return best

    def watch_time(*positional):
        given["base_seconds"].append(time_base(*positional))
        return given["base_seconds"][-1]

    names = ["--networks", "baseline", "deeper", "mobilenet-v3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "TrainingBatches", Fitted)
        patch.setattr(compare, "Batches", Judged)
        patch.setattr(compare, "fit", watch_fit)
        patch.setattr(compare, "time_base", watch_time)
        assert compare.main([*flags, *names, "--out", str(out)]) == 0
    return out, given


def rows_of(out):
    return {row["name"]: row for row in json.loads((out / compare.SUMMARY).read_text())["networks"]}


def test_what_is_reported_was_never_trained_on_nor_used_to_pick(compared, drawn):
    out, given = compared
    split = split_dataset(scan(drawn), 4, validation_fraction=0.125, test_fraction=0.2)
    assert given["fitted"] == [set(split.train)] * 3
    # Of each network first what picks the epoch, then, of the kept epoch, what is reported.
    assert given["judged"] == [set(split.validation), set(split.evaluated)] * 3
    assert not set(split.train) & {*split.validation, *split.test}
    assert not set(split.evaluated) & set(split.validation)
    for name, row in rows_of(out).items():
        history = read_history(out / name / compare.HISTORY)
        assert row["epoch"] == 1 + int(history["val_loss"].argmin())
        assert row["val_loss"] == pytest.approx(history["val_loss"].min(), rel=1e-5)
        assert row["n"] == len(split.evaluated) == 10


def test_every_network_is_trained_as_the_original_did(compared):
    _, given = compared
    assert given["batches"] == [10, 32, 32]
    assert given["seeds"] == [3, 3, 3]
    assert given["views"] == [None, None, ORIGINAL.views]
    settings = [(config["learning_rate"], config["momentum"]) for config in given["optimizers"]]
    assert settings == [pytest.approx(pair) for pair in ((0.002, 0.8), (0.002, 0.8), (0.01, 0.75))]
    assert given["sources"]["baseline"].settings == {}
    assert given["sources"]["deeper"].settings == ORIGINAL.augmentation
    assert given["sources"]["mobilenet-v3"].images.settings == ORIGINAL.augmentation


def test_the_table_says_what_the_tflite_file_does(compared, drawn):
    out, given = compared
    dataset = scan(drawn)
    split = split_dataset(dataset, 4, validation_fraction=0.125, test_fraction=0.2)
    for name, row in rows_of(out).items():
        path = out / name / "model.tflite"
        images = compare.ImageSource(dataset, (row["pixels"], row["pixels"]))
        validation = compare.Batches(images, split.evaluated, 10)
        answers = tell_once(path, validation[0][0], None).probabilities
        hits = (answers.argmax(axis=1) == dataset.labels(split.evaluated)).sum()
        assert row["accuracy"] == hits / 10
        assert row["accuracy_interval"][0] < row["accuracy"] < row["accuracy_interval"][1]
        assert path.stat().st_size == row["tflite_bytes"] > 4 * 0.9 * row["parameters"]
        learned, _ = load_checkpoint(out / name / compare.UNNAMED_BEST)
        assert learned.count_params() <= row["parameters"]
        if row["base_seconds"] == 0:  # all of it learned, on images
            # The weights of the kept epoch, not of the last one.
            assert np.allclose(answers, learned.predict(validation, verbose=0), atol=1e-5)
        assert row["inference_seconds"] > 0
        history = read_history(out / name / compare.HISTORY)
        assert row["epoch_seconds"] == pytest.approx(np.median(history["seconds"]), rel=1e-4)
    assert rows_of(out)["baseline"]["base_seconds"] == 0
    [seconds] = given["base_seconds"]
    assert rows_of(out)["mobilenet-v3"]["base_seconds"] == pytest.approx(seconds * len(split.train))


def test_the_page_has_the_table_and_both_figures(compared, capsys, flags):
    out, _ = compared
    page = (out / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img src="data:image/png;base64,', page)) == 2
    assert all(f"<td>{name}</td>" in page for name in ("baseline", "deeper", "mobilenet-v3"))
    assert all(figure.stat().st_size < 200_000 for figure in out.glob("*.png"))


def test_each_time_is_its_own_networks_and_the_most_accurate_wins(
    compared, flags, capsys, monkeypatch
):
    out, _ = compared
    seconds = {"baseline": 0.001, "deeper": 0.002, "mobilenet-v3": 0.003}
    monkeypatch.setattr(
        compare, "inference_seconds", lambda paths: [seconds[path.parent.name] for path in paths]
    )
    options = compare.parse_arguments([*flags, "--out", str(out)])
    rows = [
        dict(rows_of(out)[name], accuracy=accuracy, accuracy_interval=[accuracy - 0.1, 1])
        for name, accuracy in (("mobilenet-v3", 0.7), ("baseline", 0.9), ("deeper", 0.8))
    ]
    before = (out / compare.SUMMARY).read_text()
    compare.report(rows, [], {"epochs": 1, "seed": 3}, options)
    assert "1 epoch of each training image once" in (out / "index.html").read_text("utf-8")
    printed = capsys.readouterr().out
    assert {name: row["inference_seconds"] for name, row in rows_of(out).items()} == seconds
    (out / compare.SUMMARY).write_text(before)
    assert re.findall(r"^\| (\S+) \| .+ \| (\d\.0) ms \|$", printed, re.M) == [
        ("mobilenet-v3", "3.0"),
        ("baseline", "1.0"),
        ("deeper", "2.0"),
    ]
    assert "baseline won: test accuracy 0.900 (0.800–1.000)." in printed


def test_a_second_run_trains_nothing_again(compared, flags, capsys, monkeypatch):
    out, _ = compared
    monkeypatch.setattr(compare, "fit", None)
    assert compare.main([*flags, "--networks", "baseline", "deeper", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "baseline: already trained." in printed
    rows = re.findall(r"^\| (\S+) \| [\d.]+ \([\d.]+–[\d.]+\) \| \d+ \| [\d.]+ M \|", printed, re.M)
    assert rows == ["baseline", "deeper"]


def test_another_budget_is_not_mixed_into_the_table(compared, flags, capsys):
    out, _ = compared
    assert compare.main([*flags, "--epochs", "9", "--out", str(out)]) == 1
    assert f"(epochs {EPOCHS}). Received: epochs 9." in capsys.readouterr().err


# Never ends by itself: however late it is killed, it is not finished.
ENDLESS = """
import sys, time
from experiments import compare
class Endless(compare.TrainingBatches):
    def begin_epoch(self, epoch, logs=None):
        super().begin_epoch(epoch, logs)
        time.sleep(1000 * (epoch == 4))
compare.TrainingBatches = Endless
sys.exit(compare.main(sys.argv[1:]))
"""


def test_a_killed_run_continues_and_comes_to_the_same(compared, flags, tmp_path, capsys):
    out, _ = compared
    arguments = [*flags, "--networks", "baseline", "--out", str(tmp_path)]
    command = [sys.executable, "-c", ENDLESS, *arguments]
    history = tmp_path / "baseline" / compare.HISTORY
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (history.exists() and len(history.read_bytes().splitlines()) > 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert compare.main(arguments) == 0
    assert re.search(r"Continues after [1-5] finished epoch", capsys.readouterr().out)
    whole, resumed = (rows_of(folder)["baseline"] for folder in (out, tmp_path))
    assert resumed["epoch"] == whole["epoch"]
    assert resumed["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-4)
    assert len(read_history(history)["val_loss"]) == EPOCHS


def test_networks_without_their_weights_say_so_and_are_skipped(drawn, tmp_path):
    # No network and an empty folder of downloads, whatever this machine has.
    closed = {"HTTPS_PROXY": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path / "keras")}
    flags = ["--data", drawn, "--out", tmp_path, "--cache", tmp_path, "--size", "48"]
    flags += ["--epochs", "1", "--networks", "baseline", "convnext-tiny", "xception"]
    process = subprocess.run(
        [sys.executable, "-m", "experiments.compare", *flags],
        cwd=ROOT,
        env=os.environ | closed,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert re.search(
        r"convnext-tiny was skipped\. Expected Keras' ImageNet weights of ConvNeXtTiny\. "
        r"Received: none \(.+\)\. Run it where Keras can download them\.\n",
        process.stdout,
    )
    assert "xception was skipped. Expected" in process.stdout
    assert "or give a file with --weights.\n" in process.stdout
    assert list(rows_of(tmp_path)) == ["baseline"]


def test_a_base_takes_keras_weights_file_and_shares_train_pys_cache(tmp_path):
    keras.utils.set_random_seed(0)
    model = build_model((71, 71), (), 2)
    path = tmp_path / "xception.weights.h5"
    model.get_layer("xception").save_weights(path)
    base = networks.build_base(networks.XCEPTION, (71, 71), str(path))
    assert weights_digest(base) == weights_digest(split_at_block(model, None)[0])
    images = np.random.default_rng(0).uniform(-1, 1, (2, 71, 71, 3)).astype(np.float32)
    expected = split_at_block(model, None)[0].predict(images, verbose=0)
    assert np.allclose(base.predict(images, verbose=0), expected, atol=1e-5)
    with pytest.raises(ModelError, match="does not exist"):
        networks.build_base(networks.XCEPTION, (71, 71), str(tmp_path / "no.h5"))


def test_other_bases_see_pixels_from_0_to_255_and_stay_as_they_are():
    base = networks.build_base(keras.applications.MobileNetV3Large, (64, 64), "none")
    assert not base.trainable_weights
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    inner = base.get_layer("xception")  # build_base gives every base the name of train.py's
    features = inner(127.5 * (images + 1), training=False)
    expected = np.asarray(features).mean(axis=(1, 2))
    # As in training: dropout and batch statistics have no say.
    for training in (False, True):
        assert np.allclose(base(images, training=training), expected, atol=1e-4)


def test_the_originals_settings_are_train_pys(drawn):
    recipe = ORIGINAL
    frozen = [network for network in networks.NETWORKS if not network.layers]
    assert {n.batch_size for n in frozen} == {recipe.batch_size} == {32}
    pairs = {(network.learning_rate, network.momentum) for network in frozen}
    assert pairs == {(recipe.learning_rate, recipe.momentum)} == {search.PAIRS[0]}
    assert search.Candidate(0.01, 0.75, recipe.head, 0.0) == search.ORIGINAL
    assert recipe.input_size == explore.INPUT_SIZE
    defaults = train.parse_arguments([])
    assert tune.parse_arguments([]).epochs == recipe.epochs
    for script in (compare, tune):
        assert script.parse_arguments([]).cache == defaults.cache
    for script in (explore, compare, tune):
        assert script.parse_arguments([]).seed == recipe.seed
        assert script.parse_arguments([]).split_seed == recipe.split_seed
        assert script.parse_arguments([]).data == defaults.data
    dataset, fine_tune = scan(drawn), FINE_TUNE
    assert command.split_images(dataset, 3) == split_dataset(
        dataset,
        3,
        validation_fraction=fine_tune.validation_fraction,
        test_fraction=fine_tune.test_fraction,
    )


def test_the_small_networks_are_the_originals():
    small = {n.name: n for n in networks.NETWORKS if n.layers}
    assert list(small) == ["baseline", "augmented", "batch-32", "deeper"]
    assert {(n.learning_rate, n.momentum) for n in small.values()} == {(0.002, 0.8)}
    assert [n.batch_size for n in small.values()] == [10, 10, 32, 32]
    assert [n.augmented for n in small.values()] == [False, True, True, True]

    def layers(name, kind):
        model = networks.build_small(small[name].layers, (48, 48), 5)
        assert model.output_shape == (None, 5)
        return sum(isinstance(layer, kind) for layer in model.layers)

    convolutions, dense = keras.layers.Conv2D, keras.layers.Dense
    assert [layers("baseline", kind) for kind in (convolutions, dense)] == [2, 2]
    assert layers("baseline", keras.layers.Dropout) == 0
    assert layers("deeper", convolutions) > 2
    assert layers("deeper", dense) > 2
    assert layers("deeper", keras.layers.Dropout) > 0


def test_the_readmes_commands_parse_and_its_figures_are_there_and_small():
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    modules = (compare, cross_validate, device_runs, distill, explore, labels, soup, tune, unknown)
    scripts = {module.__name__.split(".")[1]: module for module in modules}
    commands = re.findall(r"python -m experiments\.(\w+)((?: [^#`\n&\\]+|\\\n)*)", readme)
    assert {name for name, _ in commands} == set(scripts)
    for name, words in commands:
        scripts[name].parse_arguments(shlex.split(words.replace("\\\n", " ")))
    figures = set(re.findall(r"!\[[^]]+\]\((figures/[^)]+)\)", readme))
    kept = {f"figures/{path.name}" for path in (ROOT / "experiments" / "figures").iterdir()}
    assert figures == kept
    assert all((ROOT / "experiments" / name).stat().st_size < 200_000 for name in figures)
