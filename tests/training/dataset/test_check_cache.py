"""training.dataset.check_cache: a second check finds what a first one does, at a fraction of it."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from serving.image import open_image
from training import prefetch
from training.dataset import check_cache
from training.dataset import scan as scanning
from training.dataset.scan import scan
from training.errors import DataError

DAY = 86_400


@pytest.fixture
def folder(tmp_path):
    """Two classes of drawn lines, eight each, and two files that are no images."""
    rng = np.random.default_rng(0)
    for name in ("aster", "rose"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8)).resize((24, 32))
            image.save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "data" / "rose" / "notes.txt").write_text("hello")
    whole = (tmp_path / "data" / "rose" / "0.png").read_bytes()
    (tmp_path / "data" / "rose" / "half.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "data"


@pytest.fixture
def settled(monkeypatch):
    """Trusts files that were written a moment ago."""
    monkeypatch.setattr(check_cache, "SETTLED_NS", -(10**12))


@pytest.fixture
def work(monkeypatch):
    """Counts the files that are read, and the images that are decoded."""
    counts = {"read": 0, "decoded": 0}

    def count(name, function):
        def counted(*arguments):
            counts[name] += 1
            return function(*arguments)

        return counted

    monkeypatch.setattr(scanning, "read_image_file", count("read", scanning.read_image_file))
    monkeypatch.setattr(scanning, "open_image", count("decoded", scanning.open_image))

    def take():
        taken = tuple(counts.values())
        counts.update(read=0, decoded=0)
        return taken

    return take


UNUSABLE = 2  # files, which are read and decoded each time


def rows(path=None):
    with closing(sqlite3.connect(path or check_cache.CHECKS)) as database:
        return database.execute("SELECT path, seen FROM files ORDER BY path").fetchall()


def test_a_second_check_reads_and_decodes_only_what_is_unusable(folder, settled, work):
    first = scan(folder)
    assert work() == (16 + UNUSABLE, 16 + UNUSABLE)
    assert len(first.images) == 16
    assert len(first.skipped) == UNUSABLE
    assert scan(folder) == first
    assert work() == (UNUSABLE, UNUSABLE)


def test_a_file_that_has_just_changed_is_read_again_but_not_decoded(folder, work, monkeypatch):
    monkeypatch.setattr(check_cache, "SETTLED_NS", 10**12)  # however long this takes
    first = scan(folder)
    work()
    assert scan(folder) == first
    assert work() == (16 + UNUSABLE, UNUSABLE)


@pytest.mark.parametrize(
    ("age", "same", "trusted"), [(3, True, True), (3, False, False), (1, True, False)]
)
def test_a_stamp_counts_if_the_file_is_older_and_was_the_same_after_reading(
    tmp_path, age, same, trusted
):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    before = path.stat()
    if not same:
        path.write_bytes(b"12")
    now = before.st_ctime_ns + age * 10**9
    stamp = check_cache.settled_stamp(before, path.stat(), now)
    assert stamp == (check_cache.stamp_of(before) if trusted else check_cache.UNSETTLED)
    assert check_cache.stamp_of(before) == (1, before.st_mtime_ns, before.st_ctime_ns)


def test_other_content_of_the_same_size_and_time_is_noticed(folder, settled):
    scan(folder)
    one, other = folder / "rose" / "1.png", folder / "rose" / "2.png"
    for path in (one, other):
        path.write_bytes(path.read_bytes().ljust(3000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    first = scan(folder)
    shutil.copyfile(other, one)
    os.utime(one, ns=(10**18, 10**18))
    second = scan(folder)
    assert first.digests["rose/1.png"] != second.digests["rose/1.png"]
    assert second.digests["rose/1.png"] == second.digests["rose/2.png"]
    one.write_bytes(bytes(3000))
    os.utime(one, ns=(10**18, 10**18))
    assert dict(scan(folder).skipped)["rose/1.png"].startswith("Expected an image")


def test_a_file_that_was_renamed_or_moved_is_not_decoded_again(folder, settled, work):
    first = scan(folder)
    work()
    (folder / "rose" / "1.png").rename(folder / "rose" / "one.png")
    (folder / "rose" / "2.png").rename(folder / "aster" / "two.png")
    second = scan(folder)
    assert work() == (2 + UNUSABLE, UNUSABLE)
    assert second.hashes["rose/one.png"] == first.hashes["rose/1.png"]
    assert second.digests["aster/two.png"] == first.digests["rose/2.png"]
    elsewhere = shutil.move(folder, folder.with_name("elsewhere"))
    assert scan(elsewhere).hashes == second.hashes
    assert work() == (16 + UNUSABLE, UNUSABLE)


def test_a_wrong_suffix_is_told_also_of_a_file_that_was_renamed(folder, settled):
    scan(folder)
    (folder / "rose" / "1.png").rename(folder / "rose" / "1.jpg")
    expected = (("rose/1.jpg", "named .jpg, is PNG"),)
    assert scan(folder).mismatched == scan(folder).mismatched == expected


def test_names_that_are_no_text_are_known(folder, settled, work):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "rose" / "1.png").rename(folder / "rose" / name)
    first = scan(folder)
    work()
    assert scan(folder) == first
    assert f"rose/{name}" in first.images
    assert work() == (UNUSABLE, UNUSABLE)


def test_a_file_that_may_not_be_read_is_no_longer_usable(folder, settled, monkeypatch):
    scan(folder)
    read, denied = Path.read_bytes, folder / "rose" / "1.png"
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(denied))

    def refuse(path):
        if path == denied:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert dict(scan(folder).skipped)["rose/1.png"] == "cannot be read (Permission denied)"


def test_what_became_a_folder_or_a_link_to_nothing_is_not_known(folder, settled):
    scan(folder)
    for number in (1, 2, 3):
        (folder / "rose" / f"{number}.png").unlink()
    (folder / "rose" / "1.png").mkdir()
    (folder / "rose" / "2.png").symlink_to("nowhere")
    dataset = scan(folder)
    assert {"rose/1.png": "not a file", "rose/2.png": "a link to nothing"}.items() <= dict(
        dataset.skipped
    ).items()
    assert len(dataset.images) == 13


# Hostile images


def large_jpeg(seed, **options):
    """A JPEG that is reduced while it is checked."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((1040, 530))
    noise = rng.normal(0, 6, (530, 1040, 1))
    pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_rows": 1},
}


