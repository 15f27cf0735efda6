"""Folders, buckets and images by their addresses."""

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import object_storage
import pytest
from conftest import ROOT

from serving import image, stores
from serving.errors import (
    AddressError,
    FetchError,
    ImageError,
    StoreError,
    TooLargeError,
    UnsupportedTypeError,
)
from serving.stores import Bucket, Folder, find_image, is_bucket, open_store

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def memory(monkeypatch):
    """A bucket of obstore's own, in this process's memory."""
    from obstore.store import MemoryStore

    store = MemoryStore()
    monkeypatch.setattr(stores, "connect", lambda root: store)
    return store


@pytest.fixture
def storage(monkeypatch):
    """A server of buckets on this machine."""
    with object_storage.serve_storage() as storage:
        for name, value in object_storage.environment(storage).items():
            monkeypatch.setenv(name, value)
        stores.connect.cache_clear()
        yield storage
    stores.connect.cache_clear()


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path, memory):
    return Folder(tmp_path / "out") if request.param == "folder" else Bucket("s3://b/a prefix")


def test_a_file_is_created_once(store):
    assert store.create("results/1.jsonl", b"first")
    assert not store.create("results/1.jsonl", b"second")
    assert store.read("results/1.jsonl") == b"first"
    assert store.exists("results/1.jsonl")


def test_a_file_is_replaced_as_a_whole(store):
    store.write("lists/1", b"first, and longer")
    store.write("lists/1", b"second")
    assert store.read("lists/1") == b"second"
    assert store.names("lists") == ["lists/1"]


def test_who_reads_a_file_that_is_replaced_has_all_of_one(tmp_path):
    folder = Folder(tmp_path)
    folder.write("1", b"first, and longer")
    with open(tmp_path / "1", "rb") as file:
        folder.write("1", b"second")
        assert file.read() == b"first, and longer"


def test_a_file_that_is_being_written_has_no_name_yet(tmp_path, monkeypatch):
    seen, folder = [], Folder(tmp_path)
    monkeypatch.setattr(stores.os, "fsync", lambda _: seen.append(folder.names(".")))
    folder.create("b", b"")
    folder.write("a", b"")
    assert seen == [[], ["./b"]]
    assert folder.names(".") == ["./a", "./b"]


def test_names_are_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(stores.os, "listdir", lambda _: ["b", "c", "a"])
    assert Folder(tmp_path).names("x") == ["x/a", "x/b", "x/c"]


def test_what_is_not_there(store):
    assert store.names("results") == []
    assert store.read("results/1") is None
    assert not store.exists("results/1")


def test_of_many_at_once_one_creates_the_file(store):
    barrier = threading.Barrier(8)

    def create(number):
        barrier.wait()
        return store.create("results/1", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(create, range(8)))
    assert sum(written) == 1
    assert store.read("results/1") == b"%d" % written.index(True)
    assert store.names("results") == ["results/1"]


@pytest.fixture
def conflicts(memory, monkeypatch):
    """Refuse to write an object so often, after or instead of writing it; return the waits."""
    obstore = stores.load_obstore()
    put, waits = obstore.put, []

    def let(count, written=None, error=obstore.exceptions.AlreadyExistsError):
        def refuse(store, key, content, **options):
            nonlocal count
            if not count:
                return put(store, key, content, **options)
            count -= 1
            if written is not None:
                put(store, key, written)
            raise error("409 Conflict")

        monkeypatch.setattr(obstore, "put", refuse)
        monkeypatch.setattr(stores.time, "sleep", waits.append)
        return waits

    return let


@pytest.mark.parametrize("error", ["AlreadyExistsError", "PreconditionError"])
@pytest.mark.parametrize(("content", "ours"), [(b"the same", True), (b"another's", False)])
def test_a_lost_answer_to_our_own_write_is_no_other_process(conflicts, content, ours, error):
    conflicts(1, content, getattr(stores.load_obstore().exceptions, error))
    assert Bucket("s3://b").create("1", b"the same") == ours


def test_a_write_that_meets_another_which_fails_is_tried_again(conflicts):
    waits = conflicts(2)
    bucket = Bucket("s3://b")
    assert bucket.create("1", b"ours")
    assert bucket.read("1") == b"ours"
    assert waits == [0, 0.2]


def test_a_write_is_not_tried_for_ever(conflicts):
    conflicts(99)
    with pytest.raises(StoreError, match=r"^Expected s3://b to have a/1 or to take it\. "):
        Bucket("s3://b/a").create("1", b"ours")


