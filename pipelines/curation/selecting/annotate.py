"""Labelling by one person: which scenes are asked for, in what order, their clips, and every label on disk."""

import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core import storage
from actors.core.child import Child, ChildFault
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.core.temporary import TemporaryFolder
from actors.curation.cutting.pictures import FOLDER, stored
from actors.curation.cutting.scenes import FEATURES
from actors.curation.exporting.clips import write_clips
from actors.curation.exporting.export import clip_name
from actors.curation.exporting.packed import download_clip
from actors.curation.selecting.filter import Filter
from actors.curation.selecting.labelling import columns_of, to_label
from actors.curation.tables import PICTURES, SCORES, plan_places, read_at, strings, with_new_captions, with_places
from pipelines.curation.numbered import numbered
from pipelines.curation.selecting.labels import Agreement, Key, Labels, kappa, read_labels, write_labels
from pipelines.curation.settings import CurationConfig

AHEAD = 4
"""Clips that are cut before they are asked for."""
BACK = 3
"""Clips that stay for undo; those of older scenes are cut anew."""
AT_ONCE = 20_000
"""Scenes that one session asks for at most."""
COLUMNS = ["video_index", "video_id", "scene_id", "caption", "start_s", "end_s", "width", "height", "uri", *FEATURES]


class NotCurrentError(UserError):
    """An answer to a scene that is not, or no longer, the one that is asked for."""


class ClipError(RuntimeError):
    """A clip that cannot be had, and why."""


class ToLabel(NamedTuple):
    """What a person is asked for."""

    scenes: pd.DataFrame
    """The first of the scenes that this person has not labelled, in order, with `round` and COLUMNS."""
    beyond: int
    """How many more there are."""


def count_to_label(store: Store) -> int:
    """How many scenes of an output are sound and have all of the seven features, kept or not; UserError for none."""
    return len(_to_label(store, None, {}))


def scenes_to_label(
    store: Store,
    per_video: int,
    seed: int = 0,
    model: Filter | None = None,
    labels: Mapping[Key, Any] | None = None,
) -> ToLabel:
    """The scenes of an output that are sound and have all of the seven features, kept or not, as `in_order`, but for
    those that have labels.

    Of all of them there are numbers here; of the first AT_ONCE, which are more than are labelled in a day, their rows.
    """
    rows = _to_label(store, model, labels or {})
    order, turn = _in_order(rows.video.to_numpy(), rows.scene.to_numpy(), per_video, seed, rows.doubt.to_numpy())
    left = ~rows.labelled.to_numpy()[order]
    order, turn = order[left], turn[left]
    some = rows.iloc[order[:AT_ONCE]][["part", "row"]].astype({"part": object})
    schema = pa.schema([*(SCORES.field(name) for name in COLUMNS), (PICTURES, pa.string())])
    scenes = read_at(store, some, schema).to_pandas(types_mapper=strings)
    scenes = with_places(store, with_new_captions(store, scenes), plan_places(store))
    return ToLabel(scenes.assign(round=turn[:AT_ONCE]), len(order) - len(some))


def _to_label(store: Store, model: Filter | None, labels: Mapping[Key, Any]) -> pd.DataFrame:
    look = partial(to_label, model=model, labels=labels)
    rows = numbered(store, columns_of(model), lambda scenes: scenes.asked, ("labelled", "doubt"), look)
    if rows.empty:
        raise UserError(f"{store.root} has no scene with all features to label. Run `score` first.")
    return rows


def key_frames(store: Store, row: Row) -> list[bytes]:
    """JPEG files of the first, middle and last sampled frame of a scene to label; none where they are not stored."""
    key = row["video_id"], row["scene_id"]
    return stored(store, row[PICTURES], {key}).get(key, [])


def with_key_frames(store: Store, scenes: pd.DataFrame) -> set[int]:
    """The places of the scenes to label that have key frames."""
    there = set(store.parts(FOLDER))
    return set(np.flatnonzero(scenes[PICTURES].isin(there)).tolist())


