"""The report: its numbers, what it shows of a corpus that wants to break it, and what it costs on a large one."""

import base64
import json
import re
import shlex
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pyarrow as pa
import pytest

import jobs.curation.report
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.filter import save_filter
from actors.curation.tables import CAPTIONS, PLACES, REJECTED, SCENES, THUMBNAILS
from jobs.core.pages import clock, duration, number, percent
from jobs.curation.report import write_report
from pipelines.curation.exporting.trainers import Seen
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import fast_is_good

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """A parsed page: words by the id of the element around them, and tags; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[tuple[str, str]] = []
        self._words: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self._open

    def words(self, section: str) -> str:
        return " ".join("".join(self._words[section]).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") or ""))
        section = next((name for _, name in reversed(self._open) if name), "")
        if tag == "tr":
            self.tables.setdefault(section, []).append([])
        if tag == "td":
            self.tables[section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        section = next((name for _, name in reversed(self._open) if name), "")
        self._words.setdefault(section, []).append(data)
        if any(tag == "td" for tag, _ in self._open):
            self.tables[section][-1][-1] += data


def scene(number: int, reason: str = "", error: str = "", **more: Any) -> dict[str, Any]:
    """A row of scenes/: kept where there is neither a reason nor an error."""
    row = {
        "video_id": f"film{number // 10}",
        "clip_id": f"film{number // 10}.{number % 10}",
        "scene_id": f"film{number // 10}.{number % 10}_0",
        "caption": "",
        "start_s": 2.5 * number,
        "end_s": 2.5 * number + 2,
        "width": 640,
        "height": 360,
        **dict(zip(FEATURES, (900.0, 300.0, 2.0, 1.0, 0.2, 0.9, 8), strict=True)),
        "probability": None,
        "kept": not reason and not error,
        "reason": reason,
        "error": error,
        "duplicate_group": None,
    }
    if error:
        row |= {**dict.fromkeys(FEATURES), "no_frames": 0}
    return {**row, **more}


def jpeg(level: int = 128) -> bytes:
    return cv2.imencode(".jpg", np.full((120, 120, 3), level, np.uint8))[1].tobytes()


def fill(store: Store, scenes: list[dict[str, Any]], rejected: Sequence[dict[str, Any]] = (), part: int = 7) -> None:
    """Write scenes/, rejected/ and a thumbnail of every scene."""
    tables = [pa.Table.from_pylist(scenes[i : i + part], SCENES) for i in range(0, max(len(scenes), 1), part)]
    store.replace_table("scenes", tables)
    store.replace_table("rejected", [pa.Table.from_pylist(list(rejected), REJECTED)])
    pictures = [{**row, "thumbnail": jpeg()} for row in scenes]
    for i in range(0, len(pictures), part):
        store.write_part("thumbnails", pa.Table.from_pylist(pictures[i : i + part], THUMBNAILS), [str(i)])


def record(rows: int, select: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A run record with the settings that are the default."""
    settings = asdict(CurationConfig(input="s3://films/may", output="s3://corpora/may"))
    settings["select"] |= select or {}
    return {
        "status": "done",
        "error": None,
        "command": "run",
        "started": "2026-11-04T09:12:44+00:00",
        "seconds": 7512.4,
        "settings": settings,
        "versions": {"python": "3.11.2"},
        "input": {"videos": 3, "scenes": rows, "films": 0},
        "rows": {"in": rows, "kept": 0, "dropped": {}, "failed": {}},
        "lost_videos": {},
        **more,
    }


def report(store: Store, about: dict[str, Any]) -> Page:
    uri = write_report(store, about)
    assert uri == store.uri("report.html")
    return Page(Path(uri).read_text())


