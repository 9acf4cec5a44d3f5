"""The what-if of the report in a real browser: it says what `select` would, and asks nobody for anything."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from actors.core.store import Store
from actors.curation.selecting.filter import save_filter
from actors.curation.selecting.select_settings import BalanceConfig, SelectConfig
from actors.curation.tables import SCENES
from jobs.core.settings import load
from jobs.curation import whatif
from jobs.curation.__main__ import app
from jobs.curation.report import write_report
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.selecting.select import select, tally
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import (
    config,
    fast_is_good,
    film,
    scene,
    write_embeddings,
    write_measured,
    write_plan,
    write_scores,
)

pytestmark = pytest.mark.slow

RULES = {
    "frames.min": [4, 9, 2],
    "frames.max": [60, 24, 70],
    # Of some scenes it is exactly the value.
    "select.min_velocity": [0.1, 0.7, 1.3],
    "select.max_rgb_diff": [4000, 3000.1, 900.7],
}

LOOKS = {"text_area": pa.float32(), "camera": pa.string(), "shaky": pa.bool_()}
COLUMN_RULES = {
    "text_area": {"max": 0.05},
    "wide": {"column": "width", "min": 1000, "max": 1500},
    "camera": {"not": ["shake"]},
    "shaky": {"is": False},
}


def look(number: int, random: np.random.Generator) -> dict[str, Any]:
    """What a family says of a scene; some things it cannot say."""
    text_area = float(np.float32(random.choice([random.uniform(0, 0.2), 0.05, 0.1])))
    said = {
        "text_area": text_area,
        "camera": str(random.choice(["pan", "shake"])),
        "shaky": bool(random.random() < 0.1),
    }
    return {"row": number, **{name: None if random.random() < 0.05 else value for name, value in said.items()}}


def corpus(folder: Path) -> CurationConfig:
    """Spans of up to three scenes, with near-duplicates, failures, values at thresholds, and some that are missing."""
    random = np.random.default_rng(0)
    rows, videos = [], {}
    for video in range(20):
        scenes = 0
        for span in range(10):
            for number in range(int(random.integers(1, 4))):
                name = f"v{video}.{span}_{number}"
                copied = int(random.integers(0, 120))
                about: dict[str, Any] = {
                    "no_frames": int(random.choice([*range(2, 70), 4, 9, 24, 60])),
                    "mean_velocity": float(np.float32(random.choice([random.uniform(0, 2), 0.1, 0.7, 1.3]))),
                    "max_velocity": random.uniform(2, 4),
                    "max_rgb_diff": float(np.float32(random.choice([random.lognormal(7, 1), 3000.1, 900.7, 4000]))),
                    "phash": np.random.default_rng(copied).bytes(24) if copied < 90 else None,
                    "longest_hold_s": float(np.float32(random.choice([0.04, 0.5, 3.0, 3.1], p=[0.8, 0.1, 0.05, 0.05]))),
                    "width": int(random.choice([640, 1280, 1920])),
                    "bar_top": (0, 0, 40, None)[int(random.integers(4))],
                    "end_s": float(random.choice([2.0, 15.1, 15.3, 40.0], p=[0.85, 0.05, 0.05, 0.05])),
                    "video_index": video,
                    "ordinal": scenes,
                }
                if random.random() < 0.05:
                    about = {"video_index": video, "ordinal": scenes, "error": "decode_error"}
                elif random.random() < 0.05 or about["no_frames"] > 60:
                    about["mse"] = None
                rows.append(scene(name, **about))
                scenes += 1
        videos[f"v{video}"] = scenes
        rows.append(film(f"v{video}", scenes, video_index=video))
    settings = config(folder)
    store = Store(settings.output)
    part = write_scores(store, *rows)
    write_measured(store, "looks", LOOKS, part, [look(number, random) for number in range(len(rows))])
    vectors = random.normal(size=(len(rows), 3))
    write_embeddings(store, write_scores(store, *rows), rows, list(vectors / np.linalg.norm(vectors, axis=1)[:, None]))
    write_plan(store, videos)
    made = {"settings": asdict(settings), "measured_by": {"motion.flow": "farneback"}}
    store.write_json(made, "plan", "settings.json")
    save_filter(fit(fast_is_good(), FitConfig(settings.output)), store.uri("filter.json"))
    return settings


@dataclass
class Report:
    """The page of an output."""

    page: Page
    settings: CurationConfig
    requests: list[str]
    complaints: list[str]

    def show(self, settings: CurationConfig) -> None:
        """Select with these settings, and open the report of it."""
        self.settings = settings
        counted = tally(Store(settings.output), select(settings).expected)
        record = {
            "status": "done",
            "error": None,
            "command": "select",
            "started": "2026-11-04T09:12:44+00:00",
            "seconds": 1.0,
            "settings": asdict(settings),
            "versions": {},
            "rows": {"in": counted.rows},
        }
        self.page.goto(f"file://{write_report(Store(settings.output), record)}")

    def put(self, rule: str, value: object) -> None:
        self.page.locator(f'input[type=number][data-rule="{rule}"]').fill("" if value is None else str(value))

    @property
    def kept(self) -> int:
        return int(self.page.locator("#would-keep").inner_text().removeprefix("about ").replace(",", ""))

    @property
    def dropped(self) -> dict[str, int]:
        told = self.page.locator("#would-drop").inner_text()
        return {name: int(n.replace(",", "")) for name, n in re.findall(r"(\w+) ([\d,]+)", told)}

    @property
    def command(self) -> list[str]:
        return shlex.split(self.page.locator("#command").inner_text())


@pytest.fixture
def report(browser: Browser, tmp_path: Path) -> Iterator[Report]:
    settings = corpus(tmp_path)
    with browser.new_context() as context:
        page = context.new_page()
        opened = Report(page, settings, [], [])
        page.on("request", lambda request: opened.requests.append(request.url))
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        yield opened
        assert not opened.complaints
        assert {url.split(":")[0] for url in opened.requests} <= {"file", "data"}


def decided(settings: CurationConfig) -> tuple[int, dict[str, int]]:
    """What `select` keeps and drops."""
    counted = tally(Store(settings.output), select(settings).expected)
    return counted.kept, counted.dropped


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"dedupe": 0},
        {"dedupe": 0, "count": 50},
        {"fraction": 0.3},
        {"by": "classifier", "dedupe": 0},
        {"by": "classifier", "count": 40},
        {"rules": COLUMN_RULES},
        {"rules": {"bar_top": {"max": 10}}, "by": "classifier", "fraction": 0.5},
        {"semantic_dedupe": 0.9999, "dedupe": 0, "balance": BalanceConfig(6, 7)},
        {"balance": BalanceConfig(5, 0.15), "count": 60},
    ],
)
def test_the_page_says_what_select_would(report: Report, rules: dict[str, Any]) -> None:
    settings = replace(report.settings, select=SelectConfig(**rules))
    report.show(settings)
    assert (report.kept, report.dropped) == decided(settings)
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(8):
        put = {name: values[random.integers(len(values))] for name, values in RULES.items()}
        for name, value in put.items():
            report.put(name, value)
        frames = replace(settings.frames, min=put["frames.min"], max=put["frames.max"])
        bounds = {name: put[f"select.{name}"] for name in ("min_velocity", "max_rgb_diff")}
        expected = decided(replace(settings, frames=frames, select=SelectConfig(**rules, **bounds)))
        assert (report.kept, report.dropped) == expected, put
        seen.add(expected[0])
    assert len(seen) > 1
    report.page.locator("#reset").click()
    assert (report.kept, report.dropped) == decided(settings)


def test_one_of_very_many_copies_and_scenes_of_a_span_stays(report: Report) -> None:
    store = Store(report.settings.output)
    copies = [scene(f"w.{i}_0", ordinal=i, video_index=20, phash=bytes(range(24))) for i in range(600)]
    span = [scene(f"w.600_{i}", ordinal=600 + i, video_index=20) for i in range(600)]
    write_scores(store, *copies, *span, film("w", 1200, video_index=20))
    write_plan(store, {"w": 1200})
    report.show(replace(report.settings, select=SelectConfig(dedupe=8)))
    assert (report.kept, report.dropped) == (2, {"near_duplicate": 599, "same_span": 599})


def test_rules_on_columns_are_moved_turned_off_and_tried(report: Report) -> None:
    report.show(replace(report.settings, select=SelectConfig(rules=COLUMN_RULES, dedupe=0)))
    seen = {report.kept}
    for bound, value in [
        ("text_area.max", 0.1),
        ("wide.min", None),
        ("text_area.min", 0.01),
        ("mse.max", 0.9),
        ("mse.max", None),
        ("height.min", 200),
        ("bar_top.max", 0),
        ("text_area.max", None),
    ]:
        if report.page.locator(f'input[data-rule="select.rules.{bound}"]').count() == 0:
            # All scenes have the same height.
            assert bound == "height.min"
            continue
        report.put(f"select.rules.{bound}", value)
        expected = load(CurationConfig, [*report.command[5:], *whole(report.settings)])
        assert (report.kept, report.dropped) == decided(expected), bound
        seen.add(report.kept)
    assert len(seen) > 5
    report.page.locator("#reset").click()
    assert (report.kept, report.dropped) == decided(report.settings)


def whole(settings: CurationConfig) -> list[str]:
    return [f"input={settings.input}", f"output={settings.output}"]


def test_a_slider_of_a_rule_moves_it(report: Report) -> None:
    report.show(replace(report.settings, select=SelectConfig(rules=COLUMN_RULES)))
    figure = report.page.locator("#feature-text_area")
    before = report.kept
    figure.locator("input[type=range]").fill("700")
    assert float(figure.locator('input[type=number][data-rule="select.rules.text_area.max"]').input_value()) > 0.05
    assert report.kept > before
    report.put("select.rules.text_area.min", 9)
    expect(report.page.locator("#wrong")).to_be_visible()


def test_a_filter_of_other_columns_drops_what_has_none(report: Report) -> None:
    store = Store(report.settings.output)
    labelled = fast_is_good()
    text = np.random.default_rng(0).uniform(0, 0.2, len(labelled.scenes))
    features = ("text_area", "mean_velocity")
    named = replace(
        labelled, scenes=labelled.scenes.assign(text_area=text), features=features, families={"looks": "f" * 12}
    )
    save_filter(fit(named, FitConfig(store.root)), store.uri("filter.json"))
    settings = replace(report.settings, select=SelectConfig(by="classifier", rules={"camera": {"not": "shake"}}))
    report.show(settings)
    kept, dropped = decided(settings)
    assert (report.kept, report.dropped) == (kept, dropped) and dropped["unmeasured"] > 30


def test_a_rule_is_tried_on_a_sample_of_a_larger_corpus(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    report.show(report.settings)
    report.put("select.rules.width.max", 1300)
    wide = report.kept
    monkeypatch.setattr(whatif, "TRIALS", 3000)
    report.show(report.settings)
    exact = report.kept
    expect(report.page.locator("#sampled")).to_be_empty()
    report.put("select.rules.width.max", 1300)
    told = re.fullmatch(r"estimated from (\d+) of (\d+) scenes", report.page.locator("#sampled").inner_text())
    assert told and 50 < int(told[1]) < 300 < int(told[2])
    assert report.kept == pytest.approx(wide, rel=0.3)
    report.put("select.rules.width.max", None)
    assert report.kept == exact


def test_the_line_below_it_is_the_command_that_does_it(report: Report) -> None:
    report.show(replace(report.settings, select=SelectConfig(fraction=0.5, dedupe=0)))
    report.put("select.min_velocity", 0.7)
    report.put("frames.max", 24)
    half = report.kept
    for count, kept in ((None, half), (7, 7)):
        report.put("select.count", count)
        assert report.kept == kept
        assert report.command[:3] == ["python", "-m", "jobs.curation"]
        result = CliRunner().invoke(app, report.command[3:])
        assert result.exit_code == 0, result.output
        assert f"= {kept} kept" in result.output


def test_a_probability_chooses_how_many(report: Report) -> None:
    settings = replace(report.settings, select=SelectConfig(by="classifier"))
    report.show(settings)
    everything = report.kept
    slider = report.page.locator('input[type=range][data-rule="probability"]')
    slider.fill("500")
    scenes = Store(settings.output).read_table("scenes", SCENES).to_pandas()
    assert report.kept == int((scenes.kept & (scenes.probability >= 0.5)).sum()) < everything
    assert f"select.count={report.kept}" in report.command
    report.put("select.count", None)
    assert report.kept == everything


def test_a_slider_moves_its_threshold_and_line(report: Report) -> None:
    report.show(report.settings)
    before = report.kept
    figure = report.page.locator("#feature-mean_velocity")
    slider, field = figure.locator("input[type=range]"), figure.locator("input[type=number][required]")
    at = float(figure.locator("line.rule").get_attribute("x1") or 0)
    slider.fill("900")
    assert float(field.input_value()) > 0.1
    assert float(figure.locator("line.rule").get_attribute("x1") or 0) > at
    assert report.kept < before
    slider.press("Home")
    assert report.kept >= before
    frames = report.page.locator("#feature-no_frames")
    frames.locator('input[type=range][data-rule="frames.min"]').fill("100")
    assert re.fullmatch(r"\d+", frames.locator('input[type=number][data-rule="frames.min"]').input_value())


def test_what_is_no_threshold_gives_no_number(report: Report) -> None:
    report.show(report.settings)
    for rule, value in (("frames.min", 1), ("frames.min", 90), ("select.min_velocity", None), ("select.count", -1)):
        report.put(rule, value)
        expect(report.page.locator("#wrong")).to_be_visible()
        expect(report.page.locator("#would")).to_be_hidden()
        report.page.locator("#reset").click()
        expect(report.page.locator("#would")).to_be_visible()


def test_a_larger_corpus_is_estimated_from_whole_spans(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    report.show(report.settings)
    everything = report.kept
    monkeypatch.setattr(whatif, "ROWS", 100)
    report.show(report.settings)
    told = re.fullmatch(r"estimated from (\d+) of (\d+) scenes", report.page.locator("#sampled").inner_text())
    assert told and 50 < int(told[1]) <= 100 < int(told[2])
    assert report.kept == pytest.approx(everything, rel=0.3)
