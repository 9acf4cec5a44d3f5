"""Texts about films as further features: subtitles and plots, embedded passage by passage.

list   task     1 -> N: a film's text, in passages of about 150 words
embed  actors   1 -> 1: passages become vectors
gather driver   N -> 1: a film's array, once all of its passages are there
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from actors.core import storage
from actors.core.addresses import short_name
from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.genres.texts import SUFFIXES, SentenceEmbedder, SentencesConfig, list_passages
from actors.media.images import natural
from pipelines.core.ray_data import batches, fitted, ray_actors, ray_task, set_context
from pipelines.genres.embed import gathered, read_about, store_films, stored_films

LIST = Stage(num_cpus=0.25)
"""Reading a film's text."""


@dataclass(frozen=True)
class TextsConfig:
    """Settings of `texts`."""

    input: str
    """A folder or prefix with one text per film: subtitles FILM.srt or .vtt, FILM.txt, or meta FILM.json with its plot
    (overview, plot, storyline, synopsis)."""
    output: str = "output/texts"
    """Folder or s3:// prefix for features/ (one array per film), for `extra=` of train, predict and score. It cannot be
    the output of `embed`."""
    sentences: SentencesConfig = field(default_factory=SentencesConfig)
    """The sentence transformer that embeds passages, and its actors."""
    autoscaling: bool = False
    """Set on an autoscaling cluster: pools stay as requested instead of being scaled to the nodes that are up."""


@dataclass(frozen=True)
class TextsPlan:
    """What `texts` has to do."""

    films: list[Row]
    """Every film of the input: film, uri."""
    todo: list[Row]
    """Those without vectors."""

    def stages(self, config: TextsConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
        """Actor pools and task stages, by name."""
        return {"embed": config.sentences}, {"list": LIST}


def plan_texts(config: TextsConfig) -> TextsPlan:
    """The films of the input and those left to do; raises UserError where input, model or output do not fit."""
    root = storage.absolute(config.input)
    entries = [entry for entry in storage.children(root)[1] if entry.name.lower().endswith(SUFFIXES)]
    films: list[Row] = [{"film": short_name(PurePosixPath(one.name).stem), "uri": one.uri} for one in entries]
    if not films:
        raise UserError(f"{config.input} has no texts; their names end in {', '.join(SUFFIXES)}")
    counts = Counter(film["film"] for film in films)
    if twice := sorted(film for film, count in counts.items() if count > 1):
        raise UserError(f"Several texts in {config.input} are of {', '.join(twice[:5])}. Keep one of each film.")
    store, name = Store(config.output), config.sentences.name()
    made = store.read_json("embedding.json")
    if made and made["model"] != name:
        raise UserError(f"{config.output} has vectors of another model ({made['model']}). Use another output.")
    done = stored_films(store)
    films.sort(key=lambda film: natural(film["film"]))
    return TextsPlan(films, [film for film in films if film["film"] not in done])


def embed_texts(config: TextsConfig, plan: TextsPlan) -> dict[str, Any]:
    """Embed the films that are left; returns rows, stages and notes for the run record."""
    store, started = Store(config.output), time.monotonic()
    store.write_json({"model": config.sentences.name()}, "embedding.json")
    if plan.todo:
        import ray

        set_context()
        stages = fitted(*plan.stages(config), config.autoscaling)
        model: Any = stages["embed"]
        blocks = min(-(-len(plan.todo) // 8), 1000)
        films = ray.data.from_items(plan.todo, override_num_blocks=blocks)
        actors = ray_actors(model, inputs=blocks)
        rows = films.flat_map(list_passages, **ray_task(stages["list"])).map_batches(
            SentenceEmbedder, fn_constructor_args=[model], batch_size=model.batch_size, **actors
        )
        store_films(store, gathered(batches(rows)), len(plan.todo), config.sentences.computed)
    names = [film["film"] for film in plan.films]
    left = {film["film"] for film in plan.todo}
    rejected: Counter[str] = Counter()
    passages = new = 0
    for name, about in zip(names, read_about(store, names), strict=True):
        rejected.update(about["rejected"])
        passages += len(about["images"])
        new += len(about["images"]) if name in left else 0
    seconds = round(time.monotonic() - started, 1)
    return {
        "rows": {"in": len(names), "out": len(names) - rejected.total(), "rejected": dict(rejected)},
        "stages": {"embed": {"rows": new, "seconds": seconds}},
        "passages": passages,
    }