def bars(page: Page, feature: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of scenes and of kept ones that the bars of a histogram tell."""
    told = re.findall(r": ([\d,]+) scenes \(.*?\), ([\d,]+) of them kept", page.words(f"feature-{feature}"))
    counts = np.array([[int(n.replace(",", "")) for n in pair] for pair in told])
    return counts[:, 0], counts[:, 1]


MIXED = [
    *(scene(i) for i in range(9)),
    *(scene(i, "static", mean_velocity=0.01) for i in range(9, 14)),
    *(scene(i, "too_short", no_frames=2) for i in range(14, 17)),
    *(scene(i, "same_span") for i in range(17, 24)),
    *(scene(i, error="truncated") for i in range(24, 28)),
    *(scene(i, error="gone") for i in range(28, 34)),
]


def test_rows_add_up_and_every_reason_has_its_number(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    page = report(store, record(len(MIXED)))
    rows = [[" ".join(cell.split()) for cell in row] for row in page.tables["funnel"]]
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("rows in", "34", "100.0 %"),
        ("failed gone", "−6", "17.6 %"),
        ("failed truncated", "−4", "11.8 %"),
        ("dropped too_short", "−3", "8.8 %"),
        ("dropped static", "−5", "14.7 %"),
        ("dropped same_span", "−7", "20.6 %"),
        ("kept", "9", "26.5 %"),
    ]
    assert rows[3][1] == "no_frames < 4"
    assert "34 in = 9 kept + 15 dropped + 10 failed (adds up)" in page.words("funnel")


def test_bars_of_the_funnel_follow_on_each_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    page = report(store, record(len(MIXED)))
    drawn = [(float(a["x"] or 0), float(a["width"] or 0)) for tag, a in page.tags if tag == "rect" and a.get("x")][:7]
    whole, *losses, kept = drawn
    assert whole == (0, 100)
    ends = [100.0, *(x for x, _ in losses)]
    assert [x + width for x, width in losses] == pytest.approx(ends[:-1], abs=0.01)
    assert kept == pytest.approx((0, ends[-1]), abs=0.01)


def test_rows_that_do_not_add_up_are_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    Path(store.uri("scenes", store.numbered(1))).write_bytes(b"PAR1 torn")
    assert "does not add up: 7 rows are missing from scenes/" in report(store, record(len(MIXED))).words("funnel")


def test_what_comes_from_the_corpus_is_escaped(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    bad = '<script>alert("1")</script>'
    ids = {"video_id": bad, "clip_id": bad, "scene_id": f"{bad}'\"_0"}
    scenes = [scene(0, caption=bad, **ids), scene(1, bad, caption=bad), scene(2, error=bad)]
    fill(store, scenes, [{**ids, "step": "fetch", "code": bad, "message": bad, "attempts": 1}])
    about = record(3, status="failed", error=bad, versions={bad: bad})
    about["settings"] |= {"input": bad, "output": f"</script>{bad}"}
    page = report(store, about)
    assert page.html.count("<script") == 2
    assert (
        json.loads(page.words("rows"))["command"]
        == f"python -m jobs.curation select {shlex.quote(about['settings']['output'])}"
    )
    assert page.words("kept").count(bad) == 2
    assert bad in page.words("dropped") and bad in page.words("failures") and bad in page.words("settings")
    assert {a["alt"] for tag, a in page.tags if tag == "img"} == {ids["scene_id"], "film0.1_0"}


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    page = report(store, record(len(MIXED)))
    numbers = json.dumps(json.loads(page.words("rows"))["columns"])
    rest = page.html.replace(numbers, "").replace("s3://", "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|import\(|XMLHttp|Socket|sendBeacon", rest)
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") for tag, a in page.tags if tag == "img")
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object"}
    assert [a for tag, a in page.tags if tag == "script"] == [{"type": "application/json", "id": "rows"}, {}]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    assert report(store, record(34)).html == report(store, record(34)).html


def test_thumbnails_stand_under_their_reason_with_what_decided(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    page = report(store, record(len(MIXED)))
    assert sum(tag == "img" for tag, _ in page.tags) == 9 + 15
    assert "film0.3_0 0:07.50 – 0:09.50 steadiness 0.5 v 1 · d 900 · f 8" in page.words("kept")
    dropped = page.words("dropped")
    assert dropped.index("too_short") < dropped.index("static") < dropped.index("same_span")
    assert dropped.count("2 frames < 4") == 3
    assert dropped.count("velocity 0.01 < 0.1") == 5
    assert "truncated" not in dropped


def test_a_picture_plays_its_clip_where_there_is_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, [scene(0), scene(1), scene(2, "static"), scene(3) | {"video_id": "a b#.mp4", "scene_id": "ü_0"}])
    for name in ("film0/film0.0_0.mp4", "film0/film0.2_0.mp4", "a b#.mp4_/ü_0.mp4"):
        clip = tmp_path / "clips" / name
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.write_bytes(b"film")
    page = report(store, record(4))
    links = [str(a["href"]) for tag, a in page.tags if tag == "a"]
    assert sorted(links) == ["clips/a%20b%23.mp4_/%C3%BC_0.mp4", "clips/film0/film0.0_0.mp4"]
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_where_all_are_shown_none_is_drawn(tmp_path: Path) -> None:
    few, many = Store(str(tmp_path / "few")), Store(str(tmp_path / "many"))
    fill(few, [scene(i, duplicate_group=i // 2) for i in range(4)])
    page = report(few, record(4))
    assert "4 of 4;" in page.words("kept") and "drawn" not in page.words("kept") + page.words("duplicates")
    fill(many, [scene(i, duplicate_group=i // 2) for i in range(60)])
    page = report(many, record(60))
    assert "48 of 60, drawn at random with a fixed seed;" in page.words("kept")
    assert "others drawn with a fixed seed" in page.words("duplicates")


def test_one_black_scene_does_not_stretch_an_axis(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    black = dict.fromkeys(("max_rgb_diff", "mean_rgb_diff", "max_velocity", "mean_velocity", "mse"), 7e-19)
    fill(store, [scene(0, "static") | black, *(scene(i, mean_velocity=0.5 + i / 10) for i in range(1, 20))])
    page = report(store, record(20))
    for feature in black:
        words = page.words(f"feature-{feature}")
        assert "1 below" in words and "1e-1" not in words
        assert bars(page, feature)[0].sum() == 20


def test_a_classifier_shows_its_probability(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, [scene(0, probability=0.875), scene(1, "not_selected", probability=0.25)])
    page = report(store, record(2, {"by": "classifier", "count": 1}))
    assert "probability 0.875" in page.words("kept")
    assert "not_selected not among the best 1 · 1 of 1" in page.words("dropped")
    assert "probability 0.25" in page.words("dropped")


def corpus(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Scenes with heavy tails, zeros and gaps, dropped by the rules of the default settings."""
    rng = np.random.default_rng(seed)
    speeds, differences = rng.lognormal(0, 1.5, n), rng.lognormal(7, 1.5, n)
    speeds[rng.random(n) < 0.05] = 0
    differences[0] = 65_025
    frames = rng.lognormal(2.5, 1, n).astype(int) + 1
    scenes = []
    for i, (speed, difference, count) in enumerate(zip(speeds, differences, frames, strict=True)):
        rules = {"too_short": count < 4, "too_long": count > 60, "static": speed < 0.1, "cut_inside": difference > 4000}
        reason = next((name for name, holds in rules.items() if holds), "")
        features = {"mean_velocity": speed, "max_rgb_diff": difference, "no_frames": int(count)}
        scenes.append(scene(i, reason, **features, **(dict.fromkeys(("mse", "cos_sim")) if i % 10 == 3 else {})))
    return scenes


def test_histograms_count_every_scene_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scenes = [*corpus(3000), scene(3000, error="gone")]
    fill(store, scenes, part=500)
    page = report(store, record(len(scenes)))
    kept = sum(row["kept"] for row in scenes)
    for feature in FEATURES:
        everything, chosen = bars(page, feature)
        missing = 300 if feature in ("mse", "cos_sim") else 0
        assert everything.sum() == 3000 - missing, feature
        assert chosen.sum() == sum(row["kept"] and row[feature] is not None for row in scenes), feature
        assert ("300 not measured" in page.words(f"feature-{feature}")) == bool(missing)
    assert f"{kept:,} kept scenes" in page.words("features")
    # Zero has no place on a logarithmic axis: it is counted below.
    zeros = sum(row["mean_velocity"] == 0 for row in scenes)
    below = re.search(r"· ([\d,]+) below", page.words("feature-mean_velocity"))
    assert below and zeros <= int(below[1]) <= zeros + 3000 * 0.005


def test_thresholds_are_drawn_where_kept_scenes_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scenes = corpus(3000)
    fill(store, scenes, part=500)
    page = report(store, record(len(scenes)))
    for feature, words in {
        "max_rgb_diff": ["select.max_rgb_diff 4000"],
        "mean_velocity": ["select.min_velocity 0.1"],
        "no_frames": ["frames.min 4", "frames.max 60"],
    }.items():
        assert all(word in page.words(f"feature-{feature}") for word in words)
    for feature, limit, side in (("max_rgb_diff", 4000, 1), ("mean_velocity", 0.1, -1), ("no_frames", 4, -1)):
        everything, chosen = bars(page, feature)
        # Bins that hold only dropped scenes by this rule, on the far side of the line: exactly those that break it.
        outside = [row for row in scenes if (row[feature] - limit) * side > 0]
        tail = np.flatnonzero(chosen)
        beyond = everything[tail[-1] + 1 :] if side > 0 else everything[: tail[0]]
        assert not any(row["kept"] for row in outside)
        assert beyond.sum() == len(outside)


@pytest.mark.parametrize(
    ("values", "select"),
    [
        ([0.0] * 5, {}),
        ([1.5], {}),
        ([0.5, 0.5, 0.5], {"min_velocity": 0}),
        ([1e-30, 1e30], {"min_velocity": 1e-9}),
        ([0.001, 0.002], {"min_velocity": 1e9}),
        ([float("inf"), 1.0], {}),
        ([None, None], {}),
        ([None, None], {"min_velocity": 0}),
    ],
)
def test_any_values_make_a_histogram(tmp_path: Path, values: list[float | None], select: dict[str, Any]) -> None:
    store = Store(str(tmp_path))
    names = [name for name in FEATURES if name != "no_frames"]
    fill(store, [scene(i) | dict.fromkeys(names, value) for i, value in enumerate(values)])
    page = report(store, record(len(values), select))
    finite = [value for value in values if value is not None and np.isfinite(value)]
    for name in names:
        assert bars(page, name)[0].sum() == len(finite)
        for digits in re.findall(r'(?: d| x| width)="([^"]*)"', page.html):
            assert "nan" not in digits and "inf" not in digits
    if select.get("min_velocity") == 1e9:
        assert "select.min_velocity 1000M →" in page.words("feature-mean_velocity")


@pytest.mark.parametrize("frames", [[1], [5, 5], [4000, 6000], [4, 5, 60, 61, 200_000]])
def test_any_number_of_frames_makes_a_histogram(tmp_path: Path, frames: list[int]) -> None:
    store = Store(str(tmp_path))
    fill(store, [scene(i, no_frames=n) for i, n in enumerate(frames)])
    page = report(store, record(len(frames)))
    assert bars(page, "no_frames")[0].sum() == len(frames)
    assert len(bars(page, "no_frames")[0]) <= 90
    above = sum(n > 121 for n in frames)
    assert (f"{above} above 12" in page.words("feature-no_frames")) == bool(above)


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, [scene(0, "unmeasured", mse=None, cos_sim=None)])
    page = report(store, record(1))
    assert "unmeasured a feature is missing: `score` measures it · 1 of 1" in page.words("dropped")
    assert "not measured: mse, cos_sim" in page.words("dropped")