def broken(data, rng):
    """Yield `data` cut off, or with other bytes in it."""
    end = len(data)
    for cut in (end - 1, end - 2, end - 3, end - 9, rng.integers(700, end), rng.integers(end)):
        yield data[:cut]
        yield data[:cut] + b"\xff\xd9"
        yield data[:cut] + bytes(40)
    for _ in range(6):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            changed[rng.integers(2, rng.choice((700, end)))] = rng.integers(256)
        yield bytes(changed)


def refusal(decode):
    """Return what `decode` raises, as text, or None."""
    try:
        decode()
    except Exception as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", JPEGS)
def test_what_is_reduced_while_it_is_checked_is_refused_as_in_full(kind, tmp_path):
    rng = np.random.default_rng(list(JPEGS).index(kind))
    whole = large_jpeg(1, **JPEGS[kind])
    refused = 0
    cache = check_cache.CheckCache(tmp_path)
    for data in (whole, *broken(whole, rng)):
        in_full = refusal(lambda data=data: open_image(data))
        assert refusal(lambda data=data: scanning._check_content(data, cache)) == in_full
        if in_full is None:  # as training reads it
            assert refusal(lambda data=data: open_image(data, (299, 299))) is None
        refused += in_full is not None
    assert refused > 5


def test_reducing_hardly_changes_a_hash(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.jpg").write_bytes(large_jpeg(number + 5 * (name == "b")))
    reduced = scan(tmp_path)
    monkeypatch.setattr(scanning, "CHECKED_SIZE", None)
    monkeypatch.setattr(check_cache, "CHECKS", tmp_path / "other.sqlite3")
    in_full = scan(tmp_path)
    assert reduced.digests == in_full.digests
    for name, value in in_full.hashes.items():
        assert (value ^ reduced.hashes[name]).bit_count() <= 3


def test_the_first_and_the_second_check_find_the_same_in_hostile_files(tmp_path, settled, work):
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    shutil.copytree(ROOT / "tests" / "fuzz" / "corpus", folder / "whole")
    shutil.move(folder / "whole" / "refused", folder / "refused")
    for number, content in enumerate(broken(large_jpeg(1), rng)):
        (folder / "whole" / f"broken_{number}.jpg").write_bytes(content)
    for path in sorted((folder / "whole").glob("*.*"))[::3]:
        content = path.read_bytes()
        (folder / "refused" / f"cut_{path.name}").write_bytes(content[: len(content) * 2 // 3])
    for number in range(5):  # of which a class needs some
        (folder / "refused" / f"{number}.jpg").write_bytes(large_jpeg(number))
    first = scan(folder)
    assert len(first.skipped) > 30
    assert len(first.images) > 90
    _, decoded = work()
    assert scan(folder) == first
    _, decoded_again = work()
    assert decoded_again <= decoded - len(first.images)
    check_cache.CHECKS.unlink()
    assert scan(folder) == first


# The file


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_changes_no_result(folder, settled, seed, capsys):
    first = scan(folder)
    content = bytearray(check_cache.CHECKS.read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        content = content[: rng.integers(len(content))]
    else:
        for _ in range(rng.choice((1, 3, 3000))):
            content[rng.integers(len(content))] = rng.integers(256)
    check_cache.CHECKS.write_bytes(content)
    assert scan(folder) == first
    assert scan(folder) == first
    assert scan(folder) == first
    assert "\n" not in capsys.readouterr().err.strip()  # at most one note


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"something else\n" * 500])
def test_a_file_of_another_kind_is_replaced(folder, settled, work, content):
    check_cache.CHECKS.write_bytes(content)
    first = scan(folder)
    work()
    assert scan(folder) == first
    assert work() == (UNUSABLE, UNUSABLE)


def test_a_table_of_another_version_is_replaced(folder, settled, work):
    with closing(sqlite3.connect(check_cache.CHECKS)) as database:
        database.execute("CREATE TABLE files (name TEXT, valid INTEGER)")
    first = scan(folder)
    work()
    assert scan(folder) == first
    assert work() == (UNUSABLE, UNUSABLE)


def test_a_changed_value_does_not_count(folder, settled):
    first = scan(folder)
    for column in ("hash", "digest", "format", "size", "modified", "changed"):
        with closing(sqlite3.connect(check_cache.CHECKS)) as database, database:
            [value] = database.execute(f"SELECT {column} FROM files").fetchone()  # noqa: S608
            other = value + 1 if isinstance(value, int) else value[1:] + value[:1]
            database.execute(f"UPDATE files SET {column} = ?", (other,))  # noqa: S608
        assert scan(folder) == first


@pytest.mark.parametrize("changes", ["code", "package"])
def test_what_other_code_found_does_not_count(
    folder, settled, work, monkeypatch, changes, tmp_path
):
    scan(folder)
    work()
    if changes == "code":
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "check.py").write_text("LIMIT = 1\n")
        monkeypatch.setattr(check_cache, "SOURCES", (tmp_path / "code",))
    else:
        monkeypatch.setattr(check_cache, "version", lambda package: f"1.0 of {package}")
    check_cache._version.cache_clear()
    scan(folder)
    assert work() == (16 + UNUSABLE, 16 + UNUSABLE)
    scan(folder)
    assert work() == (UNUSABLE, UNUSABLE)
    monkeypatch.undo()
    check_cache._version.cache_clear()


def test_the_code_that_decides_is_part_of_the_version():
    decisive = {"image.py", "jpeg.py", "limits.py", "pillow_limits.py", "metadata.py", "scan.py"}
    names = {path.name for folder in check_cache.SOURCES for path in folder.glob("*.py")}
    assert decisive | {"perceptual_hash.py"} <= names


def test_where_nothing_can_be_kept_a_note_says_so(folder, monkeypatch, capsys):
    (folder.parent / "file").write_text("no folder")
    monkeypatch.setattr(check_cache, "CHECKS", folder.parent / "file" / "checks.sqlite3")
    first = scan(folder)
    assert scan(folder) == first
    assert capsys.readouterr().err.splitlines() == 2 * [
        f"Note: the results for 16 images cannot be kept in {check_cache.CHECKS} (unable to open "
        "database file). The next start checks these images again."
    ]


def test_what_can_only_be_read_is_used(folder, settled, work, monkeypatch, capsys):
    scan(folder)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options),
    )
    work()
    scan(folder)
    assert work() == (UNUSABLE, UNUSABLE)
    assert capsys.readouterr().err == ""
    shutil.copy(folder / "rose" / "1.png", folder / "rose" / "copy.png")
    assert len(scan(folder).images) == 17
    assert "for 1 image cannot be kept" in capsys.readouterr().err


