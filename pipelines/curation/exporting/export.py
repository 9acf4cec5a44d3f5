"""Write what is kept: clips, frames and layouts for trainers when asked for, and kept.json in the reference's form."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import pandas as pd
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row, Stage
from actors.core.store import Store
from actors.curation.captioning.styles import IMPROVED, STYLES
from actors.curation.exporting.export import ExportJob, clip_name, cut_off, export_films, remove_frames
from actors.curation.exporting.layouts import Caption, Clip, file_of, text_of
from actors.curation.exporting.packed import TARS, drop_clips, packed_clips, tar_of
from actors.curation.exporting.presets import load_preset
from actors.curation.tables import (
    BARS,
    LATER,
    ORIGIN,
    PICTURES,
    PLAN_AGAIN,
    SELECT_AGAIN,
    STALE,
    current,
    pictures_of,
    strings,
    with_new_captions,
    with_origin,
    with_places,
)
from actors.media.limits import FilmStage
from pipelines.core.ray_data import LazyStage, fitted, ray_task, rows_of, set_context
from pipelines.curation.cutting.order import longest_first
from pipelines.curation.exporting.fit_clips import MADE, fit_clips, renew_fitted
from pipelines.curation.exporting.layouts import renew_layouts, write_layouts
from pipelines.curation.rows import IncompleteError, captions_by_style
from pipelines.curation.selecting.select import check_selection, fail_scenes, selection_now
from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

KEPT = ["video_id", "clip_id", "scene_id", "caption", "first", "end", "start_s", "end_s", "uri"]
KEPT += ["width", "height", "clock_jumps", "converted", *BARS]
"""What export needs to know of a scene."""
OLDER = "export_older.json"
"""Clips made with settings before these, which are still to be replaced: bytes by name."""
SILENCED = "export_silenced.json"
"""Seconds of damaged sound that is silent in clips, by the clip's name."""
KEYS = ["video_id", "scene_id"]
Key = tuple[str, str]
"""A scene: its video_id and scene_id."""
TOTALS = ("total_caption_score", "total_recaption_score", "total_score_random", "total_score_selected")
"""The reference's names for four means of `evaluate`."""


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
    settings: dict[str, Any] = {name: getattr(config.export, name) for name in ("crf", "jpeg_quality")}
    # As it was called in earlier versions, whose clips are not to be made again.
    settings["preset"] = config.export.x264_preset
    settings["frames_ms"] = config.frames.interval_ms if config.export.frames else None
    # Not where they are off: clips of earlier versions are not to be made again.
    settings |= dict.fromkeys(_conversions(config), True)
    listed = listed_clips(store)
    _check_packed(config, store, listed)
    if config.export.packed:
        settings["packed"] = True
    older = _older(store, listed, settings)
    missing = [row for row in kept if _clip(row) not in listed or _clip(row) in older]
    stage = _stage(config, start)
    made = _write_missing(missing, config, stage) if missing else []
    failed = [row for row in made if row["error"]]
    _tell_silenced(store, made, kept)
    check_selection(store, selection)
    keys = set(map(_key, failed))
    written = [row for row in kept if _key(row) not in keys]
    store.write_json(kept_json(store, written, config.export.frames), "kept.json")
    fitted = _for_trainers(config, written, stage)
    for row in missing:
        if _key(row) not in keys:
            older.pop(_clip(row), None)
    _remove_unwanted(store, listed, older, kept, stage)
    counts = len(missing) - len(failed), len(kept) - len(missing)
    return Exported(*counts, failed, time.monotonic() - started, fitted)


def _conversions(config: CurationConfig) -> list[str]:
    """What is done to pictures of clips, by the names of its settings."""
    frames = config.cutting.frames
    asked = {"crop_bars": config.export.crop_bars, "deinterlace": frames.deinterlace}
    return [name for name, on in {**asked, "color_managed": frames.color_managed}.items() if on]


def clips_behind(store: Store) -> tuple[int, int]:
    """How many kept scenes have no clip of theirs, and how many clips are of scenes that are not kept (any more)."""
    listed = listed_clips(store)
    older = store.read_json(OLDER) or {}
    missing, unwanted = 0, set(listed)
    for part in store.read_parts("scenes", ["video_id", "scene_id", "kept", "error"]):
        rows = part.to_pandas()
        # What failed keeps the clip that it had.
        for row in rows[rows.kept | (rows.error != "")].to_dict("records"):
            name = _clip(row)
            unwanted.discard(name)
            missing += row["kept"] and (name not in listed or older.get(name) == listed[name])
    return missing, len(unwanted)


def _tell_silenced(store: Store, made: list[Row], kept: list[Row]) -> None:
    """Remember of how many seconds of sound in kept clips nothing is left but silence."""
    before = store.read_json(SILENCED) or {}
    now = before | {_clip(row): round(row["silenced_s"], 3) for row in made if not row["error"]}
    names = set(map(_clip, kept))
    now = {name: seconds for name, seconds in sorted(now.items()) if seconds and name in names}
    if now != before:
        store.write_json(now, SILENCED)
    if now:
        log.warning("%d clips have damaged sound, which is silent there: see silenced_s in kept.json", len(now))