def near(number: int, group: int | None, level: int, store: Store, reason: str = "") -> dict[str, Any]:
    """A scene of a group of near-duplicates, with a thumbnail of one grey."""
    row = scene(number, reason, duplicate_group=group)
    part = store.write_part(
        "thumbnails", pa.Table.from_pylist([{**row, "thumbnail": jpeg(level)}], THUMBNAILS), [str(number)]
    )
    places = store.read_table("places", PLACES)
    place = pa.Table.from_pylist([row | {"part": part}], PLACES)
    store.replace_table("places", [pa.concat_tables([places, place])])
    return row


def test_near_duplicates_stand_side_by_side_the_one_that_stays_first(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scenes = [
        near(0, 0, 40, store, "near_duplicate"),
        near(1, 1, 80, store),
        near(2, 0, 120, store),
        near(3, 1, 160, store, "near_duplicate"),
        near(4, 1, 200, store, "static"),
        near(5, None, 240, store),
    ]
    store.replace_table("scenes", [pa.Table.from_pylist(scenes, SCENES)])
    page = report(store, record(6, {"dedupe": 8}))
    words = page.words("duplicates")
    assert "5 scenes are in 2 groups" in words and "at most 8 of 192 bits" in words
    shown = re.findall(r"(kept|static|near_duplicate) film0\.(\d)_0", words)
    assert shown == [("kept", "1"), ("static", "4"), ("near_duplicate", "3"), ("kept", "2"), ("near_duplicate", "0")]
    section = page.html[page.html.index('id="duplicates"') : page.html.index('id="speed"')]
    pictures = [base64.b64encode(jpeg(level)).decode() in section for level in (40, 80, 120, 160, 200, 240)]
    assert pictures == [True] * 5 + [False]


def test_a_group_of_very_many_shows_some_of_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, [scene(i, "near_duplicate" if i else "", duplicate_group=0) for i in range(300)], part=50)
    page = report(store, record(300, {"dedupe": 8}))
    assert "300 scenes 6 shown" in page.words("duplicates")


