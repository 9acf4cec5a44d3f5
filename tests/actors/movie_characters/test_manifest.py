"""The manifest beside images: what it says, and what is refused in it."""

from pathlib import Path

import pytest

from actors.core.errors import UserError
from actors.movie_characters.manifest import CLASS, MANIFEST, check_complete, read_manifest, write_manifest


def read(folder: Path, text: str | bytes) -> dict[str, str]:
    (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    return {name: row[CLASS] for name, row in read_manifest(str(folder)).items()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [{"file": "b.png", "class": "Mary, Ann", "seed": 3}, {"file": "a.png", "class": "Zoë", "alpha": "0.5"}]
    write_manifest(str(tmp_path), rows)
    assert read_manifest(str(tmp_path)) == {
        "a.png": {"file": "a.png", "class": "Zoë", "seed": "", "alpha": "0.5"},
        "b.png": {"file": "b.png", "class": "Mary, Ann", "seed": "3", "alpha": ""},
    }
    assert read_manifest(str(tmp_path / "none")) == {}


def test_spreadsheets_may_write_it(tmp_path: Path) -> None:
    text = "\ufeffclass , file,notes\r\nAnn, a.png ,x\r\n\r\nBob,b.png,\r\n"
    assert read(tmp_path, text) == {"a.png": "Ann", "b.png": "Bob"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column file, class; it has none"),
        ("file,name\na.png,Ann\n", "no column class; it has file, name"),
        (b"file,class\n\xff\xfe,x\n", "line 2: not UTF-8"),
        ('file,class\n"a.png,Ann\n', "is not a CSV table"),
        ("file,class\na.png\n", "line 2: class is empty"),
        ("file,class\na.png,Ann,x\n", "line 2: it has 3 values for 2 columns"),
        ("file,class\na.png,\n", "line 2: class is empty"),
        ("file,class\n ,Ann\n", "line 2: file is empty"),
        ("file,class\na.png,Ann\na.png,Bob\n", "line 3: a.png is of Bob here, and of Ann further up"),
        ("file,class\na.png,Ann/Bob\n", "cannot be part of a file name"),
        ("file,class\na.png,Ann_frame\n", "cannot be part of a file name"),
        ("file,class\na.png,Unlabelled\n", "stands for images without a class"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path, text)


def test_rows_without_an_image_are_refused_and_images_without_a_row_are_named() -> None:
    rows = {"a.png": {}, "b.png": {}}
    assert check_complete(rows, ["a.png", "b.png", "c.png"], "f") == ["c.png"]
    assert check_complete({}, ["a.png"], "f") == []
    with pytest.raises(UserError, match=r"f/pictures\.csv has rows of 1 images that are not there, such as b\.png"):
        check_complete(rows, ["a.png"], "f")
