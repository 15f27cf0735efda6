"""The cache of features: what it will take is said before it starts, and what is unused goes."""

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from training import feature_store, features, fit
from training.backend import keras
from training.dataset.scan import scan
from training.dataset.split import split_dataset
from training.errors import CacheError
from training.feature_store import FeatureStore, remove_unused
from training.features import CachedFeatures, announce
from training.images import ImageSource
from training.recipes import FINE_TUNE, ORIGINAL, RunOptions

DAY = 86_400
SIZE = (71, 90)


def store(cache, name="abc"):
    return FeatureStore(cache, {"weights": name}, (2, 3), "float32")


def fill(opened, count=4):
    with opened.writer() as writer:
        writer.append([str(n) for n in range(count)], np.zeros((count, 2, 3)))


def used_days_ago(folder, days):
    then = time.time() - days * DAY
    os.utime(folder / "key.json", (then, then))


# What is unused


@pytest.mark.parametrize(("days", "removed"), [(29, 0), (31, 1)])
def test_what_was_not_used_for_so_long_is_removed(tmp_path, days, removed):
    old = store(tmp_path, "old")
    fill(old)
    fill(store(tmp_path, "new"))
    folder, size = old.folder, sum(path.stat().st_size for path in old.folder.iterdir())
    del old
    used_days_ago(folder, days)
    assert remove_unused(tmp_path, 30) == (removed, removed * size)
    assert size > 4 * 6 * 4
    assert folder.exists() != removed
    assert len(list(tmp_path.iterdir())) == 2 - removed
    assert store(tmp_path, "new").missing(["0", "9"]) == ["9"]


def test_a_cache_that_is_not_there_has_nothing_to_remove(tmp_path):
    assert remove_unused(tmp_path / "nowhere", 30) == (0, 0)


def test_opening_a_store_is_using_it(tmp_path):
    folder = store(tmp_path).folder
    used_days_ago(folder, 100)
    store(tmp_path)
    assert remove_unused(tmp_path, 30) == (0, 0)


USER = """
import sys
from pathlib import Path
from training.feature_store import FeatureStore
opened = FeatureStore(Path(sys.argv[1]), {"weights": "abc"}, (2, 3), "float32")
print(opened.folder, flush=True)
sys.stdin.readline()
"""


def test_what_a_process_uses_stays_however_long_it_runs(tmp_path):
    command = [sys.executable, "-c", USER, tmp_path]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        folder = tmp_path / process.stdout.readline().strip()
        used_days_ago(folder, 100)
        assert remove_unused(tmp_path, 30) == (0, 0)
        process.communicate("\n")
    assert remove_unused(tmp_path, 30)[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_stays(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "key.json").write_text("{}")
    mine = ["project", "0123456789abcdef", ".removed_mine"]
    for name in mine:  # with a file of the same name as a store's
        (tmp_path / name).mkdir()
        (tmp_path / name / "key.json").write_text("{}")
        (tmp_path / name / "thesis.txt").write_text("mine")
    elsewhere = tmp_path.with_name(f"{tmp_path.name}_elsewhere")
    linked = store(elsewhere).folder
    (tmp_path / "link").symlink_to(linked)
    for folder in (linked, *(tmp_path / name for name in (".hidden", *mine))):
        used_days_ago(folder, 100)
    assert remove_unused(tmp_path, 30) == (0, 0)
    kept = sorted([".hidden", "link", "notes", *mine])
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert all((tmp_path / name / "thesis.txt").exists() for name in mine)
    assert (linked / "key.json").exists()


def test_what_a_killed_process_did_not_finish_removing_is_removed(tmp_path):
    folder = store(tmp_path).folder
    folder.rename(folder.with_name(f".removed_{folder.name}"))
    assert remove_unused(tmp_path, 30)[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_opened_while_it_is_removed_is_made_anew(tmp_path, monkeypatch):
    folder = store(tmp_path).folder
    used_days_ago(folder, 100)
    opened, flock = [], feature_store.fcntl.flock

    def open_then_lock(file, operation):
        flock(file, operation)
        if operation & feature_store.fcntl.LOCK_EX:  # the remover has it now
            monkeypatch.setattr(feature_store.fcntl, "flock", flock)
            thread = threading.Thread(target=lambda: opened.append(store(tmp_path)))
            thread.start()
            time.sleep(0.2)  # it waits for the lock
            assert not opened
            waiting.append(thread)

    waiting = []
    monkeypatch.setattr(feature_store.fcntl, "flock", open_then_lock)
    assert remove_unused(tmp_path, 30)[0] == 1
    waiting[0].join()
    fill(opened[0])
    assert opened[0].folder == folder
    assert store(tmp_path).missing(["0"]) == []
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


# What it will take


@pytest.fixture(scope="module")
def dataset(drawn):
    return scan(drawn)


@pytest.fixture(scope="module")
def frozen():
    inputs = keras.Input((*SIZE, 3))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))


