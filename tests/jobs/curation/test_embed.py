"""Embeddings from film to search: measured on a finished corpus, compared by `select`, found by a word or picture."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support import colours, tiny_models
from tests.support.colours import BLUE, GREEN, RED
from tests.support.corpus import run_here

SHOWN = [RED, GREEN, (255, 20, 20), BLUE]
"""The colour of each scene of two seconds; the third is nearly that of the first."""


@pytest.fixture(scope="module")
def made(ray_cluster: None, clip_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run whose four scenes are all kept, with embeddings."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "films").mkdir()
    colours.film(folder / "films" / "a.mkv", [colour for colour in SHOWN for _ in range(8)])
    lines = [f"a,a.mkv,{2 * i},{2 * i + 2},scene {i}" for i in range(len(SHOWN))]
    (folder / "films" / "scenes.csv").write_text("\n".join(["video_id,url,start,end,caption", *lines]))
    where = [f"input={folder / 'films' / 'scenes.csv'}", f"output={folder / 'out'}"]
    run_here("run", *where, "frames.size=64", "latents.model=tiny", "select.min_velocity=0")
    told = run_here("embed", str(folder / "out"), f"measure.embedding.model={clip_folder}").output
    assert "embedding: 4 scenes" in told
    return folder / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


def found(output: Path, query: str, name: str, *settings: str) -> list[dict[str, str]]:
    """The rows of a search, as the table has them."""
    told = run_here("search", str(output), query, *settings).output
    table = (output / "search" / name / "scenes.tsv").read_text()
    assert table in told
    return list(csv.DictReader(table.splitlines(), delimiter="\t"))


def test_words_and_pictures_find_scenes_and_a_page_plays_them(output: Path, tmp_path: Path):
    rows = found(output, "Red!", "red")
    assert [row["caption"] for row in rows[:2]] == ["scene 0", "scene 2"] and rows[0]["cosine"] == "1.000"
    picture = tmp_path / "blue sky.png"
    Image.new("RGB", (50, 30), BLUE).save(picture)
    [row] = found(output, str(picture), name_of(picture), "count=1")
    assert row["caption"] == "scene 3" and row["kept"] == "True"
    page = (output / "search" / "red" / "index.html").read_text()
    assert page.count("<video") == 4 and page.count("clips/a/") == 4
    shutil.rmtree(output / "clips")
    found(output, "red", "red", "count=2")
    page = (output / "search" / "red" / "index.html").read_text()
    assert "<video" not in page and 'href="001.jpg"' in page
    red = Image.open(output / "search" / "red" / "001.jpg").convert("RGB").getpixel((10, 10))
    assert isinstance(red, tuple) and red[0] > 240 and max(red[1:]) < 15


def name_of(picture: Path) -> str:
    """The folder of a search for a picture."""
    from jobs.curation.search import SearchConfig

    return SearchConfig("out", str(picture)).folder.partition("/")[2]


def test_select_drops_what_shows_the_same_and_fills_no_concept(output: Path):
    told = run_here("select", str(output), "select.semantic_dedupe=0.98").output
    assert "near_duplicate 1" in told and "3 kept" in told
    told = run_here("select", str(output), "select.balance.concepts=3", "select.balance.cap=1").output
    assert "concept_full 1" in told and "3 kept" in told
    report = (output / "report.html").read_text()
    assert 'id="concepts"' in report and "as many of its concept rank higher as select.balance.cap=1 allows" in report
    dropped = next(row["scene_id"] for row in found(output, "red", "red") if row["reason"] == "concept_full")
    told = run_here("explain", str(output), dropped).output
    assert "dropped: concept_full" in told and "of the same concept" in told


def test_a_backbone_finds_no_words_and_says_what_to_do(output: Path, tmp_path: Path):
    shutil.rmtree(output / "measured")
    refused = run_here("search", str(output), "red", code=2).output
    assert "embed" in refused
    folder = tiny_models.backbone(tmp_path / "backbone")
    run_here("embed", str(output), "measure.embedding.by=backbone", f"measure.embedding.model={folder}")
    refused = run_here("search", str(output), "red", code=2).output
    assert "takes pictures only" in refused
