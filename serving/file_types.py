"""Names what a file is, other than a supported image, by its first bytes."""

import base64
import binascii
import re

HEAD = 4096  # bytes of a file that decide

SAVE = "Save it as JPEG or PNG."
ADDRESS = "Give the address of the image itself, not of a page about it."
ITSELF = "Use the image itself, as JPEG or PNG."
FRAME = "Save one of its frames as JPEG or PNG."
UNPACK = "Unpack it, and use the images in it."
INSIDE = "Save the image in it as JPEG or PNG."
AGAIN = "Copy it again from where it came from."
BINARY = "Copy or send it again, as binary data."
CAMERA = "Export it as JPEG."
DECODE = "Decode it first."

# (offset, the bytes there, what it is, what to do); the first that fits counts.
SIGNATURES = (
    (0, b"%PDF-", "a PDF", INSIDE),
    (0, b"8BPS", "a Photoshop file (PSD)", SAVE),
    (0, b"%!PS", "PostScript (EPS)", SAVE),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)", SAVE),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", SAVE),
    (0, b"\xff\x0a", "JPEG XL", SAVE),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", SAVE),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", SAVE),
    (0, b"II\xbc\x01", "JPEG XR", SAVE),
    (0, b"\0\0\1\0", "an icon (ICO)", SAVE),
    (0, b"\0\0\2\0", "a cursor (CUR)", SAVE),
    (0, b"icns", "an icon (ICNS)", SAVE),
    (0, b"gimp xcf", "a GIMP file (XCF)", SAVE),
    (0, b"v/1\x01", "OpenEXR", SAVE),
    (0, b"#?RADIANCE", "Radiance HDR", SAVE),
    (0, b"qoif", "QOI", SAVE),
    (0, b"DDS ", "DDS", SAVE),
    (0, b"SIMPLE  =", "FITS", SAVE),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG", SAVE),
    (0, b"\x8bJNG\r\n\x1a\n", "JNG", SAVE),
    (0, b"AT&TFORM", "DjVu", SAVE),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", SAVE),
    (40, b" EMF", "a Windows metafile (EMF)", SAVE),
    (128, b"DICM", "DICOM", SAVE),
    *((0, b"P%d%c" % (n, end), "PNM", SAVE) for n in range(1, 8) for end in b"\n\r\t #"),
    (0, b"FUJIFILMCCD-RAW", "a raw camera file", CAMERA),
    *((0, start, "a raw camera file", CAMERA) for start in (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")),
    (0, b"FOVb", "a raw camera file", CAMERA),
    (0, b"\0MRM", "a raw camera file", CAMERA),
    (6, b"HEAPCCDR", "a raw camera file", CAMERA),
    (0, b"\x1aE\xdf\xa3", "a video (WebM or Matroska)", FRAME),
    (8, b"AVI ", "a video (AVI)", FRAME),
    (0, b"FLV\x01", "a video (FLV)", FRAME),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a video or audio (Windows Media)", FRAME),
    (0, b"\0\0\1\xba", "a video (MPEG)", FRAME),
    (0, b"\0\0\1\xb3", "a video (MPEG)", FRAME),
    *(
        (4, box, "a video (QuickTime)", FRAME)
        for box in (b"moov", b"mdat", b"wide", b"free", b"pnot")
    ),
    (0, b"OggS", "a video or audio (Ogg)", FRAME),
    (8, b"WAVE", "audio", ITSELF),
    (8, b"AIFF", "audio", ITSELF),
    (8, b"AIFC", "audio", ITSELF),
    *((0, start, "audio", ITSELF) for start in (b"ID3", b"fLaC", b"MThd", b"#!AMR", b".snd")),
    *((0, b"\xff" + bytes([n]), "audio", ITSELF) for n in b"\xf1\xf2\xf3\xf9\xfa\xfb"),
    (0, b"PK\3\4", "a ZIP archive or an Office document", UNPACK),
    (0, b"PK\5\6", "a ZIP archive without files", UNPACK),
    (0, b"\x1f\x8b", "an archive (gzip)", UNPACK),
    (0, b"BZh", "an archive (bzip2)", UNPACK),
    (0, b"\xfd7zXZ\0", "an archive (xz)", UNPACK),
    (0, b"(\xb5/\xfd", "an archive (Zstandard)", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "an archive (7z)", UNPACK),
    (0, b"Rar!\x1a\x07", "an archive (RAR)", UNPACK),
    (0, b"MSCF", "an archive (CAB)", UNPACK),
    (257, b"ustar", "an archive (tar)", UNPACK),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document or Windows thumbnails", INSIDE),
    (0, b"{\\rtf", "a document (RTF)", INSIDE),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5, as models are stored", ITSELF),
    (4, b"TFL3", "a TFLite model", ITSELF),
    (0, b"\x93NUMPY", "a NumPy array", SAVE),
    (0, b"SQLite format 3\0", "a database (SQLite)", ITSELF),
    (0, b"\0\0\0\1Bud1", "settings of a macOS folder", ITSELF),
    (
        0,
        b"\0\x05\x16\x07",
        "what macOS stores beside a file",
        "Use the file without ._ in its name.",
    ),
    (0, b"\x7fELF", "a program", ITSELF),
    (0, b"MZ", "a program", ITSELF),
    (0, b"\x89PNG", "a PNG changed by a transfer as text", BINARY),
    (0, b"\xc2\x89PNG", "a PNG changed by a transfer as text", BINARY),
    (0, b"\xef\xbf\xbdPNG", "a PNG changed by a transfer as text", BINARY),
    (0, b"\xc3\xbf\xc3\x98\xc3\xbf", "a JPEG changed by a transfer as text", BINARY),
    (0, b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", "a JPEG changed by a transfer as text", BINARY),
    (0, b"version https://git-lfs.github.com/", "a Git LFS pointer", "Run `git lfs pull` first."),
    (0, b"/annex/objects/", "a git-annex pointer", "Run `git annex get` first."),
    (0, b"HTTP/1.", "an HTTP response with its headers", ITSELF),
    (0, b"[InternetShortcut]", "a link to a page", ADDRESS),
)
# By the four letters, the brand, in the first box of a file of the MP4 family.
HEIF_BRANDS = (b"hei", b"hev", b"mif1", b"mif2", b"msf1")
AUDIO_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
AVIF_BRANDS = {b"avif", b"avis"}
HEIF = ("HEIC (HEIF)", "Save it as JPEG.")

BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
# A declaration, comment or processing instruction at the beginning of a document.
PROLOG = re.compile(r"\s*(?:<\?.*?\?>|<!--.*?-->)", re.DOTALL)
SVG = re.compile(r"\s*(?:<!doctype\s+svg|<(?:svg:)?svg[\s>/])", re.IGNORECASE)
HTML = re.compile(
    r"\s*<(?:!doctype\s+html|(?:html|head|body|title|meta|script|style|link|div|p|h1|a|img|table"
    r"|center|br|span|iframe|noscript|form|font|b)[\s>/])",
    re.IGNORECASE,
)
XML = re.compile(r"\s*<(?:\?xml|[a-z_!])", re.IGNORECASE)
JSON = re.compile(r'\s*(?:\{\s*["}]|\[\s*(?:[\[{"\]\d-]|true|false|null))')
FORM = re.compile(r"\s*--\S+\s+content-", re.IGNORECASE)
BASE64 = re.compile(rb"\s*[A-Za-z0-9+/_-]{16,}[=\s]*")
CONTROLS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")


def describe(head: bytes) -> tuple[str, str]:
    """Return what a file is, and what to do about it.

    `head` is its first `HEAD` bytes, or all; it is none of the supported images.
    """
    head = head[:HEAD]
    if not head:
        return "nothing", "Use an image, as JPEG or PNG."
    if not head.strip(b"\0"):
        return "only zeros", AGAIN
    if head[4:8] == b"ftyp":
        return _describe_boxes(head)
    for offset, signature, what, advice in SIGNATURES:
        if head.startswith(signature, offset):
            return what, advice
    if head[:1] == head[188:189] == head[376:377] == b"G":
        return "a video (MPEG)", FRAME
    return _describe_text(head) or ("a file of an unknown type", "Save it as JPEG or PNG.")


def is_heif(head: bytes) -> bool:
    """Return whether a file is HEIF but not AVIF.

    Pillow takes both for AVIF if they begin with the same brand.
    """
    brands = _brands(head)
    return bool(brands) and brands[0].startswith(HEIF_BRANDS) and not AVIF_BRANDS & set(brands)


def _brands(head: bytes) -> list[bytes]:
    """Return the main brand, and those that the file is compatible with."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[place : place + 4] for place in range(16, end, 4))]


def _describe_boxes(head: bytes) -> tuple[str, str]:
    brands = _brands(head)
    if is_heif(head):
        return HEIF
    if AVIF_BRANDS & set(brands):
        return "an unusual kind of AVIF", SAVE
    if brands[0] == b"crx ":
        return "a raw camera file", CAMERA
    if brands[0] in AUDIO_BRANDS:
        return "audio", ITSELF
    if brands[0] == b"qt  ":
        return "a video (QuickTime)", FRAME
    return "a video (MP4)", FRAME


def _describe_text(head: bytes) -> tuple[str, str] | None:
    """Return what the text `head` is, or None if it is no text."""
    text = _as_text(head)
    if text is None:
        return None
    begins = text
    while found := PROLOG.match(begins):
        begins = begins[found.end() :]
    for pattern, start, what, advice in (
        (SVG, begins, "SVG", SAVE),
        (HTML, begins, "an HTML page", ADDRESS),
        (XML, text, "XML", ADDRESS),
        (JSON, text, "JSON", ITSELF),
        (FORM, text, "a form (multipart/form-data)", ITSELF),
    ):
        if pattern.match(start):
            return what, advice
    if text.lstrip()[:5].lower() == "data:":
        return "a data: URL", DECODE
    if BASE64.match(head) and _is_binary_in_base64(head):
        return "base64", DECODE
    return "text", ITSELF


def _as_text(head: bytes) -> str | None:
    """Return `head` decoded, or None if it holds what text does not."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return head[len(mark) :].decode(encoding, "replace")
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        cut_off = error.reason == "unexpected end of data"
        if not cut_off and 4 * sum(byte > 127 for byte in head) > len(head):
            return None
        text = head.decode("utf-8" if cut_off else "latin-1", "ignore")
    return None if CONTROLS.search(text) else text


def _is_binary_in_base64(head: bytes) -> bool:
    """Return whether `head` is base64 of something other than text."""
    letters = re.sub(rb"\s", b"", head)[:64].translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        decoded = base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except binascii.Error:
        return False
    return any(byte < 9 or byte > 126 for byte in decoded)
