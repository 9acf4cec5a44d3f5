"""Write what is kept: clips, frames and layouts for trainers when asked for, and kept.json in the reference's form.

Kept scenes are gone through batch by batch; of each of them the driver holds numbers, not texts.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.json_text import json_list, json_object
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.curation.exporting.export import ExportJob, clip_name, cut_off, export_films, remove_frames
from actors.curation.exporting.layouts import Caption, Clip, file_of, text_of
from actors.curation.exporting.packed import TARS, drop_clips, tar_of
from actors.curation.exporting.presets import load_preset
from actors.curation.tables import BARS
from actors.media.limits import FilmStage
from pipelines.core.ray_data import LazyStage, fitted, ray_task, rows_of, set_context
from pipelines.curation.exporting.digests import TOTALS, digest
from pipelines.curation.exporting.fit_clips import MADE, fit_clips, renew_fitted
from pipelines.curation.exporting.layouts import renew_layouts, write_layouts
from pipelines.curation.exporting.there import (
    There,
    clip_names,
    find_clips,
    is_packed,
    listed_clips,
    older_clips,
    write_older,
)
from pipelines.curation.kept import KEYS, Names, Scenes, kept_scenes
from pipelines.curation.selecting.select import check_selection, fail_scenes, selection_now
from pipelines.curation.settings import CurationConfig
from pipelines.curation.waves import waves

log = logging.getLogger(__name__)

SILENCED = "export_silenced.json"
"""Seconds of damaged sound that is silent in clips, by the clip's name."""
WANTED = ("scene_id", "start_s", "end_s", "clock_jumps", *BARS)
"""What a worker needs to know of a scene to write its clip."""
WAVE = 250_000
"""Clips that are asked for at once: the driver holds some 200 bytes of each, and workers wait for the last film of a
wave before they begin with the next."""


@dataclass(frozen=True)
class Exported:
    """What one export has done."""

    written: int
    """Clips written now."""
    there: int
    """Clips that were there already."""
    failed: list[Row]
    """video_id, scene_id, error, message of kept scenes that could not be written."""
    seconds: float
    fitted: str
    """What the clips became by export.preset; "" without one."""


def runs() -> None:
    """Ray runs already."""


def export(config: CurationConfig, start: Callable[[], None] = runs) -> Exported:
    """Bring clips/, frames/, layouts and kept.json in line with the scenes that are kept.

    start: starts Ray; called only where there is something to write on workers.

    Clips that are there are not written again, unless the settings of export have changed: then each stays until the
    new one takes its place. Those of scenes that are no longer kept are removed, last.
    """
    started = time.monotonic()
    if config.export.preset:
        # Before clips are written.
        load_preset(config.export.preset)
    store = Store(config.output)
    selection = selection_now(store)
    kept = kept_scenes(store)
    there = find_clips(store, map(clip_names, kept.tables(*KEYS)))
    _check_packed(config, store, len(there))
    _mark_older(store, there, kept, _made_with(config))
    missing, stage = there.missing, _stage(config, start)
    made = _write_missing(kept.where(missing), config, stage) if missing.any() else ()
    failed = _settled(store, made, there.names)
    check_selection(store, selection)
    lost = np.zeros(len(kept), bool)
    at = there.names.places(list(map(_clip, failed)))
    lost[at[at >= 0]] = True
    written = kept.where(~lost)
    write_kept_json(store, written, config.export.frames)
    fitted = _for_trainers(config, written, stage)
    there.older &= ~missing | lost
    _remove_unwanted(store, there, kept, stage)
    counts = int(missing.sum()) - len(failed), int((~missing).sum())
    return Exported(*counts, failed, time.monotonic() - started, fitted)


def _made_with(config: CurationConfig) -> dict[str, Any]:
    """The settings that clips depend on."""
    settings: dict[str, Any] = {name: getattr(config.export, name) for name in ("crf", "jpeg_quality")}
    # As it was called in earlier versions, whose clips are not to be made again.
    settings["preset"] = config.export.x264_preset
    settings["frames_ms"] = config.frames.interval_ms if config.export.frames else None
    # Not where they are off: clips of earlier versions are not to be made again.
    settings |= dict.fromkeys(_conversions(config), True)
    return settings | ({"packed": True} if config.export.packed else {})