def test_the_server_decides_who_was_first(storage, monkeypatch):
    """Between looking for an object and writing it, another process may write it."""
    monkeypatch.setattr(Bucket, "exists", lambda *_: False)
    bucket = Bucket("s3://b")
    assert bucket.create("1", b"first" * 2_000_000)  # in one request, however large
    assert not bucket.create("1", b"second")
    assert storage["b/1"] == b"first" * 2_000_000
    assert storage.requests == ["PUT /b/1", "PUT /b/1", "GET /b/1"]


def test_whether_a_denied_object_exists_is_for_create_to_tell(storage):
    storage["b/1"], storage.denied = b"", {"b/1"}
    assert not Bucket("s3://b").exists("1")


def test_a_server_that_ignores_the_condition_keeps_the_first_object(storage):
    storage.conditional = False
    bucket = Bucket("s3://b/out")
    assert bucket.create("1", b"first")
    assert not bucket.create("1", b"second")
    assert storage == {"b/out/1": b"first"}


def test_a_busy_server_is_asked_again(storage):
    storage["b/a.jpg"] = b"x"
    storage.busy = 2
    assert find_image("s3://b/a.jpg").read() == b"x"
    storage.busy = 2
    assert Bucket("s3://b").create("1", b"y")
    assert storage["b/1"] == b"y"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_is_created_without_links(tmp_path, monkeypatch, code):
    def link(*_):
        raise OSError(code, "no links here")

    monkeypatch.setattr(stores.os, "link", link)
    folder = Folder(tmp_path)
    assert folder.create("1", b"first")
    assert not folder.create("1", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1").read_bytes() == b"first"


def test_nothing_remains_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        Folder(tmp_path).create("1", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match=r"^Expected to write to .*/out\. Received: "):
        open_store(str(tmp_path / "out")).create("results/1", b"")


def test_the_visible_objects_of_a_prefix(memory):
    obstore = stores.load_obstore()
    for key in ("a/2 ü+.jpg", "a/1.jpg", "a/b/3.jpg", "a/.hidden/4.jpg", "a/.5.jpg", "ab/6.jpg"):
        obstore.put(memory, key, b"x")
    obstore.put(memory, "a/folder", b"")
    listed = ["s3://b/a/1.jpg", "s3://b/a/2 ü+.jpg", "s3://b/a/b/3.jpg"]
    assert sorted(Bucket("s3://b/a").addresses()) == listed
    assert sorted(Bucket("s3://b/a/").addresses()) == listed
    assert sorted(Bucket("s3://b").addresses()) == [*listed, "s3://b/ab/6.jpg"]
    assert list(Bucket("s3://b/ab/6.jpg").addresses()) == ["s3://b/ab/6.jpg"]
    assert list(Bucket("s3://b/nothing").addresses()) == []
    assert find_image(listed[1]).read() == b"x"
    assert list(Bucket("s3://b/a/.hidden").addresses()) == ["s3://b/a/.hidden/4.jpg"]
    obstore.put(memory, "a", b"of the same name")
    assert sorted(Bucket("s3://b/a").addresses()) == listed


def test_objects_are_listed_page_by_page(storage):
    keys = [f"b/a/{number:04}.jpg" for number in range(2 * object_storage.PAGE + 1)]
    storage.update(dict.fromkeys(keys, b"x"))
    assert list(Bucket("s3://b/a").addresses()) == [f"s3://{key}" for key in keys]
    assert Bucket("s3://b").names("a") == [key.removeprefix("b/") for key in keys]


def test_any_character_of_a_key(storage):
    characters = set(map(chr, range(32, 127))) - {"/"} | {"ü", "🌷"}
    storage.update({f"b/a {character}b.jpg": character.encode() for character in characters})
    addresses = list(Bucket("s3://b").addresses())
    found = {find_image(address).read().decode(): address for address in addresses}
    assert found == {character: f"s3://b/a {character}b.jpg" for character in characters}


@pytest.mark.parametrize(
    "key",
    ["", "/", "a//b.jpg", "/b.jpg", "b.jpg/", "a\n", "a\0", ".", "a/../b.jpg", "caf\udce9.jpg"],
)
def test_a_key_that_cannot_be_read_is_its_own_error(memory, key):
    stores.load_obstore().put(memory, "b.jpg", b"another")
    with pytest.raises(FetchError, match=r"(?s)^Expected a key without .* Copy the object"):
        find_image(f"s3://b/{key}")


@pytest.mark.parametrize("name", ["a b", "a?b", "a#b", "a%b", "ü", ""])
def test_a_bucket_has_a_name_that_is_one(name):
    address = f"s3://{name}/key"
    with pytest.raises(StoreError, match=r"Write the bucket's name\.$"):
        Bucket(address)


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidObjectState"])
def test_an_object_that_is_denied_is_its_own_error(storage, code):
    storage.denied, storage.denial = {"b/a.jpg"}, code
    with pytest.raises(FetchError, match=r"s3://b/a\.jpg \(access denied\)"):
        find_image("s3://b/a.jpg")


@pytest.mark.parametrize(
    "code",
    [
        *("AuthenticationFailed", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken"),
        *("RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch"),
        "TokenRefreshRequired",
    ],
)
def test_credentials_that_are_refused_are_no_error_of_an_image(storage, code):
    storage.denied, storage.denial = {"b/a.jpg"}, code
    with pytest.raises(StoreError, match=rf"be read\. Received: {code}: No\. Check its name"):
        find_image("s3://b/a.jpg")


def test_an_object_that_waited_too_long_is_asked_for_again(memory, monkeypatch):
    obstore = stores.load_obstore()
    get, asked = obstore.get, []

    class Broken:
        meta = {"size": 2}  # noqa: RUF012

        def stream(self, _):
            yield b"x"
            raise obstore.exceptions.GenericError("request or response body error")

    def get_once(*arguments):
        asked.append(arguments)
        return Broken() if len(asked) == 1 else get(*arguments)

    monkeypatch.setattr(obstore, "get", get_once)
    memory.put("a.jpg", b"xy")
    assert find_image("s3://b/a.jpg").read() == b"xy"
    assert len(asked) == 2
    asked.clear()
    found = find_image("s3://b/a.jpg")
    memory.delete("a.jpg")
    with pytest.raises(FetchError, match="no such object"):
        found.read()


def test_an_object_that_is_not_there_is_its_own_error(memory):
    with pytest.raises(FetchError, match=r"Received: s3://b/a\.jpg \(no such object\)"):
        find_image("s3://b/a.jpg")


def test_an_object_is_measured_before_it_is_read(memory, monkeypatch):
    stores.load_obstore().put(memory, "a.jpg", b"12345")
    assert find_image("s3://b/a.jpg").most == 5
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 4)
    with pytest.raises(TooLargeError):
        find_image("s3://b/a.jpg")
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 5)
    assert find_image("s3://b/a.jpg").read() == b"12345"


