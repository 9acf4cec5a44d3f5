"""`timeline` by faces as its users run it: who is named, who is not, names given afterwards, and the page of people."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.films import film_faces
from tests.benchmarks.timeline import CLIP, SHOWN, gallery_of
from tests.support.films import bikes_mp4

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["timeline", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, list[str]]:
    """An output over a film of one man, whom the gallery does not know, and the settings that made it."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "gallery").mkdir()
    Image.fromarray(data.astronaut()).save(folder / "gallery" / "Eileen_1.png")
    settings = [
        f"input={bikes_mp4().with_name('carphone_pristine.mp4')}",
        f"output={folder / 'out'}",
        "model.by=faces",
        f"model.settings.gallery={folder / 'gallery'}",
        "model.settings.faces.detector=mtcnn",
        "shots.detector=none",
        "every_s=0.5",
    ]
    assert "1 people without a name" in run(*settings)
    return folder, settings


def contents(folder: Path) -> dict[str, int]:
    """Files of what is computed, and when they were written."""
    files = [file for name in ("frames", "faces") for file in folder.glob(f"{name}/**/*.*")]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_a_stranger_is_named_and_becomes_gallery_without_computing_anything_again(
    made: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, settings = made
    out = folder / "out"
    (row,) = pd.read_csv(out / "people.csv").itertuples()
    assert (row.cluster, row.films) == ("unknown_1", 1)
    tracks = pq.read_table(out / "tracks.parquet").to_pylist()
    assert {track["identity"] for track in tracks} == {"unknown_1"}
    # The man sits still in the middle of each frame.
    left, top, right, bottom = np.median([box for track in tracks for box in track["boxes"]], 0)
    assert left < 88 < right and top < 72 < bottom
    before = contents(out)
    # From here on nothing may be found or embedded in frames again.
    monkeypatch.setattr(film_faces, "FrameFaces", None)
    names = tmp_path / "names.csv"
    names.write_text("cluster,name\nunknown_1,Carl Phone\n")
    run(*settings, f"names={names}")
    assert set(pd.read_csv(out / "appearances.csv").character) == {"Carl Phone"}
    assert pd.read_csv(out / "people.csv").name.to_list() == ["Carl Phone"]
    assert "Carl Phone" in (out / "timelines" / "carphone_pristine.srt").read_text()
    assert contents(out) == before
    pictures = sorted((out / "people").glob("*.jpg"))
    assert pictures and all(picture.name.startswith("Carl_Phone_") for picture in pictures)
    # As docs/movie_characters.md says.
    for picture in pictures:
        shutil.copy(picture, folder / "gallery")
    assert "0 people without a name" in run(*settings)
    found = json.loads((out / "timelines" / "carphone_pristine.json").read_text())["tracks"]
    assert {(track["identity"], track["cluster"]) for track in found} == {("Carl_Phone", "")}
    assert all(track["probability"] > 0.5 and track["margin"] > 0 for track in found)
    assert contents(out) == before
    assert "there is no such cluster" in run(*settings, f"names={_table(tmp_path, 'unknown_9,Dan')}", code=2)


def _table(folder: Path, row: str) -> Path:
    path = folder / "others.csv"
    path.write_text(f"cluster,name\n{row}\n")
    return path


def test_pictures_of_a_track_are_played_when_they_are_clicked(made: tuple[Path, list[str]], browser: "Browser"):
    folder, _ = made
    with browser.new_page() as page:
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{folder / 'out' / 'people.html'}")
        tile = page.locator(".track").first
        page.wait_for_function("document.querySelector('.track img').naturalWidth > 0")
        # The mark lies over the face, in the middle of the picture.
        mark, image = tile.locator("i").bounding_box(), tile.locator("img").bounding_box()
        assert mark and image and mark["width"] > 10
        assert image["x"] < mark["x"] < image["x"] + image["width"] / 2 < mark["x"] + mark["width"]
        assert not page.locator("dialog").is_visible()
        tile.click()
        shown = page.locator("dialog img")
        first = shown.get_attribute("src")
        page.wait_for_function("first => document.querySelector('dialog img').getAttribute('src') !== first", arg=first)
        page.locator(".play").click()
        held = shown.get_attribute("src")
        page.wait_for_timeout(600)
        assert shown.get_attribute("src") == held, "paused"
        assert page.evaluate("document.querySelector('dialog img').naturalWidth") > 0
        assert (page.locator(".film").get_attribute("href") or "").startswith("file://")
        page.locator(".close").click()
        assert not page.locator("dialog").is_visible()
        assert errors == []


@pytest.mark.skipif(not CLIP.is_file(), reason=f"no {CLIP}: set FILMRAY_DATA to the folder that holds it")
def test_all_shots_of_a_real_clip_are_right_and_its_audience_is_unknown(tmp_path: Path, ray_cluster: None):
    settings = [
        f"input={CLIP}",
        f"output={tmp_path / 'out'}",
        "model.by=faces",
        f"model.settings.gallery={gallery_of(tmp_path / 'gallery')}",
        "model.settings.faces.detector=mtcnn",
        "shots.detector=content",
        "every_s=0.25",
    ]
    run(*settings)
    answers = pd.read_csv(tmp_path / "out" / "shots.csv").answer.to_list()
    assert ["unknown" if one.startswith("unknown") else one for one in answers] == [answer for _, _, answer in SHOWN]
