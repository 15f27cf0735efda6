"""Shards of a large job: a row for each image, once."""

import errno
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import stripes
from large_jobs import version_of
from PIL import Image

from serving import shards, stores
from serving.addresses import AllowError
from serving.answers import UNKNOWN_BELOW
from serving.classifier import Classifier
from serving.decoder import CpuLimitError
from serving.errors import FetchTimeoutError, ImageError, StoreError, TooLargeError
from serving.fetch import DEADLINE
from serving.preprocess import preprocess
from serving.runtimes import Prediction
from serving.shards import (
    Budget,
    Clock,
    Counts,
    Labeler,
    Manifest,
    Shard,
    is_job_file,
    label_images,
    label_shard,
    list_name,
    read_shard,
)
from serving.stores import Folder


@pytest.fixture(scope="module")
def labeler(telling, decoder):
    return Labeler(Classifier(telling.tflite), decoder, UNKNOWN_BELOW)


@pytest.fixture
def images(telling, tmp_path):
    """Three images, of which the model knows two, and one that is truncated."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, pixels in (("0.png", telling.images[0]), ("1.png", telling.images[1])):
        Image.fromarray(pixels).save(folder / name)
    Image.fromarray(stripes()).save(folder / "2.png")
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes()[:200])
    return [str(path) for path in sorted(folder.iterdir())]


def rows_of(folder, name="results/00000.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_each_image_has_a_row_in_order(labeler, images, tmp_path, telling):
    shard = Shard(images, Folder(tmp_path / "out"), "results/00000.jsonl")
    assert label_shard(labeler, shard) == Counts(4, 1)
    rows = rows_of(tmp_path / "out")
    assert [row["image"] for row in rows] == images
    keys = ["image", "label", "scores", "known", "unknown", "prediction_set", "error"]
    assert all(list(row) == keys for row in rows)
    assert [row["unknown"] for row in rows] == [False, False, True, None]
    assert [row["error"] for row in rows[:3]] == [None] * 3
    assert rows[3]["error"]["type"] == "ImageError"
    assert rows[3]["label"] is rows[3]["scores"] is None
    best = [("red", "green", "blue")[i] for i in telling.images[:2].mean(axis=(1, 2)).argmax(1)]
    assert [row["label"] for row in rows[:2]] == best
    assert rows[0]["prediction_set"][0] == rows[0]["label"]
    inputs = preprocess(Image.fromarray(telling.images[0]), labeler.classifier.input_size)
    scores = labeler.classifier.predict(inputs).probabilities
    assert list(rows[0]["scores"].values()) == pytest.approx(scores, abs=1e-5)


def test_a_shard_is_labelled_once(labeler, images, tmp_path):
    shard = Shard(images, Folder(tmp_path / "out"), "results/00000.jsonl")
    label_shard(labeler, shard)
    before = version_of(tmp_path / "out/results/00000.jsonl")
    done = []
    assert label_shard(labeler, shard, lambda: done.append(1)) is None
    assert done == []
    assert version_of(tmp_path / "out/results/00000.jsonl") == before


def test_another_process_may_be_first(labeler, images, tmp_path):
    shard = Shard(images, Folder(tmp_path / "out"), "results/00000.jsonl")

    def others():
        shard.store.write(shard.name, b"theirs")

    assert label_shard(labeler, shard, others) is None
    assert shard.store.read(shard.name) == b"theirs"


def test_a_missing_image_is_a_row(labeler, images, tmp_path):
    rows = label_images(labeler, [*images, str(tmp_path / "gone.png"), "https://127.0.0.1/a"])
    assert [row["error"] and row["error"]["type"] for row in rows] == [
        *(None, None, None, "ImageError", "FetchError", "AddressError")
    ]


def test_where_no_image_can_be_read_nothing_is_written(labeler, tmp_path):
    gone = [str(tmp_path / "mount" / name) for name in "ab"]
    shard = Shard(gone, Folder(tmp_path / "out"), "results/00000.jsonl")
    with pytest.raises(StoreError, match=r"none of 2; the first error: .*a \(No such file"):
        label_shard(labeler, shard)
    assert not (tmp_path / "out").exists()
    assert label_shard(labeler, shard._replace(images=gone[:1])) == Counts(1, 1)


def test_a_host_that_has_no_such_images_can_be_read(labeler, tmp_path, http_server, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.1")
    url = http_server({})
    gone = Shard([f"{url}/a.png", f"{url}/b.png"], Folder(tmp_path), "results/00000.jsonl")
    assert label_shard(labeler, gone) == Counts(2, 2)
    assert [row["error"]["type"] for row in rows_of(tmp_path)] == ["FetchError"] * 2
    down = Shard(["http://127.0.0.1:9/a", "http://127.0.0.1:9/b"], Folder(tmp_path), "results/1")
    with pytest.raises(StoreError, match="none of 2; the first error: .* no connection"):
        label_shard(labeler, down)
    mixed = down._replace(images=[*down.images, f"{url}/c.png"])
    assert label_shard(labeler, mixed) == Counts(3, 3)


def test_where_the_disk_fails_nothing_is_written(labeler, images, tmp_path, monkeypatch):
    def read(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(stores, "read_image_file", read)
    shard = Shard(images, Folder(tmp_path / "out"), "results/00000.jsonl")
    with pytest.raises(StoreError, match="Input/output error"):
        label_shard(labeler, shard)
    assert not (tmp_path / "out").exists()


def test_a_defect_on_one_image_is_its_row(labeler, images, monkeypatch):
    original = Labeler.read

    def read(self, address, budget, clock):
        if address == images[1]:
            raise ZeroDivisionError("a secret")
        return original(self, address, budget, clock)

    monkeypatch.setattr(Labeler, "read", read)
    rows = label_images(labeler, images)
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    message = "Unexpected error on this image (ZeroDivisionError)."
    assert rows[1]["error"] == {"type": "InternalError", "message": message}


def test_a_setting_that_is_wrong_is_no_row(labeler, monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "300.0.0.0/8")
    with pytest.raises(AllowError):
        label_images(labeler, ["https://example.com/a.jpg"])


class Ending:
    """A decoder that the kernel ends so many times, for lack of memory."""

    def __init__(self, decoder, times):
        self.decoder, self.times, self.memory = decoder, times, []

    def decode(self, content, size, *, memory):
        self.memory.append(memory)
        if self.times:
            self.times -= 1
            raise TooLargeError("what fits into memory")
        return self.decoder.decode(content, size, memory=memory)


@pytest.mark.parametrize(("times", "error"), [(0, None), (1, None), (2, "TooLargeError")])
def test_an_image_whose_decoder_was_killed_is_tried_again(labeler, images, times, error):
    ending = Ending(labeler.decoder, times)
    [row] = label_images(replace(labeler, decoder=ending), images[:1])
    assert (row["error"] and row["error"]["type"]) == error
    assert len(ending.memory) == min(times, 1) + 1


def test_an_image_that_takes_too_long_is_a_row_at_once(labeler, images):
    class Slow:
        tries = 0

        def decode(self, *_, **__):
            self.tries += 1
            raise CpuLimitError

    slow = Slow()
    [row] = label_images(replace(labeler, decoder=slow), images[:1])
    assert (row["error"]["type"], slow.tries) == ("TooLargeError", 1)
    assert "decoded in at most 4 seconds" in row["error"]["message"]


def test_processes_share_the_memory(labeler, images, monkeypatch):
    monkeypatch.setattr(shards, "decoding_memory", lambda processes: 10**8 + processes)
    ending = Ending(labeler.decoder, 0)
    label_images(replace(labeler, decoder=ending, processes=7), images[:1])
    assert ending.memory == [10**8 + 7]


@pytest.mark.parametrize(("lacking", "error"), [(1, "TooLargeError"), (0, None)])
def test_a_file_for_which_memory_is_short_is_a_row_and_not_read(
    labeler, images, monkeypatch, lacking, error
):
    """What decodes an image has its file twice in memory."""

    class Roomy:
        def decode(self, content, size, *, memory):
            return labeler.decoder.decode(content, size, memory=10**9)

    read, large = [], Path(images[1])
    large.write_bytes(large.read_bytes().ljust(10**6, b"\0"))
    monkeypatch.setattr(shards, "decoding_memory", lambda processes: 2 * 10**6 - lacking)
    monkeypatch.setattr(stores, "read_image_file", lambda p: read.append(p) or Path(p).read_bytes())
    rows = label_images(replace(labeler, decoder=Roomy()), images[:3])
    assert [row["error"] and row["error"]["type"] for row in rows] == [None, error, None]
    assert (images[1] in read) == (error is None)


def test_scores_that_are_no_numbers_are_an_error(labeler, images, monkeypatch):
    nothing = Prediction(np.float32([np.nan] * 3))
    monkeypatch.setattr(labeler.classifier, "predict", lambda _: nothing)
    [row] = label_images(labeler, images[:1])
    assert row["error"]["type"] == "InternalError"
    assert row["scores"] is None


def test_images_are_read_while_the_model_runs_but_not_too_far(monkeypatch):
    lock, now, most, answered = threading.Lock(), set(), 0, 0
    reading = most_reading = 0

    class Model:
        def read(self, address, budget, clock):
            nonlocal most, reading, most_reading
            with lock:
                now.add(address)
                most, reading = max(most, len(now)), reading + 1
                most_reading = max(most_reading, reading)
            time.sleep(0.001)
            with lock:
                reading -= 1
            return address

        def answer(self, inputs):
            nonlocal answered
            time.sleep(0.001)
            with lock:
                now.remove(inputs)
            answered += 1
            return {"label": inputs}

    images = [f"{number}.png" for number in range(300)]
    rows = label_images(Model(), images)
    assert [row["label"] for row in rows] == images
    assert 2 <= most <= shards.AHEAD + 1
    assert 2 <= most_reading <= shards.READERS


def test_a_file_takes_its_bytes_of_the_budget(labeler, images):
    taken = []

    class Noted(Budget):
        def take(self, count):
            taken.append(count)
            return super().take(count)

    labeler.read(images[0], Noted(10**6), Clock(math.inf, 1))
    assert taken == [Path(images[0]).stat().st_size]


def test_files_in_memory_have_a_budget():
    budget, held, most, lock = Budget(10), 0, 0, threading.Lock()

    def take(count):
        nonlocal held, most
        with budget.take(count):
            with lock:
                held += count
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= count

    threads = [threading.Thread(target=take, args=(3 + 9 * (n == 5),)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 12  # the large one, alone


def test_a_large_file_waits_for_those_before_it_only():
    """Small ones that come later would otherwise keep it waiting until the end of the shard."""
    budget, order = Budget(10), []

    def take(count):
        with budget.take(count):
            order.append(count)

    with budget.take(6):
        threads = [threading.Thread(target=take, args=(count,)) for count in (20, 1, 2)]
        threads[0].start()
        until = time.monotonic() + 10
        while not budget._turn.locked():  # then it is its turn
            assert time.monotonic() < until
            time.sleep(0.001)
        for thread in threads[1:]:
            thread.start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order[0] == 20
    assert sorted(order) == [1, 2, 20]


def test_the_whole_budget_may_be_taken():
    budget, taken = Budget(10), threading.Event()

    def take():
        with budget.take(5):
            taken.set()

    with budget.take(5):
        threading.Thread(target=take, daemon=True).start()
        assert taken.wait(10)


def test_an_error_gives_its_share_of_the_budget_back():
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(ImageError), budget.take(10):
            raise ImageError
    with budget.take(10):
        pass


@pytest.fixture
def now(monkeypatch):
    """The time, which passes as a test says."""
    times = [1000.0]
    monkeypatch.setattr(shards.time, "monotonic", lambda: times[0])
    return times


def test_a_shard_of_hosts_that_do_not_answer_ends_in_the_time_of_a_function(now):
    clock, given = Clock(now[0] + 900, 1000), []
    for fetched in range(0, 1000, shards.FETCHES):
        given.append(min(clock.latest() - now[0], DEADLINE))
        now[0] += given[-1] + 0.1  # and what the model takes
        for _ in range(min(shards.FETCHES, 1000 - fetched)):
            clock.count()
    assert given[:60] == [DEADLINE] * 60
    assert min(given) == pytest.approx(shards.LEAST_FETCH_S)


def test_hosts_are_not_hurried_where_there_is_time(now):
    assert Clock(now[0] + 900, 500).latest() >= now[0] + DEADLINE
    assert Clock(math.inf, 10**9).latest() == math.inf


def test_no_image_is_begun_near_the_end(now):
    clock = Clock(now[0] + 100, 5)
    now[0] += 90
    clock.count()
    clock.count()
    now[0] += 0.01
    with pytest.raises(
        StoreError, match=r"the 5 images .* Received: 3 by its end.*-size 1, or run"
    ):
        clock.count()
    Clock(now[0], 1).count()  # nothing is left to do


def test_a_shard_without_time_has_no_results(labeler, images, tmp_path):
    shard = Shard(images, Folder(tmp_path / "out"), "results/00000.jsonl")
    with pytest.raises(StoreError, match="the 4 images of a shard"):
        label_shard(labeler, shard, deadline=time.monotonic())
    assert not (tmp_path / "out").exists()
    assert label_shard(labeler, shard, deadline=time.monotonic() + 900) == Counts(4, 1)


def test_urls_are_fetched_in_the_time_that_is_left(labeler, images, monkeypatch):
    given = []

    def fetch(url, deadline):
        given.append(deadline - time.monotonic())
        raise FetchTimeoutError("too slow")

    monkeypatch.setattr(stores, "fetch", fetch)
    deadline = time.monotonic() + (shards.LEAST_FETCH_S + 1) / 0.8
    rows = label_images(labeler, ["https://a.b/c", images[0]], deadline=deadline)
    assert [row["error"] and row["error"]["type"] for row in rows] == ["FetchTimeoutError", None]
    assert shards.LEAST_FETCH_S <= given[0] <= shards.LEAST_FETCH_S + 1


def manifest(**changes):
    known = Manifest(["in"], "d1", 5, 2, 3, "lists/d2", "m.tflite", "d3", "r", 0.02, "2026-11-26")
    return Manifest(**(vars(known) | changes))


def test_a_manifest_and_its_lists(tmp_path):
    store = Folder(tmp_path)
    assert Manifest.read(store) is None
    store.create(shards.MANIFEST, manifest().to_bytes())
    assert Manifest.read(store) == manifest()
    names = ["a\n.png", "caf\udce9.png", "ü.png"]
    store.write(list_name("lists/d2", 0), "".join(json.dumps(n) + "\n" for n in names).encode())
    assert read_shard(store, manifest(), 0) == Shard(names, store, "results/00000.jsonl")
    with pytest.raises(
        StoreError, match=r"lists/d2/00001\.jsonl to list as many images .*: 2\. .*no such list"
    ):
        read_shard(store, manifest(), 1)
    for damaged in (b'"one.png"\n', b'"one.png"\n5\n', b'"a"\n"b"\n"c"\n', b"[" * 10**5):
        store.write(list_name("lists/d2", 1), damaged)
        with pytest.raises(StoreError, match="a damaged list"):
            read_shard(store, manifest(), 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"inputs": []}', b"\xff", pytest.param(b"[" * 10**5, id="deep")]
)
def test_another_manifest_is_refused(tmp_path, content):
    Folder(tmp_path).write(shards.MANIFEST, content)
    with pytest.raises(StoreError, match="Received: another file of that name"):
        Manifest.read(Folder(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in vars(manifest())),
        *({name: "x"} for name in ("images", "shards", "shard_size", "unknown_below")),
        *({name: 2.0} for name in ("images", "shards", "shard_size", "lists", "made")),
        *({name: -1} for name in ("images", "shards", "shard_size", "unknown_below")),
        *({"images": images} for images in (0, 3, 7)),  # two shards of three are for 4 to 6
        {"images": 0, "shards": 0},
        {"shard_size": 0},
        {"images": True, "shards": True, "shard_size": True},
        {"inputs": [5]},
        {"unknown_below": 1.5},
        *({"lists": lists} for lists in ("lists", "lists/", "lists/../x", "/lists/d2", "x/d2")),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, changes):
    content = json.dumps(vars(manifest()) | changes).encode()
    Folder(tmp_path).write(shards.MANIFEST, content)
    with pytest.raises(StoreError, match="or a damaged one"):
        Manifest.read(Folder(tmp_path))


@pytest.mark.parametrize("images", [4, 6])
def test_the_last_shard_may_be_smaller(images):
    assert manifest(images=images).size_of(1) == images - 3
    assert manifest(images=images).size_of(0) == 3


def test_what_a_job_writes_is_known(tmp_path):
    store = Folder(tmp_path)
    ours = ("manifest.json", "lists/0a/00000.jsonl", "results/00012.jsonl", "results/100000.jsonl")
    for name in ours:
        assert is_job_file(store, f"{tmp_path}/{name}")
        assert not is_job_file(store, f"{tmp_path}/images/{name}")
        assert not is_job_file(Folder(tmp_path / "out"), f"{tmp_path}/{name}")
    for name in (
        "a.jpg",
        "manifest.jsonl",
        "results/a.jpg",
        "results/1.jsonl",
        "lists/00000.jsonl",
    ):
        assert not is_job_file(store, f"{tmp_path}/{name}")
