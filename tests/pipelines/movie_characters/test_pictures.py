"""Images by name: of folders, lists and single files, and what is refused."""

from pathlib import Path

import pytest

from pipelines.movie_characters.pictures import find_pictures
from tests.support import pictures
from tests.support.colours import RED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures.write(tmp_path / "a", {"Ann_10": RED, "Ann_9": RED})
    pictures.write(tmp_path / "b", {"Anna_1": RED})
    return tmp_path


def test_folders_lists_and_single_images_are_one_list_in_the_order_of_people(folder: Path) -> None:
    (folder / "list.txt").write_text(f"{folder}/b\n\n {folder}/a/Ann_9.png \n{folder}/a/Eve_1.jpg\n")
    found = find_pictures([str(folder / "a"), str(folder / "list.txt")], "image_list")
    assert [one.name for one in found] == ["Ann_9.png", "Ann_10.png", "Anna_1.png", "Eve_1.jpg"]
    assert found[0].uri == str(folder / "a" / "Ann_9.png") and found[0].size > 0
    # What a list names and is not there is a row of its own, which says so later.
    assert found[-1].size == -1


def test_what_cannot_be_told_apart_or_found_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"image_list: there is no list .*none\.txt"):
        find_pictures(str(folder / "none.txt"), "image_list")
    with pytest.raises(ValueError, match="holds no images"):
        find_pictures(str(folder / "none"), "image_list")
    pictures.write(folder / "b", {"Ann_9": RED})
    with pytest.raises(ValueError, match=r"two images are named Ann_9\.png"):
        find_pictures([str(folder / "a"), str(folder / "b")], "image_list")
