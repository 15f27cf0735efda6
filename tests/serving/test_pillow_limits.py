"""serving.pillow_limits: what Pillow does differently here, and nothing else."""

import ctypes
import json
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image, TiffImagePlugin

from serving import metadata
from serving.errors import ImageError
from serving.image import open_image
from serving.pillow_limits import BoundedFile, silence_libtiff
from tests.fuzz.make_corpus import GREY, encoded, png, tiff

# pytest replaces the filters that serving.pillow_limits sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def test_a_file_may_be_read_within_its_bounds():
    file = BoundedFile(BytesIO(b"abcdef"), reads=2)
    assert (file.read(2), file.read()) == (b"ab", b"cdef")
    with pytest.raises(OSError, match=r"^read too often or too much$"):
        file.read(1)
    file = BoundedFile(BytesIO(b"abcdef"), count=4)
    assert (file.read(2), file.tell(), file.read(2)) == (b"ab", 2, b"cd")
    assert file.seek(0) == 0
    with pytest.raises(OSError, match=r"^read too often or too much$"):
        file.read(1)
    file = BoundedFile(BytesIO(b"abcdef"))
    assert [file.read(1) for _ in range(9)] == [b"a", b"b", b"c", b"d", b"e", b"f", *[b""] * 3]


def test_libtiff_writes_nothing(monkeypatch):
    silenced = []

    class Library:
        def __init__(self, path):
            self.name = Path(path).name

        def __getattr__(self, handler):
            return lambda given: silenced.append((self.name, handler, given))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    silence_libtiff()
    names = {name for name, _, _ in silenced}
    assert names, "Pillow's wheel has a libtiff of its own"
    assert all(name.startswith("libtiff") for name in names)
    assert sorted(silenced) == sorted(
        (name, f"TIFFSet{kind}Handler", None) for name in names for kind in ("Error", "Warning")
    )


def test_importing_changes_nothing_but_what_pillow_limits_applies():
    code = """
import json, logging, warnings
from PIL import TiffImagePlugin
import numpy

def state():
    directory = TiffImagePlugin.ImageFileDirectory_v2.__module__
    return directory, logging.getLogger("PIL").level, len(warnings.filters)

before = state()
from serving import pillow_limits
imported = state()
pillow_limits.apply()
applied = state()
import serving.image
print(json.dumps([before, imported, applied, state()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, imported, applied, opened = json.loads(done.stdout)
    assert imported == before
    assert opened == applied
    assert before[0] == "PIL.TiffImagePlugin"
    assert applied == ["serving.pillow_limits", 50, before[2] + 1]


def test_tags_that_share_their_bytes_are_read_within_bounds(monkeypatch):
    tags, length = sorted(metadata.TIFF_PIXELS), 1_000_000
    entries = b"".join(struct.pack(">HHII", tag, 1, length, 8) for tag in tags)
    data = b"MM\0\x2a\0\0\0\x08" + struct.pack(">H", len(tags)) + entries + bytes(length)
    read = []
    directory = TiffImagePlugin.ImageFileDirectory_v2
    load = directory.load
    monkeypatch.setattr(
        directory,
        "load",
        lambda self, fp: (load(self, fp), read.append(sum(map(len, self._tagdata.values())))),
    )
    with pytest.raises(ImageError):
        open_image(data)
    assert read
    assert length <= max(read) <= len(data)


def test_oddities_of_files_reach_neither_log_nor_standard_error(tmp_path):
    files = {
        "bomb.png": png(10_000, 10_000, 8, GREY, b""),  # Pillow warns from 89 million pixels on
        "strip.tif": tiff({256: 9, 257: 9, 258: 8, 259: 8}, b"no zlib"),  # libtiff complains
        "samples.tif": tiff({256: 9, 257: 9, 258: 8, 277: 99}, b""),  # Pillow logs an error
        "exif.jpg": encoded(
            Image.new("L", (9, 9)), "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x09"
        ),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code = """
import logging, sys
from pathlib import Path
logging.basicConfig()
from serving.errors import ServingError
from serving import metadata
from serving.errors import ImageError
from serving.image import open_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_image(path)
    except ServingError as error:
        print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["TooLargeError", "ImageError", "ImageError"]
