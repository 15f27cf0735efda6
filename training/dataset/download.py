"""Fetch the real images: five kinds of flowers, a few thousand photographs, about 230 MB.

python -m training.dataset.download
python -m training.dataset.download --out flowers/
"""

import argparse
import errno
import logging
import shlex
import shutil
import signal
import sys
import tarfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import requests

from training.cli import make_parser, run_command
from training.errors import DownloadError
from training.files import IMAGE_SUFFIXES, fill_folder

OUT = Path("flowers")
KAGGLE = "alxmamaev/flowers-recognition"
FLOWER_PHOTOS = (
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
)
# What a source calls a class: what we call it.
CLASSES = {
    "daisy": "daisy",
    "dandelion": "dandelion",
    "rose": "rose",
    "roses": "rose",
    "sunflower": "sunflower",
    "sunflowers": "sunflower",
    "tulip": "tulip",
    "tulips": "tulip",
}
TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20  # bytes
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (*FULL_DISK, errno.EROFS, errno.EACCES)


def main(arguments: list[str] | None = None) -> int:
    """Download as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: download_and_say(options.out),
        "download",
        paths=f"write to {options.out}",
        advice="Free disk space, fix the permissions, or name another folder with --out.",
        stopped="Stopped; nothing was kept.",
    )


def download_and_say(out: Path) -> None:
    """Download into `out`, and print what came and what to do next."""
    counts = download(out, FLOWER_PHOTOS)
    data = "" if out == OUT else f" --data {shlex.quote(str(out))}"
    print(f"{out}: {', '.join(f'{name} {count}' for name, count in counts.items())}.")
    print(f"Next: python train.py{data}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m training.dataset.download")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to fill [{OUT}]")
    return parser.parse_args(arguments)


def download(out: str | Path, url: str = FLOWER_PHOTOS) -> dict[str, int]:
    """Fill `out` with one folder of images a class, all or nothing; return how many of each.

    Kaggle's data set where it can be had, else the archive of TensorFlow's at `url`.

    Raises:
        DataError: `out` holds images already, or is no folder.
        DownloadError: neither source can be had.
        OSError: `out` cannot be written.
    """
    with fill_folder(out) as folder:
        # Beside what will be kept and cleared away with it. Kaggle's own cache, in the home
        # folder, would keep the images a second time where nobody looks for them.
        fetched = folder.parent / "fetched"
        try:
            arrange(fetch_from_kaggle(fetched), folder)
        except DownloadError as kaggle:
            print(f"Kaggle: {kaggle}. Fetching TensorFlow's flower_photos instead ...", flush=True)
            shutil.rmtree(fetched, ignore_errors=True)
            try:
                arrange(fetch_flower_photos(fetched, url), folder)
            except DownloadError as tensorflow:
                raise DownloadError(
                    f"Expected to fetch the images. Received: from Kaggle, {kaggle}; "
                    f"from TensorFlow, {tensorflow}. Try again when there is a connection, "
                    "or run `make sample` for drawn images."
                ) from None
        return {
            path.name: len(list(path.iterdir()))
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }


def fetch_from_kaggle(fetched: Path) -> Path:
    """Have kagglehub put Kaggle's data set into `fetched`; return where it put it.

    Raises:
        DownloadError: it could not.
        OSError: the disk is full, as it would be for another source.
    """
    print(f"Kaggle: fetching {KAGGLE} ...", flush=True)
    # Anything may come out of somebody else's package, its import included; whatever it is, there
    # is a second source to try.
    try:
        import kagglehub  # here, since importing it sets up its log and may fail

        logging.getLogger("kagglehub").setLevel(logging.WARNING)  # it names temporary files
        return Path(kagglehub.dataset_download(KAGGLE, output_dir=str(fetched)))
    except Exception as error:
        if is_of_disk(error, FULL_DISK):  # not UNWRITABLE: kagglehub has files of its own at home
            raise
        raise DownloadError(reason(error)) from error


def fetch_flower_photos(fetched: Path, url: str) -> Path:
    """Download the .tgz at `url` and unpack it into `fetched`; return `fetched`.

    Raises:
        DownloadError: it cannot be had, breaks off or would write elsewhere.
        OSError: `fetched` cannot be written.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("unpacking it safely takes Python 3.11.4 or newer")
    fetched.mkdir()
    archive = fetched / "flower_photos.tgz"
    try:
        save(url, archive)
        with tarfile.open(archive, "r:gz") as file:
            # "data" refuses members that would land outside the folder, devices and the like.
            file.extractall(fetched / "unpacked", filter="data")
    except (EOFError, zlib.error, tarfile.TarError) as error:
        raise DownloadError(f"a damaged archive ({reason(error)})") from error
    except OSError as error:  # requests' errors and gzip's are OSErrors too
        if is_of_disk(error, UNWRITABLE):
            raise
        raise DownloadError(reason(error)) from error
    return fetched / "unpacked"


