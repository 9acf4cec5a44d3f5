"""Add scores to a corpus: families that are measured beside scores/, one after the other.

plan     driver   parts of scores/ less those that the family has
measure  actors   1 -> 1: the pictures or the sound of a part's scenes become a part of measured/

A part of a family is written whole, so that a command that was killed measures what is missing.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from actors.core import storage
from actors.core.catalog import Part, Replacement
from actors.core.computed import COMPUTED, mixed
from actors.core.errors import UserError
from actors.core.stage import Row, Stage, codes_in
from actors.core.store import Store
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.measuring.family import fingerprint, scorer_class
from actors.curation.measuring.measured import (
    ROW,
    SLICE,
    Family,
    Task,
    families_now,
    family_now,
    folder_of,
    slices_of,
    whole_parts,
    write_family,
)
from actors.curation.measuring.scoring import IN_PASS, PartScorer, text_digest
from actors.curation.tables import NEW_CAPTIONS, PLAN_AGAIN
from pipelines.core.progress import Progress
from pipelines.core.ray_data import batches, fitted, ray_actors
from pipelines.curation.cutting.frames import bare, from_items
from pipelines.curation.measuring.measure_settings import family_settings
from pipelines.curation.measuring.whole_videos import pictures_of
from pipelines.curation.rows import captions, in_tasks
from pipelines.curation.settings import CurationConfig
from pipelines.curation.waves import waves

log = logging.getLogger(__name__)

MANY_PARTS = 1000
"""As many parts are read in the driver before Ray's tasks would have started."""
TASK_PARTS = 250
"""Parts that one task reads."""
WAVE_BYTES = 256 << 20
"""What is asked of workers at once, in bytes."""
MEASURE_AGAIN = "Run `measure` again."
AGAIN = "To measure all alike, delete its folder in measured/ and run `measure` again."
"""What to do where scores were computed in several ways."""


@dataclass(frozen=True)
class Added:
    """What an output has of a family."""

    scenes: int
    """Scenes that are measured."""
    failed: dict[str, int]
    """Those of them that could not be, by error code."""
    now: int
    """Parts that were measured now."""
    seconds: float
    notes: list[str]


def tasks_of(config: CurationConfig) -> list[Task]:
    """The families that settings name, with the version that is wanted. Raises UserError where one cannot run."""
    return [_task(config, name) for name in dict.fromkeys(config.scores)]


def _task(config: CurationConfig, name: str) -> Task:
    settings, kind = family_settings(config.measure, name), scorer_class(name)
    now = family_now(Store(config.output), name) or {}
    version, before = fingerprint(name, settings), ""
    if getattr(kind, "texts", False):
        there = now.get("fingerprint", "")
        if there.partition("-")[0] == version:
            before = there
        version = f"{version}-{_texts_digest(Store(config.output))}"
        before = "" if before == version else before
    return Task(name, settings, version, before)


def _texts_digest(store: Store) -> str:
    """What changes when captions or recaptions of the output do."""
    new = store.read_table("plan/captions", NEW_CAPTIONS, again=PLAN_AGAIN)
    answers = captions(store)
    said = sorted(zip(answers.video_id, answers.scene_id, answers.recaption, strict=True))
    return text_digest(json.dumps(said), json.dumps(sorted(map(str, new.to_pylist()))))[:8]


def passed(config: CurationConfig) -> list[Task]:
    """The families that are measured while films are decoded."""
    found = []
    for task in tasks_of(config):
        kind = scorer_class(task.name)
        there = kind.reads == "frames" or (kind.reads == "keyframes" and config.frames.keyframes)
        if kind.reads in IN_PASS and there and not getattr(kind, "texts", False):
            found.append(task)
    return found


def left(store: Store, task: Task) -> list[str]:
    """The parts of scores/ that a family has yet to measure, and slices of those that are compacted."""
    there = set(store.parts(task.folder))
    left = [part for part in store.listed("scores") if part.name not in there]
    return [name for part in left for name in slices_of(part) if name not in there]


def is_done(config: CurationConfig) -> bool:
    """Whether there is nothing to measure of the families that settings name."""
    store = Store(config.output)
    return not any(config.measure.retry or left(store, task) for task in tasks_of(config))


def stages_of(config: CurationConfig) -> dict[str, Stage]:
    """The actor pools of families, by name."""
    return {name: family_settings(config.measure, name) for name in dict.fromkeys(config.scores)}


def measure_families(config: CurationConfig) -> dict[str, Added]:
    """Measure what is missing of the families that settings name; Ray runs where something is."""
    return {task.name: _measured(config, task) for task in tasks_of(config)}


def _measured(config: CurationConfig, task: Task) -> Added:
    store, started = Store(config.output), time.monotonic()
    parts = left(store, task)
    if config.measure.retry and (failed := _failed(store, task, parts)):
        task, parts = replace(task, before=task.fingerprint), [*parts, *failed]
    if parts:
        _run(config, task, parts)
    _join_slices(store, task)
    counts = _counted(store, task)
    if torn := [name for name in left(store, task) if name not in parts]:
        _run(config, task, torn)
        _join_slices(store, task)
        counts = _counted(store, task)
    family = Family(task.name, task.fingerprint, _columns(store, task))
    _check_columns(store, family)
    about = {"settings": asdict(task.config), "scenes": counts.scenes, "failed": dict(counts.failed)}
    write_family(store, family, about)
    if task.before not in ("", task.fingerprint):
        # Its rows with other captions are all of this version now.
        store.remove_table(folder_of(task.name, task.before))
    notes = mixed(counts.computed, task.name, "scenes", AGAIN)
    return Added(counts.scenes, dict(counts.failed), len(parts), round(time.monotonic() - started, 1), notes)


