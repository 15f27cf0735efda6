"""Reads images by their addresses, and keeps files in a folder or a bucket.

An address is a path, a URL, or s3://bucket/key, gs://bucket/key or az://container/key. Buckets are
reached through obstore, which takes credentials, region and endpoint from the environment (as
AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL) or from the machine's role, and tries again by
itself what fails in passing. It is imported when the first bucket is used, not before.
"""

import errno
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from serving.errors import FetchError, StoreError
from serving.events import clean_url
from serving.fetch import MAX_BYTES, fetch
from serving.file_types import HEAD
from serving.image import check_image_file, check_type, read_image_file
from serving.limits import MAX_FILE_BYTES, too_large

BUCKET = re.compile(r"(s3|gs|az|abfss?)://([^/]*)(?:/(.*))?", re.IGNORECASE | re.DOTALL)
BUCKET_NAME = re.compile(r"[A-Za-z0-9._$@-]+")  # also Azure's $web and container@account.host
UNFINISHED = ".unfinished_"  # begins the names of files that are being written
# What is wrong with one file; other errors, as of a disk or network, are wrong with all.
OF_ONE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL),
}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# Status 403 for all objects alike: wrong or old credentials, or this machine's clock.
OF_ALL_OBJECTS = {
    *("AuthenticationFailed", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken"),
    *("RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"),
}
CREATE_TRIES = 5  # to write an object that exists for the server but cannot be read yet
CREATE_WAIT_S = 0.2  # longer after each try
CHUNK = 65_536  # bytes of an object that are read at a time, at least


class Found(NamedTuple):
    """An image that can be read.

    Attributes:
        most: bytes that it has at most.
        read: returns them.
    """

    most: int
    read: Callable[[], bytes]


class Store(Protocol):
    """Files in a folder or bucket, by names such as "results/00000.jsonl"."""

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in `folder`."""

    def name_of(self, address: str) -> str | None:
        """Return the name of the file at an absolute path or address; None if it is elsewhere."""

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole, in place of an older one."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file as a whole unless there is one, and return whether it was written."""


def is_bucket(address: str) -> bool:
    """Return whether `address` is in a bucket."""
    return BUCKET.fullmatch(address) is not None


def open_store(address: str) -> Store:
    """Return the folder or bucket at `address`, which may be empty or missing.

    Raises:
        StoreError: it is neither, or obstore is not installed.
    """
    if is_bucket(address):
        return Bucket(address)
    if "://" in address or not address:
        raise StoreError(
            "Expected a folder, s3://, gs:// or az:// to write to. "
            f"Received: {address or 'an empty name'}. Name one of these."
        )
    return Folder(Path(address))


class Folder:
    """A folder on this machine."""

    def __init__(self, path: Path):
        """Use the folder `path`, which is made with its first file."""
        self.path = path

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in `folder`, none that is hidden."""
        with self._errors("read"):
            try:
                found = os.listdir(self.path / folder)
            except FileNotFoundError:
                return []
        return sorted(f"{folder}/{name}" for name in found if not name.startswith("."))

    def name_of(self, address: str) -> str | None:
        """Return the name of the file at an absolute path; None if it is elsewhere."""
        folder = os.path.join(os.path.abspath(self.path), "")
        return address.removeprefix(folder) if address.startswith(folder) else None

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""
        with self._errors("read"):
            return (self.path / name).exists()

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file."""
        with self._errors("read"), suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole, in place of an older one."""
        with self._written(name, content) as temporary:
            temporary.replace(self.path / name)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file as a whole unless there is one, and return whether it was written.

        Of several processes, one gets True. Where the file system has no links, two that do this
        in the same instant may both get it, and one of the two files remains.
        """
        path = self.path / name
        with self._written(name, content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if path.exists():
                    return False
                temporary.replace(path)
        return True

    @contextmanager
    def _written(self, name: str, content: bytes) -> Generator[Path]:
        """Yield a temporary file beside `name`; it is on the disk, and removed at the end."""
        with self._errors("write to"):
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
            try:
                with open(temporary, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, action: str) -> Generator[None]:
        """Raise a StoreError in place of an OSError."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"Expected to {action} {self.path}. Received: {error.strerror or error}. "
                "Check that it is a folder, its permissions and the free disk space."
            ) from error


class Bucket:
    """A bucket, or what is below a prefix of it."""

    def __init__(self, address: str):
        """Use the bucket and prefix in `address`.

        Raises:
            StoreError: it names no bucket.
        """
        found = BUCKET.fullmatch(address)
        if found is None or not BUCKET_NAME.fullmatch(found[2]):
            raise StoreError(
                f"Expected an address such as s3://bucket/prefix. Received: {address}. "
                "Write the bucket's name."
            )
        self.root = f"{found[1].lower()}://{found[2]}"
        self.key = found[3] or ""
        self.prefix = self.key.strip("/")

    def addresses(self) -> Iterator[str]:
        """Yield the addresses of the visible objects, or of the one object at the prefix.

        Objects that stand for folders are left out.
        """
        obstore, store = load_obstore(), connect(self.root)
        none, first = True, len(self.prefix)
        with _bucket_errors(self.root, "be listed"):
            for page in obstore.list(store, self.prefix or None, chunk_size=1000):
                for item in page:
                    inside = item["path"][first:].lstrip("/")
                    if item["size"] and not re.search(r"(^|/)\.", inside):
                        none = False
                        yield f"{self.root}/{item['path']}"
            if none and self.prefix and self.exists(""):
                yield f"{self.root}/{self.prefix}"

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the objects in `folder`."""
        obstore, store = load_obstore(), connect(self.root)
        with _bucket_errors(self.root, "be listed"):
            pages = obstore.list(store, self._key(folder), chunk_size=1000)
            keys = [item["path"] for page in pages for item in page]
        start = len(self._key(""))
        return sorted(key[start:].lstrip("/") for key in keys)

    def name_of(self, address: str) -> str | None:
        """Return the name of the object at an address; None if it is elsewhere."""
        start = f"{self.root}/{self.prefix}/" if self.prefix else f"{self.root}/"
        return address.removeprefix(start) if address.startswith(start) else None

    def exists(self, name: str) -> bool:
        """Return whether there is an object; False also where only `create` may tell."""
        obstore, store = load_obstore(), connect(self.root)
        with _bucket_errors(self.root, "be read"):
            try:
                return bool(obstore.head(store, self._key(name)))
            except (FileNotFoundError, obstore.exceptions.PermissionDeniedError):
                return False

    def read(self, name: str) -> bytes | None:
        """Return the content of an object, or None if there is no such object."""
        obstore, store = load_obstore(), connect(self.root)
        with _bucket_errors(self.root, "be read"):
            try:
                return obstore.get(store, self._key(name)).bytes().to_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, in place of an older one."""
        obstore, store = load_obstore(), connect(self.root)
        with _bucket_errors(self.root, "be written to"):
            obstore.put(store, self._key(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one, and return whether it was written.

        Of several processes, one gets True. Where a server ignores the condition (If-None-Match),
        two that do this in the same instant may both get it, and one of the two objects remains.
        """
        obstore, store = load_obstore(), connect(self.root)
        exists = (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError)
        if self.exists(name):
            return False
        with _bucket_errors(self.root, "be written to"):
            for attempt in range(CREATE_TRIES):
                try:
                    # In one request: only that is refused where the object exists.
                    obstore.put(store, self._key(name), content, mode="create", use_multipart=False)
                    return True
                except exists:
                    found = self.read(name)
                if found is not None:
                    # If an answer was lost on its way, obstore has tried again, and found its own.
                    return found == content
                time.sleep(CREATE_WAIT_S * attempt)  # S3 is busy with that of another process
        raise StoreError(
            f"Expected {self.root} to have {self._key(name)} or to take it. Received: neither, in "
            f"{CREATE_TRIES} tries. Run the same command again."
        )

    def open(self) -> Found:
        """Return the object at the prefix.

        Raises:
            FetchError: there is none, or this process may not read it; also when reading it.
            UnsupportedTypeError: it has more than `HEAD` bytes, and is not an image by them.
            TooLargeError: it has more than `MAX_FILE_BYTES`.
            StoreError: the bucket cannot be read; also when reading it.
        """
        address = f"{self.root}/{self.key}"
        with _bucket_errors(self.root, "be read"), _object_errors(address):
            size, chunks = self._begin()

        def read() -> bytes:
            with _bucket_errors(self.root, "be read"), _object_errors(address):
                try:
                    return _join(chunks)
                except load_obstore().exceptions.BaseError:  # it changed, or waited for memory long
                    return _join(self._begin()[1])

        return Found(size, read)

    def _begin(self) -> tuple[int, Iterator[bytes]]:
        """Return the size and the content of the object at the prefix, of which a chunk is read."""
        found = get_object(self.root, self.key)
        size, chunks = found.meta["size"], found.stream(CHUNK)
        first = next(chunks, b"")
        if size > HEAD:
            check_type(first[:HEAD])
        if size > MAX_FILE_BYTES:
            raise too_large(f"{MAX_FILE_BYTES // 1_000_000} MB", "more")
        return size, chain([first], chunks)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}".strip("/")


def find_image(address: str, latest: Callable[[], float] = lambda: math.inf) -> Found:
    """Return the image at `address`.

    `latest` is asked when the host of a URL is given up, of time.monotonic; no later than `fetch`
    does.

    Raises:
        FetchError, AddressError, InvalidRequestError: it cannot be read; also when reading it.
        ImageError: it is a folder, pipe or device.
        UnsupportedTypeError: it is no image by the first bytes of a large object or file.
        TooLargeError: it has too many bytes.
        StoreError: its disk or bucket fails; also when reading it.
    """
    if is_bucket(address):
        return Bucket(address).open()
    if "://" in address:
        return Found(MAX_BYTES, lambda: fetch(clean_url(address), latest()))

    def read() -> bytes:
        with _file_errors(address):
            return read_image_file(address)

    with _file_errors(address):
        return Found(check_image_file(address), read)


def get_object(root: str, key: str) -> Any:
    """Return obstore's answer about the object `key` of a bucket, such as s3://bucket.

    Its `meta` is there, its content is not read yet.

    Raises:
        FetchError: obstore cannot read such a key, or would read another object instead.
        FileNotFoundError: there is no such object.
        obstore's errors: as those of `obstore.get`.
    """
    obstore, store = load_obstore(), connect(root)
    if key and key == key.strip("/"):  # obstore drops these slashes
        with suppress(ValueError):
            return obstore.get(store, key)
    raise FetchError(
        "Expected a key without control characters, //, /./, /../, or a slash at an end. "
        f"Received: {root}/{key}. Copy the object to another key."
    )


@cache
def connect(root: str) -> Any:
    """Return obstore's connection to a bucket, such as s3://bucket; each is made once.

    Raises:
        StoreError: obstore is not installed, or finds the environment's settings malformed.
    """
    load_obstore()
    from obstore.store import from_url

    with _bucket_errors(root, "be reached"):
        return from_url(root)


def load_obstore() -> Any:
    """Return the module obstore, imported at the first call.

    Raises:
        StoreError: it is not installed.
    """
    try:
        import obstore.exceptions
    except ImportError:
        raise StoreError(
            "Expected the package obstore, to reach buckets. Received: an environment without it. "
            "Install it with: make setup"
        ) from None
    return obstore


def _join(chunks: Iterable[bytes]) -> bytes:
    """Return `chunks` as one, with no byte twice in memory."""
    content = BytesIO()
    for chunk in chunks:
        content.write(chunk)
    return content.getvalue()


@contextmanager
def _file_errors(address: str) -> Generator[None]:
    """Raise a FetchError, or a StoreError for what is wrong with more than one file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in OF_ONE_FILE:
            raise _unreadable(address, reason) from None
        raise StoreError(
            f"Expected to read {address}. Received: {reason}. Check the disk or network, then run "
            "the same command again."
        ) from error
    except ValueError:  # a zero byte in the name
        raise _unreadable(address, "no name of a file") from None


@contextmanager
def _bucket_errors(root: str, action: str) -> Generator[None]:
    """Raise a StoreError in place of obstore's errors."""
    obstore = load_obstore()
    try:
        yield
    except (obstore.exceptions.BaseError, OSError, ValueError) as error:
        raise StoreError(
            f"Expected {root} to {action}. Received: {_reason(error)}. Check its name, the "
            "credentials, region and endpoint in the environment, and the network, then run the "
            "same command again."
        ) from error


@contextmanager
def _object_errors(address: str) -> Generator[None]:
    """Raise a FetchError for what is wrong with one object, such as s3://bucket/key."""
    obstore = load_obstore()
    try:
        yield
    except FileNotFoundError:
        raise _unreadable(address, "no such object") from None
    except obstore.exceptions.PermissionDeniedError as error:
        if _code(error) in OF_ALL_OBJECTS:
            raise
        raise _unreadable(address, "access denied") from None


def _reason(error: Exception) -> str:
    """Return what went wrong, on one line that is the same each time."""
    text = str(error).strip()
    if found := re.search(r"<Message>([^<\n]*)", text):
        text = f"{_code(error)}: {found[1]}"
    line = (text or type(error).__name__).splitlines()[0]
    return re.sub(r" in [\d.]+[nµm]?s\b", "", line).strip(" .")


def _code(error: Exception) -> str:
    """Return the code of the server's answer, such as "AccessDenied", or ""."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else ""


def _unreadable(address: str, reason: str) -> FetchError:
    return FetchError(
        f"Expected an image that can be read. Received: {address} ({reason}). Check its address "
        "and its permissions."
    )
