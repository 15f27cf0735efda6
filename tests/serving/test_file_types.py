"""serving.file_types: what came instead of an image, and what to do about it."""

import base64
import gzip
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from serving.errors import UnsupportedTypeError
from serving.file_types import HEAD, describe
from serving.image import open_image
from tests.fuzz.make_corpus import drawn, encoded

PNG = encoded(drawn(), "PNG")
TEXT_JPEG = encoded(drawn(), "JPEG").decode(errors="replace").encode()
PAGE = "<!DOCTYPE html><html><title>rose.jpg</title>"


def archive(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        (Path(folder) / "rose.png").write_bytes(PNG)
        return Path(shutil.make_archive(f"{folder}/x", kind, folder, "rose.png")).read_bytes()


def boxes(*brands: bytes) -> bytes:
    """Return the beginning of a file of the MP4 family, the main brand first."""
    content = brands[0] + bytes(4) + b"".join(brands)
    return (8 + len(content)).to_bytes(4, "big") + b"ftyp" + content + bytes(900)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"", "nothing"),
        (bytes(20_000), "only zeros"),
        (PAGE.encode(), "an HTML page"),
        (b"\xef\xbb\xbf \r\n<!-- x --><HTML lang=en>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x">', "an HTML page"),
        (PAGE.encode("utf-16"), "an HTML page"),
        ((PAGE + "<p>Röschen").encode("latin-1"), "an HTML page"),
        (b"<html><body><svg></svg>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n<?xml version='1.0'?><!-- <html> --><svg:svg width='1'>", "SVG"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML"),
        (json.dumps({"error": "expired"}).encode(), "JSON"),
        (b'\xef\xbb\xbf[\n  {"a": 1}]', "JSON"),
        (b"a,b\n1,2\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (base64.b64encode(PNG), "base64"),
        (base64.urlsafe_b64encode(bytes(range(255, 100, -1))).rstrip(b"="), "base64"),
        (base64.encodebytes(b"\xff\xd8\xff\xe0" * 99), "base64"),
        (b"data:image/png;base64," + base64.b64encode(PNG), "a data: URL"),
        (boxes(b"heic", b"mif1"), "HEIC (HEIF)"),
        (boxes(b"mif1", b"heic"), "HEIC (HEIF)"),
        (boxes(b"MA1A", b"avif"), "an unusual kind of AVIF"),
        (boxes(b"mp42", b"isom"), "a video (MP4)"),
        (boxes(b"qt  "), "a video (QuickTime)"),
        (boxes(b"M4A "), "audio"),
        (boxes(b"crx "), "a raw camera file"),
        (b"\x1a\x45\xdf\xa3webm", "a video (WebM or Matroska)"),
        (b"RIFF\0\0\0\0AVI LIST", "a video (AVI)"),
        ((b"G" + bytes(187)) * 5, "a video (MPEG)"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio"),
        (b"ID3\4\0", "audio"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"8BPS\0\1", "a Photoshop file (PSD)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript (EPS)"),
        (encoded(drawn(), "EPS"), "PostScript (EPS)"),
        (encoded(drawn(), "ICO"), "an icon (ICO)"),
        (encoded(drawn(), "JPEG2000"), "JPEG 2000"),
        (encoded(drawn(), "PPM"), "PNM"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"FUJIFILMCCD-RAW 0201", "a raw camera file"),
        (archive("zip"), "a ZIP archive or an Office document"),
        (archive("tar"), "an archive (tar)"),
        (gzip.compress(PNG), "an archive (gzip)"),
        (b"7z\xbc\xaf\x27\x1c", "an archive (7z)"),
        (b"Rar!\x1a\x07\x01\0", "an archive (RAR)"),
        (PNG.decode("latin-1").encode(), "a PNG changed by a transfer as text"),
        (TEXT_JPEG, "a JPEG changed by a transfer as text"),
        (b"\x01\x02\x03\x04", "a file of an unknown type"),
    ],
)
def test_what_came_is_named(data, received):
    with pytest.raises(UnsupportedTypeError) as caught:
        open_image(data)
    assert str(caught.value).startswith(
        f"Expected an image (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF). Received: {received}. "
    )


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (PAGE.encode(), "Give the address of the image itself, not of a page about it."),
        (boxes(b"heic"), "Save it as JPEG."),
        (b"PK\3\4", "Unpack it, and use the images in it."),
        (b"version https://git-lfs.github.com/spec/v1", "Run `git lfs pull` first."),
    ],
)
def test_what_to_do_fits_what_came(data, advice):
    assert describe(data)[1] == advice


def test_no_more_than_the_beginning_is_looked_at():
    started = time.process_time()
    for data in (b"<!--" * 3_000_000, b"A" * 9_000_000, b"{" * 9_000_000, b"-" * 9_000_000):
        assert describe(data[:HEAD]) == describe(data)
    assert time.process_time() - started < 0.5
