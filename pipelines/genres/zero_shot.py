"""Genres of films by a vision-language model that was not trained for them.

show   tasks    1 -> 1: of each film some key frames at equal steps, from a folder or tar of images, or a video file
ask    actors   1 -> 1: a model in the worker gives the likelihood of each genre, a service a list; each writes at once
write  driver   predictions.parquet, as `predict` writes it, and rejected/
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.genres.film_images import ImagesConfig
from actors.genres.shown import shown
from actors.genres.vlm_workers import ANSWERS, Asked, LocalGenres, ServiceGenres, problems
from actors.genres.zero_shot import ZeroShotVlm, list_all, name_one
from actors.media.images import Shape
from actors.models.vlm.asking import UNFINISHED
from actors.models.vlm.services import check_vlm, key_of
from pipelines.core.progress import Progress
from pipelines.core.ray_data import batches, fitted, ray_actors, ray_task, set_context
from pipelines.core.turns import finish_turns, shared_turns
from pipelines.genres.embed import REJECTED, Source, find_films, stages_of
from pipelines.genres.process import GENRES

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
    """Those that are asked about."""

    def stages(self, config: ZeroShotConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
        """Actor pools and task stages, by name."""
        tasks = {name: stage for name, stage in stages_of(self.todo, config.images).items() if name != "list"}
        return {"ask": config.vlm}, tasks

    def cost(self, config: ZeroShotConfig) -> tuple[int, float]:
        """Input tokens, and US dollars by the settings' prices where each reply counts at once."""
        sent = len(self.todo) * (config.frames * config.vlm.tokens_per_frame + len(config.prompt) // 4)
        usd_in, usd_out = config.vlm.prices
        return sent, (sent * usd_in + len(self.todo) * 100 * usd_out) / 1e6


def plan_zero_shot(config: ZeroShotConfig) -> ZeroShotPlan:
    """The films of the input and those left; raises UserError where input, model, key or output do not fit."""
    sources = find_films(config.input)
    store = Store(config.output)
    made = store.read_json("vlm.json")
    if made and made != _asked(config):
        other = ", ".join(name for name, value in _asked(config).items() if made.get(name) != value)
        raise UserError(f"{config.output} has answers of another {other}. Use another output.")
    check_vlm(config.vlm)
    there = {film: row["code"] for film, row in answers(store).items()}
    todo = [one for one in sources if one.film not in there or (config.retry and there[one.film])]
    return ZeroShotPlan(sources, todo)


def _asked(config: ZeroShotConfig) -> dict[str, Any]:
    """What answers of one output have in common."""
    settings = config.vlm
    about = {"by": settings.by, "model": settings.model, "prompt": config.prompt}
    return {**about, "genres": config.genres, "frames": config.frames, "size": config.size}


def answers(store: Store) -> dict[str, Row]:
    """The last answer of each film."""
    rows = sorted(store.read_table("answers", ANSWERS).to_pylist(), key=lambda row: row["written"])
    return {row["film"]: row for row in rows}


def zero_shot(config: ZeroShotConfig, plan: ZeroShotPlan) -> dict[str, Any]:
    """Ask about the films that are left, and write predictions.parquet and rejected/; returns what a record holds.

    Raises Refusal where the key, the model or the endpoint is wrong, ServiceDownError where the service does not answer
    for long. What was answered before is written then, too.
    """
    store, started = Store(config.output), time.monotonic()
    store.write_json(_asked(config), "vlm.json")
    spent: Counter[str] = Counter()
    with Progress("zero-shot", len(plan.todo), "films") as progress:
        for batch in _ask(config, plan) if plan.todo else ():
            done = int((batch["code"] != UNFINISHED).sum())
            spent.update({name: int(batch[name].sum()) for name in ("requests", "tokens_in", "tokens_out")})
            spent["done"] += done
            progress.fail(Counter(code for code in batch["code"].tolist() if code not in ("", UNFINISHED)))
            progress.advance(done)
    found = answers(store)
    mine = [(one, found[one.film]) for one in plan.sources if one.film in found]
    rejected = [{"film": one.film, "uri": one.uri, **problem} for one, row in mine for problem in problems(row)]
    _write(store, config, {one.film: row["probabilities"] for one, row in mine if not row["code"]}, rejected)
    codes = Counter(row["code"] for _, row in mine if row["code"])
    usd_in, usd_out = config.vlm.prices
    usd = (spent["tokens_in"] * usd_in + spent["tokens_out"] * usd_out) / 1e6
    left = len(plan.sources) - len(mine)
    return {
        "rows": {"in": len(mine), "out": len(mine) - codes.total(), "rejected": dict(codes)},
        "problems": dict(Counter(row["code"] for row in rejected)),
        "films_left": left,
        "notes": [f"{left} films were not asked about: vlm.max_requests is reached. Rerun to resume."] if left else [],
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


def _ask(config: ZeroShotConfig, plan: ZeroShotPlan) -> Iterator[Batch]:
    pools, tasks = plan.stages(config)
    stages = fitted(pools, tasks, config.autoscaling)
    settings: Any = stages["ask"]
    asked = Asked(Store(config.output), settings, tuple(config.genres), str(time.time()))
    if not settings.service:
        rows = _shown(config, plan.todo, stages)
        yield from batches(
            rows.map_batches(LocalGenres, fn_constructor_args=[asked], batch_size=1, **ray_actors(settings))
        )
        return
    stage = replace(settings, workers=min(settings.workers, settings.at_once))
    turns, most = shared_turns(settings), settings.at_once // stage.workers
    # A film takes one request at least.
    rows = _shown(config, plan.todo[: settings.max_requests], stages).map_batches(
        ServiceGenres,
        fn_constructor_args=[asked, key_of(settings), turns, most],
        batch_size=None,
        **ray_actors(stage, calls=min(most, CALLS)),
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


def _shown(config: ZeroShotConfig, sources: list[Source], stages: dict[str, Stage]) -> Dataset:
    """The rows of `shown`, one a film."""
    import ray

    set_context()
    task: Any = partial(shown, shape=Shape(config.size, mode="longest"), count=config.frames, images=config.images)
    kinds = []
    for stage, names in (("read", ("folder", "tar")), ("video", ("video",))):
        rows: Any = [{"film": one.film, "uri": one.uri, "kind": one.kind} for one in sources if one.kind in names]
        if rows:
            films = ray.data.from_items(rows, override_num_blocks=min(len(rows), 1000))
            kinds.append(films.map(task, **ray_task(stages[stage])))
    return kinds[0].union(*kinds[1:]) if len(kinds) > 1 else kinds[0]
