"""Scenes are captioned once: what is sent, what is written, and where a run ends early and goes on."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core.store import Store
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.captioning.styles import PROMPT, fill
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.tables import CAPTIONS
from actors.models.vlm.asking import Refusal, ServiceDownError
from pipelines.curation.captioning.recaption import Recaptioned, estimate, forget_failed, recaption, unasked
from pipelines.curation.rows import captions
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.outputs import Row, config, scene
from tests.support import films
from tests.support.servers import Gemini, Said, blocks, fails, says
from tests.support.tiny_models import captioning_model


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds at 24 frames a second."""
    return films.film(tmp_path_factory.mktemp("films") / "a.mp4", shots=(48,) * 5)


def scenes(film: Path, count: int) -> list[Row]:
    """Sound rows of scores/: scene i begins with second i and lasts one second."""
    about = [{"caption": f"scene {i}", "start_s": float(i), "end_s": i + 1.0, "uri": str(film)} for i in range(count)]
    return [scene(f"a.{i}_0", video_id=film.stem, **about[i]) for i in range(count)]


def settings(output: object, gemini: Gemini, **more: Any) -> CurationConfig:
    captions = {"endpoint": gemini.endpoint, "pause_s": 0.01, "timeout_s": 30, "requests_at_once": 3, **more}
    return config(output, frames=FramesConfig(size=64), captions=CaptionsConfig(**captions))


def answers(output: object) -> dict[str, Row]:
    """What is stored, by scene."""
    rows: list[Any] = captions(Store(str(output)), "message", "attempts", "requests").to_dict("records")
    return {row["scene_id"]: row for row in rows}


def test_each_scene_is_sent_with_three_frames_and_paid_for_once(
    ray_cluster: None, tmp_path: Path, film: Path, gemini: Gemini
):
    todo = scenes(film, 6)
    gemini.replies["scene 2"] = [says("NO"), says("the second try, on a river at night")]
    gemini.replies["scene 3"] = [blocks()]
    lost = {**todo[5], "video_id": "b", "uri": str(tmp_path / "gone.mp4")}
    chosen = settings(tmp_path, gemini)
    done = recaption(chosen, [*todo[:5], lost, todo[0]])
    assert (done.captioned, done.failed, done.left, done.requests) == (4, 2, 0, 4 + 1 + 3)
    assert done.tokens_in == 8000 and done.tokens_out == 50 * 5
    assert done.usd == pytest.approx((8000 * 0.30 + 250 * 2.50) / 1e6, abs=1e-4)
    for caption, pictures in gemini.asked:
        start = 24 * int(caption.split()[1])
        assert [films.read_stamp(picture) for picture in pictures] == [start, start + 12, start + 18]
    assert gemini.most_at_once <= 3

    found = answers(tmp_path)
    assert len(found) == 6 and len(Store(str(tmp_path)).parts("captions")) == 1
    assert found["a.0_0"]["recaption"] == "a better caption, with more light in it, than scene 0"
    assert (found["a.2_0"]["recaption"], found["a.2_0"]["attempts"]) == ("the second try, on a river at night", 2)
    refused = found["a.3_0"]
    assert (refused["recaption"], refused["code"], refused["message"]) == ("", "caption_failed", "refused: SAFETY")
    gone = found["a.5_0"]
    assert (gone["code"], gone["requests"]) == ("caption_failed", 0) and gone["message"].startswith("not_found: ")

    asked = len(gemini.asked)
    assert recaption(chosen, [*todo, lost]).requests == 1
    assert recaption(chosen, [*todo, lost]) == Recaptioned()
    assert [caption for caption, _ in gemini.asked[asked:]] == ["scene 5"]

    # What failed is asked for again only where that is wished.
    assert forget_failed(Store(str(tmp_path))) == {("a", "a.3_0"), ("b", "a.5_0")}
    gemini.replies["scene 3"] = [says("at last, a man in the rain")]
    assert recaption(chosen, todo).captioned == 1
    assert answers(tmp_path)["a.3_0"]["recaption"] == "at last, a man in the rain"


def test_a_budget_ends_the_run_and_the_next_goes_on(ray_cluster: None, tmp_path: Path, film: Path, gemini: Gemini):
    todo = scenes(film, 5)
    gemini.replies["scene 0"] = [says("BAD"), says("a good one, with the sea")]
    done = recaption(settings(tmp_path, gemini, max_requests=3, requests_at_once=1), todo)
    assert (done.requests, done.captioned, done.failed, done.left) == (3, 2, 0, 3)
    done = recaption(settings(tmp_path, gemini, max_requests=100), todo)
    assert (done.requests, done.captioned, done.left) == (3, 3, 0)
    assert len(gemini.asked) == 6 and len(answers(tmp_path)) == 5


