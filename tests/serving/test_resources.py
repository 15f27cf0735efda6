"""serving.resources: memory and processors of the function."""

import os

import pytest

from serving import resources
from serving.resources import cpu_share, decoding_memory, thread_count


@pytest.mark.parametrize(
    ("memory", "threads"), [(128, 1), (1769, 1), (2048, 1), (3008, 2), (3538, 2), (10240, 6)]
)
def test_threads_follow_lambdas_memory(monkeypatch, memory, threads):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", str(memory))
    assert thread_count() == threads


@pytest.mark.parametrize("usable", [{0}, {0, 2, 5}, set(range(64))])
def test_elsewhere_threads_follow_the_usable_processors(monkeypatch, usable):
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: usable, raising=False)
    assert thread_count() == len(usable)


@pytest.mark.parametrize(("processors", "threads"), [(7, 7), (None, 1)])
def test_where_nobody_says_which_are_usable_all_processors_are(monkeypatch, processors, threads):
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert thread_count() == threads


def test_without_lambdas_memory_the_processors_count_that_may_be_used(monkeypatch):
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert thread_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    assert thread_count() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert thread_count() == 1


@pytest.mark.parametrize(
    ("memory", "share"),
    [("1769", 1.0), ("3008", 1.0), ("884.5", 1.0), ("442", 442 / 1769), ("", 1.0), ("0", 1.0)],
)
def test_the_share_of_a_processor_follows_the_memory(monkeypatch, memory, share):
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory)
    assert cpu_share() == share


@pytest.fixture
def limits(monkeypatch, tmp_path):
    """Let a function have `memory` megabytes, and a container and this process so many bytes."""

    def limit(memory="", container="max", resident=0, processes=1):
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory)
        path = tmp_path / "memory.max"
        path.write_text(f"{container}\n")
        monkeypatch.setattr(resources, "CONTAINER_LIMITS", (tmp_path / "none", path))
        monkeypatch.setattr(resources, "_resident", lambda: resident)
        return decoding_memory(processes)

    return limit


def test_decoding_may_take_what_is_left_of_the_smallest_limit(limits):
    reserve = resources.RESERVE
    assert limits("512", resident=200_000_000) == (512 << 20) - 200_000_000 - reserve
    assert limits("512", container=400_000_000) == 400_000_000 - reserve
    assert limits(container=300_000_000, resident=100_000_000) == 200_000_000 - reserve
    assert limits("600", container=2**63 - 4096) == (600 << 20) - reserve


def test_processes_have_equal_shares(limits):
    """Each of as much as one may take, where there is enough: 64 of 128 MB would be refused."""
    reserve = resources.RESERVE
    most = limits("4096", resident=300_000_000, processes=8)
    assert most == ((4096 << 20) - reserve) // 8 - 300_000_000
    assert limits("10240", resident=300_000_000, processes=4) == resources.MOST
    assert limits("10240", resident=300_000_000, processes=64) == resources.LEAST


def test_it_may_take_neither_all_nor_nothing(limits):
    assert limits("10240", resident=300_000_000) == resources.MOST
    assert limits("256", resident=250_000_000) == resources.LEAST


def test_this_process_takes_memory():
    taken = resources._resident()
    assert 20_000_000 < taken < 64_000_000_000
