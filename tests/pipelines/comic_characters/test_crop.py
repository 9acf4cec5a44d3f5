"""Crops of a comic that draws itself: all that can be cut is, the rest says why not, and a kill loses nothing."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from actors.comic_characters.crops import BODIES, BOX, CROPS, FACES, NAME, CropConfig, cut_pictures
from actors.comic_characters.pages import read_pages
from actors.core import storage
from actors.core.store import Store
from pipelines.comic_characters.crop import REJECTED, blocks, checked, collect, plan_crops, read_boxes
from pipelines.comic_characters.detect import find_pages
from pipelines.comic_characters.settings import ComicsConfig
from tests.support import bombs, tars
from tests.support.comics import COLUMNS, write_comic

BAD = {
    "bad_name": ["../s0", "0_0", "face", 9, 0, 1, 1, 9, 9],
    "bad_type": ["s0", "0_0", "hand", 9, 0, 1, 1, 9, 9],
    "bad_box": ["s0", "0_0", "face", 90, 0, "", 1, 9, 9],
    "empty_box": ["s0", "0_0", "face", 91, 0, 9, 1, 9, 9],
    "duplicate": ["s0", "0_0", "body", 0, 0, 1, 1, 9, 9],
    "missing_page": ["s0", "77_0", "face", 0, "", 1, 1, 9, 9],
    "outside": ["s0", "0_0", "face", 92, -1, 200, 1, 220, 9],
    "broken_page": ["s0", "8_0", "body", 0, -1, 1, 1, 9, 9],
    "too_large": ["s0", "9_0", "body", 0, -1, 1, 1, 9, 9],
}
"""Boxes that cannot be cut, by their error."""


@pytest.fixture(scope="module")
def comic(tmp_path_factory: pytest.TempPathFactory) -> ComicsConfig:
    """A comic with some boxes that cannot be cut."""
    folder = tmp_path_factory.mktemp("comic")
    rows = write_comic(folder)
    assert [rows[0][name] for name in NAME[:3]] == ["s0", "0_0", "face"]
    with (folder / "merged_face_body.csv").open("a") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in BAD.values())
    (folder / "panels/s0/8_0.jpg").write_bytes(b"no picture")
    (folder / "panels/s0/9_0.jpg").write_bytes(bombs.jpeg())
    return ComicsConfig(
        output=str(folder / "out"),
        input=str(folder / "panels"),
        boxes=str(folder / "merged_face_body.csv"),
        crop=CropConfig(batch_size=5),
    )


def cut(config: ComicsConfig) -> dict[str, Any]:
    """What `crop` does, without Ray; returns the counts."""
    plan = plan_crops(config)
    for table in blocks(plan, config.crop.batch_size):
        cut_pictures(table, Store(config.output), config.crop)
    return collect(config, plan)


Made = tuple[ComicsConfig, dict[str, Any]]


@pytest.fixture(scope="module")
def made(comic: ComicsConfig) -> Made:
    return comic, cut(comic)


def tables(config: ComicsConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    store = Store(config.output)
    return store.read_table("crops", CROPS).to_pandas(), store.read_table("rejected/crop", REJECTED).to_pandas()


def files(config: ComicsConfig) -> dict[str, bytes]:
    found = [entry for folder in (BODIES, FACES) for entry in storage.listing(storage.join(config.output, folder))]
    return {entry.uri: storage.read_bytes(entry.uri) for entry in found}


def test_every_box_is_a_file_or_says_why_not(made: Made) -> None:
    config, counts = made
    rows, rejected = tables(config)
    given = pd.read_csv(config.boxes)
    assert counts == {"in": len(given), "out": len(given) - len(BAD), "rejected": dict.fromkeys(BAD, 1)}
    assert rejected.error.tolist() == list(BAD)
    assert (rejected.line == np.arange(len(given) - len(BAD), len(given)) + 2).all()
    assert rejected[["series_id", "page_id", "x_0"]].to_numpy().tolist()[2] == ["s0", "0_0", ""]
    assert (rejected.message.iloc[-3:] != "").all()
    sound = rows[rows.error == ""]
    assert sound.page_id.tolist() == given.page_id.iloc[: -len(BAD)].tolist()
    assert len(files(config)) == len(sound) == sound.img_path.nunique()
    for kind, name in (("face", "filtered_all_face.csv"), ("body", "filtered_all_body.csv")):
        listed = pd.read_csv(storage.join(config.output, name))
        assert list(listed) == ["img_path"]
        assert listed.img_path.tolist() == sound.img_path[sound.type == kind].tolist()


def test_a_crop_shows_what_the_box_holds(made: Made) -> None:
    config, _ = made
    rows, _ = tables(config)
    for row in rows[rows.error == ""].to_dict("records")[:6]:
        cut = np.asarray(Image.open(storage.join(config.output, row["img_path"])), float)
        page = np.asarray(Image.open(row["picture"]).convert("RGB"), float)
        left, top, right, bottom = (int(row[name]) for name in ("left", "top", "right", "bottom"))
        assert cut.shape == (bottom - top, right - left, 3)
        assert np.abs(cut - page[top:bottom, left:right]).mean() < 12
        assert left <= max(row["x_0"], 0) and right >= min(row["x_1"], page.shape[1])


def test_the_same_command_does_only_what_is_missing(made: Made, tmp_path: Path) -> None:
    """A kill leaves parts that are there and parts that are not, one of them torn."""
    config, counts = made
    again = replace(config, output=str(tmp_path / "out"), crop=replace(config.crop, batch_size=2))
    assert not plan_crops(config).todo[: -len(BAD)].any()
    cut(again)
    rows, expected = tables(again)[0], tables(config)[0]
    pd.testing.assert_frame_equal(rows, expected)
    store = Store(again.output)
    store.write_table(store.read_table("crops", CROPS).slice(0, 20), "crops", store.numbered(0))
    storage.write_bytes(store.uri("crops", "part-torn.parquet"), b"PAR1 torn")
    kept = files(again)
    storage.delete(store.uri(rows.img_path[25]))
    plan = plan_crops(again)
    assert not plan.todo[:20].any() and plan.todo[20 : -len(BAD)].all()
    finished = cut(again)
    pd.testing.assert_frame_equal(tables(again)[0], expected)
    assert finished == counts and files(again) == kept


def test_a_picture_that_comes_later_is_cut_then(made: Made, tmp_path: Path) -> None:
    config, counts = made
    shutil.copytree(config.output, tmp_path / "out")
    shutil.copytree(config.input, tmp_path / "panels")
    (tmp_path / "panels/s0/8_0.jpg").unlink()
    Image.new("RGB", (20, 20)).save(tmp_path / "panels/s0/8_0.jpg")
    # All panels of a page may lie on one picture.
    Image.new("RGB", (20, 20)).save(tmp_path / "panels/s0/77.png")
    moved = replace(config, output=str(tmp_path / "out"), input=str(tmp_path / "panels"))
    found = cut(moved)
    assert found["out"] == counts["out"] + 2
    assert set(counts["rejected"]) - set(found["rejected"]) == {"missing_page", "broken_page"}


def test_a_store_is_as_good_as_a_folder(comic: ComicsConfig, s3: str) -> None:
    for entry in storage.listing(comic.input):
        storage.upload(entry.uri, f"{s3}/panels/{entry.name}")
    storage.upload(comic.boxes, f"{s3}/boxes.csv")
    there = replace(comic, input=f"{s3}/panels", boxes=f"{s3}/boxes.csv", output=f"{s3}/out")
    counts = cut(there)
    assert counts["rejected"] == dict.fromkeys(BAD, 1)
    assert len(files(there)) == counts["out"]


def test_numbers_may_be_written_as_floats_and_be_unknown(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(f"{','.join(COLUMNS)}\n0012,1_2,face,3.0,,1,2,3,4\n0012,1_2,face,-1,4,1,2,3,4\n0012\n")
    boxes = checked(read_boxes(str(path)))
    assert (
        boxes.error.tolist() == ["", "bad_name", "bad_name"] and boxes.series_id[0] == "0012" and boxes["index"][0] == 3
    )
    assert boxes.char_index.isna().tolist() == [True, False, True]
    assert boxes[BOX].to_numpy()[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("data", [b"", b"series_id,page_id\n1,2\n", b"\xff\xfe\xff"])
def test_a_file_that_is_no_list_of_boxes_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "boxes.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"boxes\.csv"):
        read_boxes(str(path))


@pytest.mark.parametrize("where", ["here", "s3"])
def test_pages_in_tars_give_the_same_crops_and_can_be_looked_at(
    made: Made, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    config, counts = made
    root = str(tmp_path) if where == "here" else request.getfixturevalue("s3")
    for series in Path(config.input).iterdir():
        path = tars.pack(series, tmp_path / "packed" / f"{series.name}.tar")
        storage.upload(path, storage.join(root, "tars", path.name))
    packed = replace(config, input=storage.join(root, "tars"), output=str(tmp_path / "out"))
    assert cut(packed) == counts
    assert [data for _, data in sorted(files(packed).items())] == [data for _, data in sorted(files(config).items())]
    plain, found = find_pages(config.input), find_pages(packed.input)
    names = ("series_id", "page", "panel")
    assert [[row[name] for name in names] for row in found] == [[row[name] for name in names] for row in plain]
    batches = [{"uri": np.array([row["uri"] for row in rows])} for rows in (plain, found)]
    before, after = (read_pages(batch, None, None) for batch in batches)
    assert after["error"].tolist() == before["error"].tolist() and "" in after["error"]
    assert after["height"].tolist() == before["height"].tolist()
