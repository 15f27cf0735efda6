"""benchmarks.cold_start: what is measured, and what the table says of it."""

from importlib import import_module

import pytest

from benchmarks import cold_start
from benchmarks.cold_start import Start


def test_a_start_is_compared_with_the_first_images_of_the_same_round(capsys):
    """The machine was twice as slow in the second round, which no ratio shows."""
    starts = {
        ("before", "image"): [Start(1.0, 0.8), Start(2.0, 1.6), Start(1.0, 0.8)],
        ("after", "image"): [Start(0.5, 0.2), Start(1.0, 0.4), Start(0.6, 0.2)],
        ("before", "url"): [Start(2.0, 1.0)] * 3,
        ("after", "url"): [Start(1.5, 0.9)] * 3,
    }
    cold_start.print_starts({"before": 200_000_000, "after": 150_400_000}, starts)
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "3 starts each" in head
    assert rows == [
        "| before | 200 | image | 1000 | 800 | 1.00 | 1.00 |",
        "| after | 150 | image | 600 | 200 | 0.50 | 0.25 |",
        "| before | 200 | url | 2000 | 1000 | 1.00 | 1.00 |",
        "| after | 150 | url | 1500 | 900 | 0.75 | 0.90 |",
    ]


def test_all_are_started_in_each_round_in_a_new_order(monkeypatch):
    order = []

    def start(image, event, host):
        order.append((image, event))
        return Start(len(order), 1.0)

    monkeypatch.setattr(cold_start, "start", start)
    starts = cold_start.measure(["a", "b"], {"image": {}, "url": {"url": ""}}, "host", 20)
    assert set(starts) == {("a", "image"), ("b", "image"), ("a", "url"), ("b", "url")}
    assert {len(taken) for taken in starts.values()} == {20}
    rounds = [order[place : place + 4] for place in range(0, 80, 4)]
    assert len({str(each) for each in rounds}) > 5
    assert {str(sorted(each, key=str)) for each in rounds} == {str(sorted(rounds[0], key=str))}


def test_a_container_that_answers_an_error_is_none_that_started(monkeypatch):
    monkeypatch.setattr(cold_start, "docker", lambda *_: "1000000")
    monkeypatch.setattr(cold_start, "post", lambda *_: {"red": 1.0})
    assert cold_start.start("flowers", {}, "host").cpu == 1.0
    monkeypatch.setattr(cold_start, "post", lambda *_: {"error": {}})
    with pytest.raises(cold_start.LoadError, match="Expected scores of flowers"):
        cold_start.start("flowers", {}, "host")


def test_nothing_is_another_handler_of_the_same_container_image(monkeypatch):
    calls = []
    monkeypatch.setattr(cold_start, "docker", lambda *words: calls.append(words) or "1000000")
    monkeypatch.setattr(cold_start, "post", lambda *_: False)
    assert cold_start.start("flowers", None, "host").cpu == 1.0
    assert calls[0][-2:] == ("flowers", cold_start.NOTHING)
    module, _, name = cold_start.NOTHING.rpartition(".")
    assert getattr(import_module(module), name)({}, object()) is False
    monkeypatch.setattr(cold_start, "post", lambda *_: {"errorType": "Runtime.ImportModuleError"})
    with pytest.raises(cold_start.LoadError, match="Received: {'errorType'"):
        cold_start.start("flowers", None, "host")


def test_a_container_is_removed_whatever_happens(monkeypatch):
    calls = []
    monkeypatch.setattr(cold_start, "docker", lambda *words: calls.append(words) or "")
    with pytest.raises(ZeroDivisionError), cold_start.container("flowers", "172.17.0.1"):
        raise ZeroDivisionError
    run, remove = calls
    assert run[-1] == "flowers"
    assert "FETCH_ALLOW=172.17.0.1" in run
    assert remove == ("rm", "--force", run[run.index("--name") + 1])


def test_a_container_is_asked_until_it_listens(monkeypatch):
    tries, post = [], cold_start.post

    def answer(endpoint, event):
        tries.append(event)
        return {"red": 1.0} if len(tries) == 3 else post("http://127.0.0.1:9/", event)

    monkeypatch.setattr(cold_start, "post", answer)
    assert cold_start.first_answer("an endpoint", {"image": ""}) == {"red": 1.0}


def test_an_image_is_compared_with_the_base_that_it_was_built_on(monkeypatch):
    images = {
        "flowers": (["a", "b", "c"], 700),
        "python:3.13": (["a", "x"], 500),
        "python:3.11": (["a", "b"], 450),
    }
    monkeypatch.setattr(cold_start, "layers_and_size", images.get)
    monkeypatch.setattr(cold_start, "docker", lambda *_: "python:3.13\npython:3.11\n")
    assert cold_start.size_above_base("flowers") == 250
    images["flowers"] = (["a", "y"], 700)
    with pytest.raises(cold_start.LoadError, match="Expected flowers to be built on"):
        cold_start.size_above_base("flowers")