def test_a_refused_key_ends_the_run_and_keeps_what_was_paid_for(
    ray_cluster: None, tmp_path: Path, film: Path, gemini: Gemini, monkeypatch: pytest.MonkeyPatch
):
    todo, chosen = scenes(film, 4), settings(tmp_path, gemini, requests_at_once=1)
    gemini.replies["scene 2"] = [fails(403, "PERMISSION_DENIED", "the project has been closed")]
    with pytest.raises(Refusal, match="the project has been closed"):
        recaption(chosen, todo)
    assert sorted(answers(tmp_path)) == ["a.0_0", "a.1_0"]
    with monkeypatch.context() as another:
        another.setenv("GEMINI_API_KEY", "wrong")
        with pytest.raises(Refusal, match="check GEMINI_API_KEY"):
            recaption(chosen, todo)
    gemini.replies.clear()
    assert recaption(chosen, todo).requests == 2
    assert len(Store(str(tmp_path)).parts("captions")) == 1
    assert all(gemini.answered[f"scene {i}"] == 1 for i in range(4))


def test_a_service_that_is_down_ends_the_run(ray_cluster: None, tmp_path: Path, film: Path, gemini: Gemini):
    gemini.otherwise = fails(503, "UNAVAILABLE", "overloaded")
    todo = [{**row, "scene_id": f"{row['scene_id']}{copy}"} for copy in "abcde" for row in scenes(film, 5)]
    with pytest.raises(ServiceDownError, match=r"20 answers in a row.*503 overloaded"):
        recaption(settings(tmp_path, gemini, requests_at_once=1, pause_s=0), todo)
    assert len(gemini.asked) == 20 * 3


def test_other_captions_and_models_count_as_answered_unless_wished(
    ray_cluster: None, tmp_path: Path, film: Path, gemini: Gemini
):
    todo = scenes(film, 2)
    recaption(settings(tmp_path, gemini), todo)
    changed = [{**todo[0], "caption": "another text"}, todo[1]]
    assert list(unasked(settings(tmp_path, gemini, model="gemini-next"), changed)) == []
    again = settings(tmp_path, gemini, again=True)
    lacking = unasked(settings(tmp_path, gemini, again=True, model="gemini-next"), changed)
    assert list(lacking) == [{**row, "styles": ["improved"]} for row in changed]
    gemini.replies["another text"] = [Said({}, 500)]
    assert recaption(again, changed).failed == 1
    assert list(unasked(again, changed)) == []
    # A new answer that failed does not cost the old one.
    assert answers(tmp_path)["a.0_0"]["recaption"].endswith("scene 0")


def test_of_doubles_the_last_sound_one_counts(tmp_path: Path):
    store = Store(str(tmp_path))
    base = dict.fromkeys(CAPTIONS.names, "") | {
        "attempts": 1,
        "requests": 1,
        "tokens_in": 0,
        "tokens_out": 0,
        "film": 0,
        "version": 0,
        # As of earlier versions.
        "style": None,
    }
    made = [("x", "first", "", 1.0), ("x", "second", "", 2.0), ("x", "", "caption_failed", 3.0)]
    made += [("y", "", "caption_failed", 1.0), ("z", "same", "", 1.0), ("z", "same", "", 1.0)]
    for number, (name, text, code, written) in enumerate(made):
        row = base | {"scene_id": name, "recaption": text, "code": code, "written": written}
        store.write_part("captions", pa.Table.from_pylist([row], CAPTIONS), [str(number)])
    counted = {row["scene_id"]: (row["recaption"], row["code"]) for row in captions(store).to_dict("records")}
    assert counted == {"x": ("second", ""), "y": ("", "caption_failed"), "z": ("same", "")}
    assert captions(Store(str(tmp_path / "nothing"))).empty


def test_the_estimate_is_frames_and_words_at_their_prices(tmp_path: Path, film: Path, gemini: Gemini):
    chosen = settings(tmp_path, gemini, tokens_per_frame=100, usd_in=1.0, usd_out=10.0)
    cost = estimate(chosen, unasked(chosen, scenes(film, 10)))
    text = len(fill(PROMPT + "{caption}", "scene 0")) // 4
    assert (cost.scenes, cost.tokens_in, cost.tokens_out) == (10, 10 * (300 + text), 1500)
    assert cost.usd == pytest.approx((cost.tokens_in + 15000) / 1e6)
    own = config(tmp_path, captions=CaptionsConfig(by="transformers", model="some/model"))
    assert estimate(own, unasked(own, scenes(film, 10))).usd == 0


@pytest.mark.slow
def test_a_local_model_captions_in_actors(ray_cluster: None, tmp_path: Path, film: Path):
    known = ["old", "young", "man", "woman", "dog", "walks", "in", "on", "street", "river", "red", "green"]
    model = captioning_model(tmp_path / "model", known)
    chosen = config(
        tmp_path / "out",
        frames=FramesConfig(size=64),
        captions=CaptionsConfig(by="transformers", model=model),
    )
    lost = {**scene("c.0_0"), "uri": str(tmp_path / "gone.mp4")}
    done = recaption(chosen, [*scenes(film, 3), lost])
    assert (done.captioned, done.failed, done.left, done.usd) == (3, 1, 0, 0)
    found = answers(tmp_path / "out")
    assert all(set(found[f"a.{i}_0"]["recaption"].split()) <= set(known) for i in range(3))
    assert found["c.0_0"]["message"].startswith("not_found: ")
    with pytest.raises(ValueError, match="cannot be loaded"):
        recaption(config(tmp_path, captions=CaptionsConfig(by="transformers", model=str(film.parent))), [lost])
