"""The images of a folder or list, by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.core import storage
from actors.core.errors import UserError
from actors.media.images import IMAGE_SUFFIXES, images_below, natural
from actors.movie_characters.names import Picture, class_of


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What every verb that identifies images has in common: where they are, and where the results go."""

    input: str | list[str]
    """Images to identify: a folder, a .txt file that lists one a line, one image, or several of these; paths or s3://.
    Of images named CLASS_NUMBER results can be scored; results of others are in unlabelled_results.csv."""
    output: str
    """Where results are written: a path or s3://."""


def find_pictures(where: str | Sequence[str], setting: str, labelled: bool = True) -> list[Picture]:
    """Images by name: of a folder, of a .txt file that lists one a line, one image, or several of these.

    labelled: names must have a class. Raises UserError where they have not, where there are none, or two of one name.
    """
    found: dict[str, Picture] = {}
    for one in [where] if isinstance(where, str) else where:
        for picture in _below(one, setting):
            if found.setdefault(picture.name, picture).uri != picture.uri:
                both = f"{found[picture.name].uri} and {picture.uri}"
                raise UserError(f"{setting}: two images are named {picture.name}: {both}")
            if labelled:
                class_of(picture.name)
    if not found:
        raise UserError(f"{setting}={where} holds no images; their names end in {', '.join(IMAGE_SUFFIXES)}")
    return [found[name] for name in sorted(found, key=natural)]


def _below(where: str, setting: str) -> list[Picture]:
    root = storage.absolute(where)
    if where.lower().endswith(IMAGE_SUFFIXES):
        size = storage.size(root) if storage.exists(root) else -1
        return [Picture(root.rpartition("/")[2], root, size)]
    if where.lower().endswith(".txt"):
        try:
            lines = storage.read_bytes(root).decode().splitlines()
        except FileNotFoundError as error:
            raise UserError(f"{setting}: there is no list {where}") from error
        return [picture for line in lines if line.strip() for picture in _below(line.strip(), setting)]
    found = images_below(root)
    return [Picture(entry.name.rpartition("/")[2], storage.absolute(entry.uri), entry.size) for entry in found]
