"""What an image may cost, and the errors of images that cost more or are broken."""

from serving.errors import ImageError, TooLargeError

# Of a file on disk: as many bytes as the largest image has with four channels of 16 bits.
MAX_FILE_BYTES = 400_000_000
MAX_PIXELS = 50_000_000  # a 48-megapixel phone image passes, 150 MB when decoded
STRIP_PIXELS = 1_000_000  # converted to RGB at a time
MAX_SIDE = 65_535  # JPEG's limit; Pillow needs far more memory for a column than for a square
# Each scan of a JPEG, however few its bytes, visits all of its blocks of 8 by 8 pixels, at 40 ns
# each: 2 s. The largest image with three whole components has 12 million in 10 scans.
MAX_SCANNED_BLOCKS = 50_000_000
MAX_SCANS = 1000  # of a JPEG, however small; 10 are usual, and one for each coefficient is legal


def too_large(most: str, received: str) -> TooLargeError:
    """Return the error for an image of which `most` is accepted and more was `received`."""
    return TooLargeError(f"Expected at most {most}. Received: {received}. Use a smaller image.")


def check_sides(width: int, height: int) -> None:
    """Raise TooLargeError for more than `MAX_PIXELS` pixels, or `MAX_SIDE` pixels a side."""
    if width * height > MAX_PIXELS:
        raise too_large(f"{MAX_PIXELS // 1_000_000} million pixels", f"{width}×{height}")
    if max(width, height) > MAX_SIDE:
        raise too_large(f"{MAX_SIDE} pixels a side", f"{width}×{height}")


def damaged() -> ImageError:
    """Return the error for an image that cannot be decoded."""
    return ImageError(
        "Expected a complete image. Received: one that is truncated, damaged or of an unusual "
        "kind. Save it again as JPEG or PNG."
    )
