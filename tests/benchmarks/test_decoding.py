"""benchmarks/decoding.py: the worst legal images are within the limits, and are measured."""

import re
import sys

import pytest

from benchmarks import decoding
from benchmarks.worst_images import WORST
from serving.fetch import MAX_BYTES
from serving.image import FORMATS
from serving.limits import MAX_PIXELS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")


def test_every_format_has_its_worst_images():
    assert tuple(dict.fromkeys(image.format for image in WORST)) == FORMATS


def test_each_image_is_decoded_in_a_process_of_its_own(capsys):
    assert decoding.main(["--formats", "GIF", "BMP"]) == 0
    number = r"([\d.,]+)"
    row = rf"^\| (GIF|BMP) \| (.+) \| {' | '.join([number] * 6)} \|$".replace(" | ", r" \| ")
    rows = re.findall(row, capsys.readouterr().out, re.M)
    assert [name for name, *_ in rows] == ["GIF", "BMP", "BMP"]
    for _, _, size, megapixels, seconds, peak, space, each in rows:
        assert int(size.replace(",", "")) <= MAX_BYTES
        assert 0.98 * MAX_PIXELS <= float(megapixels) * 1e6 <= MAX_PIXELS
        assert float(seconds) > 0
        # One to three bytes of a pixel, and the file.
        assert 50 < float(peak) < 190
        assert float(space) / float(megapixels) == pytest.approx(float(each), abs=0.1)


def test_a_format_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        decoding.main(["--formats", "HEIC"])
    assert "invalid choice: 'HEIC'" in capsys.readouterr().err
