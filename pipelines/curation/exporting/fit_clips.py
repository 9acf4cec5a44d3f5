"""Bring the clips of kept scenes to what a model is trained with: a folder by the name of the preset."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from actors.core import storage
from actors.core.json_text import json_list
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.exporting.export import clip_name, cut_off, fit_scene, sample_key
from actors.curation.exporting.layouts import Caption, Clip, file_of, text_of
from actors.curation.exporting.presets import CRF, EFFORT, Bucket, Preset, buckets_of, load_preset
from actors.curation.tables import ORIGIN
from pipelines.core.ray_data import LazyStage, ray_task, rows_of, set_context
from pipelines.curation.exporting.layouts import renew_layouts, write_layouts
from pipelines.curation.kept import Names
from pipelines.curation.settings import CurationConfig
from pipelines.curation.waves import waves

MADE = "export.json"
"""Settings that clips/ was made with; not in there, where every name is a video's."""
FITTED = "export_presets.json"
"""The presets that there are folders of, by the folder's name."""
ABOUT = "clips.json"
"""In such a folder: what became of each kept scene."""
AT_ONCE = 1000
"""Scenes whose clips are looked for at once."""
WAVE = 100_000
"""Scenes whose clips are asked for at once."""


@dataclass(frozen=True)
class Fitted:
    """What the scenes that are kept become."""

    folder: str
    """Below the output."""
    preset: Preset
    kept: Iterable[Row]
    """Gone through several times."""
    source: Any = None
    """The settings that clips/ was made with."""
    crop: bool = False
    """Whether black bars are cut off there."""

    def scenes(self) -> Iterator[tuple[Row, list[Bucket]]]:
        """Kept scenes, each with its clips one behind the other."""
        return ((row, found) for row, found in self._all() if not isinstance(found, str))

    def dropped(self) -> Iterator[tuple[Row, str]]:
        """Kept scenes that become no clip, and why."""
        return ((row, found) for row, found in self._all() if isinstance(found, str))

    def _all(self) -> Iterator[tuple[Row, list[Bucket] | str]]:
        for row in self.kept:
            top, bottom, left, right = cut_off(row, self.crop)
            width, height = row["width"] - left - right, row["height"] - top - bottom
            yield row, buckets_of(self.preset, width, height, row["end_s"] - row["start_s"])

    def told(self) -> str:
        """How many clips each bucket has, and what was dropped."""
        buckets, reasons, scenes = Counter[str](), Counter[str](), 0
        for _, found in self._all():
            if isinstance(found, str):
                reasons[found] += 1
            else:
                buckets.update(map(str, found))
                scenes += 1
        clips = f"{buckets.total()} clips of {scenes} scenes{_listed(buckets)}"
        return f"{self.folder}: {clips}" + (f"; dropped{_listed(reasons)}" if reasons else "")

    def names(self, row: Row, buckets: Sequence[Bucket]) -> list[str]:
        """Names of a scene's clips below clips/, others where they would be other clips."""
        about = {name: row[name] for name in ("video_id", "scene_id", "start_s", "end_s", *ORIGIN)}
        made = json.dumps([about, self.source, asdict(self.preset), [str(bucket) for bucket in buckets], CRF, EFFORT])
        name = f"{sample_key(row)}-{hashlib.sha256(made.encode()).hexdigest()[:8]}"
        return [f"{name}.mp4"] if len(buckets) == 1 else [f"{name}_{k}.mp4" for k in range(len(buckets))]


@dataclass(frozen=True)
class FittedClips:
    """Such clips, as trainers see them."""

    root: Store
    """The folder."""
    fitted: Fitted
    there: Names | None
    """Names of those that there are; None: all."""
    caption: Caption

    def __iter__(self) -> Iterator[Clip]:
        for row, buckets in self.fitted.scenes():
            text, names = text_of(row, self.caption), self.fitted.names(row, buckets)
            there = [True] * len(names) if self.there is None else self.there.places(names) >= 0
            for k, (name, bucket) in enumerate(zip(names, buckets, strict=True)):
                ids = {"scene_id": row["scene_id"] if len(names) == 1 else f"{row['scene_id']}_{k}"}
                about = {"width": bucket.width, "height": bucket.height, "frames": bucket.frames}
                if there[k]:
                    path = f"clips/{name}"
                    yield Clip(path, text, {**row, **ids, **about}, file_of(self.root, path))