@pytest.fixture
def slow(monkeypatch):
    """Lets a batch take 40 seconds of a clock of its own, and the first one of a network more."""
    clock = [0.0]
    monkeypatch.setattr(features.time, "perf_counter", lambda: clock[0])

    def compile_inference(model, policy, batch_size):
        taken = [500.0, 40.0]

        def infer(inputs):
            clock[0] += taken.pop(0) if len(taken) > 1 else taken[0]
            return np.zeros((len(inputs), *model.output_shape[1:]))

        return infer

    monkeypatch.setattr(features, "compile_inference", compile_inference)


@pytest.mark.usefixtures("slow")
def test_time_and_room_are_said_before_anything_is_kept(
    dataset, frozen, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(features, "MANY", 100)
    monkeypatch.setattr(
        feature_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=68.4e9)
    )
    cached = CachedFeatures(ImageSource(dataset, SIZE, {}), frozen, "float32", tmp_path)
    plain = [(index, 0) for index in range(50)]
    views = [(index, view) for view in range(1, 5) for index in range(50)]
    assert cached.seconds_per_image(views) == 40 / 32
    announce([(cached, plain), (cached, views)])
    # 250 images at 40 s for 32
    assert capsys.readouterr().out == (
        f"Cache: 50 plain images and 200 augmented views to compute, about 5 minutes and 0.0 GB "
        f"in {tmp_path} (68 GB free).\n"
    )
    assert cached.missing([*plain, *views]) == [*plain, *views]
    cached.compute(views)
    announce([(cached, plain), (cached, views)])
    assert capsys.readouterr().out == ""  # 50 are a moment's work


@pytest.mark.usefixtures("slow")
def test_the_time_is_that_of_the_networks_that_have_most_to_do(
    dataset, frozen, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(features, "MANY", 10)
    tried, seconds = [], CachedFeatures.seconds_per_image
    monkeypatch.setattr(
        CachedFeatures,
        "seconds_per_image",
        lambda self, samples: tried.append(self.policy) or seconds(self, samples),
    )
    jobs = [
        (CachedFeatures(ImageSource(dataset, SIZE), frozen, policy, tmp_path), samples)
        for policy, samples in (
            ("mixed_bfloat16", [(index, view) for view in range(2) for index in range(45)]),
            ("float32", [(index, 0) for index in range(6)]),
        )
    ]
    announce(jobs)
    assert tried == ["mixed_bfloat16"]
    assert "51 plain images and 45 augmented views to compute, about 2 minutes" in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("slow")
def test_what_several_jobs_need_counts_once(dataset, frozen, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features, "MANY", 10)
    one, other = (
        CachedFeatures(ImageSource(dataset, SIZE), frozen, "float32", tmp_path) for _ in range(2)
    )
    announce([(one, [(n, 0) for n in range(40)]), (other, [(n, 0) for n in range(50)])])
    assert "Cache: 50 plain images and 0 augmented views" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_in_one_sentence(dataset, frozen, tmp_path, monkeypatch):
    cached = CachedFeatures(ImageSource(dataset, SIZE), frozen, "float32", tmp_path)
    monkeypatch.setattr(
        feature_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9 + 12 * 59)
    )
    jobs = [(cached, [(n, 0) for n in range(30)]), (cached, [(n, 1) for n in range(30)])]
    announce(jobs[:1])
    with pytest.raises(CacheError) as caught:
        announce(jobs)
    assert str(caught.value) == (
        f"Expected 1.0 GB of free disk space for features in {tmp_path}. Received: 1.0 GB. Free "
        "some, name another folder with --cache, or train without a cache: --no-cache."
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "about 1 minute"),
        (89, "about 1 minute"),
        (91, "about 2 minutes"),
        (5340, "about 89 minutes"),
        (5400, "about 1.5 hours"),
        (36_000, "about 10.0 hours"),
    ],
)
def test_times_are_rough(seconds, text):
    assert features.describe_time(seconds) == text


