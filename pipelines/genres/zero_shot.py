"""Genres of films, and of their scenes, by a vision-language model that was not trained for them.

show   tasks    1 -> N: of each film, and of each scene, some key frames at equal steps, from a folder or tar of
                images, or a video file
ask    actors   1 -> 1: a model in the worker gives the likelihood of each genre, a service a list; each writes at once
write  driver   predictions.parquet and scenes.parquet, as `predict` writes them, and rejected/
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.genres.film_images import ImagesConfig
from actors.genres.shown import shown
from actors.genres.vlm_workers import ANSWERS, OF_SCENES, Asked, LocalGenres, ServiceGenres, problems
from actors.genres.zero_shot import ZeroShotVlm, list_all, name_one
from actors.media.images import Shape
from actors.models.vlm.asking import UNFINISHED
from actors.models.vlm.services import check_vlm, key_of
from pipelines.core.progress import Progress
from pipelines.core.ray_data import batches, fitted, ray_actors, ray_task, set_context
from pipelines.core.turns import finish_turns, shared_turns
from pipelines.genres.embed import REJECTED, Source, find_films, stages_of
from pipelines.genres.process import GENRES
from pipelines.genres.scenes import Part, check_scenes, write_answers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.data import Dataset

    from actors.core.stage import Batch

CALLS = 16
"""Blocks of a film each that a worker takes at once."""


@dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of `zero-shot`."""

    input: str
    """A folder or prefix of films, as for `embed`: one folder or tar of images per film, or video files."""
    output: str = "output/genres/zero_shot"
    """Folder or s3:// prefix for answers/ (one file per film), predictions.parquet and rejected/."""
    scenes: str | int = 0
    """Also classify each scene, into scenes.parquet: a folder or prefix with MovieNet's annotations, one FILM.json per
    film, or how many consecutive shots are one scene. 0: films only. Each scene takes a request of its own."""
    genres: list[str] = field(default_factory=lambda: list(GENRES))
    """The vocabulary: names of genres, at least two. Those of films.npz, so that `score` can compare."""
    frames: int = 8
    """Key frames of each film that the model is shown, from 1, at equal steps through the film."""
    size: int = 448
    """Side of the square in pixels that a frame is scaled into, with black bars beside it."""
    threshold: float = 0.1
    """A genre is chosen from this probability on. Likelihoods sum to 1 over all genres; confidences of a service do
    not, and 0.5 suits them better."""
    vlm: ZeroShotVlm = field(default_factory=ZeroShotVlm)
    """The model, by whom it is run, how fast it is asked and at what price."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """Reading images, and finding key frames in video files."""
    retry: bool = False
    """Ask again for films whose answer failed or was refused."""
    autoscaling: bool = False
    """Set on an autoscaling cluster: pools stay as requested instead of being scaled to the nodes that are up."""

    def __post_init__(self) -> None:
        names = [name.strip().casefold() for name in self.genres]
        if len(names) < 2 or len(set(names)) < len(names) or "" in names:
            raise UserError(f"genres is a list of at least two names, each once, not {self.genres}")
        check_scenes(self.scenes)
        if self.frames < 1 or self.size < 1:
            raise UserError(f"frames and size start at 1, not {self.frames} and {self.size}")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold lies in [0, 1], not at {self.threshold}")

    @property
    def prompt(self) -> str:
        """The text beside the frames."""
        return (list_all if self.vlm.service else name_one)(self.genres)


@dataclass(frozen=True)
class ZeroShotPlan:
    """What `zero-shot` has to do."""

    sources: list[Source]
    """Every film of the input."""
    todo: list[Source]
    """Those that are asked about, or whose scenes are."""
    done: dict[str, list[str]]
    """Names of scenes that are answered, by film; "" is the film itself."""

    def stages(self, config: ZeroShotConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
        """Actor pools and task stages, by name."""
        tasks = {name: stage for name, stage in stages_of(self.todo, config.images).items() if name != "list"}
        return {"ask": config.vlm.pool}, tasks

    def cost(self, config: ZeroShotConfig) -> tuple[int, float]:
        """Input tokens, and US dollars by the settings' prices where each reply counts at once; without scenes."""
        sent = len(self.todo) * (config.frames * config.vlm.tokens_per_frame + len(config.prompt) // 4)
        usd_in, usd_out = config.vlm.prices
        return sent, (sent * usd_in + len(self.todo) * 100 * usd_out) / 1e6


def plan_zero_shot(config: ZeroShotConfig) -> ZeroShotPlan:
    """The films of the input and those left; raises UserError where input, model, key or output do not fit."""
    sources = find_films(config.input)
    store = Store(config.output)
    made, asked = store.read_json("vlm.json"), _asked(config)
    if made:
        before = made.get("scenes", 0)
        # Scenes may be asked about later, and films without them.
        made["scenes"], asked["scenes"] = before or config.scenes, config.scenes or before
    if made and made != asked:
        other = ", ".join(name for name, value in asked.items() if made.get(name) != value)
        raise UserError(f"{config.output} has answers of another {other}. Use another output.")
    check_vlm(config.vlm)
    there = answers(store)
    done = {one.film: _done(config, there.get(one.film, {})) for one in sources}
    todo = [one for one in sources if _left(config, there.get(one.film, {}), done[one.film])]
    return ZeroShotPlan(sources, todo, done)


def _asked(config: ZeroShotConfig) -> dict[str, Any]:
    """What answers of one output have in common."""
    settings = config.vlm
    about = {"by": settings.by, "model": settings.model, "prompt": config.prompt}
    about |= {"genres": config.genres, "frames": config.frames, "size": config.size}
    return {**about, "scenes": config.scenes}


def _done(config: ZeroShotConfig, found: dict[str, Row]) -> list[str]:
    """Names of scenes that are not asked about again; found: answers of a film by scene."""
    return [scene for scene, row in found.items() if not (config.retry and row["code"])]


def _left(config: ZeroShotConfig, found: dict[str, Row], done: list[str]) -> bool:
    """Whether something of a film is not answered yet."""
    if "" not in done:
        return True
    # Of a film that cannot be opened there are no scenes.
    if not config.scenes or not found[""]["frames"]:
        return False
    count = max((row["scenes"] or 0 for scene, row in found.items() if scene), default=0)
    return not count or len(done) - 1 < count


def answers(store: Store) -> dict[str, dict[str, Row]]:
    """The last answer for each film, and scene of it; "" is the film."""
    rows = sorted(store.read_table("answers", ANSWERS, OF_SCENES).to_pylist(), key=lambda row: row["written"])
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["film"], {})[row["scene"] or ""] = row
    return found


