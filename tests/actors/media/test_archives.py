"""Files in tars are listed, streamed and read in place, here and in S3."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from actors.core import storage
from actors.core.errors import UserError
from actors.media import archives
from actors.media.archives import ArchiveError
from actors.media.images import images_below
from tests.support import pictures, tars
from tests.support.colours import BLUE, RED


@pytest.fixture
def film(tmp_path: Path) -> Path:
    pictures.write(tmp_path / "tt1", {"shot_0000_img_0": RED, "shot_0001_img_0": BLUE})
    (tmp_path / "tt1" / "empty.jpg").touch()
    (tmp_path / "tt1" / "extras").mkdir()
    (tmp_path / "tt1" / "extras" / "notes.txt").write_text("notes")
    return tars.pack(tmp_path / "tt1", tmp_path / "tars" / "tt1.tar")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_files_in_a_tar_are_those_that_were_packed(film: Path, place: str, request: pytest.FixtureRequest) -> None:
    uri = str(film)
    if place == "s3":
        root = request.getfixturevalue("s3")
        uri = f"{root}/archives/tt1.tar"
        storage.upload(film, uri)
    packed = {file.relative_to(film.parents[1] / "tt1").as_posix(): file.read_bytes() for file in _files(film)}
    found = list(archives.members(uri))
    assert {one.name: archives.read_bytes(one.uri) for one in found} == packed
    assert all(archives.in_tar(one.uri) and one.size == len(packed[one.name]) for one in found)
    assert dict(archives.contents(uri)) == packed and not archives.in_tar(uri)


def test_a_tar_in_s3_is_streamed_once_for_as_long_as_it_is_the_same(
    film: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri, streamed, stream = f"{s3}/archives/tt1.tar", [], storage.stream

    def counting(uri: str) -> Any:
        streamed.append(uri)
        return stream(uri)

    monkeypatch.setattr(storage, "stream", counting)
    storage.upload(film, uri)
    first = list(archives.members(uri))
    assert list(archives.members(uri)) == first and streamed == [uri]
    # One that was written anew, or whose list was damaged, is read again.
    (film.parents[1] / "tt1" / "more.jpg").write_bytes(b"more")
    storage.upload(tars.pack(film.parents[1] / "tt1", film), uri)
    assert len(list(archives.members(uri))) == len(first) + 1 and len(streamed) == 2
    for index in tmp_path.rglob("*.json.z"):
        index.write_bytes(index.read_bytes()[:-3])
    assert len(list(archives.members(uri))) == len(first) + 1 and len(streamed) == 3


def _files(film: Path) -> list[Path]:
    return [file for file in (film.parents[1] / "tt1").rglob("*") if file.is_file()]


def test_the_images_of_a_tar_lie_as_in_a_folder_of_its_name(film: Path) -> None:
    found = images_below(str(film.parent))
    assert [one.name for one in found] == ["tt1/empty.jpg", "tt1/shot_0000_img_0.png", "tt1/shot_0001_img_0.png"]


def test_what_is_no_whole_tar_is_refused(film: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(film.read_bytes()[:1700])
    with pytest.raises(ArchiveError, match="cut off"):
        list(archives.contents(str(cut)))
    (tmp_path / "text.tar").write_text("text")
    with pytest.raises(ArchiveError, match="no plain tar"):
        list(archives.members(str(tmp_path / "text.tar")))
    zipped = tmp_path / "some" / "zipped.tar"
    zipped.parent.mkdir()
    with tarfile.open(zipped, "w:gz") as tar:
        tar.add(film, "film")
    with pytest.raises(UserError, match=r"zipped\.tar: no plain tar"):
        images_below(str(zipped.parent))
