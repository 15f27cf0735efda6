"""tests.fuzz: hosts that are malicious neither break nor hold up a fetch."""

import time

import pytest

from serving.errors import FetchError
from tests.fuzz import hosts
from tests.fuzz.hosts import FuzzError, Host, run

RUNS = 60  # some 10 seconds; `make fuzz` makes many more


def test_some_malicious_hosts_are_fetched_from_within_limits(monkeypatch):
    monkeypatch.setattr(hosts, "LATE", 5.0)  # other tests run at the same time
    report = run(RUNS, 600, 0)
    assert f"{RUNS} hosts: " in report
    for outcome in ("answer bytes", "flood FetchError", "records FetchError", "tls 1.3 bytes"):
        assert outcome in report


def test_the_same_seed_makes_the_same_hosts():
    def sent(seed):
        drawn = (Host(seed, number) for number in range(40))
        return [list(host.steps(b"", [], ())) for host in drawn if host.kind == "answer"]

    assert sent(5) == sent(5) != sent(6)


@pytest.mark.parametrize(
    ("fetch", "received"),
    [
        (lambda *_: {}["defect"], r"Received: KeyError\('defect'\)\."),
        (lambda *_: b"", r"Received: 0\."),
        (lambda _, deadline: time.sleep(0.3) or b"x", r"Received: \d+\.\d s later\."),
    ],
    ids=["an error of Python", "an empty body", "too late"],
)
def test_a_host_that_fails_is_named(fetch, received, monkeypatch):
    monkeypatch.setattr(hosts, "fetch", fetch)
    monkeypatch.setattr(hosts, "SHORT", 0.1)
    monkeypatch.setattr(hosts, "LONG", 0.1)
    monkeypatch.setattr(hosts, "LATE", 0.1)
    again = "Repeat with: python -m tests.fuzz.hosts --seed 3 --first 7 --runs 1$"
    with pytest.raises(FuzzError, match=f"{received} {again}"):
        run(1, 60, 3, 7)


def test_an_error_that_is_no_sentence_fails(monkeypatch):
    def fetch(*_):
        raise FetchError("broken")

    monkeypatch.setattr(hosts, "fetch", fetch)
    with pytest.raises(FuzzError, match="Expected a sentence. Received: broken"):
        hosts.Report().check(Host(0, 0), 1)


def test_a_host_that_sends_too_much_fails():
    host = next(host for host in (Host(0, n) for n in range(99)) if host.kind == "records")
    report = hosts.Report()
    report.check_sent(host, 3_000_000)
    with pytest.raises(FuzzError, match="Expected at most 3000000 bytes. Received: 3000001"):
        report.check_sent(host, 3_000_001)


def test_the_command_prints_a_summary(capsys):
    assert hosts.main(["--runs", "1", "--seed", "2"]) == 0
    assert capsys.readouterr().out.startswith("1 hosts: ")
