"""Captions by a server of the OpenAI protocol and by vLLM, in several styles, and where these reach."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import ray.data.llm
from ray.data.llm import build_processor

from actors.core.store import Store
from actors.curation.captioning.engine import request, response
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.exporting.layouts import text_of
from actors.curation.tables import CAPTIONS
from actors.models.vlm.asking import Refusal
from pipelines.curation.captioning.caption_engine import engine_config
from pipelines.curation.captioning.recaption import estimate, forget_failed, improving, recaption, unasked
from pipelines.curation.rows import captions, captions_by_style
from pipelines.curation.settings import CurationConfig
from tests.pipelines.curation.captioning.test_recaption import scenes
from tests.pipelines.curation.outputs import Row, config
from tests.support import films
from tests.support.chat_server import KEY, MODEL, SOUND, ChatServer, chat_server, fails, says
from tests.support.tiny_models import captioning_model


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds at 24 frames a second."""
    return films.film(tmp_path_factory.mktemp("films") / "a.mp4", shots=(48,) * 5)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as process:
        yield process


def settings(output: object, server: ChatServer | None = None, **more: Any) -> CurationConfig:
    by = {"by": "openai", "endpoint": server.endpoint, "model": MODEL} if server else {}
    about = {**by, "pause_s": 0.01, "timeout_s": 30, **more}
    return config(output, frames=FramesConfig(size=64), captions=CaptionsConfig(**about))


def rows(output: object) -> dict[tuple[str, str], Row]:
    found: list[Any] = captions_by_style(Store(str(output))).to_dict("records")
    return {(row["scene_id"], row["style"]): row for row in found}


