"""benchmarks/growth.py: both starts and both ways of each part are measured."""

import numpy as np
import pytest

from benchmarks import growth
from training.dataset.near_copies import near_groups


def test_starts_and_parts_are_measured_beside_each_other(capsys, monkeypatch):
    monkeypatch.setattr(growth, "PHOTOGRAPH", (800, 600))
    monkeypatch.setattr(growth, "DRAWN", 1)
    assert growth.main(["--images", "30", "60", "--photographs", "25"]) == 0
    starts, parts = capsys.readouterr().out.split("\n\n")
    rows = [line.strip("| ").split(" | ") for line in starts.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [name, which]
        for name in ("30 small", "60 small", "25 of 12 megapixels")
        for which in ("first", "second")
    ]
    for row in rows:
        seconds, cpu, ratio, each, _, peak = map(float, row[2:])
        assert min(seconds, cpu, ratio, each) > 0
        assert 40 < peak < 400
    assert [row[4] for row in rows[::2]] == ["1.00"] * 3
    rows = [line.strip("| ").split(" | ") for line in parts.splitlines()[2:]]
    assert [row[1] for row in rows] == [
        *("in full", "reduced meanwhile"),
        *2 * ("all with all", "by pieces"),
    ]
    assert [row[3] for row in rows[::2]] == ["1.00"] * 3


def test_both_searches_find_the_same_number_of_copies():
    rng = np.random.default_rng(1)
    hashes = [int.from_bytes(rng.bytes(16), "big") for _ in range(600)]
    hashes += [value ^ 0b1011 for value in hashes[:7]]
    assert growth.compare_all(hashes) == 7
    assert len(set(near_groups(hashes))) == 600


def test_drawn_images_do_not_look_alike(tmp_path):
    from training.dataset.duplicates import find_duplicates
    from training.dataset.scan import scan

    growth.write(growth.small_images(), tmp_path, range(300))
    assert find_duplicates(scan(tmp_path)) == ()


@pytest.mark.parametrize("flags", ["--images 24", "--images 60 30", "--photographs 3"])
def test_numbers_that_cannot_be_measured_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        growth.main(flags.split())
    assert ended.value.code == 2
    assert "expected 25 images or more, in ascending order. Received: " in capsys.readouterr().err