def _conversions(config: CurationConfig) -> list[str]:
    """What is done to pictures of clips, by the names of its settings."""
    frames = config.cutting.frames
    asked = {"crop_bars": config.export.crop_bars, "deinterlace": frames.deinterlace}
    return [name for name, on in {**asked, "color_managed": frames.color_managed}.items() if on]


def clips_behind(store: Store) -> tuple[int, int]:
    """How many kept scenes have no clip of theirs, and how many clips are of scenes that are not kept (any more)."""
    kept = [np.zeros(0, bool)]

    def names() -> Iterator[pa.Array]:
        for part in store.read_parts("scenes", [*KEYS, "kept", "error"]):
            of, failed = part["kept"].to_numpy(), (part["error"].to_pandas() != "").to_numpy()
            kept.append(of[of | failed])
            # What failed keeps the clip that it had.
            yield clip_names(part.filter(pa.array(of | failed)))

    there = find_clips(store, names())
    there.mark_older(older_clips(store))
    return int((np.concatenate(kept) & there.missing).sum()), len(there.others)


def _settled(store: Store, made: Iterable[Row], names: Names) -> list[Row]:
    """Those clips that could not be written; remembers of how many seconds of sound in kept clips nothing is left but
    silence."""
    before = store.read_json(SILENCED) or {}
    now, failed = dict(before), []
    for row in made:
        if row["error"]:
            failed.append(row)
        elif row["silenced_s"] or _clip(row) in before:
            now[_clip(row)] = round(row["silenced_s"], 3)
    there = names.places(list(now)) >= 0
    now = dict(sorted(item for item, kept in zip(now.items(), there, strict=True) if kept and item[1]))
    if now != before:
        store.write_json(now, SILENCED)
    if now:
        log.warning("%d clips have damaged sound, which is silent there: see silenced_s in kept.json", len(now))
    return failed


def _mark_older(store: Store, there: There, kept: Scenes, settings: dict[str, Any]) -> None:
    """Tell which of the clips that are there were made with other settings, also where the export that was to replace
    them did not end."""
    if store.read_json(MADE) == settings:
        there.mark_older(older_clips(store))
        return
    there.older[:], there.other_older[:] = there.sizes >= 0, True
    # This before the settings: a kill between the two makes all clips again, and never takes an old one for a new one.
    write_older(store, _still_older(there, kept))
    store.write_json(settings, MADE)


def _still_older(there: There, kept: Scenes) -> Iterator[tuple[str, int]]:
    old = kept.where(there.older)
    names = chain.from_iterable(clip_names(table).to_pylist() for table in old.tables(*KEYS))
    yield from zip(names, there.sizes[there.older].tolist(), strict=True)
    others = there.others.filter(pa.array(there.other_older)).to_pylist()
    yield from zip(others, there.other_sizes[there.other_older].tolist(), strict=True)


def renew_clips(store: Store, scenes: Iterable[tuple[str, str, Any]]) -> None:
    """Let the next export write the clips of these scenes (video_id, scene_id, …) anew: they are of another film or
    other times than the input's. Until then they stay."""
    names = {clip_name(video_id, scene_id) for video_id, scene_id, *_ in scenes}
    if not names or store.read_json(MADE) is None:
        return
    listed = {name: size for name, size in listed_clips(store) if name in names}
    if listed:
        write_older(store, (dict(older_clips(store)) | listed).items())


def _check_packed(config: CurationConfig, store: Store, clips: int) -> None:
    before = is_packed(store)
    if clips and before != config.export.packed:
        lie = store.uri(TARS) if before else store.uri("clips")
        raise UserError(
            f"export.packed={str(config.export.packed).lower()}: {lie} has {clips} clips of the other kind. Set "
            f"export.packed={str(before).lower()}, or remove {lie}: its clips are then written anew."
        )