def test_a_server_is_asked_by_workers_for_each_style(
    ray_cluster: None, tmp_path: Path, film: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the driver sends a request")

    monkeypatch.setattr(httpx2.Client, "post", refuse)
    # The server takes three at once: some requests are refused and made again, and nobody fails by that.
    server.script(
        takes=3, wait_s=0.1, replies={"scene 1*": [fails(500, "out of memory"), says("A dog runs on a beach.")]}
    )
    todo, chosen = scenes(film, 4), settings(tmp_path, server, styles=("improved", "short"))
    lacking = unasked(chosen, todo)
    assert (estimate(chosen, lacking).captions, estimate(chosen, lacking).usd) == (8, 0)
    done = recaption(chosen, todo)
    assert (done.captioned, done.failed, done.left, done.usd) == (8, 0, 0, 0)
    found = rows(tmp_path)
    assert {key[1] for key in found} == {"improved", "short"} and len(found) == 8
    assert found["a.1_0", "improved"]["recaption"] == f"{SOUND}scene 1"
    assert (found["a.1_0", "short"]["recaption"], found["a.1_0", "short"]["attempts"]) == ("A dog runs on a beach.", 2)
    assert {row["recaption"] for row in captions(Store(str(tmp_path))).to_dict("records")} == {
        f"{SOUND}scene {number}" for number in range(4)
    }
    # Only what is lacking is asked for.
    assert list(unasked(settings(tmp_path, server, styles=("short", "long")), todo)) == [
        {**row, "styles": ["long"]} for row in todo
    ]
    server.script(takes=None, wait_s=0)


def test_a_refused_key_ends_the_run(
    ray_cluster: None, tmp_path: Path, film: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(Refusal, match="check OPENAI_API_KEY"):
        recaption(settings(tmp_path, server), scenes(film, 2))
    assert rows(tmp_path) == {}


def test_answers_of_earlier_versions_are_recaptions(tmp_path: Path):
    store, old = Store(str(tmp_path)), CAPTIONS.remove(CAPTIONS.get_field_index("style"))
    answer = dict.fromkeys(old.names) | {"video_id": "a", "scene_id": "a.0_0", "recaption": "a man", "code": ""}
    store.write_part("captions", pa.Table.from_pylist([answer | {"written": 1.0}], old), ["old"])
    assert captions(store).recaption.tolist() == ["a man"]
    todo = [{"video_id": "a", "scene_id": "a.0_0", "caption": ""}]
    assert list(unasked(settings(tmp_path), todo)) == []
    assert list(unasked(settings(tmp_path, styles=("improved", "tags")), todo)) == [{**todo[0], "styles": ["tags"]}]


def test_a_failed_style_is_asked_again_and_costs_no_scene(tmp_path: Path):
    store = Store(str(tmp_path))
    about = dict.fromkeys(CAPTIONS.names) | {"video_id": "a", "scene_id": "a.0_0", "written": 1.0}
    answers = [
        {"style": "improved", "recaption": "a man", "code": ""},
        {"style": "tags", "recaption": "", "code": "caption_failed"},
    ]
    store.write_part("captions", pa.Table.from_pylist([about | one for one in answers], CAPTIONS), ["one"])
    assert captions(store).code.tolist() == [""]
    assert forget_failed(store) == {("a", "a.0_0")}
    assert list(rows(tmp_path)) == [("a.0_0", "improved")]


def test_trainers_may_be_told_any_style():
    row = {"caption": "c", "recaption": "r", "captions": {"short": "s"}}
    assert [text_of(row, how) for how in ("recaption", "short", "tags", "both")] == ["r", "s", "c", "c r"]


def test_captions_are_compared_in_the_style_that_recaptions_have(tmp_path: Path):
    several = settings(tmp_path, styles=("improved", "tags"))
    assert improving(several).captions.styles == ("improved",)
    with pytest.raises(ValueError, match=r"captions.styles, or set evaluate.recaption=false"):
        improving(settings(tmp_path, styles=("tags",)))


# ---------------------------------------------------------------------------------------------------------------- vLLM


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CaptionsConfig:
    model = captioning_model(tmp_path_factory.mktemp("model"), ["old", "man", "street"])
    return CaptionsConfig(by="vllm", model=model, num_gpus=2, workers=3, batch_size=48, styles=("improved", "tags"))


def test_rays_engine_is_built_as_the_settings_have_it(ray_cluster: None, engine: CaptionsConfig):
    made = engine_config(engine)
    assert (made.model_source, made.batch_size, made.concurrency) == (engine.model, 48, 3)
    processor = build_processor(made, preprocess=lambda row: row, postprocess=response)
    assert processor.list_stage_names() == ["PrepareMultimodalStage", "ChatTemplateStage", "vLLMEngineStage"]
    stage = processor.get_stage_by_name("vLLMEngineStage")
    asked = stage.fn_constructor_kwargs["engine_kwargs"]
    assert asked["tensor_parallel_size"] == 2 and asked["limit_mm_per_prompt"] == {"image": 3}
    # What Ray's stages want of a row is what we hand over.
    row = {"video_id": "a", "scene_id": "a.0", "style": "improved", "error": "not_found", "message": "", "frames": []}
    ours = request(row | {"caption": '{"caption": "", "start_s": 0, "end_s": 1, "styles": []}'}, engine, 0)
    for one in processor.stages.values():
        assert one.get_required_input_keys().keys() <= ours.keys()


class StandIn:
    """The engine's place in the line, as Ray 2.60 calls what is given to it: it says what is scripted."""

    def __init__(self, attempts: list[int], preprocess: Any, postprocess: Any) -> None:
        self.preprocess, self.postprocess = preprocess, postprocess
        attempts.append(preprocess.keywords["attempt"])

    def __call__(self, dataset: Any) -> Any:
        preprocess, postprocess = self.preprocess, self.postprocess

        def answer(row: Row) -> Row:
            asked = preprocess(row)
            attempt, about = asked["sampling_params"]["seed"], json.loads(asked["caption"])["caption"]
            text = "old, man, street, rain, night" if asked["style"] == "tags" else "an old man in the street"
            if about == "scene 1" and not attempt:
                text = "AN OLD MAN"
            if about == "scene 2" and asked["style"] == "tags":
                text = "old"
            made = {**asked, "generated_text": text, "num_input_tokens": 700, "num_generated_tokens": 7}
            return postprocess(made) | {"__inference_error__": ""}

        return dataset.map(answer)


def test_captions_that_do_not_count_go_through_the_engine_again(
    ray_cluster: None, tmp_path: Path, film: Path, engine: CaptionsConfig, monkeypatch: pytest.MonkeyPatch
):
    attempts: list[int] = []
    monkeypatch.setattr(
        ray.data.llm,
        "build_processor",
        lambda made, preprocess, postprocess: StandIn(attempts, preprocess, postprocess),
    )
    monkeypatch.setattr("pipelines.curation.captioning.recaption.check_captioner", lambda settings: None)
    # The cluster has no GPUs.
    chosen = config(tmp_path, frames=FramesConfig(size=64), captions=engine, autoscaling=True)
    todo = scenes(film, 3)
    lost = {**todo[0], "video_id": "b", "scene_id": "b.0_0", "uri": str(tmp_path / "gone.mp4")}
    done = recaption(chosen, [*todo, lost])
    assert attempts == [0, 1, 2]
    assert (done.captioned, done.failed, done.left) == (5, 3, 0)
    found = rows(tmp_path)
    assert found["a.0_0", "tags"]["recaption"] == "old, man, street, rain, night"
    again = found["a.1_0", "improved"]
    assert (again["recaption"], again["attempts"], again["tokens_in"]) == ("an old man in the street", 2, 1400)
    failed = found["a.2_0", "tags"]
    assert (failed["code"], failed["message"], failed["attempts"]) == (
        "caption_failed",
        "the reply has 1 tags, not 5 to 20",
        3,
    )
    assert found["b.0_0", "improved"]["message"].startswith("not_found: ")
    assert recaption(chosen, [*todo, lost]).requests == 0
