"""Images by name: of folders, lists and single files, and what is refused."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.media.images import read_image
from actors.movie_characters.manifest import MANIFEST
from actors.movie_characters.names import UNLABELLED
from pipelines.movie_characters.pictures import find_pictures
from tests.support import pictures, tars
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
    for name in ("c/x", "d/x"):
        pictures.write(folder / name, {"Ann_9": RED})
    with pytest.raises(ValueError, match=r"two images are named x/Ann_9\.png"):
        find_pictures([str(folder / "c"), str(folder / "d")], "image_list")


def test_key_frames_of_several_films_are_named_by_their_film(folder: Path) -> None:
    films = folder / "films"
    for film in ("tt1", "tt2"):
        pictures.write(films / film, {"shot_0000_img_0": RED, "shot_0001_img_0": RED})
    found = find_pictures(str(films), "input", labelled=False)
    names = [f"{film}/shot_000{shot}_img_0.png" for film in ("tt1", "tt2") for shot in range(2)]
    assert [one.name for one in found] == names and {one.cls for one in found} == {UNLABELLED}
    assert [one.name for one in find_pictures([f"{films}/tt1", f"{films}/tt2"], "input", labelled=False)] == names
    assert [one.name for one in find_pictures(f"{films}/tt1", "input", labelled=False)] == [
        "shot_0000_img_0.png",
        "shot_0001_img_0.png",
    ]
    for film in ("tt1", "tt2"):
        tars.pack(films / film, folder / "tars" / f"{film}.tar")
    packed = find_pictures(str(folder / "tars"), "input", labelled=False)
    assert [(one.name, one.size) for one in packed] == [(one.name, one.size) for one in found]
    assert np.array_equal(np.asarray(read_image(packed[3].uri)), np.asarray(read_image(found[3].uri)))
    # Of one film, too, so that a second one renames nothing.
    one = find_pictures(f"{folder}/tars/tt1.tar", "input", labelled=False)
    assert [picture.name for picture in one] == names[:2]


def test_a_folder_says_the_class_of_images_whose_names_have_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, images in {"Ann": ["1", "Ann_2", "IMG_7"], "Bob": ["1", "IMG_8"], "season1": ["Cee_1"]}.items():
        pictures.write(folder / "gallery" / name, dict.fromkeys(images, RED))
    found = {one.name: one.cls for one in find_pictures(str(folder / "gallery"), "gallery")}
    # As ever, a name that says a class wins.
    assert found == {
        **{"Ann/1.png": "Ann", "Bob/1.png": "Bob", "Ann/Ann_2.png": "Ann", "season1/Cee_1.png": "Cee"},
        **{"Ann/IMG_7.png": "IMG", "Bob/IMG_8.png": "IMG"},
    }
    assert "gallery: images named IMG_NUMBER in 2 folders, such as Ann, are of the class IMG" in caplog.text
    assert "Cee_NUMBER" not in caplog.text
    # Films to identify have no classes by their folders.
    labels = {one.name: one.cls for one in find_pictures(str(folder / "gallery"), "input", labelled=False)}
    assert labels["Ann/1.png"] == UNLABELLED


def test_one_name_of_two_classes_is_refused_with_both(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a" / "Ann_9.jpg")
    found = find_pictures(str(folder / "a"), "gallery")
    assert [one.name for one in found] == ["Ann_9.jpg", "Ann_9.png", "Ann_10.png"]
    manifest = "file,class\nAnn_9.png,Bob\nAnn_9.jpg,Ann\nAnn_10.png,Ann\n"
    (folder / "a" / MANIFEST).write_text(manifest)
    with pytest.raises(ValueError, match=r"gallery: Ann_9\.\w+ is of \w+ and Ann_9\.\w+ of \w+, .* name both Ann_9\."):
        find_pictures(str(folder / "a"), "gallery")
    (folder / "a" / MANIFEST).write_text(manifest + "Ann_10.png,Bob\n")
    with pytest.raises(ValueError, match=r"line 5: Ann_10\.png is of Bob here, and of Ann further up"):
        find_pictures(str(folder / "a"), "gallery")


def test_a_manifest_wins_over_names_for_the_images_of_its_folder(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures.write(folder / "a" / "below", {"portrait": RED, "Ann_11": RED})
    (folder / "a" / MANIFEST).write_text("file,class\nAnn_9.png,Eve\n")
    (folder / "a" / "below" / MANIFEST).write_text("file,class\nportrait.png,Zoë\nAnn_11.png,Ann\n")
    with caplog.at_level(logging.WARNING):
        found = {one.name: one.cls for one in find_pictures(str(folder / "a"), "input")}
    assert found == {"Ann_9.png": "Eve", "Ann_10.png": "Ann", "Ann_11.png": "Ann", "portrait.png": "Zoë"}
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "1 images have no row in pictures.csv, and are of the class in their names: Ann_10.png"
    ]
    # One image of it is of the same class, and asks for no other.
    single = find_pictures([f"{folder}/a/Ann_9.png", f"{folder}/b"], "input")
    assert {one.name: one.cls for one in single} == {"Ann_9.png": "Eve", "Anna_1.png": "Anna"}
    (folder / "a" / MANIFEST).write_text("file,class\nAnn_09.png,Eve\n")
    with pytest.raises(ValueError, match=r"1 images that are not there, such as Ann_09\.png"):
        find_pictures(str(folder / "a"), "input")


def test_an_image_without_a_class_is_refused_where_it_needs_one(folder: Path) -> None:
    pictures.write(folder / "a", {"portrait": RED})
    assert [one.cls for one in find_pictures(str(folder / "a"), "input", labelled=False)][-1] == UNLABELLED
    with pytest.raises(ValueError, match=r"portrait\.png: the name has no class.* a row in pictures\.csv"):
        find_pictures(str(folder / "a"), "gallery")
    pictures.write(folder / "a", {"unlabelled_3": RED})
    with pytest.raises(ValueError, match="stands for images without a class"):
        find_pictures(str(folder / "a"), "input", labelled=False)


def test_a_list_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"list\.txt, line 1: not UTF-8"):
        find_pictures(str(folder / "list.txt"), "input")