def test_how_much_memory_an_image_may_take(tmp_path, monkeypatch):
    assert find_image("https://example.com/a.jpg").most == stores.MAX_BYTES
    (tmp_path / "a.jpg").write_bytes(b"12345")
    assert find_image(str(tmp_path / "a.jpg")).most == 5
    monkeypatch.setattr(image, "MAX_FILE_BYTES", 4)
    with pytest.raises(TooLargeError):
        find_image(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_the_first_bytes_of_a_video_are_all_that_is_read(tmp_path, monkeypatch, place):
    video, read = b"\0\0\0\x18ftypmp42" + bytes(stores.CHUNK), []

    class Large:
        meta = {"size": 300_000_000}  # noqa: RUF012

        def stream(self, chunk):
            while True:
                read.append(chunk)
                yield video

    monkeypatch.setattr(stores, "get_object", lambda root, key: Large())
    monkeypatch.setattr(stores, "read_image_file", read.append)
    (tmp_path / "a.mp4").write_bytes(video)
    with pytest.raises(UnsupportedTypeError, match=r"a video \(MP4\)"):
        find_image({"bucket": "s3://b/a.mp4", "folder": f"{tmp_path}/a.mp4"}[place])
    assert read == [stores.CHUNK][: place == "bucket"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_an_object_is_in_memory_once(storage):
    size = 60_000_000
    storage["b/small.png"], storage["b/large.png"] = PNG, PNG.ljust(size, b"x")
    program = (
        "import re; from serving.stores import find_image\n"
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024\n"
        "find_image('s3://b/small.png').read(); before = peak()\n"
        f"assert len(find_image('s3://b/large.png').read()) == {size}\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1.5 * size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The token has expired.\n\nDebug source:\nmuch more", "The token has expired"),
        # The same sentence each time, so that three failures are reported as one.
        (
            "Error performing GET http://a/b in 42.8ms - 500",
            "Error performing GET http://a/b - 500",
        ),
        ("GET in 1.2µs, after 10 retries", "GET, after 10 retries"),
        ("", "GenericError"),
    ],
)
def test_a_bucket_that_fails_is_no_error_of_an_image(monkeypatch, text, reason):
    exceptions = stores.load_obstore().exceptions

    class Failing:
        def get(self, *_):
            raise exceptions.GenericError(text)

    monkeypatch.setattr(stores, "connect", lambda root: None)
    monkeypatch.setattr(stores.load_obstore(), "get", Failing().get)
    with pytest.raises(StoreError, match=rf"Received: {reason}\. Check its name"):
        find_image("s3://b/a.jpg")


