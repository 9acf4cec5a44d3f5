"""Of a changed input, and of rows that are tried again, the plan is that which reading all of it gives."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.core.store import Store
from actors.curation.compacting import compact
from actors.curation.tables import NEW_CAPTIONS, STALE
from pipelines.curation.cutting import plan, reading
from pipelines.curation.cutting.plan import Plan, make_plan
from pipelines.curation.settings import CurationConfig
from pipelines.curation.sources import hdvg
from tests.pipelines.curation.cutting.test_unchanged import corpus, measured, planned, write
from tests.pipelines.curation.outputs import quick

AGAIN = frozenset({"bad"})


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    return quick(corpus(tmp_path), tmp_path / "o")


def all_tables(store: Store) -> dict[str, Any]:
    more = {
        name: sorted(map(str, store.read_table(f"plan/{name}", schema).to_pylist()))
        for name, schema in (("stale", STALE), ("captions", NEW_CAPTIONS))
    }
    rejected = [row["scene_id"] for part in store.read_parts("plan/rejected") for row in part.to_pylist()]
    return {**planned(store), **more, "rejected": rejected}


def plan_of(config: CurationConfig, *how: Any) -> tuple[Plan, dict[str, Any]]:
    return make_plan(config, *how), all_tables(Store(config.output))


def read_whole(config: CurationConfig, monkeypatch: pytest.MonkeyPatch, *how: Any) -> tuple[Plan, dict[str, Any]]:
    """The plan where no video is known."""
    with monkeypatch.context() as patched:
        patched.setattr(plan, "unfinished", lambda *_: None)
        patched.setattr(plan.Settled, "lookup", lambda *_: None)
        return plan_of(config, *how)


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the videos whose JSON is parsed as a whole from now on."""
    ids: list[str] = []
    video = hdvg._video
    monkeypatch.setattr(hdvg, "_video", lambda name, *rest: ids.append(name) or video(name, *rest))
    return ids


def new_videos(videos: dict[str, Any], draw: random.Random) -> None:
    name = f"new{draw.random()}"
    text = json.dumps(draw.choice([*videos.values()]))
    videos[name] = json.loads(text)


def another_caption(videos: dict[str, Any], draw: random.Random) -> None:
    a_scene(videos, draw)["caption"] = f"another {draw.random()}"


def other_times(videos: dict[str, Any], draw: random.Random) -> None:
    a_scene(videos, draw)["scene_cut"] = [1, draw.randrange(20, 40)]


def one_scene_less(videos: dict[str, Any], draw: random.Random) -> None:
    scenes = a_span(videos, draw)["scene_split"]
    if len(scenes) > 1:
        scenes.pop(draw.randrange(len(scenes)))


def another_film(videos: dict[str, Any], draw: random.Random) -> None:
    videos[draw.choice([*videos])]["url"] = f"https://host.example/{draw.random()}.mp4"


def one_that_cannot_be_cut(videos: dict[str, Any], draw: random.Random) -> None:
    a_scene(videos, draw)["scene_cut"] = [9, 3]


def another_order(videos: dict[str, Any], draw: random.Random) -> None:
    order = draw.sample([*videos], len(videos))
    for name in order:
        videos[name] = videos.pop(name)


def a_span(videos: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    return draw.choice([*videos[draw.choice([*videos])]["clip"].values()])


def a_scene(videos: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    return draw.choice(a_span(videos, draw)["scene_split"])


CHANGES: list[Callable[[dict[str, Any], random.Random], None]] = [
    *(new_videos, another_caption, other_times, one_scene_less, another_film, one_that_cannot_be_cut, another_order)
]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_that_which_reading_all_of_it_gives(
    config: CurationConfig, tmp_path: Path, seed: int, form: str, monkeypatch: pytest.MonkeyPatch
):
    draw, videos = random.Random(seed), json.loads(Path(config.input).read_text())
    config = quick(tmp_path / f"input.{form}", config.output)
    monkeypatch.setattr(reading, "RANGE_ROWS", 10)
    for _ in range(4):
        text = json.dumps(videos)
        if form == "jsonl":
            text = "\n".join(json.dumps({name: video}) for name, video in videos.items())
        Path(config.input).write_text(text)
        how = draw.choice([(), (AGAIN,), (AGAIN, False, draw.random())])
        assert plan_of(config, *how) == read_whole(config, monkeypatch, *how)
        if rows := measured(config, draw):
            write(config, rows)
        if draw.random() < 0.6:
            compact(Store(config.output))
        assert plan_of(config, *how) == read_whole(config, monkeypatch, *how)
        for change in draw.sample(CHANGES, draw.randrange(3)):
            change(videos, draw)


def finish(config: CurationConfig, **about: Any) -> None:
    """Write the rows of all scenes that are left."""
    make_plan(config)
    every = random.Random(0)
    every.choice = lambda options: 1 if options == [0, 0.5, 1] else about  # type: ignore[method-assign]
    write(config, measured(config, every))


def test_only_what_is_new_is_parsed(config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finish(config)
    videos = json.loads(Path(config.input).read_text())
    videos = {"first": videos["v1"], **videos, "last": videos["v2"]}
    Path(config.input).write_text(json.dumps(videos))
    ids = parsed(monkeypatch)
    assert make_plan(config).todo == 2
    assert ids == ["first", "last"]
    finish(config)
    assert make_plan(config).todo == 0


def test_what_is_tried_again_is_read_without_the_rest(config: CurationConfig, monkeypatch: pytest.MonkeyPatch):
    finish(config, error="bad")
    ids = parsed(monkeypatch)
    made = make_plan(config, AGAIN)
    assert made.todo_scenes == made.scenes and not ids
    assert make_plan(config, AGAIN, before=0.0).todo == 0


def test_a_video_that_now_stands_twice_is_rejected_the_second_time(
    config: CurationConfig, monkeypatch: pytest.MonkeyPatch
):
    finish(config)
    text = Path(config.input).read_text()
    Path(config.input).write_text(f"{text[:-1]},{text[1:]}")
    made, now = plan_of(config)
    assert made.todo == 0 and made.scenes == len(now["rejected"]) * 2
    assert (made, now) == read_whole(config, monkeypatch)


@pytest.mark.parametrize("end", ["", ",", "} x", ',"v9": 1}', ',"v9": {"url": 1, }}'])
def test_an_input_that_is_broken_now_is_refused_as_before(
    config: CurationConfig, end: str, monkeypatch: pytest.MonkeyPatch
):
    finish(config)
    Path(config.input).write_text(Path(config.input).read_text()[:-1] + end)
    before = all_tables(Store(config.output))
    told = []
    for read in (plan_of, lambda config: read_whole(config, monkeypatch)):
        try:
            told.append(str(read(config)[0]))
        except ValueError as error:
            told.append(str(error))
    assert told[0] == told[1]
    assert "broken JSON" not in told[0] or all_tables(Store(config.output)) == before