def zero_shot(config: ZeroShotConfig, plan: ZeroShotPlan) -> dict[str, Any]:
    """Ask about the films that are left, and write predictions.parquet and rejected/; returns what a record holds.

    Raises Refusal where the key, the model or the endpoint is wrong, ServiceDownError where the service does not answer
    for long. What was answered before is written then, too.
    """
    store, started = Store(config.output), time.monotonic()
    before = (store.read_json("vlm.json") or {}).get("scenes", 0)
    store.write_json(_asked(config) | {"scenes": config.scenes or before}, "vlm.json")
    spent: Counter[str] = Counter()
    total, unit = (None, "answers") if config.scenes else (len(plan.todo), "films")
    with Progress("zero-shot", total, unit) as progress:
        for batch in _ask(config, plan) if plan.todo else ():
            done = int((batch["code"] != UNFINISHED).sum())
            spent.update({name: int(batch[name].sum()) for name in ("requests", "tokens_in", "tokens_out")})
            spent["done"] += done
            progress.fail(Counter(code for code in batch["code"].tolist() if code not in ("", UNFINISHED)))
            progress.advance(done)
    found = answers(store)
    mine = [(one, found[one.film][""]) for one in plan.sources if "" in found.get(one.film, {})]
    of_scenes = [row for one in plan.sources for scene, row in sorted(found.get(one.film, {}).items()) if scene]
    of_scenes = of_scenes if config.scenes else []
    sources = {one.film: one for one in plan.sources}
    rejected = [
        {"film": row["film"], "uri": sources[row["film"]].uri, **problem}
        for row in [*(row for _, row in mine), *of_scenes]
        for problem in problems(row)
    ]
    _write(store, config, {one.film: row["probabilities"] for one, row in mine if not row["code"]}, rejected)
    if config.scenes:
        _write_scenes(store, config, [row for row in of_scenes if not row["code"]])
    codes = Counter(row["code"] for _, row in mine if row["code"])
    usd_in, usd_out = config.vlm.prices
    usd = (spent["tokens_in"] * usd_in + spent["tokens_out"] * usd_out) / 1e6
    again = replace(config, retry=False)
    left = sum(_left(again, (own := found.get(one.film, {})), _done(again, own)) for one in plan.sources)
    noted = "were not asked about" if not config.scenes else "or scenes of them were not asked about"
    return {
        "rows": {"in": len(mine), "out": len(mine) - codes.total(), "rejected": dict(codes)},
        "problems": dict(Counter(row["code"] for row in rejected)),
        "films_left": left,
        **({"scenes": sum(not row["code"] for row in of_scenes)} if config.scenes else {}),
        "notes": [f"{left} films {noted}: vlm.max_requests is reached. Rerun to resume."] if left else [],
        "requests": spent["requests"],
        "tokens": {"in": spent["tokens_in"], "out": spent["tokens_out"], "usd": round(usd, 4)},
        "stages": {"zero-shot": {"rows": spent["done"], "seconds": round(time.monotonic() - started, 1)}},
    }