def _listed(counts: Counter[str]) -> str:
    some = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f" ({some})" if some else ""


def fitted_of(config: CurationConfig, kept: Iterable[Row]) -> Fitted:
    """What kept scenes become by export.preset."""
    folder = PurePosixPath(config.export.preset).stem
    source = Store(config.output).read_json(MADE)
    return Fitted(folder, load_preset(config.export.preset), kept, source, config.export.crop_bars)


def fit_clips(config: CurationConfig, kept: Iterable[Row], stage: LazyStage) -> Fitted:
    """Write the clips of export.preset and their layouts, and remove those of scenes that are no longer kept.

    kept: scenes that have a clip in clips/. Clips that are there are not written again.
    """
    fitted = fitted_of(config, kept)
    store = Store(config.output)
    root = Store(store.uri(fitted.folder))
    store.write_json((store.read_json(FITTED) or {}) | {fitted.folder: asdict(fitted.preset)}, FITTED)
    listed = _clips(root)
    there, wanted = Names([listed]), np.zeros(len(listed), bool)
    for todo in waves(_missing(fitted, there, wanted), lambda _: 1, WAVE):
        _write(store, root, fitted, todo, stage)
    write_layouts(root, FittedClips(root, fitted, None, config.export.caption), config.export, stage)
    root.write_pieces(json_list(_about(fitted)), ABOUT)
    for name in listed.filter(pa.array(~wanted)).to_pylist():
        storage.delete(root.uri("clips", name))
    return fitted


def _missing(fitted: Fitted, there: Names, wanted: np.ndarray) -> Iterator[tuple[Row, list[str], list[Bucket]]]:
    """Scenes that lack a clip, each with its clips; marks those that are there as wanted."""
    scenes = fitted.scenes()
    while some := list(islice(scenes, AT_ONCE)):
        names = [fitted.names(*one) for one in some]
        at = there.places([name for few in names for name in few])
        wanted[at[at >= 0]] = True
        ends = np.cumsum(list(map(len, names)))
        for (row, buckets), few, end in zip(some, names, ends, strict=True):
            if (at[end - len(few) : end] < 0).any():
                yield row, few, buckets


def renew_fitted(config: CurationConfig, kept: Iterable[Row], stage: LazyStage) -> None:
    """Tell new captions in the layouts of all presets that there are folders of."""
    store = Store(config.output)
    made = store.read_json(MADE)
    for folder, settings in (store.read_json(FITTED) or {}).items():
        root = Store(store.uri(folder))
        crop = (made or {}).get("crop_bars", False)
        fitted = Fitted(folder, TypeAdapter(Preset).validate_python(settings), kept, made, crop)
        renew_layouts(root, partial(FittedClips, root, fitted, Names([_clips(root)])), stage)


def _clips(root: Store) -> pa.ChunkedArray:
    entries, names = storage.listing(root.uri("clips"), (".mp4",)), []
    while some := list(islice(entries, AT_ONCE)):
        names.append(pa.array([entry.name for entry in some]))
    return pa.chunked_array(names, pa.string())


def _write(
    store: Store, root: Store, fitted: Fitted, todo: Sequence[tuple[Row, list[str], list[Bucket]]], stage: LazyStage
) -> None:
    import ray

    options = ray_task(stage())
    set_context()
    scenes: list[Any] = [
        {
            "clip": clip_name(row["video_id"], row["scene_id"]),
            "names": names,
            "buckets": json.dumps([asdict(bucket) for bucket in buckets]),
        }
        for row, names, buckets in todo
    ]
    rows = ray.data.from_items(scenes, override_num_blocks=min(len(scenes), 1000))
    fit = partial(fit_scene, store=store, root=root, preset=fitted.preset)
    list(rows_of(rows.map(fit, **options)))


def _about(fitted: Fitted) -> Iterator[Row]:
    """What became of each scene: its clips, or why there is none."""

    def about(row: Row, bucket: str, path: str, dropped: str) -> Row:
        ids = {name: row[name] for name in ("video_id", "scene_id")}
        return {**ids, "bucket": bucket, "path": path, "dropped": dropped, "cut_off": cut_off(row, fitted.crop)}

    for row, buckets in fitted.scenes():
        for name, bucket in zip(fitted.names(row, buckets), buckets, strict=True):
            yield about(row, str(bucket), f"clips/{name}", "")
    for row, why in fitted.dropped():
        yield about(row, "", "", why)
