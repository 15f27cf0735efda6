"""Names that cannot be written, and names that only look alike."""

import pytest
from PIL import Image

from training.dataset.names import FileIndex, check_class_names, look, read_lines
from training.dataset.scan import require, scan
from training.dataset.split import Split
from training.errors import DataError
from training.streams import printable

CAFE = "caf\u00e9"  # composed, as Linux and Windows write it
CAFE_OF_MAC = "cafe\u0301"  # decomposed


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tulip\udce1n", r"'tulip\\udce1n'"),
        ("a\nb", r"'a\\nb'"),
        ("a\x00b", r"'a\\x00b'"),
        ("a\u2028b", r"'a\\u2028b'"),
        ("\u00a0", r"'\\xa0'"),
    ],
)
def test_a_class_name_that_no_model_can_carry_is_refused(tmp_path, name, shown):
    with pytest.raises(DataError, match=f"one line of text .* Received: {shown} in .* Rename it"):
        check_class_names(tmp_path, ["rose", name])


@pytest.mark.parametrize("name", ["rose ", " rose", "rose\u3000"])
def test_spaces_at_the_ends_of_a_class_name_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="without spaces at their ends"):
        check_class_names(tmp_path, ["aster", name])


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Rose", "rose"), "'Rose' and 'rose'"),
        ((CAFE, CAFE_OF_MAC), r"'caf\xe9' and 'cafe\u0301'"),
        (("rose", "ro\u200bse"), "'rose' and 'ro\\u200bse'"),
        (("a b", "a  b"), "'a b' and 'a  b'"),
    ],
)
def test_classes_that_look_the_same_are_refused(tmp_path, names, shown):
    with pytest.raises(DataError) as caught:
        check_class_names(tmp_path, ["aster", *names])
    assert f"differ visibly. Received: {shown} in" in str(caught.value)


def test_other_scripts_and_odd_names_are_names(tmp_path):
    names = ["$5", "-x", "a.b", "a_b", "Löwenzahn", "бархатцы", "玫瑰", "🌻", "rose's", "a  b"]
    check_class_names(tmp_path, names)
    assert len({look(name) for name in names}) == len(names)


def test_what_is_no_text_can_be_printed():
    assert printable("caf\udce9") == r"caf\udce9"
    assert printable(f"{CAFE} 🌻") == f"{CAFE} 🌻"


@pytest.mark.parametrize(
    "text",
    [
        f"rose/{CAFE}.jpg",
        f"rose/{CAFE_OF_MAC}.jpg",
        f"./rose/{CAFE}.jpg",
        f"mine/rose/{CAFE}.jpg",
        f"rose\\{CAFE}.jpg",
        f"\ufeffrose/{CAFE}.jpg",
        f"rose/{CAFE}.jpg\u200b",
    ],
)
@pytest.mark.parametrize("on_disk", [CAFE, CAFE_OF_MAC])
def test_a_list_names_a_file_however_it_is_spelled(tmp_path, text, on_disk):
    index = FileIndex(tmp_path.relative_to(tmp_path) / "mine", [f"rose/{on_disk}.jpg", "rose/a"])
    assert index.find(text) == {f"rose/{on_disk}.jpg"}


def test_the_file_of_just_that_name_goes_first_and_others_are_none(tmp_path):
    index = FileIndex(tmp_path, [f"rose/{CAFE}", f"rose/{CAFE_OF_MAC}", "rose/a ", "rose/B"])
    assert index.find(f"rose/{CAFE}") == {f"rose/{CAFE}"}
    assert index.find(f"./rose/{CAFE}") == {f"rose/{CAFE}", f"rose/{CAFE_OF_MAC}"}
    assert index.find("rose/a") == {"rose/a "}
    for text in ("rose/b", "B", "", "rose"):
        assert index.find(text) == set()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_every_system_are_read(tmp_path, encoding, end):
    (tmp_path / "list").write_bytes(f"rose/{CAFE}.jpg{end}# b{end}".encode(encoding))
    assert read_lines(tmp_path / "list") == [f"rose/{CAFE}.jpg", "# b", ""]


@pytest.fixture
def mac(tmp_path):
    """A folder as macOS writes it, with a name that breaks a line."""
    for name in (CAFE_OF_MAC, "rose"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.effect_noise((16, 16), 50 + i).save(tmp_path / name / f"{CAFE_OF_MAC}{i}.png")
    return tmp_path


def test_a_split_of_another_system_is_found_in_the_folder(mac):
    dataset = scan(mac)
    elsewhere = Split(
        1,
        tuple(f"{CAFE}/{CAFE}{i}.png" for i in range(4)),
        (f"{CAFE}/{CAFE}4.png", "rose/gone.png"),
    )
    split = elsewhere.spelled_as(dataset.images)
    assert set(split.train) < set(dataset.images)
    assert split.validation == (f"{CAFE_OF_MAC}/{CAFE_OF_MAC}4.png", "rose/gone.png")
    require(dataset, split.train)
    assert dataset.labels([f"{CAFE}/x", "rose/x"]).tolist() == [0, 1]
    assert dataset.counts == {CAFE_OF_MAC: 5, "rose": 5}


def test_a_file_whose_name_breaks_a_line_is_skipped(mac):
    (mac / "rose" / f"{CAFE_OF_MAC}0.png").rename(mac / "rose" / "a\nb.png")
    Image.effect_noise((16, 16), 9).save(mac / "rose" / "c.png")
    assert scan(mac).skipped == (
        ("rose/a\nb.png", "has a line break in its name, which lists cannot hold"),
    )