def save(url: str, path: Path) -> None:
    """Download `url` to `path`, with its progress on standard error.

    Raises:
        OSError: no connection, an HTTP error, an end before the end, or a full disk.
    """
    with requests.get(url, stream=True, timeout=TIMEOUT) as response, open(path, "wb") as file:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length", 0))
        received = 0
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            show_progress(received, received + len(chunk), total)
            received += len(chunk)


def show_progress(before: int, after: int, total: int) -> None:
    """Say that `after` of `total` bytes (0: unknown) are there, where `before` were at the last."""
    if total and sys.stderr.isatty():
        end = "\n" if after >= total else ""
        print(
            f"\r  {after / 1e6:.0f} of {total / 1e6:.0f} MB", end=end, file=sys.stderr, flush=True
        )
    elif total and before * 4 // total < after * 4 // total:  # a log needs no more than quarters
        print(f"  {after / 1e6:.0f} of {total / 1e6:.0f} MB", file=sys.stderr, flush=True)


def arrange(source: Path, folder: Path) -> None:
    """Move the images of the five classes, wherever in `source`, into `folder`/class/.

    What is no image stays behind (Kaggle's has a few scripts), but for the licence.

    Raises:
        DownloadError: a class is not there.
    """
    found = find_classes(source)
    missing = sorted(set(CLASSES.values()) - set(found))
    if missing:
        raise DownloadError(f"no images of {', '.join(missing)} in what came")
    for name, class_folder in found.items():
        (folder / name).mkdir()
        for path in images_in(class_folder):
            take(path, folder / name / path.name)
    for path in source.rglob("LICENSE.txt"):
        shutil.copyfile(path, folder / path.name)


def take(path: Path, target: Path) -> None:
    """Move `path` to `target`, or copy it: Kaggle's notebooks have the data on a read-only disk."""
    try:
        path.rename(target)
    except OSError:
        shutil.copyfile(path, target)


def find_classes(source: Path) -> dict[str, Path]:
    """Return {class: folder with its images}, of each class the one nearest to `source`."""
    folders = [path for path in source.rglob("*") if path.is_dir() and path.name in CLASSES]
    found: dict[str, Path] = {}
    for path in sorted(folders, key=lambda path: (len(path.parts), path)):
        if images_in(path):
            found.setdefault(CLASSES[path.name], path)
    return dict(sorted(found.items()))


def images_in(folder: Path) -> list[Path]:
    """Return the image files right in `folder`, sorted; no links, no hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not path.is_symlink()
        and not path.name.startswith(".")
    )


def is_of_disk(error: Exception, codes: tuple[int, ...]) -> bool:
    """Return whether `error` has one of `codes` and came of a file, not of a connection."""
    is_request = isinstance(error, requests.RequestException)
    return isinstance(error, OSError) and error.errno in codes and not is_request


def reason(error: Exception) -> str:
    """Return why `error` came, in a few words."""
    host = urlsplit(getattr(getattr(error, "request", None), "url", None) or "").netloc
    # While the body is read, requests calls a timeout a ConnectionError.
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer from {host or 'its host'} in time"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return (
            f"HTTP {error.response.status_code} from {host or urlsplit(error.response.url).netloc}"
        )
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {host or 'its host'}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:120]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