def _remove_unwanted(store: Store, there: There, kept: Scenes, stage: LazyStage) -> None:
    """Remove clips and frames of scenes that are no longer kept. What failed at export keeps what it had."""
    unwanted = np.ones(len(there.others), bool)
    if len(unwanted):
        others = Names([there.others])
        for part in store.read_parts("scenes", [*KEYS, "error"]):
            at = others.places(clip_names(part.filter(pa.array((part["error"].to_pandas() != "").to_numpy()))))
            unwanted[at[at >= 0]] = False
    names, packed = sorted(there.others.filter(pa.array(unwanted)).to_pylist()), is_packed(store)
    if names and packed:
        _unpack(store, names, stage)
    for name in names:
        if not packed:
            storage.delete(store.uri("clips", name))
        video_id, _, file = name.rpartition("/")
        remove_frames(store, video_id, file.removesuffix(".mp4"))
    there.other_older &= ~unwanted
    write_older(store, _still_older(there, kept))


def _unpack(store: Store, names: Sequence[str], stage: LazyStage) -> None:
    """Take clips out of their tars."""
    import ray

    options = ray_task(stage())
    set_context()
    tars = [
        {"tar": tar, "drop": json.dumps([name.rpartition("/")[2] for name in some])}
        for tar, some in groupby(names, tar_of)
    ]
    rows = ray.data.from_items(tars, override_num_blocks=min(len(tars), 1000))
    list(rows_of(rows.map(partial(drop_clips, store=store), **options)))


def export_scenes(config: CurationConfig, start: Callable[[], None] = runs) -> Exported:
    """As `export`, and mark in scenes/ and rejected/ what could not be written."""
    exported = export(config, start)
    fail_scenes(Store(config.output), exported.failed)
    return exported


def write_kept_json(store: Store, kept: Scenes, frames: bool) -> None:
    """Write the reference's file: paths are relative to the output; what was not measured is null.

    Beside the reference's names silenced_s: seconds of the clip's sound that are damaged, and silent. cut_off: black
    lines at the top, bottom, left and right that it lacks. converted: what was done to its pictures. captions: those of
    styles beside the recaption, where there are some.
    """
    silenced = store.read_json(SILENCED) or {}
    crop, packed = (store.read_json(MADE) or {}).get("crop_bars", False), is_packed(store)
    scenes = (
        {
            "scene_id": row["scene_id"],
            "video_id": row["video_id"],
            "clip_id": row["clip_id"],
            "caption": row["caption"],
            "scene_cut": [row["first"], row["end"]],
            **_path(row, packed),
            "frames_path": f"frames/{row['video_id']}/{row['scene_id']}" if frames else None,
            "recaption": row["recaption"] or None,
            **({"captions": row["captions"]} if row["captions"] else {}),
            "silenced_s": silenced.get(_clip(row), 0.0),
            "cut_off": cut_off(row, crop),
            "converted": [word for word in row["converted"].split(",") if word],
        }
        for row in kept
    )
    totals = ((name, [json.dumps(value)]) for name, value in proven(store, kept.rows(*KEYS, "recaption")).items())
    items = [("length", [str(len(kept))]), ("scenes", json_list(scenes, depth=1)), *totals]
    store.write_pieces(json_object(items), "kept.json")


def _path(row: Row, packed: bool) -> dict[str, str]:
    """Where a clip is, below the output: its file, or the tar and its name there."""
    if not packed:
        return {"video_path": f"clips/{_clip(row)}"}
    return {"video_path": f"{TARS}/{tar_of(_clip(row))}", "video_member": f"{row['scene_id']}.mp4"}


def proven(store: Store, kept: Iterable[Row]) -> dict[str, float | None]:
    """The four totals of kept.json as `evaluate` found them; null where it has not, or for other scenes or recaptions.

    kept: video_id, scene_id, recaption.
    """
    evaluation = store.read_json("evaluation.json")
    if evaluation is None or evaluation["of"] != digest(kept):
        return dict.fromkeys(TOTALS)
    return evaluation["totals"]


