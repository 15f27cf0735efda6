"""Draw small images in every format that the service may receive.

    python -m tests.fuzz.make_corpus                      # into tests/fuzz/corpus
    python -m tests.fuzz.make_corpus --into elsewhere/

The service reads the files in the folder and refuses those in its `refused/`. Pillow writes most
of them; the others are assembled here, byte by byte.
"""

import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training.cli import make_parser, run_command

FOLDER = Path("tests/fuzz/corpus")
REFUSED = "refused"
WIDTH, HEIGHT = 24, 16
# PNG's Adam7: (first column, first row, columns apart, rows apart) of each pass.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
PASSES += ((0, 1, 1, 2),)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's color type
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = CHANNELS


def main(arguments: list[str] | None = None) -> int:
    """Draw as the command line says and return the exit code."""
    parser = make_parser(__doc__, "python -m tests.fuzz.make_corpus")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder [%(default)s]")
    folder = parser.parse_args(arguments).into
    return run_command(lambda: write_corpus(folder), "tests.fuzz.make_corpus")


def write_corpus(folder: Path) -> None:
    """Write the images into `folder`, and print how many."""
    files = images() | {f"{REFUSED}/{name}": data for name, data in refused().items()}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    size = sum(map(len, files.values()))
    print(f"Wrote {len(files)} images, {size / 1000:.0f} kB, into {folder}.")


def images() -> dict[str, bytes]:
    """Return {file name: content} of valid images, `WIDTH`×`HEIGHT` unless rotated."""
    return jpegs() | pngs() | tiffs() | bmps() | others()


