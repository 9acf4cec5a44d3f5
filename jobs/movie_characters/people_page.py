"""people.html: the tracks of each person, whose pictures are played when they are clicked."""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from actors.core import storage
from actors.core.store import Store
from jobs.core.pages import clock, duration, render
from pipelines.movie_characters.films.face_timeline import Track
from pipelines.movie_characters.films.people_files import People

PERSONS = 100
"""Most people on the page: those who are longest on screen."""
TRACKS = 60
"""Most tracks of a person on the page, longest first."""
FRAMES = 20_000
"""Frames of all tracks on the page, about: 3 MB."""


def people_page(store: Store, people: People, films: dict[str, str]) -> str:
    """Write people.html beside frames/, from which it shows pictures; films: addresses by name. Returns its URI."""
    index = people.index.assign(length=people.index.end_s - people.index.start_s)
    lengths = index.groupby("identity").length.agg(["sum", "size"])
    shown = sorted(lengths.index, key=lambda name: (-lengths["sum"][name], name))
    some = index.sort_values(["length", "film", "track"], ascending=[False, True, True], kind="stable")
    of = {name: some[some.identity == name].head(TRACKS) for name in shown[:PERSONS]}
    wanted: dict[str, set[int]] = defaultdict(set)
    for rows in of.values():
        for film, track in zip(rows.film, rows.track.tolist(), strict=True):
            wanted[film].add(track)
    read = people.read(wanted)
    most = max(2, FRAMES // max(1, len(read)))
    persons, tracks = [], []
    for name, rows in of.items():
        length, count = float(lengths["sum"][name]), int(lengths["size"][name])
        about = f"{duration(length)}, tracks: {count:,}"
        if count > TRACKS:
            about += f", of which the longest {TRACKS} are shown"
        first = len(tracks)
        own = [read[film, track] for film, track in zip(rows.film, rows.track.tolist(), strict=True)]
        tracks += [_played(track, films.get(track.film, ""), most) for track in own]
        persons.append({"name": name, "about": about, "tracks": list(enumerate(tracks[first:], first))})
    totals = f"{len(shown):,} people, {sum(one.startswith('unknown_') for one in shown):,} of them without a name"
    if len(shown) > PERSONS:
        totals += f"; shown are the {PERSONS} who are longest on screen"
    if any(len(track.images) > most for track in read.values()):
        totals += f"; of each track {most} pictures at most"
    uri = store.uri("people.html")
    page = render("movie_characters/people.html.j2", persons=persons, tracks=tracks, totals=totals)
    storage.write_bytes(uri, page.encode())
    return uri


def _played(track: Track, film: str, most: int) -> dict[str, Any]:
    """What the page needs of a track, with so many of its frames at most, evenly spaced, and the best one."""
    folder = quote(f"frames/{track.film}")
    some = np.linspace(0, len(track.images) - 1, min(most, len(track.images))).round().astype(int)
    some[np.abs(some - track.best).argmin()] = track.best
    shown = [(track.images[i], track.times[i], track.boxes[i]) for i in some]
    frames = [
        {"src": f"{folder}/{quote(image)}", "at": clock(time), "box": [round(float(edge)) for edge in box]}
        for image, time, box in shown
    ]
    words = f"{track.identity}, {track.film} {clock(track.start_s)} – {clock(track.end_s)}"
    sure = "" if track.cluster else f"cosine {track.cosine:.3f}"
    where = ""
    if film.startswith("/"):
        where = f"file://{quote(str(PurePosixPath(film)))}#t={track.start_s:.3f},{track.end_s:.3f}"
    return {"title": words, "sure": sure, "film": where, "best": some.tolist().index(track.best), "frames": frames}