def _write(store: Store, config: ZeroShotConfig, found: dict[str, list[float]], rejected: list[dict[str, str]]) -> None:
    from pipelines.genres.train import PREDICTIONS

    films, count = list(found), len(config.genres)
    values = np.array([found[film] for film in films], np.float32).reshape(len(films), count)
    columns = {
        "id": [film for film in films for _ in range(count)],
        "genre": config.genres * len(films),
        "probability": values.ravel(),
        "chosen": (values >= np.float32(config.threshold)).ravel(),
    }
    store.write_table(pa.table(columns, PREDICTIONS), "predictions.parquet")
    # Under one name, so that those of the run before are replaced.
    store.write_part("rejected", pa.Table.from_pylist(rejected, REJECTED), ["zero-shot"])


def _write_scenes(store: Store, config: ZeroShotConfig, rows: list[Row]) -> None:
    parts = [
        Part(row["film"], row["scene"], (row["first_shot"], row["last_shot"]), row["start_s"], row["place"])
        for row in rows
    ]
    values = np.array([row["probabilities"] for row in rows], np.float32).reshape(len(rows), len(config.genres))
    least = float(np.float32(config.threshold))
    write_answers(store, parts, values, config.genres, [least] * len(config.genres))


def _ask(config: ZeroShotConfig, plan: ZeroShotPlan) -> Iterator[Batch]:
    pools, tasks = plan.stages(config)
    stages = fitted(pools, tasks, config.autoscaling)
    settings: Any = stages["ask"]
    asked = Asked(Store(config.output), settings, tuple(config.genres), str(time.time()))
    if not settings.service:
        rows, actors = _shown(config, plan, plan.todo, stages), ray_actors(settings, inputs=len(plan.todo))
        yield from batches(rows.map_batches(LocalGenres, fn_constructor_args=[asked], batch_size=1, **actors))
        return
    turns, most = shared_turns(settings), settings.at_once // settings.workers
    # A film takes one request at least.
    rows = _shown(config, plan, plan.todo[: settings.max_requests], stages).map_batches(
        ServiceGenres,
        fn_constructor_args=[asked, key_of(settings), turns, most],
        batch_size=None,
        **ray_actors(settings, calls=min(most, CALLS), inputs=-(-len(plan.todo) // most)),
    )
    try:
        for batch in batches(rows):
            yield batch
            if (batch["code"] == UNFINISHED).any() and turns.ended():
                break
        if end := turns.ended():
            raise end.error()
    finally:
        finish_turns(turns, settings.timeout_s)


def _shown(config: ZeroShotConfig, plan: ZeroShotPlan, sources: list[Source], stages: dict[str, Stage]) -> Dataset:
    """The rows of `shown`, one a film or scene."""
    import ray

    set_context()
    scenes = config.scenes if isinstance(config.scenes, int) else storage.absolute(config.scenes)
    shape = Shape(config.size, mode="longest")
    task: Any = partial(shown, shape=shape, count=config.frames, images=config.images, scenes=scenes)
    kinds = []
    for stage, names in (("read", ("folder", "tar")), ("video", ("video",))):
        rows: Any = [
            {"film": one.film, "uri": one.uri, "kind": one.kind, "done": json.dumps(plan.done[one.film])}
            for one in sources
            if one.kind in names
        ]
        if rows:
            films = ray.data.from_items(rows, override_num_blocks=min(len(rows), 1000))
            kinds.append(films.flat_map(task, **ray_task(stages[stage])))
    return kinds[0].union(*kinds[1:]) if len(kinds) > 1 else kinds[0]