def test_files_that_no_check_met_for_a_month_are_forgotten(folder, settled, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # also if a day ends meanwhile
    scan(folder)
    elsewhere = shutil.copytree(folder, folder.with_name("elsewhere"))
    scan(elsewhere)
    assert len(rows()) == 32
    today = int(now // DAY)
    assert {seen for _, seen in rows()} == {today}
    shutil.rmtree(elsewhere)
    for days, left in ((29, 32), (30, 32), (31, 16)):
        monkeypatch.setattr(time, "time", lambda days=days: now + days * DAY)
        scan(folder)
        assert len(rows()) == left
    assert {seen for _, seen in rows()} == {today + 31}


def test_what_was_found_before_ctrl_c_is_kept(folder, settled, work, monkeypatch):
    decode, decoded = scanning.open_image, []

    def stop(*arguments):
        decoded.append(arguments)
        if len(decoded) == 12:
            raise KeyboardInterrupt
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "AT_ONCE", 1)
        # One thread: of several, another may come between a file and its count.
        patch.setattr(scanning, "prefetch", partial(prefetch.prefetch, workers=1))
        patch.setattr(scanning, "open_image", stop)
        with pytest.raises(KeyboardInterrupt):
            scan(folder)
    kept = len(rows())
    assert kept > 3
    work()
    scan(folder)
    assert work() == (16 - kept + UNUSABLE, 16 - kept + UNUSABLE)


def test_what_is_found_is_written_in_between(folder, settled, monkeypatch):
    monkeypatch.setattr(check_cache, "WRITE_SECONDS", 0)
    seen = []
    with check_cache.CheckCache(folder) as cache:
        for number in range(3):
            usable = check_cache.Usable(f"{number:064x}", "PNG", None)
            cache.keep(f"rose/{number}.png", (number, 0, 0), usable)
            seen.append(len(rows()))
    assert seen == [1, 2, 3]


SCANNER = """
import sys
from pathlib import Path
from training.dataset import check_cache
from training.dataset.scan import scan
check_cache.SETTLED_NS, check_cache.WRITE_SECONDS = -10**12, 0
check_cache.CHECKS = Path(sys.argv[1])
for _ in range(3):
    dataset = scan(sys.argv[2])
    print(len(dataset.images), len(dataset.skipped), sum(dataset.hashes.values()))
"""


def test_several_processes_share_it(folder, tmp_path):
    elsewhere = shutil.copytree(folder, folder.with_name("elsewhere"))
    path = tmp_path / "shared" / "checks.sqlite3"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCANNER, path, data],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for data in (folder, elsewhere, folder)
    ]
    printed = [process.communicate() for process in processes]
    assert [err for _, err in printed] == ["", "", ""]
    lines = {line for out, _ in printed for line in out.splitlines()}
    expected = scan(folder)
    assert lines == {f"16 2 {sum(expected.hashes.values())}"}
    assert len(rows(path)) == 32


