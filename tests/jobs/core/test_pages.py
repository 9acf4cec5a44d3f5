"""Pages: they hold all that they show, and what comes from outside is text."""

import re
import time
from html.parser import HTMLParser
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from actors.core.store import Store
from jobs.core.pages import Picture, Section, Table, colours_of, draw, figure, legend_above, write_page
from jobs.core.status import Status
from jobs.core.status_page import page
from pipelines.core.progress import Progress
from pipelines.core.reporting import Snapshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class Page(HTMLParser):
    """Cells of the tables, addresses of the pictures and headings of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[tuple[str, str]] = []
        self.images: list[str] = []
        self.tags: list[str] = []
        self._kind = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._kind = dict(attrs).get("class") or "" if tag == "td" else "-"
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        if self._kind != "-" and data.strip():
            self.cells.append((data.strip(), self._kind))


def test_a_page_holds_its_figures_and_tables(tmp_path: Path):
    store = Store(str(tmp_path))
    drawing = figure(2, 1)
    drawing.subplots().bar(["Drama", "War"], [3, 1])
    picture = draw(store, "bars", drawing, "films per genre")
    assert Image.open(tmp_path / "bars.png").size == (220, 110)
    photograph = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    photograph.save(tmp_path / "frame.jpg")
    rows = [["Drama", 0.123456, 1234, None], ["War", float("nan"), 7, 0.5]]
    sections = [
        Section("Figures", "Some text.", [picture, Picture((tmp_path / "frame.jpg").read_bytes())]),
        Section("Numbers", content=[Table(["genre", "AP", "films", "recall"], rows, "by genre")]),
    ]
    uri = write_page(store.uri("report.html"), "Genres", "2 genres", {"films": "s3://bucket/films"}, sections)
    text = Path(uri).read_text()
    page = Page(text)
    assert [image.partition(",")[0] for image in page.images] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert page.cells == [
        *(("Drama", ""), ("0.123", "n"), ("1,234", "n"), ("–", "n")),
        *(("War", ""), ("–", "n"), ("7", "n"), ("0.5", "n")),
    ]
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text


def test_a_page_stays_below_5_mb_and_says_what_it_leaves_out(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    picture = Picture((tmp_path / "noise.png").read_bytes(), "a large picture")
    small = Picture((tmp_path / "noise.png").read_bytes()[:90_000])
    films = (Section(f"film {i}", "2 shots", [small, Table(["shot", "end"], [[1, 2.5]])]) for i in range(100_000))
    rows = [[f"director {i}", i, 0.5] for i in range(10_000)]
    sections = [Section("All", "", [picture, Table(["director", "films", "share"], rows)]), *islice(films, 400)]
    text = Path(write_page(str(tmp_path / "page.html"), "Films", "", {}, sections)).read_text()
    assert 3e6 < len(text) < 5e6
    page = Page(text)
    shown = sum(title.startswith("<h2>film") for title in text.splitlines())
    assert page.images[0].startswith("data:image/jpeg") and 5 < shown < 400
    assert f"{400 - shown} more sections" in text
    text = Path(
        write_page(
            str(tmp_path / "page.html"), "Rows", "", {}, [Section("", "", [Table(["a"], [["b" * 99]] * 99_999)])]
        )
    ).read_text()
    assert len(text) < 5e6 and text.count("bbb</td>") > 20_000
    assert f"The first {text.count('bbb</td>'):,} of 99,999 rows" in text


def test_names_from_outside_are_text(tmp_path: Path):
    bad = "<img src=x onerror=alert(1)>"
    uri = write_page(
        str(tmp_path / "page.html"), bad, bad, {bad: bad}, [Section(bad, bad, [Table([bad], [[bad]], bad)])]
    )
    assert "img" not in Page(Path(uri).read_text()).tags


def test_a_name_has_one_colour_whatever_its_neighbours_order_and_no_two_are_alike():
    names = [f"c{number:02d}" for number in range(40)]
    colours = colours_of(names)
    assert colours == colours_of([*reversed(names), "c00"]) and len(set(colours.values())) == 40


def test_a_legend_covers_nothing_that_is_drawn():
    drawing = figure(4, 3)
    axes = drawing.subplots()
    axes.plot([0, 1], [1, 1], label="a model")
    axes.set_ylim(0, 1)
    legend_above(drawing)
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a model"]
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1


def snapshot(next_s: float | None) -> Snapshot:
    """A run in its middle, with a name from outside."""
    progress = Progress("score", 80, "scenes")
    progress.resume(20)
    progress.advance(20, note="<b>loss</b> 1")
    progress.fail({"not_a_video": 3})
    return Snapshot({"score": {**progress.about("<b>loss</b> 1"), "time": time.time()}}, ["12:00 a line"], next_s)


def status_page(folder: Path, next_s: float | None, **record: object) -> str:
    """The page of a run."""
    about = {"command": "embed", "status": "done", "error": None, "started": "2026-11-28T10:00:00+00:00", "seconds": 9}
    return page(Status(), about | record, Store(str(folder)), snapshot(next_s)).decode()


def test_the_page_of_a_run_tells_how_far_it_is_and_how_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["x", "embed", "input=http://me:secret@host/list"])
    running, done = status_page(tmp_path, 30.0), status_page(tmp_path, None)
    assert '<span id="state">Running</span>' in running and '<meta http-equiv="refresh" content="30">' in running
    assert "40 of 80 scenes" in running and '<progress value="0.5">' in running and " left" in running
    assert ("not_a_video", "3") in [(name, number) for (name, _), (number, _) in pairwise(Page(running).cells)]
    assert "a line" in running and "b" not in Page(running).tags
    assert "http://host/list" in running and "secret" not in running
    assert '<span id="state">Done</span>' in done and 'http-equiv="refresh"' not in done and "data-stale" not in done
    assert "embed done after 9 s" in done and len(running) < 12_000
    failed = status_page(tmp_path, None, status="failed", error="OSError: the disk is full")
    assert '<span id="state">Failed</span>' in failed and "the disk is full" in failed
    assert ">Interrupted</span>" in status_page(tmp_path, None, status="failed", error="Terminated: by SIGTERM")


@pytest.mark.slow
def test_the_page_of_a_run_asks_for_itself_anew_and_says_when_nothing_comes(browser: "Browser", tmp_path: Path):
    file = tmp_path / "status.html"
    with browser.new_page(viewport={"width": 1000, "height": 800}) as shown:
        running = status_page(tmp_path, 10.0)
        file.write_text(running.replace('content="10"', 'content="1"'))
        shown.goto(f"file://{file}")
        assert shown.locator("#state").inner_text() == "Running" and "ago" in shown.locator("#age").inner_text()
        assert not shown.locator("#killed").is_visible()
        # The next update is as old as that of a run which was killed an hour ago.
        old = re.sub(r'data-updated="[\d.]+"', f'data-updated="{time.time() - 3600}"', running)
        file.write_text(old.replace('content="10"', 'content="1"'))
        shown.get_by_text("No update for 60 min").wait_for(timeout=10_000)
        assert shown.locator("#killed").is_visible()
        file.write_text(status_page(tmp_path, None))
        shown.get_by_text("Done", exact=True).wait_for(timeout=10_000)
        assert not shown.locator("#killed").is_visible()


@pytest.mark.slow
def test_a_wide_table_scrolls_and_breaks_no_header_and_pictures_stand_in_a_grid(browser: "Browser", tmp_path: Path):
    columns = [f"precision_at_threshold_{number}" for number in range(10)]
    png = draw(Store(str(tmp_path)), "dot", figure(1, 1))
    sections = [Section("Frames", "", [png] * 4, grid=True), Section("Table", "", [Table(columns, [[0.123456] * 10])])]
    uri = write_page(str(tmp_path / "page.html"), "Page", "", {}, sections)
    with browser.new_page(viewport={"width": 1000, "height": 800}) as page:
        page.goto(f"file://{uri}")
        heights = page.evaluate("[...document.querySelectorAll('th')].map(one => one.getClientRects()[0].height)")
        assert len(heights) == 10 and max(heights) < 30, "a header is on one line"
        assert page.evaluate("document.documentElement.scrollWidth") == 1000
        tops = page.evaluate("[...document.querySelectorAll('figure')].map(one => one.getClientRects()[0].top)")
        assert len(tops) == 4 and len(set(tops)) == 1
