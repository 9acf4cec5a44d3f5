"""Which scenes are asked for, in what order, their clips, and that every answer is on disk at once."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import psutil
import pytest

from actors.core import storage
from actors.core.store import Store
from pipelines.curation.selecting import annotate
from pipelines.curation.selecting.annotate import (
    ClipError,
    Clips,
    NotCurrentError,
    Session,
    count_to_label,
    in_order,
    scenes_to_label,
)
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.selecting.labels import Labels, read_labels, write_labels
from tests.pipelines.curation.outputs import config, fast_is_good, scene, write_plan, write_scores
from tests.support import films

PATIENCE_S = 60


def table(videos: dict[str, int]) -> pd.DataFrame:
    """So many scenes of each video, `a.0_0`, `a.0_1`, …"""
    rows = [
        scene(f"{name}.0_{i}", video_index=number)
        for number, (name, count) in enumerate(videos.items())
        for i in range(count)
    ]
    return pd.DataFrame(rows)


def ids(scenes: pd.DataFrame) -> list[str]:
    return list(scenes.scene_id)


def test_only_sound_scenes_with_all_features_are_asked_for(tmp_path: Path):
    store = Store(str(tmp_path))
    write_plan(store, {"a": 4})
    rows = [scene("a.0_0"), scene("a.0_1", error="crashed"), scene("a.0_2", mse=math.nan), scene("a.0_3", no_frames=2)]
    write_scores(store, *rows)
    assert sorted(ids(scenes_to_label(store, 3).scenes)) == ["a.0_0", "a.0_3"]
    assert count_to_label(store) == 2


def test_an_output_without_such_scenes_is_refused(tmp_path: Path):
    store = Store(str(tmp_path))
    write_plan(store, {"a": 1})
    write_scores(store, scene("a.0_0", error="crashed"))
    with pytest.raises(ValueError, match="Run `score` first"):
        scenes_to_label(store, 3)


def test_a_session_asks_for_the_first_scenes_that_have_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, videos = Store(str(tmp_path)), {"a": 9, "b": 4}
    write_plan(store, videos)
    rows: list[Any] = table(videos).to_dict("records")
    write_scores(store, *rows[::2])
    write_scores(store, *rows[1::2])
    order = in_order(table(videos), 2, seed=3)
    labels: Labels = {("b", "b.0_1"): 1, ("a", "a.0_7"): 0}
    left = [name for name in ids(order) if name not in ("b.0_1", "a.0_7")]
    asked = scenes_to_label(store, 2, 3, None, labels)
    assert (ids(asked.scenes), asked.beyond) == (left, 0)
    turns = dict(zip(order.scene_id, order["round"], strict=True))
    assert list(asked.scenes["round"]) == [turns[name] for name in left]
    monkeypatch.setattr(annotate, "AT_ONCE", 4)
    some = scenes_to_label(store, 2, 3, None, labels)
    assert (ids(some.scenes), some.beyond) == (left[:4], 7)
    assert Session(some.scenes, str(tmp_path / "labels/me.json"), {}, some.beyond).left == 11


def test_no_video_has_its_fourth_turn_before_all_had_three():
    scenes = in_order(table({"a": 40, "b": 5, "c": 2}), per_video=3)
    assert sorted(ids(scenes)) == sorted(ids(table({"a": 40, "b": 5, "c": 2})))
    assert Counter(scenes.video_id[:8]) == {"a": 3, "b": 3, "c": 2}
    assert Counter(scenes.video_id[8:13]) == {"a": 3, "b": 2}
    assert list(scenes["round"]) == sorted(scenes["round"])


def test_the_order_is_random_but_the_same_for_the_same_seed_and_rows():
    rows = table({"a": 30, "b": 30})
    first = ids(in_order(rows, 3, seed=1))
    assert first == ids(in_order(rows.sample(frac=1, random_state=5), 3, seed=1))
    assert first != ids(in_order(rows, 3, seed=2))
    assert [name for name in first if name.startswith("a")] != [f"a.0_{i}" for i in range(30)]
    assert {name[0] for name in ids(in_order(rows, 60))[:20]} == {"a", "b"}


def test_what_a_filter_doubts_most_comes_first_in_each_round():
    model = fit(fast_is_good(noise=0.2), FitConfig("out"))
    speeds = np.random.default_rng(3).uniform(0.2, 6, 60)
    rows = [scene(f"{'ab'[i % 2]}.0_{i}", mean_velocity=speed) for i, speed in enumerate(speeds)]
    scenes = in_order(pd.DataFrame(rows), per_video=10, model=model)
    doubt = scenes.assign(far=abs(model.probability(scenes) - 0.5))
    assert doubt.far.nunique() > 3
    assert [far.is_monotonic_increasing for _, far in doubt.groupby("round").far] == [True] * 3
    for _, far in doubt.groupby(["video_id", "round"]).far.agg(["min", "max"]).groupby("video_id"):
        # What of a film comes in a later round is surer than all that came before.
        assert (far["max"].to_numpy()[:-1] <= far["min"].to_numpy()[1:]).all()
    assert Counter(scenes.video_id[:20]) == {"a": 10, "b": 10}


@pytest.fixture
def session(tmp_path: Path) -> Callable[[], Session]:
    """A new session over the same six scenes."""
    scenes, folder = in_order(table({"a": 3, "b": 3}), 3), tmp_path / "labels"
    return lambda: Session(scenes, str(folder / "anna.json"), read_labels(str(folder)))


def current(session: Session) -> tuple[str, str]:
    row = session.current()
    assert row is not None
    return row["video_id"], row["scene_id"]


def on_disk(session: Session) -> dict[str, int]:
    return json.loads(Path(session.file).read_bytes()) if Path(session.file).exists() else {}


def test_each_answer_is_on_disk_and_a_new_session_goes_on_there(session: Callable[[], Session]):
    one = session()
    asked = []
    for label in (1, 0, 1):
        asked.append(current(one))
        one.answer(current(one), label)
        assert list(on_disk(one).values()) == [1, 0, 1][: len(asked)]
    assert [f"frames/{video}/{name}" for video, name in asked] == list(on_disk(one))
    expected = current(one)
    again = session()
    assert current(again) == expected
    assert again.left == 3
    for _ in range(3):
        again.answer(current(again), 0)
    assert again.current() is None
    assert len(on_disk(again)) == 6


def test_annotations_of_the_reference_system_are_gone_on_with(tmp_path: Path):
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"frames\\a\\a.0_0": 1, "/data/frames/elsewhere/e.0_0/": 0}))
    one = Session(in_order(table({"a": 2}), 3), str(file), read_labels(str(file)))
    assert current(one) == ("a", "a.0_1")
    one.answer(current(one), 0)
    assert on_disk(one) == {"frames/a/a.0_0": 1, "frames/elsewhere/e.0_0": 0, "frames/a/a.0_1": 0}


def test_a_skipped_scene_is_no_label_and_comes_back_in_a_new_session(session: Callable[[], Session]):
    one = session()
    skipped = current(one)
    one.answer(skipped, None)
    assert current(one) != skipped
    assert on_disk(one) == {}
    assert current(session()) == skipped


def test_undo_takes_back_answers_one_by_one_on_disk_too(session: Callable[[], Session]):
    one = session()
    asked = []
    for label in (1, None, 0):
        asked.append(current(one))
        one.answer(current(one), label)
    for kept in (1, 1, 0):
        one.undo()
        assert current(one) == asked.pop()
        assert len(on_disk(one)) == kept
    one.undo()
    assert one.left == 6 and one.answers == []
    one.answer(current(one), 0)
    assert list(on_disk(one).values()) == [0]


def test_an_answer_to_another_scene_than_the_current_one_changes_nothing(session: Callable[[], Session]):
    one = session()
    first = current(one)
    one.answer(first, 1)
    for key in (first, ("a", "nowhere"), ("../..", "x")):
        with pytest.raises(NotCurrentError):
            one.answer(key, 0)
    assert list(on_disk(one).values()) == [1]


def test_a_label_that_cannot_be_written_leaves_its_scene_current(session: Callable[[], Session]):
    one = session()
    Path(one.file).parent.write_text("a file where the folder should be")
    before = current(one)
    with pytest.raises(OSError, match="labels"):
        one.answer(before, 1)
    assert current(one) == before and one.answers == []


def test_labels_made_elsewhere_meanwhile_stay(session: Callable[[], Session]):
    one = session()
    one.answer(current(one), 1)
    elsewhere = session()
    for _ in range(2):
        elsewhere.answer(current(elsewhere), 0)
    two = current(session())
    one.answer(current(one), 1)
    assert len(on_disk(one)) == 3
    assert current(session()) == two


def test_agreement_with_others_follows_each_label(session: Callable[[], Session], tmp_path: Path):
    one = session()
    rows = one.scenes.loc[one.ahead(4)]
    said: Labels = dict(zip(zip(rows.video_id, rows.scene_id, strict=True), (1, 0, 1, 0), strict=True))
    write_labels(str(tmp_path / "labels" / "bert.json"), said)
    write_labels(str(tmp_path / "labels" / "carl.json"), {("z", "z.0_0"): 1})
    one = session()
    assert one.agreement() == {}
    for label in (1, 0, 0, 0):
        one.answer(current(one), label)
    found = one.agreement()
    assert list(found) == ["bert"]
    # Three of four agree; by chance half would: one calls half of them good.
    assert (found["bert"].scenes, found["bert"].share, found["bert"].kappa) == (4, 0.75, pytest.approx(0.5))


# --------------------------------------------------------------------------------------------------------------- clips


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.film(tmp_path_factory.mktemp("films") / "a.mp4", audio="aac")


@pytest.fixture
def make(film: Path, tmp_path: Path) -> Iterator[Callable[..., Clips]]:
    """Clips of the three shots of a film, after those of a film that is missing."""
    made = []

    def clips(output: object = tmp_path / "out") -> Clips:
        shots = [(0, 2), (2, 3.5), (3.5, 4.75)]
        rows = [scene(f"a.{k}_0", uri=str(film), start_s=a, end_s=b, round=0) for k, (a, b) in enumerate(shots)]
        gone = scene("gone.0_0", uri=str(tmp_path / "gone.mp4"), video_index=1, round=0)
        late = scene("a.9_0", uri=str(film), start_s=60, end_s=61, round=1)
        made.append(Clips(pd.DataFrame([gone, *rows, late]), config(output)))
        return made[-1]

    yield clips
    for one in made:
        one.stop()


def numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [films.read_stamp(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_a_clip_holds_the_frames_of_its_scene(make: Callable[..., Clips]):
    clips = make()
    clips.want([2, 1])
    assert numbers(clips.clip(2).result(PATIENCE_S)) == list(range(48, 84))
    assert numbers(clips.clip(1).result(PATIENCE_S)) == list(range(48))
    # Scenes of the same film and round are cut while it is decoded.
    assert numbers(clips.clip(3).result(PATIENCE_S)) == list(range(84, 114))
    old = clips.clip(1).result(0)
    clips.forget(1)
    assert not old.exists()
    clips.want([1])
    assert numbers(clips.clip(1).result(PATIENCE_S)) == list(range(48))


def test_a_clip_that_cannot_be_cut_says_why_and_the_next_one_is_cut(make: Callable[..., Clips]):
    clips = make()
    clips.want([0, 4, 1])
    with pytest.raises(ClipError, match=r"gone\.mp4"):
        clips.clip(0).result(PATIENCE_S)
    with pytest.raises(ClipError, match="before the scene does"):
        clips.clip(4).result(PATIENCE_S)
    assert clips.clip(1).result(PATIENCE_S).exists()


def test_a_clip_that_was_exported_is_taken(make: Callable[..., Clips], s3: str):
    storage.write_bytes(f"{s3}/clips/gone/gone.0_0.mp4", b"exported")
    clips = make(s3)
    clips.want([0])
    assert clips.clip(0).result(PATIENCE_S).read_bytes() == b"exported"


def test_stopping_leaves_no_file_and_no_process(make: Callable[..., Clips]):
    before = set(psutil.Process().children())
    clips = make()
    clips.want([1, 0, 4])
    path = clips.clip(1).result(PATIENCE_S)
    clips.stop()
    assert not path.parents[1].exists()
    with pytest.raises(ClipError):
        clips.clip(4).result(PATIENCE_S)
    assert set(psutil.Process().children()) <= before
