"""Bodies of a film: who they are where a face is turned away, by a face that was seen with the same body.

own      the body of a face is the one whose upper part holds it; a track has the mean vector of its bodies
turned   a track whose face the gallery does not explain takes the identity of a track with a body alike
backs    bodies without a face become tracks of their own, and take an identity likewise; else they are left out
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from actors.core.stage import Row
from actors.core.store import Store
from actors.movie_characters.recognition.bodies import BodiesConfig, FrameBodies
from actors.movie_characters.recognition.frame_faces import write_faces
from pipelines.movie_characters.films.face_timeline import FacesOf, Track
from pipelines.movie_characters.films.film_faces import (
    FramesTodo,
    embed_films,
    faces_by_film,
    searched_by_film,
    seen_by_film,
)
from pipelines.movie_characters.films.tracks import Faces, Seen, TracksConfig, join, unit
from pipelines.movie_characters.gallery_settings import FaceConfig, model_of, root_of

FOLDER = "bodies"
HEAD = 0.5
"""Share of a body, from its top, in which the top of its face lies."""


def owners(faces: np.ndarray, bodies: np.ndarray) -> list[int]:
    """The number of the body of each face, or -1; no body has two. Boxes (N, 4) and (M, 4) of one frame."""
    from scipy.optimize import linear_sum_assignment

    if not len(faces) or not len(bodies):
        return [-1] * len(faces)
    x, y = (faces[:, :2] + faces[:, 2:]).T / 2
    left, top, right, bottom = bodies.T
    inside = (left <= x[:, None]) & (x[:, None] <= right) & (top <= y[:, None]) & (y[:, None] <= bottom)
    # Its top, since in a close-up the picture ends below the face.
    inside &= faces[:, 1, None] <= top + HEAD * (bottom - top)
    # The nearest to the middle of the body's top, in widths of the body.
    far = np.hypot(x[:, None] - (left + right) / 2, y[:, None] - top) / np.maximum(right - left, 1)
    rows, columns = linear_sum_assignment(np.where(inside, 1 / (1 + far), 0), maximize=True)
    chosen = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [chosen[face] if face in chosen and inside[face, chosen[face]] else -1 for face in range(len(faces))]


def find_bodies(
    about: Row, film: str, tracks: Sequence[Track], bodies_of: FacesOf, config: TracksConfig, how: BodiesConfig
) -> list[Track]:
    """Give a film's tracks the mean vectors of their bodies; returns tracks of bodies without a face.

    about: what shots/FILM.json holds; tracks: of the film's faces; bodies_of: the bodies of an image by its name.
    """
    faces: dict[str, list[tuple[Track, np.ndarray]]] = defaultdict(list)
    for track in tracks:
        for image, box in zip(track.images, track.boxes, strict=True):
            faces[image].append((track, box))
    own: dict[int, list[np.ndarray]] = defaultdict(list)
    found: list[Track] = []
    for shot in about["shots"]:
        ends = [*shot["times"], shot["end_s"]][1:]
        free: list[tuple[int, Seen]] = []
        for number, image in enumerate(shot["images"]):
            seen = bodies_of(image)
            if not len(seen.boxes):
                continue
            there = faces.get(image, [])
            bodies = owners(np.array([box for _, box in there]).reshape(-1, 4), seen.boxes)
            for (track, _), body in zip(there, bodies, strict=True):
                if body >= 0:
                    own[track.number].append(seen.vectors[body])
            free.append((number, seen.chosen(np.setdiff1d(np.arange(len(seen.boxes)), bodies))))
        frames = np.repeat([number for number, _ in free], [len(seen.boxes) for _, seen in free]).astype(int)
        if not len(frames):
            continue
        boxes, vectors, sure = map(np.concatenate, zip(*(seen for _, seen in free), strict=True))
        labels = join(Faces(frames, boxes, vectors), np.array(shot["times"]), config, least_of(how))
        for label in range(int(labels.max()) + 1):
            some = np.flatnonzero(labels == label)
            times, images = ([part[frames[i]] for i in some] for part in (shot["times"], shot["images"]))
            mean = unit(vectors[some].mean(0))
            number = len(tracks) + len(found)
            about_it = film, number, int(shot["shot"]), times, ends[frames[some[-1]]], images, boxes[some], sure[some]
            found.append(Track(*about_it, mean, by="body", body=mean))
    for track in tracks:
        if track.number in own:
            track.body = unit(np.mean(own[track.number], 0))
    return found


def least_of(config: BodiesConfig) -> float:
    """Least cosine of two bodies of one person."""
    assert config.alike is not None, "BodiesConfig has checked it"
    return config.alike


def answer_turned(tracks: Sequence[Track], config: BodiesConfig) -> None:
    """Answer the tracks of faces of a film that have no identity, by their bodies."""
    answer_by_bodies([track for track in tracks if not track.identity], tracks, least_of(config))


def answer_backs(tracks: Sequence[Track], backs: Sequence[Track], config: BodiesConfig) -> list[Track]:
    """The tracks of a film's bodies without a face that have an identity now; numbered after those of faces."""
    answered = answer_by_bodies(backs, tracks, least_of(config))
    found = sorted(answered, key=lambda one: one.number)
    for number, track in enumerate(found, len(tracks)):
        track.number = number
    return found


def answer_by_bodies(tracks: Sequence[Track], named: Sequence[Track], alike: float) -> list[Track]:
    """Give tracks of a film the identity of the track whose body is most alike, if it is so from a cosine on.

    Nobody is twice in a frame. Returns those that have an identity now; they are answered by their body.
    """
    known = [track for track in named if track.identity and track.body is not None]
    asked = [track for track in tracks if track.body is not None]
    if not known or not asked:
        return []
    shown: dict[str, set[str]] = defaultdict(set)
    for track in named:
        if track.identity:
            shown[track.identity].update(track.images)
    mine, theirs = (np.stack([track.body for track in some if track.body is not None]) for some in (asked, known))
    cosines = mine @ theirs.T
    order = np.unravel_index(np.argsort(-cosines, axis=None, kind="stable"), cosines.shape)
    answered: list[Track] = []
    for row, column in zip(*order, strict=True):
        track, other = asked[row], known[column]
        if cosines[row, column] < alike:
            break
        if not track.identity and not shown[other.identity] & set(track.images):
            track.identity, track.cluster, track.by = other.identity, other.cluster, "body"
            shown[other.identity].update(track.images)
            answered.append(track)
    return answered


def embed_bodies(config: FaceConfig, bodies: BodiesConfig, films: Sequence[str], root: Store) -> None:
    """Find and embed the bodies in those frames of films that were not looked at yet.

    root: of the output that holds frames/.
    """
    model = bodies.name(model_of(config))
    todo = FramesTodo(root, searched_by_film(config, root, FOLDER, model), faces_by_film(config, root))
    write = partial(write_faces, store=Store(root_of(config)), model=model, folder=FOLDER)
    embed_films(config, films, todo, FrameBodies, bodies.everywhere, write, "bodies")


def bodies_by_film(config: FaceConfig, bodies: BodiesConfig, root: Store) -> Callable[[str], FacesOf]:
    """The stored bodies of the frames of a film, by its name; root: of the output that holds frames/."""
    return seen_by_film(config, root, FOLDER, bodies.name(model_of(config)))