def test_files(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert (find_image(str(path)).most, find_image(str(path)).read()) == (8, path.read_bytes())
    with pytest.raises(FetchError, match=r"missing\.png \(No such file or directory\)"):
        find_image(f"{tmp_path}/missing.png")
    with pytest.raises(FetchError, match="no name of a file"):
        find_image("a\0b")
    with pytest.raises(ImageError, match="a folder"):
        find_image(str(tmp_path)).read()


def test_a_folder_that_goes_while_it_is_written_is_an_error_of_its_own(tmp_path, monkeypatch):
    def link(*_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(stores.os, "link", link)
    with pytest.raises(StoreError, match="No such file or directory"):
        Folder(tmp_path).create("1", b"x")


def test_which_files_are_in_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (Folder(Path("out")), Folder(tmp_path / "x/../out/")):
        assert folder.name_of(f"{tmp_path}/out/results/1.jsonl") == "results/1.jsonl"
        for other in (f"{tmp_path}/out", f"{tmp_path}/outside/1", "out/1", "s3://out/1"):
            assert folder.name_of(other) is None
    for bucket in (Bucket("s3://b/out"), Bucket("S3://b/out/")):
        assert bucket.name_of("s3://b/out/a/1") == "a/1"
        for other in ("s3://b/out", "s3://b/outside/1", "s3://c/out/1", "gs://b/out/1"):
            assert bucket.name_of(other) is None
    assert Bucket("s3://b").name_of("s3://b/a/1") == "a/1"
    assert Bucket("s3://b").name_of("s3://bb/1") is None


def test_a_disk_that_fails_is_no_error_of_an_image(tmp_path, monkeypatch):
    def stat(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(stores.os, "stat", stat)
    with pytest.raises(StoreError, match=r"a\.png\. Received: Input/output error"):
        find_image("a.png")


@pytest.mark.parametrize(
    "code",
    [
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.EINVAL),
    ],
)
def test_what_is_wrong_with_one_file(monkeypatch, code):
    def stat(*_, **__):
        raise OSError(code, "a reason")

    monkeypatch.setattr(stores.os, "stat", stat)
    with pytest.raises(FetchError, match=r"a\.png \(a reason\)"):
        find_image("a.png")


def test_urls_have_the_rules_of_the_service():
    with pytest.raises(AddressError):
        find_image("http://169.254.169.254/latest/meta-data/").read()
    with pytest.raises(AddressError):  # without what copying adds
        find_image(" <http://169.254.169.254/> ").read()


def test_settings_that_are_malformed_are_an_error_of_the_bucket(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a URL")
    stores.connect.cache_clear()
    with pytest.raises(StoreError, match="^Expected s3://b to be "):
        Bucket("s3://b").exists("1")
    stores.connect.cache_clear()
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match="^Expected az://b to be reached"):
        Bucket("az://b").exists("1")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *((f"{scheme}://b/k", True) for scheme in ("s3", "gs", "az", "abfs", "abfss", "S3")),
        *((other, False) for other in ("s3:/b", "https://b/k", "/s3://b", "ss3://b", "b")),
    ],
)
def test_what_is_a_bucket(address, expected):
    assert is_bucket(address) == expected


@pytest.mark.parametrize("address", ["https://example.com/out", "ftp://example.com", ""])
def test_results_go_to_folders_and_buckets_only(address):
    with pytest.raises(StoreError, match=f"Received: {address or 'an empty name'}"):
        open_store(address)


def test_a_bucket_has_a_name():
    with pytest.raises(StoreError, match=r"Received: s3:///key\. Write the bucket's name"):
        open_store("s3:///key")


def test_obstore_is_imported_for_buckets_only(tmp_path):
    program = (
        "import sys; from serving.stores import find_image, open_store\n"
        f"open_store({str(tmp_path)!r}).create('results/1', b'')\n"
        "assert 'obstore' not in sys.modules\n"
        "sys.modules['obstore.exceptions'] = None\n"
        "try: open_store('s3://b').exists('x')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("StoreError Expected the package obstore")