def _failed(store: Store, task: Task, without: Sequence[str]) -> list[str]:
    """Parts of a family with scenes that could not be measured."""
    names = [name for name in whole_parts(store, task.folder) if name not in without]
    failed = {name for name in names if _count(store, task.folder, [name])[1]}
    return [name for part in store.listed("scores") if part.name in failed for name in slices_of(part)]


def _join_slices(store: Store, task: Task) -> None:
    """Make one part of the slices of each compacted part of scores/ that has them all."""
    _, added = store.divided(task.folder)
    slices = {entry.name: entry.stamp for entry in added if entry.name.startswith(SLICE)}
    for part in store.divided("scores")[0] if slices else ():
        if not all(name in slices for name in slices_of(part)):
            continue
        tables = [store.read_part(task.folder, name) for name in slices_of(part)]
        if any(table is None for table in tables):
            # Those that are torn are made again.
            for name in [name for name, table in zip(slices_of(part), tables, strict=True) if table is None]:
                storage.delete(store.uri(task.folder, name))
            continue
        whole = pa.concat_tables([table for table in tables if table is not None])
        store.write_table(whole, task.folder, part.name)
        with Replacement(store.root, [task.folder], MEASURE_AGAIN) as new:
            new.add(*(one for one in new.before_parts(task.folder) if one.name != part.name))
            new.add(Part(task.folder, part.name, len(whole)))
            new.commit(absorbed={task.folder: {name: slices[name] for name in slices_of(part)}})


def _run(config: CurationConfig, task: Task, parts: Sequence[str]) -> None:
    kind, store = scorer_class(task.name), Store(config.output)
    stage = fitted({task.name: pool_of(task.config)}, {}, config.autoscaling)[task.name]
    side = (config.frames.keyframes or FramesConfig().keyframes) if kind.reads == "keyframes" else 0
    cutting = bare(config, keyframes=side)
    texts = captions(store) if getattr(kind, "texts", False) else pd.DataFrame(columns=["video_id"])
    recaptions = {(row.video_id, row.scene_id): row.recaption for row in texts.itertuples() if not row.code}
    items: Iterable[Row] = ({"part": part} for part in parts)
    if kind.reads == "video":
        items = pictures_of(store, items)
    arguments = [store, replace(task, config=stage), cutting, recaptions]
    with Progress(f"measure {task.name}", len(parts), "parts") as progress:
        for some in waves(items, lambda item: sum(map(len, item.values())), WAVE_BYTES):
            actors = ray_actors(stage, threads=True, inputs=len(some))
            rows = from_items(some).map_batches(PartScorer, fn_constructor_args=arguments, batch_size=1, **actors)
            for done in batches(rows):
                progress.fail(codes_in(done))
                progress.advance()


def pool_of(stage: Stage) -> Stage:
    """A family's pool, with as many workers as CPUs or GPUs allow where the settings leave it open."""
    if stage.workers:
        return stage
    import ray

    there = ray.cluster_resources()
    need = {"GPU": stage.num_gpus} if stage.num_gpus else {"CPU": stage.num_cpus}
    most = [int(there.get(name, 0) / amount) for name, amount in need.items() if amount]
    return replace(stage, workers=max(1, *most))


def _columns(store: Store, task: Task) -> dict[str, Any]:
    """The columns of a family: those of its parts, else of its class."""
    for name in whole_parts(store, task.folder):
        with storage.stream(store.uri(task.folder, name)) as data:
            schema = pq.read_schema(data)
        return {field.name: field.type for field in schema if field.name not in ROW}
    return dict(getattr(scorer_class(task.name), "columns", {}))


def _check_columns(store: Store, family: Family) -> None:
    """Raise UserError where another family of the output has one of the columns."""
    for other in families_now(store):
        both = set(other.columns) & set(family.columns) if other.name != family.name else set()
        if both:
            raise UserError(
                f"{store.root}: {other.name} and {family.name} both have {', '.join(sorted(both))}. Rename the "
                f"columns, or delete {store.uri('measured', other.name)}.json to let go of {other.name}."
            )


@dataclass
class _Counts:
    scenes: int
    failed: Counter[str]
    computed: Counter[str]


def _counted(store: Store, task: Task) -> _Counts:
    """What the parts of a family hold."""
    names = whole_parts(store, task.folder)
    groups = [names[start : start + TASK_PARTS] for start in range(0, len(names), TASK_PARTS)]
    calls = [(store, task.folder, group) for group in groups]
    counted = _Counts(0, Counter(), Counter())
    for scenes, failed, computed in in_tasks(partial(_count), calls, len(names) > MANY_PARTS):
        counted.scenes += scenes
        counted.failed += failed
        counted.computed += computed
    return counted


def _count(store: Store, folder: str, names: Sequence[str]) -> tuple[int, Counter[str], Counter[str]]:
    scenes, failed, computed = 0, Counter[str](), Counter[str]()
    for name in names:
        table = store.read_part(folder, name, ["error", COMPUTED])
        if table is None:
            # Torn: made again.
            store.remove_part(folder, name)
            continue
        scenes += len(table)
        failed.update(error for error in table["error"].to_pylist() if error)
        computed.update(table[COMPUTED].to_pylist())
    return scenes, failed, computed
