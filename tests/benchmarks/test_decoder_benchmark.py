"""benchmarks/decoder.py: each image is decoded both ways, and the figures are there."""

import re
import sys

import pytest

from benchmarks import decoder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")


def test_both_ways_are_timed_and_the_processes_weighed(capsys):
    assert decoder.main(["--repeats", "1"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(
        r"^\| JPEG, (\S+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| (\S+) \|$", out, re.M
    )
    assert [name for name, *_ in rows] == ["299×299", "1024×768", "4000×3000"]
    for _, _, here, there, more in rows:
        assert float(more) == pytest.approx(float(there) - float(here), abs=0.02)
    assert re.search(r"^Starting it took [\d.]+ ms, and its first image [\d.]+ ms\.$", out, re.M)
    assert re.search(r"^After it was stopped, an image took [\d.]+ ms\.$", out, re.M)
    assert re.search(r"^Its processes have [\d.]+ and [\d.]+ MB of their own\.$", out, re.M)