def refused() -> dict[str, bytes]:
    """Return {file name: content} of damaged, too large and other files."""
    flower = encoded(drawn(), "JPEG", quality=60)
    frame = flower.index(b"\xff\xc0")
    return {
        "empty.jpg": b"",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        "ppm.jpg": encoded(drawn(), "PPM"),
        "half.jpg": flower[: len(flower) // 2],
        "twelve-bits.jpg": flower[: frame + 4] + b"\x0c" + flower[frame + 5 :],
        "no-rows.jpg": flower[: frame + 5] + bytes(2) + flower[frame + 7 :],
        "half.png": encoded(drawn(), "PNG")[:200],
        "no-pixels.png": png(0, 16, 8, GREY, b""),
        "column.png": png(1, 50_000_000, 8, GREY, b""),
        "huge.png": png(60_000, 60_000, 1, GREY, b""),
        "lab.tif": tiff({258: (8, 8, 8), 262: 8, 277: 3}, drawn().tobytes()),
        "half-without-end.jpg": flower[: len(flower) * 3 // 4],
        "checksum.png": png(
            *(WIDTH, HEIGHT, 4, PALETTE, scanlines(4, PALETTE, False)),
            chunk(b"PLTE", bytes(48))[:-4] + bytes(4),
        ),
        "half.webp": encoded(drawn(), "WEBP")[:100],
        "canvas.webp": riff(b"VP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\xff"),
        "half.avif": encoded(drawn(), "AVIF")[:300],
        "half.gif": encoded(drawn().quantize(8), "GIF")[:100],
        "rows-without-end.bmp": bmp(24, 2**31 - 1, 24, 0, b""),
        "no-rle.bmp": bmp(WIDTH, HEIGHT, 8, 1, b"\0\1"),
        "not-zlib.tif": tiff({258: 8, 259: 8}, b"not zlib"),
        "itself.tif": b"II*\0\x08\0\0\0\x01\0\0\1\x04\0\x01\0\0\0\x18\0\0\0\x08\0\0\0",
        "tile.tif": tiff({258: 8, 259: 8, 322: 40_000, 323: 50_000, 324: 8, 325: 2}, b"xx"),
    }


def jpegs() -> dict[str, bytes]:
    """Return the JPEGs among `images`."""
    image = drawn()
    plain = encoded(image, "JPEG", quality=60)
    cmyk = encoded(image.convert("CMYK"), "JPEG", quality=60)
    two = encoded(image, "MPO", quality=60, save_all=True, append_images=[image])
    adobe = cmyk.index(b"Adobe") + 11  # the flag that says whether CMYK is stored as YCCK
    return {
        "420.jpg": plain,
        "444.jpg": encoded(image, "JPEG", quality=60, subsampling=0),
        "grey.jpg": encoded(image.convert("L"), "JPEG", quality=60),
        "cmyk.jpg": cmyk,
        "ycck.jpg": cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :],
        "progressive.jpg": encoded(image, "JPEG", quality=60, progressive=True),
        "restarts.jpg": encoded(image, "JPEG", quality=60, restart_marker_rows=1),
        "garbage-behind.jpg": plain + b"PK\3\4 \xff\xda\xff\xd8\xff garbage",
        "exif-6.jpg": encoded(image, "JPEG", quality=60, exif=exif(6)),
        "exif-broken.jpg": encoded(image, "JPEG", quality=60, exif=exif(6)[:-8]),
        "profile.jpg": encoded(image, "JPEG", quality=60, icc_profile=b"no profile"),
        "two.mpo": two,
        "broken-mpo.jpg": two.replace(
            struct.pack("<HHII", 0xB001, 4, 1, 2), struct.pack("<HHII", 0xB001, 4, 1, 9)
        ),
        "broken-jfif.jpg": insert(plain, segment(0xE0, b"JFIF\0")),
        "broken-profile.jpg": insert(plain, segment(0xE2, b"ICC_PROFILE\0\1")),
        "without-end.jpg": plain[:-2],
        "progressive-without-end.jpg": encoded(image, "JPEG", progressive=True)[:-1] + bytes(9),
    }


def pngs() -> dict[str, bytes]:
    """Return the PNGs among `images`, of every color type and depth."""
    palette = chunk(b"PLTE", bytes(value for i in range(16) for value in (i * 16, 255 - i, 99)))
    files = {
        f"type-{color}-{depth}-bits{'-interlaced' if interlaced else ''}.png": png(
            *(WIDTH, HEIGHT, depth, color),
            scanlines(depth, color, interlaced),
            *([palette] if color == PALETTE else []),
            interlaced=interlaced,
        )
        for color, depths in (
            (GREY, (1, 2, 4, 8, 16)),
            (RGB, (8, 16)),
            (PALETTE, (1, 2, 4)),
            (GREY_ALPHA, (8, 16)),
            (RGB_ALPHA, (8, 16)),
        )
        for depth in depths
        for interlaced in (False, True)
    }
    plain = (WIDTH, HEIGHT, 8, GREY, scanlines(8, GREY, False))
    frames = [drawn(), drawn().transpose(Image.Transpose.ROTATE_180)]
    return files | {
        "palette-transparent.png": png(
            *(WIDTH, HEIGHT, 4, PALETTE, scanlines(4, PALETTE, False)),
            palette,
            chunk(b"tRNS", bytes(range(0, 256, 17))),
        ),
        "grey-transparent.png": png(*plain, chunk(b"tRNS", b"\0\x80")),
        "text.png": png(
            *plain,
            chunk(b"tEXt", b"Comment\0drawn"),
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10_000))),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='9'/>"),
        ),
        "exif-6.png": png(*plain, chunk(b"eXIf", exif(6)[6:])),
        "profile-bomb.png": png(*plain, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000)))),
        "broken-metadata.png": png(
            *plain,
            chunk(b"gAMA", b""),
            chunk(b"iCCP", b"name") + chunk(b"pHYs", bytes(9))[:-4] + bytes(4),
        ),
        "animated.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
    }