# Of a run


def run_of(dataset, recipe, tmp_path):
    split = split_dataset(
        dataset,
        recipe.split_seed,
        validation_fraction=recipe.validation_fraction,
        test_fraction=recipe.test_fraction,
    )
    options = RunOptions(models=tmp_path, cache=tmp_path / "cache", cache_days=7)
    images = ImageSource(dataset, SIZE, recipe.augmentation)
    workers = SimpleNamespace(is_main=True)
    return fit.Run(recipe, options, workers, images, split)


@pytest.mark.parametrize(
    ("recipe", "changes", "views", "plain"),
    [
        # Plain features of all images, then augmented training and plain validation images.
        (ORIGINAL, {"views": 3}, 3 * 40, {50, 60}),  # the latter in float32, if that is another
        (FINE_TUNE, {"views": 3}, 3 * 35, {55}),
        (FINE_TUNE, {"views": 3, "refit": True}, 3 * 40, {55}),
        # Two batches of 32: all of the first view, and of the second as many as are left.
        (FINE_TUNE, {"views": 9, "epochs": 2}, 64, {55}),
        (FINE_TUNE, {"views": 9, "epochs": 2, "refit": True}, 74, {55}),  # for either training
        (FINE_TUNE, {"fine_tune_at": 1}, 0, {50}),
    ],
    ids=["original", "fine-tune", "refit", "short", "short refit", "whole network"],
)
def test_a_run_announces_what_it_will_compute(
    dataset, tmp_path, capsys, monkeypatch, recipe, changes, views, plain
):
    from conftest import build_tiny

    monkeypatch.setattr(features, "MANY", 1)
    recipe = replace(recipe, **changes)
    run = run_of(dataset, recipe, tmp_path)
    fit.plan_cache(run, build_tiny(SIZE, (), 5), run.options.cache)
    found = re.match(r"Cache: (\d+) plain images and (\d+) augmented", capsys.readouterr().out)
    assert int(found[1]) in plain
    assert int(found[2]) == views


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (7, "removed 2 sets of features, 0.0 GB, that no run used for 7 days."),
        (1, "removed 3 sets of features, 0.0 GB, that no run used for 1 day."),
    ],
)
def test_a_run_removes_what_none_used_for_its_days(dataset, tmp_path, capsys, limit, said):
    from conftest import build_tiny

    run = run_of(dataset, ORIGINAL, tmp_path)
    run = replace(run, options=replace(run.options, cache_days=limit))
    for name, days in (("a", 8), ("b", 8), ("c", 6)):
        used_days_ago(store(run.options.cache, name).folder, days)
    fit.plan_cache(run, build_tiny(SIZE, (), 5), run.options.cache)
    assert capsys.readouterr().out.splitlines()[0] == f"Cache: {said}"
    assert not store(run.options.cache, "a").index.read()


@pytest.mark.parametrize("recipe", [ORIGINAL, FINE_TUNE], ids=["original", "fine-tune"])
def test_what_a_run_is_about_to_use_stays_however_old_it_is(dataset, tmp_path, capsys, recipe):
    from conftest import build_tiny

    keras.utils.set_random_seed(1)
    run, model = run_of(dataset, recipe, tmp_path), build_tiny(SIZE, (), 5)
    fit.compute_features(run.images, model, run.options.cache)
    folders = list(run.options.cache.glob("[!.]*"))
    for folder in folders:
        used_days_ago(folder, 8)
    fit.plan_cache(run, model, run.options.cache)
    assert "removed" not in capsys.readouterr().out
    assert folders
    assert all(folder.exists() for folder in folders)