def _older(store: Store, listed: dict[str, int], settings: dict[str, Any]) -> dict[str, int]:
    """Of the clips that are there, by name and bytes, those made with other settings, also where the export that was to
    replace them did not end."""
    if store.read_json(MADE) == settings:
        before = store.read_json(OLDER) or {}
        return {name: size for name, size in listed.items() if before.get(name) == size}
    # This before the settings: a kill between the two makes all clips again, and never takes an old one for a new one.
    store.write_json(listed, OLDER)
    store.write_json(settings, MADE)
    return dict(listed)


def renew_clips(store: Store, scenes: Iterable[tuple[str, str, Any]]) -> None:
    """Let the next export write the clips of these scenes (video_id, scene_id, …) anew: they are of another film or
    other times than the input's. Until then they stay."""
    names = {clip_name(video_id, scene_id) for video_id, scene_id, *_ in scenes}
    if not names or store.read_json(MADE) is None:
        return
    listed = {name: size for name, size in listed_clips(store).items() if name in names}
    if listed:
        store.write_json((store.read_json(OLDER) or {}) | listed, OLDER)


def listed_clips(store: Store) -> dict[str, int]:
    """Bytes of the clips that are there, by their names below clips/, wherever they lie."""
    if _is_packed(store):
        return packed_clips(store)
    return {entry.name: entry.size for entry in storage.listing(store.uri("clips"), (".mp4",))}


def _is_packed(store: Store) -> bool:
    return bool((store.read_json(MADE) or {}).get("packed"))


def _check_packed(config: CurationConfig, store: Store, listed: Mapping[str, int]) -> None:
    before = _is_packed(store)
    if listed and before != config.export.packed:
        lie = store.uri(TARS) if before else store.uri("clips")
        raise UserError(
            f"export.packed={str(config.export.packed).lower()}: {lie} has {len(listed)} clips of the other kind. Set "
            f"export.packed={str(before).lower()}, or remove {lie}: its clips are then written anew."
        )


def _remove_unwanted(
    store: Store, listed: dict[str, int], older: dict[str, int], kept: list[Row], stage: LazyStage
) -> None:
    """Remove clips and frames of scenes that are no longer kept. What failed at export keeps what it had."""
    parts = store.read_parts("scenes", ["video_id", "scene_id", "error"])
    failed = {_clip(row) for part in parts for row in part.to_pylist() if row["error"]}
    unwanted = sorted(listed.keys() - set(map(_clip, kept)) - failed)
    packed = _is_packed(store)
    if unwanted and packed:
        _unpack(store, unwanted, stage)
    for name in unwanted:
        if not packed:
            storage.delete(store.uri("clips", name))
        video_id, _, file = name.rpartition("/")
        remove_frames(store, video_id, file.removesuffix(".mp4"))
        older.pop(name, None)
    if older:
        store.write_json(older, OLDER)
    else:
        storage.delete(store.uri(OLDER))


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


def kept_scenes(store: Store) -> list[Row]:
    """The scenes that scenes/ says are kept, in its order, as `located` gives them."""
    keys: list[Key] = []
    for part in store.read_parts("scenes", ["video_id", "scene_id", "kept"], again=SELECT_AGAIN):
        chosen = part.filter(part["kept"])
        keys += zip(chosen["video_id"].to_pylist(), chosen["scene_id"].to_pylist(), strict=True)
    return located(store, keys)


def located(store: Store, keys: Sequence[Key]) -> list[Row]:
    """Sound scenes of scores/ in the order of their names: KEPT, ORIGIN, the part of scores/ that holds them, the
    recaption in captions/, "" for none, and `captions` of other styles, by style.

    Films are looked for where the input has them now, captions are those of the input now.
    """
    if not keys:
        return []
    rows = _sound(store, set(keys))
    if rows.empty:
        raise _unknown(store, keys)
    unsaid = dict.fromkeys(("caption", "converted"), "") | dict.fromkeys(BARS, 0)
    rows = with_new_captions(store, with_places(store, rows)).fillna(unsaid)
    records: list[Any] = rows[[*KEPT, *ORIGIN, "part"]].astype(dict.fromkeys(BARS, int)).to_dict("records")
    found: dict[Key, Row] = {_key(row): row for row in records}
    if unknown := [key for key in keys if key not in found]:
        raise _unknown(store, unknown)
    said: dict[Key, dict[str, str]] = {}
    answers = captions_by_style(store)
    answered = zip(answers.video_id, answers.scene_id, answers["style"], answers.recaption, strict=True)
    for video_id, scene_id, style, text in answered:
        if text:
            said.setdefault((video_id, scene_id), {})[style] = text
    styles = [said.get(key, {}) for key in keys]
    others = ({style: texts[style] for style in STYLES if style in texts and style != IMPROVED} for texts in styles)
    return [
        {**found[key], "recaption": texts.get(IMPROVED, ""), "captions": other}
        for key, texts, other in zip(keys, styles, others, strict=True)
    ]