def tiffs() -> dict[str, bytes]:
    """Return the TIFFs among `images`."""
    image = drawn()
    grey = np.asarray(image.convert("L"))
    compressed = {
        "lzw": "tiff_lzw",
        "deflate": "tiff_adobe_deflate",
        "packbits": "packbits",
        "jpeg": "jpeg",
    }
    rgb = {258: (8, 8, 8), 262: 2, 277: 3}
    planes = b"".join(band.tobytes() for band in image.split())
    return {
        "raw.tif": encoded(image, "TIFF"),
        **{
            f"{name}.tif": encoded(image, "TIFF", compression=compression)
            for name, compression in compressed.items()
        },
        "fax.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "big.tif": encoded(image, "TIFF", big_tiff=True),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "alpha.tif": encoded(rgba(), "TIFF"),
        "palette.tif": encoded(image.quantize(16), "TIFF"),
        "16-bits.tif": tiff({258: 16}, (grey.astype(">u2") * 257).tobytes()),
        "16-bits-rgb.tif": tiff(
            rgb | {258: (16, 16, 16)}, (np.asarray(image).astype(">u2") * 257).tobytes()
        ),
        "32-bits.tif": encoded(Image.fromarray(grey.astype(np.int32) * 200), "TIFF"),
        "float.tif": encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "planes.tif": tiff(
            rgb
            | {284: 2, 273: tuple(8 + i * len(planes) // 3 for i in range(3))}
            | {279: (len(planes) // 3,) * 3},
            planes,
        ),
        "tiles.tif": tiff(
            {258: 8, 322: 16, 323: 16, 324: (8, 8 + 256), 325: (256, 256), 273: (), 279: ()},
            grey[:, :16].tobytes() + np.pad(grey[:, 16:], ((0, 0), (0, 8))).tobytes(),
        ),
        "white-is-0.tif": tiff({258: 8, 262: 0}, grey.tobytes()),
        "exif-6.tif": encoded(image, "TIFF", exif=exif(6)),
        "pages.tif": encoded(image, "TIFF", save_all=True, append_images=[image]),
        "broken-description.tif": tiff({258: 8, 270: (99, 99, 99)}, grey.tobytes())[:-3],
    }


def bmps() -> dict[str, bytes]:
    """Return the BMPs among `images`."""
    image = drawn()
    indices = np.asarray(image.quantize(16))[::-1]
    runs = b"".join(b"".join(bytes([1, i]) for i in row) + b"\0\0" for row in indices)
    pairs = b"".join(
        b"".join(bytes([2, i * 16 + j]) for i, j in row.reshape(-1, 2)) + b"\0\0" for row in indices
    )
    high = np.asarray(image).astype("<u2")[::-1] >> 3
    return {
        "24-bits.bmp": encoded(image, "BMP"),
        "32-bits.bmp": encoded(rgba(), "BMP"),
        "grey.bmp": encoded(image.convert("L"), "BMP"),
        "palette.bmp": encoded(image.quantize(16), "BMP"),
        "1-bit.bmp": encoded(image.convert("1"), "BMP"),
        "16-bits.bmp": bmp(WIDTH, HEIGHT, 16, 0, (high @ (1024, 32, 1)).astype("<u2").tobytes()),
        "rle8.bmp": bmp(WIDTH, HEIGHT, 8, 1, runs + b"\0\1"),
        "rle4.bmp": bmp(WIDTH, HEIGHT, 4, 2, pairs + b"\0\1"),
        "top-down.bmp": bmp(WIDTH, -HEIGHT, 24, 0, image.tobytes()),
    }


def others() -> dict[str, bytes]:
    """Return the GIFs, WebPs and AVIFs among `images`."""
    image = drawn()
    frames = {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    gif = encoded(image.quantize(8), "GIF")
    return {
        "plain.gif": gif,
        "transparent.gif": encoded(image.quantize(8), "GIF", transparency=2),
        "animated.gif": encoded(image.quantize(8), "GIF", **frames),
        "comment.gif": encoded(image.quantize(8), "GIF", comment=b"drawn " * 60),
        "frame-larger-than-screen.gif": gif[:6] + b"\x09\0\x07\0" + gif[10:],
        "lossy.webp": encoded(image, "WEBP", quality=50),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "alpha.webp": encoded(rgba(), "WEBP", quality=50),
        "exif-6.webp": encoded(image, "WEBP", quality=50, exif=exif(6)),
        "broken-exif.webp": encoded(image, "WEBP", quality=50, exif=exif(6))[:-20],
        "animated.webp": encoded(image, "WEBP", quality=50, **frames),
        "lossy.avif": encoded(image, "AVIF", quality=50),
        "alpha.avif": encoded(rgba(), "AVIF", quality=50),
        "turned-6.avif": encoded(image, "AVIF", quality=50, exif=exif(6)),
        "mirrored-2.avif": encoded(image, "AVIF", quality=50, exif=exif(2)),
        "animated.avif": encoded(image, "AVIF", quality=50, **frames),
    }


def drawn() -> Image.Image:
    """Return a yellow blossom on a sky that darkens."""
    image = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 3, 15, 13), (240, 200, 30))
    draw.ellipse((8, 6, 11, 9), (90, 50, 20))
    return image


def rgba() -> Image.Image:
    """Return the same, increasingly transparent from left to right."""
    image = drawn()
    image.putalpha(Image.linear_gradient("L").rotate(90).resize(image.size))
    return image


def exif(orientation: int) -> bytes:
    """Return EXIF with an orientation and a description."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "drawn"
    return tags.tobytes()


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    """Return `image` as Pillow writes it in the format `name`."""
    buffer = BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def insert(jpeg: bytes, segments: bytes) -> bytes:
    """Return `jpeg` with `segments` before its others."""
    return jpeg[:2] + segments + jpeg[2:]


def segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(
    width: int,
    height: int,
    depth: int,
    color: int,
    lines: bytes,
    *more: bytes,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of `lines`, with `more` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(lines, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def scanlines(depth: int, color: int, interlaced: bool) -> bytes:
    """Return a ramp as a PNG's lines, each after its filter's number."""
    lines = bytearray()
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        width = -(-(WIDTH - left) // across)
        length = (width * CHANNELS[color] * depth + 7) // 8
        for row in range(top, HEIGHT, down):
            line = [(row * 9 + column * 5) % 256 for column in range(length)]
            lines += bytes([row % 5, *line])
    return bytes(lines)


def tiff(tags: dict[int, int | tuple[int, ...]], pixels: bytes) -> bytes:
    """Return a big-endian TIFF, one grey strip by default; () drops tags."""
    shape = {256: WIDTH, 257: HEIGHT, 259: 1, 262: 1, 277: 1, 273: 8, 279: len(pixels)}
    directory, behind = b"", b""
    tags = {tag: value for tag, value in (shape | tags).items() if value != ()}
    place = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        content = struct.pack(f">{len(values)}H", *values)
        directory += struct.pack(">HHI", tag, 3, len(values))
        if len(content) > 4:
            directory += struct.pack(">I", place + len(behind))
            behind += content
        else:
            directory += content.ljust(4, b"\0")
    head = struct.pack(">2sHI", b"MM", 42, 8 + len(pixels))
    return head + pixels + struct.pack(">H", len(tags)) + directory + bytes(4) + behind


def bmp(width: int, height: int, depth: int, compression: int, pixels: bytes) -> bytes:
    """Return a BMP, with a palette of greys up to 8 bits."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(2**depth if depth <= 8 else 0))
    head = struct.pack(
        "<IiiHHIIiiII",
        *(40, width, height, 1, depth, compression, len(pixels), 2835, 2835),
        *(len(palette) // 4, 0),
    )
    start = 14 + len(head) + len(palette)
    return struct.pack("<2sIII", b"BM", start + len(pixels), 0, start) + head + palette + pixels


def riff(content: bytes) -> bytes:
    """Return a WebP of the chunks `content`."""
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


if __name__ == "__main__":
    sys.exit(main())
