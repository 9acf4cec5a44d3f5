"""Pictures of the people of a timeline: people/NAME_NUMBER.jpg, cut from the best frames, named as a gallery's are."""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from actors.core import storage
from actors.core.store import Store
from actors.media.images import picture_bytes, read_image
from pipelines.movie_characters.films.face_timeline import Track

FOLDER = "people"
MARGIN = 0.6
"""How much of a face's size is added on each side, so that a detector finds it again."""
QUALITY = 95


def picture_name(track: Track, view: int) -> str:
    """The name of the picture of one of a track's faces: the same in each run, and of no other face."""
    safe = re.sub(r'[\s/\\:*?"<>|]+', "_", track.identity)
    box = ",".join(f"{value:.0f}" for value in track.boxes[view])
    return f"{safe}_{zlib.crc32(f'{track.images[view]} {box}'.encode())}.jpg"


def candidates(track: Track, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces of a track that may become pictures: the largest, then others spread over it; and the areas of their boxes.

    int32 and float64 (count,); where the track has fewer, the rest is -1 and 0. One that its body answers has none:
    pictures may become gallery.
    """
    views, areas = np.full(count, -1, np.int32), np.zeros(count)
    spread = np.linspace(0, len(track.images) - 1, count).round().astype(int).tolist()
    there = list(dict.fromkeys([track.best, *spread])) if track.by == "face" else []
    for rank, view in enumerate(there[:count]):
        left, top, right, bottom = track.boxes[view].tolist()
        views[rank], areas[rank] = view, (right - left) * (bottom - top)
    return views, areas


def chosen(identities: Sequence[str], views: np.ndarray, areas: np.ndarray) -> list[tuple[int, int]]:
    """Up to C faces of each person: the largest of each track, largest first, then others of these tracks.

    Args:
        identities: of T tracks.
        views, areas: (T, C) as `candidates` gives them.

    Returns:
        the number of the track and of its face
    """
    count = views.shape[1]
    tracks, ranks = np.nonzero(views >= 0)
    people = np.unique(np.array(identities, str), return_inverse=True)[1][tracks]
    order = np.lexsort([-areas[tracks, ranks], ranks, people])
    people = people[order]
    # Which one of its person each is.
    place = np.arange(len(people)) - np.searchsorted(people, people)
    best = order[place < count]
    return list(zip(tracks[best].tolist(), views[tracks[best], ranks[best]].tolist(), strict=True))


def write_pictures(store: Store, tracks: Mapping[int, Track], wanted: Sequence[tuple[int, int]]) -> list[str]:
    """Write pictures of tracks of a film that are missing; returns the names of all that are wanted.

    tracks: by number; wanted: numbers of the track and of its face.
    """
    names = []
    for number, view in wanted:
        track = tracks[number]
        names.append(picture_name(track, view))
        uri = store.uri(FOLDER, names[-1])
        if not storage.exists(uri):
            frame = read_image(store.uri("frames", track.film, track.images[view]))
            cut = frame.crop(_about(track.boxes[view].tolist(), *frame.size))
            storage.write_bytes(uri, picture_bytes(cut, quality=QUALITY))
    return names


def remove_others(store: Store, names: Iterable[str]) -> None:
    """Remove pictures of earlier answers."""
    wanted = set(names)
    for entry in storage.listing(store.uri(FOLDER), (".jpg",)):
        if entry.name not in wanted:
            storage.delete(entry.uri)


def _about(box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
    """A box with MARGIN on each side, as far as the frame goes."""
    left, top, right, bottom = box
    across, down = MARGIN * (right - left), MARGIN * (bottom - top)
    first = max(0, round(left - across)), max(0, round(top - down))
    return *first, min(width, round(right + across)), min(height, round(bottom + down))
