"""Pictures of the people of a timeline: people/NAME_NUMBER.jpg, cut from the best frames, named as a gallery's are."""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence

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


def chosen(tracks: Sequence[Track], count: int) -> list[tuple[Track, int]]:
    """Up to so many faces of each person: the largest of each track, largest first, then others of these tracks."""
    found: dict[str, list[tuple[int, float, Track, int]]] = defaultdict(list)
    for track in tracks:
        spread = np.linspace(0, len(track.images) - 1, count).round().astype(int).tolist()
        for rank, view in enumerate(dict.fromkeys([track.best, *spread])):
            left, top, right, bottom = track.boxes[view].tolist()
            found[track.identity].append((rank, -(right - left) * (bottom - top), track, view))
    order = {name: sorted(some, key=lambda one: one[:2])[:count] for name, some in found.items()}
    return [(track, view) for some in order.values() for _, _, track, view in some]


def write_pictures(store: Store, tracks: Sequence[Track], count: int) -> None:
    """Write pictures of each person; those of earlier answers are removed."""
    there = {entry.name for entry in storage.listing(store.uri(FOLDER), (".jpg",))}
    wanted = {picture_name(track, view): (track, view) for track, view in chosen(tracks, count)} if count else {}
    for name in wanted.keys() - there:
        track, view = wanted[name]
        frame = read_image(store.uri("frames", track.film, track.images[view]))
        cut = frame.crop(_about(track.boxes[view].tolist(), *frame.size))
        storage.write_bytes(store.uri(FOLDER, name), picture_bytes(cut, quality=QUALITY))
    for name in there - wanted.keys():
        storage.delete(store.uri(FOLDER, name))


def _about(box: list[float], width: int, height: int) -> tuple[int, int, int, int]:
    """A box with MARGIN on each side, as far as the frame goes."""
    left, top, right, bottom = box
    across, down = MARGIN * (right - left), MARGIN * (bottom - top)
    first = max(0, round(left - across)), max(0, round(top - down))
    return *first, min(width, round(right + across)), min(height, round(bottom + down))
