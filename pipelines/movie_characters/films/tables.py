"""The tables of a timeline: rows of its shots, votes and stretches; and per film what editors read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import starmap
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from actors.core import storage
from actors.core.stage import Row
from actors.core.store import Store
from pipelines.movie_characters.films.editing import Appearance, Stretch, edl, rttm, srt, stretches
from pipelines.movie_characters.results import UNKNOWN, write_csv

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.movie_characters.films.people_files import People

log = logging.getLogger(__name__)

TIMELINES = "timelines"
"""Folder of what is made per film."""
_SHOT = ["film", "shot", "start_s", "end_s"]


@dataclass(frozen=True)
class Tables:
    """Rows of the tables."""

    shots: pd.DataFrame
    """A row per shot: film, shot, start_s, end_s, frames, answer, share of the votes."""
    votes: pd.DataFrame
    """A row per shot and character with a vote: film, shot, start_s, end_s, character, votes, share, score (mean)."""
    segments: pd.DataFrame
    """A row per stretch of frames of a shot with the same answer: film, shot, start_s, end_s, character, frames, share
    (of the shot's votes for this character), score (the greatest; NaN for unknown), image (the frame with it)."""

    @classmethod
    def of(cls, shots: list[list[Any]], votes: list[list[Any]], segments: list[list[Any]]) -> Tables:
        """Tables of rows."""
        import pandas as pd

        return cls(
            pd.DataFrame(shots, columns=[*_SHOT, "frames", "answer", "share"]),
            pd.DataFrame(votes, columns=[*_SHOT, "character", "votes", "share", "score"]),
            pd.DataFrame(segments, columns=[*_SHOT, "character", "frames", "share", "score", "image"]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Tables]) -> Tables:
        """The rows of all parts, in their order."""
        import pandas as pd

        empty = cls.of([], [], [])
        columns = {}
        for name in ("shots", "votes", "segments"):
            some = [table for part in parts if len(table := getattr(part, name))]
            columns[name] = pd.concat(some, ignore_index=True) if some else getattr(empty, name)
        return cls(**columns)


@dataclass(frozen=True)
class Appearances(Tables):
    """Which characters are on screen when."""

    characters: list[str]
    """All characters that can be answered, sorted."""
    films: dict[str, dict[str, str]]
    """Decoder, error and message of each film; no error where it was read to its end."""
    people: People | None = None
    """Tracks, with model.by=faces."""


def film_about(store: Store, film: str) -> Row:
    """What is stored of a film that was cut, or could not be."""
    return store.read_json("shots", f"{film}.json") or store.read_json("failed", f"{film}.json")


def about_of(about: Row) -> dict[str, str]:
    """Decoder, error and message of a film."""
    return {name: about.get(name, "") for name in ("decoder", "error", "message")}


def shot_row(film: str, shot: Row, counts: pd.DataFrame) -> list[Any]:
    """The row of a shot by its votes: film, shot, start_s, end_s, frames, answer, share."""
    answer, share = (counts.character.iloc[0], counts.share.iloc[0]) if len(counts) else (UNKNOWN, 0.0)
    return [film, shot["shot"], shot["start_s"], shot["end_s"], len(shot["images"]), answer, float(share)]


def written(
    store: Store,
    tables: Tables,
    characters: list[str],
    films: dict[str, dict[str, str]],
    people: People | None = None,
) -> Appearances:
    """Write the tables."""
    write_csv(store.uri("shots.csv"), tables.shots)
    write_csv(store.uri("appearances.csv"), tables.votes)
    write_csv(store.uri("segments.csv"), tables.segments)
    return Appearances(tables.shots, tables.votes, tables.segments, characters, films, people)


def write_editing(store: Store, about: Row, segments: pd.DataFrame) -> None:
    """Write timelines/FILM.srt, .rttm and .edl: who is on screen when; about: what shots/FILM.json holds."""
    film = about["film"]
    shown = [Appearance(*row) for row in segments[["start_s", "end_s", "character"]].itertuples(index=False)]
    texts = {f"{film}.srt": srt(stretches(shown)), f"{film}.rttm": rttm(film, shown)}
    if about.get("rate"):
        # Timecode counts from the first frame, wherever the clock of the file starts.
        begin = about["begin_s"]
        counted = [(one.start_s - begin, one.end_s - begin, one.characters) for one in stretches(shown)]
        lists = edl(film, PurePosixPath(about["uri"]).name, starmap(Stretch, counted), Fraction(about["rate"]))
        texts |= {f"{film}{f'_{number}' if number > 1 else ''}.edl": text for number, text in enumerate(lists, 1)}
    else:
        where = store.uri("shots", f"{film}.json")
        log.warning(
            "%s: no .edl, since an earlier version did not store its rate. Remove %s to cut it again", film, where
        )
    for name, text in texts.items():
        storage.write_bytes(store.uri(TIMELINES, name), text.encode())
