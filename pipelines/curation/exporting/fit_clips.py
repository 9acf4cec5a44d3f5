"""Bring the clips of kept scenes to what a model is trained with: a folder by the name of the preset."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.exporting.export import clip_name, cut_off, fit_scene, sample_key
from actors.curation.exporting.layouts import Caption, Clip, file_of, text_of
from actors.curation.exporting.presets import CRF, EFFORT, Bucket, Preset, buckets_of, load_preset
from actors.curation.tables import ORIGIN
from pipelines.core.ray_data import LazyStage, ray_task, rows_of, set_context
from pipelines.curation.exporting.layouts import renew_layouts, write_layouts
from pipelines.curation.settings import CurationConfig

MADE = "export.json"
"""Settings that clips/ was made with; not in there, where every name is a video's."""
FITTED = "export_presets.json"
"""The presets that there are folders of, by the folder's name."""
ABOUT = "clips.json"
"""In such a folder: what became of each kept scene."""


@dataclass
class Fitted:
    """What the scenes that are kept become."""

    folder: str
    """Below the output."""
    preset: Preset
    source: Any = None
    """The settings that clips/ was made with."""
    crop: bool = False
    """Whether black bars are cut off there."""
    scenes: list[tuple[Row, list[Bucket]]] = field(default_factory=list)
    """Kept scenes, each with its clips one behind the other."""
    dropped: list[tuple[Row, str]] = field(default_factory=list)
    """Kept scenes that become no clip, and why."""

    def told(self) -> str:
        """How many clips each bucket has, and what was dropped."""
        buckets = Counter(str(bucket) for _, some in self.scenes for bucket in some)
        reasons = Counter(why for _, why in self.dropped)
        clips = f"{buckets.total()} clips of {len(self.scenes)} scenes{_listed(buckets)}"
        return f"{self.folder}: {clips}" + (f"; dropped{_listed(reasons)}" if reasons else "")

    def names(self, row: Row, buckets: Sequence[Bucket]) -> list[str]:
        """Names of a scene's clips below clips/, others where they would be other clips."""
        about = {name: row[name] for name in ("video_id", "scene_id", "start_s", "end_s", *ORIGIN)}
        made = json.dumps([about, self.source, asdict(self.preset), [str(bucket) for bucket in buckets], CRF, EFFORT])
        name = f"{sample_key(row)}-{hashlib.sha256(made.encode()).hexdigest()[:8]}"
        return [f"{name}.mp4"] if len(buckets) == 1 else [f"{name}_{k}.mp4" for k in range(len(buckets))]

    def clips(self, root: Store, listed: set[str], caption: Caption) -> list[Clip]:
        """The clips that are there, as trainers see them; root: the folder."""
        found = []
        for row, buckets in self.scenes:
            text, names = text_of(row, caption), self.names(row, buckets)
            for k, (name, bucket) in enumerate(zip(names, buckets, strict=True)):
                ids = {"scene_id": row["scene_id"] if len(names) == 1 else f"{row['scene_id']}_{k}"}
                about = {"width": bucket.width, "height": bucket.height, "frames": bucket.frames}
                if name in listed:
                    path = f"clips/{name}"
                    found.append(Clip(path, text, {**row, **ids, **about}, file_of(root, path)))
        return found


def _listed(counts: Counter[str]) -> str:
    some = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f" ({some})" if some else ""


def plan_fitted(store: Store, folder: str, preset: Preset, kept: Sequence[Row], crop: bool) -> Fitted:
    """What kept scenes become by a preset; store: the output; crop: whether black bars are cut off in clips/."""
    fitted = Fitted(folder, preset, store.read_json(MADE), crop)
    for row in kept:
        top, bottom, left, right = cut_off(row, crop)
        width, height = row["width"] - left - right, row["height"] - top - bottom
        found = buckets_of(preset, width, height, row["end_s"] - row["start_s"])
        if isinstance(found, str):
            fitted.dropped.append((row, found))
        else:
            fitted.scenes.append((row, found))
    return fitted


def fitted_of(config: CurationConfig, kept: Sequence[Row]) -> Fitted:
    """What kept scenes become by export.preset."""
    folder = PurePosixPath(config.export.preset).stem
    return plan_fitted(Store(config.output), folder, load_preset(config.export.preset), kept, config.export.crop_bars)


def fit_clips(config: CurationConfig, kept: Sequence[Row], stage: LazyStage) -> Fitted:
    """Write the clips of export.preset and their layouts, and remove those of scenes that are no longer kept.

    kept: scenes that have a clip in clips/. Clips that are there are not written again.
    """
    fitted = fitted_of(config, kept)
    store = Store(config.output)
    root = Store(store.uri(fitted.folder))
    store.write_json((store.read_json(FITTED) or {}) | {fitted.folder: asdict(fitted.preset)}, FITTED)
    there = _clips(root)
    names = {name for row, buckets in fitted.scenes for name in fitted.names(row, buckets)}
    todo = [(row, buckets) for row, buckets in fitted.scenes if not there.issuperset(fitted.names(row, buckets))]
    _write(store, root, fitted, todo, stage)
    write_layouts(root, fitted.clips(root, names, config.export.caption), config.export, stage)
    root.write_json(_about(fitted), ABOUT)
    for name in there - names:
        storage.delete(root.uri("clips", name))
    return fitted


def renew_fitted(config: CurationConfig, kept: Sequence[Row], stage: LazyStage) -> None:
    """Tell new captions in the layouts of all presets that there are folders of."""
    store = Store(config.output)
    for folder, settings in (store.read_json(FITTED) or {}).items():
        root = Store(store.uri(folder))
        crop = (store.read_json(MADE) or {}).get("crop_bars", False)
        fitted = plan_fitted(store, folder, TypeAdapter(Preset).validate_python(settings), kept, crop)
        renew_layouts(root, partial(fitted.clips, root, _clips(root)), stage)


def _clips(root: Store) -> set[str]:
    return {entry.name for entry in storage.listing(root.uri("clips"), (".mp4",))}


def _write(
    store: Store, root: Store, fitted: Fitted, todo: Sequence[tuple[Row, list[Bucket]]], stage: LazyStage
) -> None:
    import ray

    if not todo:
        return
    options = ray_task(stage())
    set_context()
    scenes: list[Any] = [
        {
            "clip": clip_name(row["video_id"], row["scene_id"]),
            "names": fitted.names(row, buckets),
            "buckets": json.dumps([asdict(bucket) for bucket in buckets]),
        }
        for row, buckets in todo
    ]
    rows = ray.data.from_items(scenes, override_num_blocks=min(len(scenes), 1000))
    fit = partial(fit_scene, store=store, root=root, preset=fitted.preset)
    list(rows_of(rows.map(fit, **options)))


def _about(fitted: Fitted) -> list[Row]:
    """What became of each scene: its clips, or why there is none."""

    def about(row: Row, bucket: str, path: str, dropped: str) -> Row:
        ids = {name: row[name] for name in ("video_id", "scene_id")}
        return {**ids, "bucket": bucket, "path": path, "dropped": dropped, "cut_off": cut_off(row, fitted.crop)}

    scenes = [
        about(row, str(bucket), f"clips/{name}", "")
        for row, buckets in fitted.scenes
        for name, bucket in zip(fitted.names(row, buckets), buckets, strict=True)
    ]
    return scenes + [about(row, "", "", why) for row, why in fitted.dropped]
