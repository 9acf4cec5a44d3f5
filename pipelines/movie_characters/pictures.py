"""The images of a folder or list, by name."""

import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from actors.core import storage
from actors.core.csv_tables import read_text
from actors.core.errors import UserError
from actors.core.storage import Entry
from actors.media.archives import in_tar, is_tar, unpacked
from actors.media.images import IMAGE_SUFFIXES, images_below, natural
from actors.movie_characters.manifest import CLASS, FILE, MANIFEST, SHOWN, Rows, check_complete, read_manifest
from actors.movie_characters.names import UNLABELLED, Picture, checked_class, class_or_unlabelled, unsuffixed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What every verb that identifies images has in common: where they are, and where the results go."""

    input: str | list[str]
    """Images to identify: a folder, a .tar, a .txt file that lists one a line, one image, or several of these; paths or
    s3://. Where images of two folders have one name, as key frames of MovieNet, all are named FOLDER/NAME; those of a
    tar always are. Results can be scored of images named CLASS_NUMBER, or with a class in pictures.csv beside them;
    results of others are in unlabelled_results.csv."""
    output: str
    """Where results are written: a path or s3://."""


def find_pictures(where: str | Sequence[str], setting: str, labelled: bool = True) -> list[Picture]:
    """Images by name: of a folder or tar, of a .txt file that lists one a line, one image, or several of these.

    Where two have one name, all are named by their folder, too; those in a tar always are, by its name.

    A manifest beside them says of which class they are, else their names, else, with `labelled`, the folder in which
    they lie below the one that is given. Images of a manifest's folder without a row are named in a warning.

    labelled: each must have a class. Raises UserError where one has none, where there are no images, two of one name,
    two that differ in their endings alone and are of two classes, or a manifest that cannot be used.
    """
    found: dict[str, Picture] = {}
    manifests: dict[str, Rows] = {}
    places = [where] if isinstance(where, str) else where
    below = [one for place in places for one in _below(place, setting, manifests, labelled)]
    for picture in _apart(below):
        if found.setdefault(picture.name, picture).uri != picture.uri:
            both = f"{found[picture.name].uri} and {picture.uri}"
            raise UserError(f"{setting}: two images are named {picture.name}: {both}")
        if picture.cls == UNLABELLED and labelled:
            raise UserError(
                f"{picture.name}: the name has no class; images are named CLASS_NUMBER, as in Ann_001.jpg, or lie in a "
                f"folder of that name below {where}, or have a row in {MANIFEST} beside them, with {FILE} and {CLASS}"
            )
    if not found:
        raise UserError(f"{setting}={where} holds no images; their names end in {', '.join(IMAGE_SUFFIXES)}")
    _check_stems(found.values(), setting)
    return [found[name] for name in sorted(found, key=natural)]


def _apart(pictures: list[Picture]) -> list[Picture]:
    """Pictures named <folder>/<name> where two would have one name; those of tars bear their film's name already."""
    each = {picture.uri: picture for picture in pictures}
    if max(Counter(picture.name for picture in each.values()).values(), default=1) == 1:
        return pictures
    named = []
    for one in pictures:
        folder = one.uri.rpartition("/")[0].rpartition("/")[2]
        named.append(one if "/" in one.name else replace(one, name=f"{folder}/{one.name}"))
    return named


def _check_stems(pictures: Iterable[Picture], setting: str) -> None:
    """Raise UserError where one name without its ending, as results have it, is of two classes."""
    known: dict[str, Picture] = {}
    for picture in pictures:
        other = known.setdefault(unsuffixed(picture.name), picture)
        if other.cls != picture.cls:
            raise UserError(
                f"{setting}: {other.name} is of {other.cls} and {picture.name} of {picture.cls}, and results name both "
                f"{unsuffixed(picture.name)}. Rename one."
            )


def _below(where: str, setting: str, manifests: dict[str, Rows], labelled: bool) -> list[Picture]:
    """Images that a setting names; manifests: those that are read, by folder; labelled: a folder may say a class."""
    root = storage.absolute(where)
    if where.lower().endswith(IMAGE_SUFFIXES):
        size = storage.size(root) if storage.exists(root) else -1
        folder, _, name = root.rpartition("/")
        if size >= 0 and folder not in manifests:
            manifests[folder] = read_manifest(folder)
        return [Picture(name, root, size, _label(manifests.get(folder, {}), name))]
    if where.lower().endswith(".txt"):
        try:
            lines = read_text(root).splitlines()
        except FileNotFoundError as error:
            raise UserError(f"{setting}: there is no list {where}") from error
        return [
            picture for line in lines if line.strip() for picture in _below(line.strip(), setting, manifests, labelled)
        ]
    size = storage.size(root) if is_tar(root) and storage.exists(root) else -1
    tar = [Entry(root.rpartition("/")[2], root, size)] if size >= 0 else None
    entries = list(unpacked(storage.listing(root, as_input=True) if tar is None else tar))
    own = [posixpath.basename(entry.name) == MANIFEST for entry in entries]
    others = [entry for entry, is_manifest in zip(entries, own, strict=True) if not is_manifest]
    names: dict[str, list[str]] = {
        posixpath.dirname(entry.name): [] for entry, is_manifest in zip(entries, own, strict=True) if is_manifest
    }
    found = images_below(root, others)
    for entry in found:
        folder, name = posixpath.split(entry.name)
        if folder in names:
            names[folder].append(name)
    rows = {folder: _manifest(storage.join(root, folder) if folder else root, names[folder]) for folder in names}
    labels = [_label(rows.get(posixpath.dirname(entry.name), {}), posixpath.basename(entry.name)) for entry in found]
    if labelled:
        labels = _by_folder(found, labels, set(names), setting)
    return [
        Picture(_own_name(entry), entry.uri if in_tar(entry.uri) else storage.absolute(entry.uri), entry.size, label)
        for entry, label in zip(found, labels, strict=True)
    ]


def _by_folder(found: list[Entry], labels: list[str], manifested: set[str], setting: str) -> list[str]:
    """The labels of images, of which those without a class by name or manifest have that of their folder."""
    made, folders = list(labels), defaultdict[str, set[str]](set)
    for at, entry in enumerate(found):
        above = posixpath.dirname(entry.name)
        if not above or above in manifested or in_tar(entry.uri):
            continue
        folder, cls = posixpath.basename(above), class_or_unlabelled(entry.name)
        if cls == UNLABELLED:
            made[at] = checked_class(folder, entry.name)
        elif cls != folder:
            folders[cls].add(folder)
    for cls, some in folders.items():
        if len(some) > 1:
            log.warning(
                "%s: images named %s_NUMBER in %d folders, such as %s, are of the class %s. If folders are characters, "
                "rename the images to numbers",
                *(setting, cls, len(some), min(some), cls),
            )
    return made


def _own_name(entry: Entry) -> str:
    """The name of a file without its folder, unless it lies in a tar: then after that of its film."""
    folder, name = posixpath.split(entry.name)
    return f"{posixpath.basename(folder)}/{name}" if in_tar(entry.uri) else name


def _manifest(folder: str, names: Sequence[str]) -> Rows:
    """The manifest of a folder with images; warns of those without a row."""
    rows = read_manifest(folder)
    if without := check_complete(rows, names, folder):
        some = f"{', '.join(without[:SHOWN])}{' …' if len(without) > SHOWN else ''}"
        log.warning(
            "%s: %d images have no row in %s, and are of the class in their names: %s",
            *(folder, len(without), MANIFEST, some),
        )
    return rows


def _label(rows: Rows, name: str) -> str:
    return rows[name][CLASS] if name in rows else ""
