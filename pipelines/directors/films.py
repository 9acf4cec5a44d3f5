"""Films to classify: pictures by film, in folders and tars, and screenshots that are taken of video files."""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.storage import Entry
from actors.core.store import Store
from actors.directors.screenshots import SCREENSHOTS, settings_key
from actors.media.archives import unpacked
from actors.media.film import VIDEO_SUFFIXES
from actors.media.images import images_among, natural
from pipelines.directors.sample import SampleConfig, take
from pipelines.directors.settings import GuessConfig

GUESSED = "guess"
"""Folder of a model in which screenshots of classified films are kept."""


@dataclass(frozen=True)
class FilmPictures:
    """Films of an input."""

    pictures: list[tuple[str, Entry]]
    """Film and picture, of films that are folders or tars."""
    videos: list[Row]
    """Films that are video files: director, film, uri."""
    todo: list[Row]
    """Those without screenshots."""

    def names(self) -> set[str]:
        """Every film."""
        return {film for film, _ in self.pictures} | {video["film"] for video in self.videos}


def find_film_pictures(config: GuessConfig) -> FilmPictures:
    """The films that `film` names: a video file, a folder or tar of pictures, or a folder of such.

    A film is called as its folder below the input, or its file without the ending. Raises UserError where there is
    none.
    """
    root = storage.absolute(config.film)
    if storage.exists(root):
        entries: Iterable[Entry] = [Entry(root.rpartition("/")[2], root, storage.size(root))]
    else:
        entries = storage.listing(root, as_input=True)
    found = list(unpacked(entries))
    moving = [one for one in found if one.name.lower().endswith(tuple(VIDEO_SUFFIXES))]
    still = sorted(images_among((one for one in found if one not in moving), root), key=lambda one: natural(one.name))
    pictures = [(posixpath.dirname(one.name) or root.rpartition("/")[2], one) for one in still]
    videos = [{"director": GUESSED, "film": posixpath.splitext(one.name)[0], "uri": one.uri} for one in moving]
    videos.sort(key=lambda video: natural(video["film"]))
    if not pictures and not videos:
        raise UserError(
            f"film={config.film} is no film. Give a video, a folder or .tar of pictures, or a folder of them."
        )
    names = [*{film for film, _ in pictures}, *(video["film"] for video in videos)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"film={config.film}: several films are called {', '.join(twice[:5])}. Rename or move them.")
    done = {row["uri"] for row in _taken(config) if not row["error"]}
    return FilmPictures(pictures, videos, [video for video in videos if video["uri"] not in done])


def _taken(config: GuessConfig) -> list[Row]:
    rows = Store(config.model).read_table("screenshots", SCREENSHOTS).to_pylist()
    return [row for row in rows if row["settings"] == settings_key(config.screenshots)]


def pictures_of(films: FilmPictures, config: GuessConfig) -> tuple[list[tuple[str, Entry]], list[Row]]:
    """Take the screenshots that are missing; returns film and picture of all films, and films that have none.

    A film without pictures is a row path, error, message.
    """
    if films.todo:
        sampling = SampleConfig(config.film, config.model, config.screenshots, config.pictures.autoscaling)
        take(sampling, films.todo)
    found, store = list(films.pictures), Store(config.model)
    rejected: list[Row] = []
    named = {video["uri"]: video["film"] for video in films.videos}
    rows = [row for row in _taken(config) if row["uri"] in named] if films.videos else []
    sound = {row["uri"] for row in rows if not row["error"]}
    for row in rows:
        if not row["error"]:
            uri = store.uri(row["path"])
            found.append((named[row["uri"]], Entry(row["path"], uri, storage.size(uri))))
        elif row["uri"] not in sound:
            rejected.append({"path": row["uri"], "error": row["error"], "message": row["message"]})
    return found, list({row["path"]: row for row in rejected}.values())