# Cost


def test_a_second_check_takes_a_fraction_of_the_time(tmp_path, settled):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(200):
            image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((300, 220))
            image.save(tmp_path / "data" / name / f"{number}.jpg")
    seconds = []
    for _ in range(2):
        started = time.process_time()
        scan(tmp_path / "data")
        seconds.append(time.process_time() - started)
    assert seconds[1] < seconds[0] / 4


PEAK = """
import re, sys
from pathlib import Path
from training.dataset import check_cache
from training.dataset.scan import scan
check_cache.CHECKS = Path(sys.argv[1])
def peak():  # of this program, not of the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
scan(sys.argv[2])
print(peak() - before)
"""


def test_large_photographs_take_little_memory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels).resize((4000, 3000))
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            image.save(tmp_path / "data" / name / f"{number}.jpg", quality=80 + number)
    command = [sys.executable, "-c", PEAK, tmp_path / "checks.sqlite3", tmp_path / "data"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 50e6 + 8e6 * prefetch.WORKERS  # in full, each has 36 MB of pixels


def test_a_long_check_shows_how_far_it_is(folder, monkeypatch, capsys):
    scan(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(scanning, "QUIET_SECONDS", 0)
    shutil.rmtree(folder / "aster")
    with pytest.raises(DataError):
        scan(folder)
    shutil.copytree(folder / "rose", folder / "aster")
    scan(folder)
    bar = capsys.readouterr().err
    assert "checked: 100%" in bar
    assert "20/20" in bar
