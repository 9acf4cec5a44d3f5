"""Tracks: the faces of one person in neighbouring frames of a shot, and whom a gallery says they are.

join      faces of a frame with those of the frames before: by the overlap of their boxes first, then by appearance
describe  a track by the mean vector of its best views, those with the largest boxes
compare   that vector with the gallery, once a track
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actors.core.errors import UserError

UNSURE = np.nan
"""Stands for a margin where the gallery has one class."""


@dataclass(frozen=True)
class TracksConfig:
    """How faces of neighbouring frames become tracks, and tracks of strangers become people. For model.by=faces."""

    overlap: float = 0.3
    """Least overlap of the boxes of two neighbouring frames that are one face, as intersection over union, 0..1."""
    alike: float | None = None
    """Least cosine of one person: of faces whose boxes do not overlap, and of the tracks of a stranger. null: the
    threshold."""
    gap_s: float = 2.0
    """Longest time in seconds for which a track may lose its face; neighbouring frames always count."""
    views: int = 5
    """Best views of a track, whose mean vector is compared with the gallery."""
    pictures: int = 6
    """Pictures of each person that are written to people/; 0: none."""

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1 or self.gap_s < 0 or self.views < 1 or self.pictures < 0:
            raise UserError(f"overlap is in 0..1, gap_s from 0, views from 1, pictures from 0: {self}")


class Faces(NamedTuple):
    """Faces of a shot, in the order of time."""

    frames: np.ndarray
    """int (N,): the number of the frame in the shot."""
    boxes: np.ndarray
    """float (N, 4): left, top, right, bottom, in pixels of the frame."""
    vectors: np.ndarray
    """float32 (N, D), of length 1."""


class Seen(NamedTuple):
    """Faces of one frame."""

    boxes: np.ndarray
    """float (N, 4): left, top, right, bottom, in pixels of the frame."""
    vectors: np.ndarray
    """float32 (N, D), of length 1."""
    confidences: np.ndarray
    """float (N,), of the detector; NaN where an earlier version has stored none."""

    def chosen(self, rows: np.ndarray) -> "Seen":
        """Those faces of it."""
        return Seen(self.boxes[rows], self.vectors[rows], self.confidences[rows])


NOTHING = Seen(np.zeros((0, 4)), np.zeros((0, 0), np.float32), np.zeros(0))


def overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with boxes (M, 4): (N, M)."""
    first = np.maximum(some[:, None, :2], others[None, :, :2])
    last = np.minimum(some[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(last - first, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (some, others)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def join(faces: Faces, times: np.ndarray, config: TracksConfig, alike: float) -> np.ndarray:
    """The track of each face of a shot: int (N,), numbered from 0 as they appear; two faces of a frame are never one.

    Args:
        faces: their frames never fall.
        times: float (F,), seconds of the shot's frames.
        alike: least cosine of a face with the mean of a track whose box it does not overlap.
    """
    found = np.full(len(faces.frames), -1)
    tracks: list[_Track] = []
    for frame in np.unique(faces.frames):
        new = np.flatnonzero(faces.frames == frame)
        there = [
            number
            for number, one in enumerate(tracks)
            if frame - one.frame <= 1 or times[frame] - times[one.frame] <= config.gap_s
        ]
        if there:
            # A face that was lost meanwhile may have moved: where it is then says little.
            near = overlaps(faces.boxes[new], np.stack([tracks[number].box for number in there]))
            near[:, [frame - tracks[number].frame > 1 for number in there]] = 0
            _assign(found, new, there, near, config.overlap)
            cosines = faces.vectors[new] @ np.stack([tracks[number].mean for number in there]).T
            _assign(found, new, there, cosines, alike)
        for face in new:
            if found[face] < 0:
                found[face] = len(tracks)
                tracks.append(_Track(faces.vectors.shape[1]))
            tracks[found[face]].add(int(frame), faces.boxes[face], faces.vectors[face])
    return found


class _Track:
    """A track as far as it goes."""

    def __init__(self, width: int) -> None:
        self._sum = np.zeros(width)
        self.frame, self.box = -1, np.zeros(4)

    def add(self, frame: int, box: np.ndarray, vector: np.ndarray) -> None:
        self.frame, self.box = frame, box
        self._sum += vector

    @property
    def mean(self) -> np.ndarray:
        return unit(self._sum)


def _assign(found: np.ndarray, new: np.ndarray, tracks: list[int], scores: np.ndarray, least: float) -> None:
    """Give faces that have no track the free tracks that suit them best as a whole, from a least score on."""
    from scipy.optimize import linear_sum_assignment

    free = found[new] < 0
    taken = np.isin(tracks, found[new])
    fits = (scores >= least) & free[:, None] & ~taken[None]
    rows, columns = linear_sum_assignment(np.where(fits, 1 + scores, 0), maximize=True)
    for row, column in zip(rows, columns, strict=True):
        if fits[row, column]:
            found[new[row]] = tracks[column]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) at length 1; one of length 0 stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def best_views(boxes: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the faces with the largest boxes, largest first, of as large ones the earlier: int (up to count,)."""
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.argsort(-areas, kind="stable")[:count]


class Answers(NamedTuple):
    """Whom of a gallery tracks show."""

    nearest: np.ndarray
    """int (T,): the number of the nearest class."""
    cosines: np.ndarray
    """float (T,): the cosine with its nearest picture."""
    margins: np.ndarray
    """float (T,): by how much that is above the next class; NaN where there is none."""


def compare(vectors: np.ndarray, gallery: np.ndarray, classes: np.ndarray) -> Answers:
    """Compare tracks with a gallery; a class is as near as the nearest of its pictures.

    Args:
        vectors: float (T, D), of length 1.
        gallery: float (G, D), of length 1, G at least 1.
        classes: int (G,), the class of each picture, from 0 to C - 1, each at least once.
    """
    cosines = vectors @ gallery.T
    scores = np.stack([cosines[:, classes == one].max(1) for one in range(int(classes.max()) + 1)], 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    best = np.take_along_axis(scores, order[:, :1], 1)[:, 0]
    margins = np.full(len(vectors), UNSURE)
    if scores.shape[1] > 1:
        margins = best - np.take_along_axis(scores, order[:, 1:2], 1)[:, 0]
    return Answers(order[:, 0], best, margins)
