"""Which key frames stand for whole videos. Of all scenes there are numbers here; rows are read of those that are looked
at, for some parts of scores/ at a time."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.measuring.family import VIDEO_SCENES
from actors.curation.measuring.measured import rows_of_slice
from actors.curation.tables import BARS, PICTURES, SCORES, read_at, strings
from pipelines.curation.numbered import numbered

AT_ONCE = 256
"""Parts, or slices of them, whose videos are looked for at once."""
NEEDED = pa.schema(
    [*(SCORES.field(name) for name in ("video_id", "scene_id", "width", "height", *BARS)), (PICTURES, pa.string())]
)


class _Sound:
    """The sound scenes of an output in the order of the plan, as numbers."""

    def __init__(self, store: Store) -> None:
        rows = numbered(store, ["mean_rgb_diff", "start_s"], _sound, ["start_s"])
        self.paths, self.part = rows.part.cat.categories, rows.part.cat.codes.to_numpy()
        self.video, self.row, start_s = (rows[name].to_numpy() for name in ("video", "row", "start_s"))
        self._numbers = {str(path).rpartition("/")[2]: number for number, path in enumerate(self.paths)}
        # Places of the scenes of each part in the order of the plan, and of each video in that of time.
        self._by_part = np.argsort(self.part, kind="stable")
        self._parts = self.part[self._by_part]
        self._by_video = np.lexsort((start_s, self.video))
        self._videos = self.video[self._by_video]

    def videos_in(self, name: str) -> np.ndarray:
        """The videos with scenes in a part of scores/, or a slice of it."""
        part, first, count = rows_of_slice(name)
        number = self._numbers.get(part)
        if number is None:
            return self.video[:0]
        at = self._by_part[slice(*np.searchsorted(self._parts, [number, number + 1]))]
        row = self.row[at]
        within = row >= first if count is None else (row >= first) & (row < first + count)
        return pd.unique(self.video[at[within]])

    def looked_at(self, video: int) -> np.ndarray:
        """The scenes of a video whose pictures are looked at."""
        at = self._by_video[slice(*np.searchsorted(self._videos, [video, video + 1]))]
        return at[np.unique(np.linspace(0, len(at) - 1, min(len(at), VIDEO_SCENES)).round().astype(int))]


def _sound(scenes: pd.DataFrame) -> pd.Series:
    return (scenes.error == "") & np.isfinite(scenes.mean_rgb_diff)


def pictures_of(store: Store, items: Iterable[Row]) -> Iterator[Row]:
    """With each part, which key frames stand for the videos whose scenes it has."""
    sound, items = _Sound(store), iter(items)
    while some := list(islice(items, AT_ONCE)):
        videos = [sound.videos_in(item["part"]) for item in some]
        wanted = _wanted(store, sound, pd.unique(np.concatenate(videos)))
        for item, numbers in zip(some, videos, strict=True):
            yield {**item, "pictures": json.dumps(dict(wanted[number] for number in numbers.tolist()))}


def _wanted(store: Store, sound: _Sound, videos: np.ndarray) -> dict[int, tuple[str, Sequence[Any]]]:
    """Of each video its video_id and the pictures to look at: the part of keyframes/, the scene, the box."""
    if not len(videos):
        return {}
    at = np.concatenate([sound.looked_at(video) for video in videos])
    places = pd.DataFrame({"part": sound.paths[sound.part[at]], "row": sound.row[at]})
    rows = read_at(store, places, NEEDED).to_pandas(types_mapper=strings)
    bars = rows[list(BARS)].fillna(0)
    boxes = pd.DataFrame(
        {
            "left": bars.bar_left / rows.width,
            "top": bars.bar_top / rows.height,
            "right": 1 - bars.bar_right / rows.width,
            "bottom": 1 - bars.bar_bottom / rows.height,
        }
    )
    rows = rows.assign(**{PICTURES: rows[PICTURES].astype(str)}, box=boxes.round(6).to_numpy().tolist())
    found = {}
    for video, few in rows.groupby(sound.video[at], sort=False):
        few = few.sort_values([PICTURES, "scene_id"])
        pictures = zip(few[PICTURES], few.scene_id, few.box, strict=True)
        found[video] = str(few.video_id.iloc[0]), [list(one) for one in pictures]
    return found