def _sound(store: Store, wanted: set[Key]) -> pd.DataFrame:
    """Of each of these scenes the last sound row of the film and times that the input has."""
    stale = store.read_table("plan/stale", STALE, again=PLAN_AGAIN)
    found: list[pa.Table] = []
    for name in store.parts("scores"):
        columns = [*KEPT, "error", "written", *ORIGIN, PICTURES]
        part = store.read_part("scores", name, columns, (*LATER, PICTURES))
        if part is None:
            continue
        ids = zip(part["video_id"].to_pylist(), part["scene_id"].to_pylist(), part["error"].to_pylist(), strict=True)
        chosen = [not error and (video_id, scene_id) in wanted for video_id, scene_id, error in ids]
        if any(chosen):
            rows = part.filter(pa.array(chosen, pa.bool_()))
            rows = with_origin(rows.filter(current(rows, stale)))
            # Where its key frames are.
            found.append(rows.drop_columns([PICTURES]).append_column("part", pictures_of(rows, name)))
    if not found:
        return pd.DataFrame(columns=KEPT)
    rows = pa.concat_tables(found, promote_options="permissive").to_pandas(types_mapper=strings)
    return rows.sort_values("written", kind="stable").drop_duplicates(KEYS, keep="last")


def _unknown(store: Store, keys: Sequence[Key]) -> IncompleteError:
    some = ", ".join(scene_id for _, scene_id in keys[:3])
    return IncompleteError(
        f"{store.uri('scenes')} has {len(keys)} scenes without a sound row in scores/ ({some}). {SELECT_AGAIN}"
    )


def kept_json(store: Store, kept: list[Row], frames: bool) -> dict[str, Any]:
    """The reference's file: paths are relative to the output; what was not measured is null.

    Beside the reference's names silenced_s: seconds of the clip's sound that are damaged, and silent. cut_off: black
    lines at the top, bottom, left and right that it lacks. converted: what was done to its pictures. captions: those of
    styles beside the recaption, where there are some.
    """
    silenced = store.read_json(SILENCED) or {}
    crop, packed = (store.read_json(MADE) or {}).get("crop_bars", False), _is_packed(store)
    scenes = [
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
    ]
    return {"length": len(scenes), "scenes": scenes, **proven(store, kept)}


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


def digest(scenes: Iterable[Row]) -> str:
    """A name for a set of scenes with their recaptions."""
    lines = sorted(json.dumps([row["video_id"], row["scene_id"], row["recaption"] or ""]) for row in scenes)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(row: Row) -> Key:
    return row["video_id"], row["scene_id"]


def renew_kept_json(store: Store) -> list[Row]:
    """Write kept.json anew for what was exported before, since captions or their scores have changed; what is kept."""
    made = store.read_json(MADE)
    if made is None:
        return []
    kept = kept_scenes(store)
    store.write_json(kept_json(store, kept, made["frames_ms"] is not None), "kept.json")
    return kept


def renew_exported(config: CurationConfig, start: Callable[[], None] = runs) -> None:
    """Tell new captions in kept.json and in the layouts that are there; start: as `export`."""
    store = Store(config.output)
    kept = renew_kept_json(store)
    listed = listed_clips(store)
    kept = [row for row in kept if _clip(row) in listed]
    renew_layouts(store, partial(_clips, store, kept), _stage(config, start))
    renew_fitted(config, kept, _stage(config, start))


def _clips(store: Store, kept: Sequence[Row], caption: Caption) -> list[Clip]:
    paths = [f"clips/{_clip(row)}" for row in kept]
    return [Clip(path, text_of(row, caption), row, file_of(store, path)) for path, row in zip(paths, kept, strict=True)]


def _for_trainers(config: CurationConfig, kept: Sequence[Row], stage: LazyStage) -> str:
    """Write the layouts of scenes that have a clip: where a preset is set, of the clips that they become by it."""
    store = Store(config.output)
    if config.export.preset:
        # Those of clips/ would go out of date.
        write_layouts(store, [], replace(config.export, layout=""), stage)
        return fit_clips(config, kept, stage).told()
    write_layouts(store, _clips(store, kept, config.export.caption), config.export, stage)
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


def _write_missing(missing: list[Row], config: CurationConfig, stage: LazyStage) -> list[Row]:
    import ray

    options = ray_task(stage())
    set_context()

    def film(row: Row) -> tuple[str, str]:
        return row["video_id"], row["uri"]

    films = [
        {"video_id": rows[0]["video_id"], "uri": rows[0]["uri"], "wanted": json.dumps(rows)}
        for rows in longest_first(rows for _, rows in groupby(sorted(missing, key=film), film))
    ]
    rows = ray.data.from_items(films, override_num_blocks=len(films))
    interval_ms = config.frames.interval_ms if config.export.frames else None
    look = config.cutting.frames.look
    job = ExportJob(Store(config.output), config.export, config.video, interval_ms, look, config.export.packed)
    write: Any = partial(export_films, job=job)
    rows = rows.map_batches(write, batch_size=1, **options)
    return list(rows_of(rows))