def in_order(scenes: pd.DataFrame, per_video: int, seed: int = 0, model: Filter | None = None) -> pd.DataFrame:
    """The scenes in the order in which they are asked for, with their `round`.

    Round 0 holds at most per_video scenes of each video, as does every later one, so that no long film is all that is
    labelled. In a round scenes come at random, the same for the same seed, or with a model those first that it doubts
    most: whose probability of being good is nearest to .5.
    """
    doubt = np.full(len(scenes), np.nan) if model is None else np.abs(model.probability(scenes) - 0.5)
    video, scene = (scenes[name].rank(method="dense").to_numpy(np.int32) for name in ("video_id", "scene_id"))
    order, turn = _in_order(video, scene, per_video, seed, doubt)
    return scenes.iloc[order].assign(round=turn).reset_index(drop=True)


def _in_order(
    video: np.ndarray, scene: np.ndarray, per_video: int, seed: int, doubt: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which scene comes when, int64 (N,), and in which round, as `in_order`; video, scene: numbers that compare as the
    ids do."""
    order = np.lexsort((scene, video))[np.random.default_rng(seed).permutation(len(video))]
    if len(doubt) and not np.isnan(doubt[0]):
        order = order[np.argsort(doubt[order], kind="stable")]
    turn = pd.Series(video[order]).groupby(video[order]).cumcount().to_numpy() // per_video
    later = np.argsort(turn, kind="stable")
    return order[later], turn[later]


class Clips:
    """Clips of scenes, cut by a thread and a child process of their own before they are asked for.

    A film is decoded from its start, so what is asked of one film in one round is cut at once.
    """

    def __init__(self, scenes: pd.DataFrame, config: CurationConfig) -> None:
        """scenes: as `in_order` gives them, only those that are still to be labelled."""
        self._scenes = scenes
        self._store = Store(config.output)
        self._limits = config.video.limits
        # To be looked at once: soon is better than small.
        quick = replace(config.export, crf=23, x264_preset="superfast", crop_bars=False)
        self._how = quick, None, config.video.max_pixels, config.cutting.frames.look
        self._folder = TemporaryFolder()
        self._child = Child()
        self._change = threading.Condition()
        self._clips: dict[int, Future[Path]] = {}
        self._wanted: list[int] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def want(self, places: Iterable[int]) -> None:
        """Cut the clips of scenes at these places of the order next, the first of them first."""
        with self._change:
            self._wanted = list(places)
            for place in self._wanted:
                self._clips.setdefault(place, Future())
            self._change.notify()

    def forget(self, place: int) -> None:
        """Remove the clip of a scene that has been labelled."""
        with self._change:
            clip = self._clips.pop(place, None)
        if clip and clip.done() and not clip.exception():
            clip.result().unlink(missing_ok=True)

    def clip(self, place: int) -> "Future[Path]":
        """The local file of a clip that is wanted; raises ClipError where it cannot be had."""
        with self._change:
            return self._clips.setdefault(place, Future())

    def stop(self) -> None:
        """End the thread and the child, and remove what they made."""
        with self._change:
            self._stopped = True
            self._change.notify()
        # While it copies a film from a store it cannot be disturbed, and ends with this process.
        for _ in range(50):
            self._child.interrupt()
            self._thread.join(0.1)
            if not self._thread.is_alive():
                break
        for clip in self._clips.values():
            if not clip.done():
                clip.set_exception(ClipError("labelling was stopped"))
        self._folder.remove()

    def _next(self) -> int | None:
        return next((place for place in self._wanted if (c := self._clips.get(place)) and not c.done()), None)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopped or self._next() is not None)
                place = self._next()
                if self._stopped or place is None:
                    break
                scenes = self._scenes
                row = _row(scenes, place)
                same = scenes.index[(scenes.video_index == row["video_index"]) & (scenes["round"] == row["round"])]
                left = {int(p): c for p in same if p >= place and not (c := self._clips.setdefault(p, Future())).done()}
            try:
                self._make(left)
            # Whatever it is, it is told where the clip is asked for, and the next film may be better.
            except Exception as error:
                code = f"{error.code}: " if isinstance(error, ChildFault) else ""
                for clip in left.values():
                    clip.set_exception(ClipError(f"{code}{error}"))
        self._child.kill()

    def _make(self, left: "dict[int, Future[Path]]") -> None:
        """Have clips of one film, or raise; what could be had is no longer in `left`."""
        folder = tempfile.mkdtemp(dir=self._folder.path)
        columns = ["video_id", "scene_id", "start_s", "end_s", "uri"]
        wanted = dict(zip(left, self._scenes.loc[list(left), columns].to_dict("records"), strict=True))
        for place, row in list(wanted.items()):
            path = Path(folder, f"{place}.mp4")
            with suppress(FileNotFoundError):
                download_clip(self._store, clip_name(row["video_id"], row["scene_id"]), path)
                del wanted[place]
                left.pop(place).set_result(path)
        places = {row["scene_id"]: place for place, row in wanted.items()}
        if not places:
            return
        rows = list(wanted.values())
        with storage.local(rows[0]["uri"]) as film:
            for row in self._child.stream(write_clips, str(film), rows, folder, *self._how, **self._limits):
                clip = left.pop(places[row["scene_id"]])
                if row["error"]:
                    clip.set_exception(ClipError(f"{row['error']}: {row['message']}"))
                else:
                    clip.set_result(Path(row["path"]))


class Session:
    """What one person labels now: the scene that is asked for, and every answer on disk before the next.

    A scene that is skipped is not asked for again in this session.
    """

    def __init__(self, scenes: pd.DataFrame, file: str, everyone: dict[str, Labels], beyond: int = 0) -> None:
        """scenes: as `in_order` gives them. file: this person's labels. everyone: labels by annotator. beyond: how many
        scenes a later session asks for."""
        self.file = file
        self.annotator = PurePosixPath(file).stem
        self.labels: Labels = everyone.get(self.annotator, {})
        self._others = {name: labels for name, labels in everyone.items() if name != self.annotator}
        keys = zip(scenes.video_id, scenes.scene_id, strict=True)
        self.scenes = scenes[[key not in self.labels for key in keys]].reset_index(drop=True)
        """Those that this person has not labelled yet, in order."""
        self._ahead = deque(range(len(self.scenes)))
        self._past: list[tuple[int, int | None]] = []
        self._beyond = beyond

    @property
    def left(self) -> int:
        """How many scenes are still to be asked for, in this session and later."""
        return len(self._ahead) + self._beyond

    @property
    def answers(self) -> list[int | None]:
        """What was answered in this session, None where a scene was skipped."""
        return [label for _, label in self._past]

    def current(self) -> Row | None:
        """The scene that is asked for; None at the end."""
        return _row(self.scenes, self._ahead[0]) if self._ahead else None

    def ahead(self, count: int) -> list[int]:
        """The places of the current scene and of those after it."""
        return list(islice(self._ahead, count))

    def past(self, back: int) -> int | None:
        """The place of the scene that was asked for so many answers ago."""
        return self._past[-back][0] if len(self._past) >= back else None

    def answer(self, key: Key, label: int | None) -> None:
        """Label the current scene, or skip it with None; raises NotCurrentError where another one is current."""
        place = self._ahead[0] if self._ahead else None
        if place is None or key != self._key(place):
            raise NotCurrentError("this scene was answered before, on another page: here is the next")
        if label is not None:
            self._write(key, label)
        self._past.append((self._ahead.popleft(), label))

    def undo(self) -> None:
        """Take back the last answer of this session; its scene is current again."""
        if self._past:
            place, label = self._past[-1]
            if label is not None:
                self._write(self._key(place), None)
            self._past.pop()
            self._ahead.appendleft(place)

    def agreement(self) -> dict[str, Agreement]:
        """How often this person and each other one agree, where both labelled the same scenes."""
        pairs = {name: kappa({self.annotator: self.labels, name: labels}) for name, labels in self._others.items()}
        return {name: found for name, pair in pairs.items() for found in pair.values()}

    def _key(self, place: int) -> Key:
        row = _row(self.scenes, place)
        return row["video_id"], row["scene_id"]

    def _write(self, key: Key, label: int | None) -> None:
        # Read anew: the same person may label on another machine, too.
        labels = read_labels(self.file).get(self.annotator, {})
        labels.pop(key, None)
        if label is not None:
            labels[key] = label
        write_labels(self.file, labels)
        self.labels = labels


def _row(scenes: pd.DataFrame, place: int) -> Row:
    return {str(name): value for name, value in scenes.loc[place].items()}
