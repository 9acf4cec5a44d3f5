"""Steps of `scale` that begin with kept scenes: what the driver does for them, without Ray and without a film."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.catalog import Replacement
from actors.core.local_files import Entry
from actors.core.store import Store
from actors.curation.captioning.styles import IMPROVED
from actors.curation.tables import CAPTIONS, PLAN_AGAIN, SCENES, SCORES, SELECT_AGAIN, SELECTION, VIDEOS
from pipelines.curation.settings import CurationConfig

STEPS = ("export", "recaption", "annotate", "videos", "evaluate")
KEPT = 1_000_000
"""Scenes that are kept of more."""
WORDS = "a person in a red coat walks slowly along the shore while two dogs chase each other through the water of"


def keep(config: CurationConfig) -> None:
    """Write a selection, and a recaption for each scene of it, where there is none."""
    store = Store(config.output)
    if store.parts("scenes"):
        return
    step = max(1, sum(part.rows for part in store.listed("scores")) // KEPT)
    names = [name for name in SCENES.names if name in SCORES.names]
    with Replacement(store.root, SELECTION, SELECT_AGAIN) as new:
        for number, table in enumerate(store.read_parts("scores", names)):
            kept = np.arange(len(table)) % step == 0
            columns = {name: table[name] for name in names} | {"kept": kept}
            columns |= {"reason": np.where(kept, "", "not_selected"), "recaption": [""] * len(table)}
            scenes = _filled(columns, SCENES, len(table))
            new.add(new.writer.write("scenes", number, scenes))
            some = scenes.filter(pa.array(kept))
            said: dict[str, Any] = {name: some[name] for name in ("video_id", "scene_id", "caption")}
            said |= {"recaption": [f"{WORDS} {name}" for name in some["scene_id"].to_pylist()]}
            said |= dict.fromkeys(("code", "message"), [""] * len(some)) | {"style": [IMPROVED] * len(some)}
            said |= {"written": np.full(len(some), float(number))}
            store.write_part("captions", _filled(said, CAPTIONS, len(some)), [str(number)])
        new.commit({"selection": new.writer.generation})
    # The plan of `select` does not say where films lie.
    videos = store.read_table("plan/videos", VIDEOS)
    urls = pa.array([f"s3://films/{name}.mp4" for name in videos["video_id"].to_pylist()])
    store.commit_table("plan/videos", [videos.append_column("url", urls)], PLAN_AGAIN)


def _filled(columns: dict[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table([columns.get(field.name, pa.nulls(rows, field.type)) for field in schema], schema)


def export(config: CurationConfig) -> str:
    """Export twice: where no clip is there, and where all are."""
    from pipelines.curation.exporting import export as exporting
    from pipelines.curation.exporting.trainers import seen_by_trainers

    config = replace(config, export=replace(config.export, layout="jsonl,metadata_csv"))
    store, listing = Store(config.output), storage.listing
    exporting.written_films = _written

    def listed(uri: str, suffixes: tuple[str, ...] = (), *more: Any) -> Iterator[Entry]:
        return clips_of(store) if uri == store.uri("clips") and suffixes == (".mp4",) else listing(uri, suffixes, *more)

    first = exporting.export(config)
    storage.listing = listed
    second = exporting.export(config)
    assert (first.there, second.written, second.there) == (0, 0, first.written)
    behind, seen = exporting.clips_behind(store), seen_by_trainers(store, "recaption")
    assert behind == (0, 0) and seen and seen.scenes == first.written
    return f"{first.written} clips asked for"


def _written(films: list[Any], *_: Any) -> Iterator[Any]:
    """What workers tell of clips."""
    for film in films:
        for row in json.loads(film.task["wanted"]):
            about = {"video_id": film.task["video_id"], "scene_id": row["scene_id"]}
            yield {**about, "error": "", "message": "", "silenced_s": 0.0}


def clips_of(store: Store) -> Iterator[Entry]:
    """A listing of the clips of all kept scenes."""
    for part in store.read_parts("scenes", ["video_id", "scene_id", "kept"]):
        for rows in part.filter(part["kept"]).to_batches(max_chunksize=1000):
            for video_id, scene_id in zip(rows[0].to_pylist(), rows[1].to_pylist(), strict=True):
                yield Entry(f"{video_id}/{scene_id}.mp4", "", 1000)


def recaption(config: CurationConfig) -> str:
    """All that `recaption` does before and between its requests: which captions of a style are lacking, their price,
    and what workers are asked for."""
    from actors.curation.captioning.recaptioners import packed
    from pipelines.curation.captioning.recaption import estimate, in_waves, unasked
    from pipelines.curation.kept import kept_scenes

    config = replace(config, captions=replace(config.captions, styles=("improved", "short")))
    todo = unasked(config, kept_scenes(Store(config.output)))
    cost = estimate(config, todo)
    waves = [sum(len(packed(row, row["styles"])) for row in some) for some in in_waves(todo)]
    assert cost.captions == cost.scenes == len(todo)
    return f"{cost.captions} captions to make in {len(waves)} waves"


def annotate(config: CurationConfig) -> str:
    """What `annotate` asks for, before its page is served."""
    from pipelines.curation.selecting.annotate import scenes_to_label

    asked = scenes_to_label(Store(config.output), 20)
    return f"{len(asked.scenes)} of {len(asked.scenes) + asked.beyond} scenes"


def videos(config: CurationConfig) -> str:
    """Which key frames a family of whole videos looks at."""
    from actors.curation.measuring.measured import slices_of
    from pipelines.curation.measuring.whole_videos import pictures_of

    store = Store(config.output)
    items = [{"part": name} for part in store.listed("scores") for name in slices_of(part)]
    size = sum(len(item["pictures"]) for item in pictures_of(store, items))
    return f"{len(items)} slices, {size / 1e6:.0f} MB for workers"


def evaluate(config: CurationConfig) -> str:
    """The plan of `evaluate`."""
    from pipelines.curation.evaluating.evaluate import plan_evaluation

    plan = plan_evaluation(config)
    return f"{len(plan.scenes)} scenes, {len(plan.todo)} to be scored"
