"""Workers that caption: what they write, and that a worker that was started anew asks nobody twice."""

from pathlib import Path
from typing import Any

import numpy as np

from actors.core.stage import Batch
from actors.core.store import Store
from actors.curation.captioning.recaptioners import Answers, LocalRecaptioner, ServiceRecaptioner, answers_of, packed
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.tables import CAPTIONS
from actors.models.vlm.asking import Turns
from actors.models.vlm.services import Key
from tests.actors.curation.captioning.asked import frames
from tests.support.servers import Gemini
from tests.support.tiny_models import captioning_model


def scenes(count: int, styles: Any = ("improved",), lost: int | None = None) -> Batch:
    """A batch of key_frames_of; the scene `lost` has no pictures."""
    rows = [{"caption": f"scene {number}", "start_s": 0.0, "end_s": 2.0} for number in range(count)]
    pictures = np.empty(count, object)
    pictures[:] = [frames(0 if number == lost else 1 + number % 3) for number in range(count)]
    failed = ["not_found" if number == lost else "" for number in range(count)]
    columns = {
        "video_id": ["a"] * count,
        "scene_id": [f"a.{number}" for number in range(count)],
        "caption": [packed(row, styles) for row in rows],
        "error": failed,
        "message": ["no such film" if code else "" for code in failed],
    }
    return {name: np.array(values, object) for name, values in columns.items()} | {"frames": pictures}


def stored(store: Store) -> dict[tuple[str, str], Any]:
    return {(row["scene_id"], row["style"]): row for row in store.read_table("captions", CAPTIONS).to_pylist()}


def worker(gemini: Gemini, root: str, run: str, turns: Turns | None = None) -> ServiceRecaptioner:
    config = CaptionsConfig(endpoint=gemini.endpoint, pause_s=0.01)
    return ServiceRecaptioner(Answers(Store(root), config, run), Key(gemini.key), turns or Turns(), 2)


def test_answers_lie_in_a_store_and_are_found_by_a_worker_that_was_started_anew(s3: str, gemini: Gemini):
    answers = answers_of(worker(gemini, s3, "one")(scenes(4, lost=2)))
    assert [answer.code for answer in answers] == ["", "", "caption_failed", ""]
    assert len(Store(s3).parts("captions")) == 4 and len(gemini.asked) == 3
    assert answers_of(worker(gemini, s3, "one")(scenes(5, lost=2)))[:4] == answers
    assert [caption for caption, _ in gemini.asked[3:]] == ["scene 4"]
    assert stored(Store(s3))["a.2", "improved"]["message"] == "not_found: no such film"
    # Another run asks for what it is told to.
    worker(gemini, s3, "two")(scenes(1))
    assert gemini.count("scene 0") == 2


def test_what_ends_a_run_leaves_others_unasked(tmp_path: Path, gemini: Gemini):
    turns = Turns()
    turns.end(403, "the key is revoked")
    answers = answers_of(worker(gemini, str(tmp_path), "one", turns)(scenes(3)))
    assert {answer.code for answer in answers} == {"unfinished"}
    assert gemini.asked == [] and Store(str(tmp_path)).parts("captions") == []


def test_a_model_in_the_worker_writes_a_part_for_each_call(tmp_path: Path):
    known = ["old", "young", "man", "woman", "dog", "walks", "in", "on", "street", "river", "red", "green"]
    model = captioning_model(tmp_path / "model", known)
    prompt = "{caption} {title} {duration}"
    found = {}
    for size in (1, 2, 5):
        config = CaptionsConfig(by="transformers", model=model, batch_size=size, styles=("free",), prompt=prompt)
        store = Store(str(tmp_path / f"out{size}"))
        LocalRecaptioner(Answers(store, config, "one"))(scenes(5, ("free",), lost=3))
        assert len(store.parts("captions")) == 1
        rows = stored(store)
        assert (rows["a.3", "free"]["code"], rows["a.3", "free"]["attempts"]) == ("caption_failed", 0)
        assert rows["a.0", "free"]["prompt"] == config.prompt_id("free")
        found[size] = {key: {**row, "written": 0} for key, row in rows.items()}
    # Whatever is beside a scene in a batch.
    assert found[1] == found[2] == found[5]


def test_a_key_is_not_shown_by_accident():
    assert repr(Key("sk-secret")) == "Key(…)" and f"{Key('sk-secret')}" == "sk-secret"
    assert "secret" not in str([Key("sk-secret")])