def renew_kept_json(store: Store) -> Scenes | None:
    """Write kept.json anew for what was exported before, since captions or their scores have changed; what is kept."""
    made = store.read_json(MADE)
    if made is None:
        return None
    kept = kept_scenes(store)
    write_kept_json(store, kept, made["frames_ms"] is not None)
    return kept


def renew_exported(config: CurationConfig, start: Callable[[], None] = runs) -> None:
    """Tell new captions in kept.json and in the layouts that are there; start: as `export`."""
    store = Store(config.output)
    kept = renew_kept_json(store)
    if kept is None:
        return
    kept = kept.where(find_clips(store, map(clip_names, kept.tables(*KEYS))).sizes >= 0)
    renew_layouts(store, partial(Clips, store, kept), _stage(config, start))
    renew_fitted(config, kept, _stage(config, start))


@dataclass(frozen=True)
class Clips:
    """The clips of scenes, as trainers see them."""

    store: Store
    scenes: Scenes
    caption: Caption

    def __iter__(self) -> Iterator[Clip]:
        for row in self.scenes:
            path = f"clips/{_clip(row)}"
            yield Clip(path, text_of(row, self.caption), row, file_of(self.store, path))


def _for_trainers(config: CurationConfig, kept: Scenes, stage: LazyStage) -> str:
    """Write the layouts of scenes that have a clip: where a preset is set, of the clips that they become by it."""
    store = Store(config.output)
    if config.export.preset:
        # Those of clips/ would go out of date.
        write_layouts(store, [], replace(config.export, layout=""), stage)
        return fit_clips(config, kept, stage).told()
    write_layouts(store, Clips(store, kept, config.export.caption), config.export, stage)
    return ""


def _stage(config: CurationConfig, start: Callable[[], None] = runs) -> LazyStage:
    def stage() -> Stage:
        start()
        about, memory_gb = config.export, config.video.memory_gb
        asked = FilmStage(about.workers, about.num_cpus, about.num_gpus, about.batch_size, memory_gb=memory_gb)
        return fitted({}, {"export": asked}, config.autoscaling)["export"]

    return stage


def _clip(row: Row) -> str:
    return clip_name(row["video_id"], row["scene_id"])


def _write_missing(missing: Scenes, config: CurationConfig, stage: LazyStage) -> Iterator[Row]:
    """Write clips; yields what has become of each."""
    interval_ms = config.frames.interval_ms if config.export.frames else None
    look = config.cutting.frames.look
    job = ExportJob(Store(config.output), config.export, config.video, interval_ms, look, config.export.packed)
    for films in waves(films_of(missing), lambda film: film.scenes, WAVE):
        yield from written_films(films, job, stage)


@dataclass(frozen=True)
class Film:
    """The scenes that are wanted of a film."""

    task: Row
    """As `export_films` takes it."""
    scenes: int
    seconds: float


def films_of(scenes: Scenes) -> Iterator[Film]:
    """The scenes of each film; a video of several films has them one after the other."""
    for video_id, rows in groupby(scenes.rows("video_id", "uri", *WANTED), lambda row: row["video_id"]):
        for uri, some in groupby(sorted(rows, key=lambda row: row["uri"]), lambda row: row["uri"]):
            wanted = [{name: row[name] for name in WANTED} for row in some]
            seconds = sum(row["end_s"] - row["start_s"] for row in wanted)
            task = {"video_id": video_id, "uri": uri, "wanted": json.dumps(wanted)}
            yield Film(task, len(wanted), seconds)


def written_films(films: Sequence[Film], job: ExportJob, stage: LazyStage) -> Iterator[Row]:
    """Write the clips of films in Ray's tasks, the longest first, so that no wave ends with one worker busy."""
    import ray

    options = ray_task(stage())
    set_context()
    tasks = [film.task for film in sorted(films, key=lambda film: -film.seconds)]
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    write: Any = partial(export_films, job=job)
    yield from rows_of(rows.map_batches(write, batch_size=1, **options))
