"""serving.pillow_limits: what Pillow does differently here, and nothing else."""

import ctypes
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from serving.pillow_limits import BoundedFile, silence_libtiff
from tests.fuzz.make_corpus import GREY, encoded, png, tiff

# pytest replaces the filters that serving.pillow_limits sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def test_a_file_may_be_read_within_its_bounds():
    file = BoundedFile(BytesIO(b"abcdef"), reads=2)
    assert (file.read(2), file.tell(), file.read()) == (b"ab", 2, b"cdef")
    assert file.seek(0) == 0
    with pytest.raises(OSError, match=r"^read too often$"):
        file.read(1)


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
from PIL import Image, WebPImagePlugin
import numpy

def state():
    factory = Image.OPEN["WEBP"][0].__module__
    return factory, logging.getLogger("PIL").level, len(warnings.filters)

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
    assert before[0] == "PIL.WebPImagePlugin"
    assert applied == ["serving.pillow_limits", 50, before[2] + 1]


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