def test_recaptions_stand_beside_captions(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [near(i, None, 40 * i, store) for i in range(3)]
    store.replace_table("scenes", [pa.Table.from_pylist(rows, SCENES)])
    asked = {"caption": "a <b>man</b>", "code": "", "written": 1.0}
    answers = [
        {**rows[0], **asked, "recaption": "an older man"},
        {**rows[0], **asked, "recaption": "a man in a red coat </script>", "written": 2.0},
        {**rows[1], **asked, "recaption": "", "code": "caption_failed"},
    ]
    store.replace_table("captions", [pa.Table.from_pylist(answers, CAPTIONS)])
    page = report(store, record(3))
    assert [row[1:] for row in page.tables["captions"] if row] == [["a <b>man</b>", "a man in a red coat </script>"]]
    assert page.html.count("</script>") == 2


def test_a_filter_shows_what_it_is_worth(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    assert "filter" not in report(store, record(34)).tables
    fitted = fit(fast_is_good(noise=0.1), FitConfig(store.root))
    save_filter(fitted, store.uri("filter.json"))
    page = report(store, record(34))
    metrics = fitted.about["report"]["metrics"]
    row = next(row for row in page.tables["filter"] if row and row[0] == "ROC-AUC")
    value = metrics["roc_auc"]
    assert row[1:] == [f"{value['value']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}", "0.500"]
    names = [row[0] for row in page.tables["filter"] if len(row) == 3]
    assert names[0] == "mean_velocity" and set(names) == set(FEATURES)
    bins, curve = (fitted.about["report"][name] for name in ("calibration", "learning_curve"))
    circles = [a for tag, a in page.tags if tag == "circle"]
    assert len(circles) == len(bins) + len(curve)
    # From the left below to the right above: 0 and 1 on both axes.
    left, right, top, bottom = 34, 244, 10, 148
    for circle, one in zip(circles, bins, strict=False):
        assert float(circle["cx"] or 0) == pytest.approx(left + one["predicted"] * (right - left), abs=0.1)
        assert float(circle["cy"] or 0) == pytest.approx(bottom - one["good"] * (bottom - top), abs=0.1)


def test_a_filter_that_is_none_is_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    store.write_json({"learner": {}}, "filter.json")
    assert "is no filter that `fit-filter` wrote" in report(store, record(34)).words("filter")


def test_an_evaluation_is_a_table_with_intervals(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    found = {"means": [30.6, 27.2], "difference": 3.4, "interval": [2.5, 4.25], "p": 0.0001, "effect": 0.8123}
    found |= {"scenes": [8, 8], "videos": 3, "left_out": {"caption_failed": 1}}
    nothing = dict.fromkeys(found) | {"left_out": {"not_asked": 9}}
    compared = [{"name": "better", "paired": True, **found}, {"name": "other", "paired": False, **nothing}]
    about = {"kept": 9, "random": 9, "comparisons": compared, "settings": {"embeddings": {"model": "ViT-g-14"}}}
    store.write_json(about, "evaluation.json")
    page = report(store, record(34))
    numbers = ["30.60", "27.20", "+3.40", "+2.50 to +4.25", "0.0001", "0.81", "8 of 3 videos", "caption_failed 1"]
    assert [row for row in page.tables["evaluation"] if row] == [
        ["better (paired)", *numbers],
        ["other", "nothing to compare", "not_asked 9"],
    ]


def test_notes_stand_above_what_they_are_of(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    about: dict[str, Any] = {"kept": 9, "random": 9, "comparisons": [], "settings": {"embeddings": {"model": "ViT"}}}
    store.write_json(about | {"notes": ["CLIPScores of 5 scenes"]}, "evaluation.json")
    page = report(store, record(34, notes=["latents of <2> scenes"]))
    assert "latents of <2> scenes" in page.words("") and "CLIPScores of 5 scenes" in page.words("evaluation")


def test_an_empty_corpus_has_a_page(tmp_path: Path) -> None:
    page = report(Store(str(tmp_path)), record(0, input={}, stages={}, films={"decoded": 0, "source": 0}))
    assert "0 in = 0 kept + 0 dropped + 0 failed (adds up)" in page.words("funnel")
    assert "No scene was measured." in page.words("features")
    assert "This run measured nothing." in page.words("speed")


def test_a_corpus_of_failures_has_a_page(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scenes = [scene(i, error="truncated") for i in range(12)]
    rows = [{**row, "step": "cut", "code": "truncated", "message": "breaks off", "attempts": 1} for row in scenes]
    fill(store, scenes, rows)
    page = report(store, record(12, status="rejected"))
    assert "12 in = 0 kept + 0 dropped + 12 failed (adds up)" in page.words("funnel")
    assert "more rows failed than are allowed" in page.html
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_failures_are_counted_by_step_and_code_with_an_example(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    cut = [{**scene(i), "step": "cut", "code": "crashed", "message": f"signal {i}", "attempts": 2} for i in range(250)]
    lost = {"video_id": "gone7", "clip_id": "", "scene_id": "", "step": "fetch", "code": "gone", "attempts": 1}
    fill(
        store,
        [scene(i, error="crashed") for i in range(250)],
        [*cut, {**lost, "message": "HTTP 410" + "!" * 5000}],
        part=100,
    )
    page = report(store, record(250, lost_videos={"gone": 1}, incomplete_videos={"truncated": 2}))
    kinds, rows = page.tables["failures"][1:3], page.tables["failures"][4:]
    assert kinds[0] == ["cut", "crashed", "250", "retry may help", "film0.0_0", "signal 0"]
    assert kinds[1][:5] == ["fetch", "gone", "1", "for good", "gone7"]
    assert kinds[1][5].endswith("(4,708 more characters)")
    assert len(rows) == 200
    assert rows[3] == ["film0", "film0.3", "film0.3_0", "cut", "crashed", "signal 3", "2"]
    assert "The first 200 of 251 rows of rejected/" in page.words("failures")
    told = page.words("funnel")
    assert "Lost beside these, since their scenes could not be known: 1 video (gone 1)." in told
    assert "Measured in part, since not all of their scenes could be known: 2 videos (truncated 2)." in told


def test_speed_and_films_come_from_the_record(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    stages = {
        "cut": {"rows": 1200, "seconds": 300.0, "rows_per_s": 4.0},
        "export": {"rows": 0, "seconds": 0.0, "rows_per_s": 0.0},
    }
    films = {"decoded": 1050, "source": 1000, "worst_ratio": 1.08, "worst": "film2"}
    page = report(store, record(34, stages=stages, films=films))
    assert page.tables["speed"][1:] == [["cut", "1,200", "300", "4"], ["export", "0", "0", "–"]]
    assert "Decoded 1,050 frames of films that hold 1,000: 1.050 each; most for film2, 1.080." in page.words("speed")


class CountingStore(Store):
    """Counts the parts that are read."""

    read: Counter[str]

    def read_part(self, folder: str, name: str, columns: Any = None, optional: Any = ()) -> pa.Table | None:
        self.read[folder] += 1
        return super().read_part(folder, name, columns, optional)


def test_what_there_is_no_room_for_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    # Each is dropped for one of two reasons, or kept: 30 pictures of about 800 bytes.
    fill(store, [scene(i, ("", "static", "cut_inside")[i % 3], duplicate_group=i % 2) for i in range(30)])
    page = report(store, record(30))
    whole = json.loads(page.words("rows"))
    assert sum(tag == "img" for tag, _ in page.tags) >= 30 and "left out" not in page.words("kept")
    monkeypatch.setattr(jobs.curation.report, "PICTURE_BYTES", 10 * len(jpeg()))
    monkeypatch.setattr(jobs.curation.report, "ROOM", 10 * len(jpeg()) * 4 // 3 + 400)
    page = report(store, record(30))
    assert len({about["alt"] for tag, about in page.tags if tag == "img"}) == 10
    assert "20 pictures of scenes below are left out, so that this page stays below 5 MB." in page.words("kept")
    some = json.loads(page.words("rows"))
    assert 0 < some["rows"] < whole["rows"] == some["of"] == 30
    assert sum(map(len, some["columns"].values())) < 500 < sum(map(len, whole["columns"].values()))


@pytest.mark.slow
def test_a_large_corpus_is_read_part_by_part(tmp_path: Path) -> None:
    store = CountingStore(str(tmp_path))
    object.__setattr__(store, "read", Counter())
    reasons = ["", "static", "cut_inside", "same_span"]
    rows, part = 50_000, 2_000

    def table(start: int) -> pa.Table:
        # Captions of 2,000 characters: 100 MB in all, and 4 MB a part.
        numbers = range(start, start + part)
        scenes = [scene(i, reasons[i % 4], caption=f"{i:05}" + "walks " * 333) for i in numbers]
        return pa.Table.from_pylist(scenes, SCENES)

    store.replace_table("scenes", (table(start) for start in range(0, rows, part)))
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3)).astype(np.uint8)
    picture = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    for start in range(0, 6_000, 60):
        pictures = [{**scene(i), "thumbnail": picture} for i in range(start, start + 60)]
        store.write_part("thumbnails", pa.Table.from_pylist(pictures, THUMBNAILS), [str(start)])

    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    previous = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        page = report(store, record(rows))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(previous)
    assert peak + pool.max_memory() < 60e6
    assert pool.max_memory() > 4e6
    assert len(page.html) < 3.2e6
    assert "50,000 in = 12,500 kept + 37,500 dropped + 0 failed (adds up)" in page.words("funnel")
    assert sum(tag == "img" for tag, _ in page.tags) == 96
    assert store.read["scenes"] == 2 * rows // part
    assert store.read["thumbnails"] < 20


def test_numbers_in_words() -> None:
    assert [percent(n, 10_000) for n in (0, 1, 250, 9_999, 10_000)] == [
        "0.0 %",
        "< 0.1 %",
        "2.5 %",
        "> 99.9 %",
        "100.0 %",
    ]
    assert percent(0, 0) == "–"
    assert [number(n) for n in (float("nan"), 0.01234, 12.345, 999.6, 5210.4)] == [
        "–",
        "0.0123",
        "12.3",
        "1,000",
        "5,210",
    ]
    assert [clock(s) for s in (float("nan"), 0.5, 59.999, 3723.45)] == ["–", "0:00.50", "1:00.00", "1:02:03.45"]
    assert [duration(s) for s in (4.25, 62, 7512.4)] == ["4.25 s", "1 min 02 s", "2 h 05 min"]


def test_what_a_trainer_sees_is_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, MIXED)
    buckets = {"wan": {"832x480x81": 3}}
    seen = Seen(9, 61.0, 2, (3, 7.5, 1200), [("a <b>dog</b>", 4)], buckets, {"wan": {"too_small": 1}})
    page = report(store, record(len(MIXED)) | {"trainers": asdict(seen)})
    told = page.words("trainers")
    for words in ("9 scenes, 1 min 01 s in all", "3 to 1,200 words, 8 in the middle", "2 scenes without a caption"):
        assert words in told
    assert "4: a <b>dog</b>" in told and "832x480x81" in told and "dropped: too_small" in told
    assert 'id="trainers"' not in report(store, record(len(MIXED))).html
