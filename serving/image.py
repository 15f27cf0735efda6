"""Bytes or a file to an upright RGB picture."""

from io import BytesIO
from pathlib import Path

# Importing a plugin registers its format; Pillow does that by itself only for a few common ones,
# or else for all of its forty.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from serving.errors import ImageError, TooLargeError

# Pillow knows many more formats; those need not be reachable from outside. JPEG brings MPO, what
# phones call a JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 50_000_000  # a 48-megapixel phone picture passes, 150 MB when decoded


def open_picture(source: bytes | str | Path) -> Image.Image:
    """Return the picture in `source` (a file's bytes, or its path) as upright RGB.

    EXIF orientation is applied, transparency laid on white, 16 bits brought to 8; of an
    animation the first frame counts.

    Raises:
        ImageError: no picture of `FORMATS`, or one that cannot be decoded to its end.
        TooLargeError: more than `MAX_PIXELS` pixels; found out before they are decoded.
        OSError: `source` is a path that cannot be opened.
    """
    with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        try:
            with Image.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise _too_many_pixels(f"{picture.width}×{picture.height}")
                return _to_rgb(ImageOps.exif_transpose(picture))
        except UnidentifiedImageError:
            raise ImageError(
                f"Expected a picture ({', '.join(FORMATS)}). Received: something else."
            ) from None
        except Image.DecompressionBombError:
            raise _too_many_pixels("far more") from None
        except TooLargeError:
            raise
        except Exception as error:
            # Pillow's decoders raise nearly anything on broken files: OSError, SyntaxError,
            # ValueError, struct.error, EOFError, zlib.error, ...
            raise ImageError(
                "Expected a whole picture. Received: one that breaks off or is damaged."
            ) from error


def _too_many_pixels(received: str) -> TooLargeError:
    return TooLargeError(
        f"Expected at most {MAX_PIXELS / 1e6:.0f} million pixels. Received: {received}. "
        "Send a smaller picture."
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel; convert() would clip at 255
        picture = picture.point(lambda value: value * (255 / 65535)).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
