"""The clips that are there: which scenes have one, and which clips are of none of them. Numbers tell, 30 bytes a scene:
names of clips are texts."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.json_text import json_object
from actors.core.store import Store
from actors.curation.exporting.export import clip_name
from actors.curation.exporting.packed import packed_clips
from pipelines.curation.exporting.fit_clips import MADE
from pipelines.curation.kept import KEYS, Names

OLDER = "export_older.json"
"""Clips made with settings before these, which are still to be replaced: bytes by name."""
AT_ONCE = 50_000
"""Names of clips that are Python objects at once."""
Sized = tuple[str, int]
"""A clip's name below clips/, and its bytes."""


@dataclass
class There:
    """The clips that are there."""

    names: Names
    """Names that the clips of scenes have, below clips/."""
    sizes: np.ndarray
    """Bytes of each scene's clip, int64 (N,); -1: there is none."""
    others: pa.ChunkedArray
    """Names of the clips that are of none of the scenes, as they are listed."""
    other_sizes: np.ndarray
    older: np.ndarray
    """Which scenes have a clip that is still to be replaced, bool (N,)."""
    other_older: np.ndarray

    def __len__(self) -> int:
        return int((self.sizes >= 0).sum()) + len(self.others)

    @property
    def missing(self) -> np.ndarray:
        """Which scenes lack a clip of the settings of now, bool (N,)."""
        return (self.sizes < 0) | self.older

    def mark_older(self, clips: Iterable[Sized]) -> None:
        """Let clips be replaced, those that are there as they were."""
        others = Names([self.others])
        for names, sizes in _arrays(clips):
            for known, there, older in (
                (self.names, self.sizes, self.older),
                (others, self.other_sizes, self.other_older),
            ):
                at = known.places(names)
                same = (at >= 0) & (there[at] == sizes) if len(there) else np.zeros(len(at), bool)
                older[at[same]] = True


def find_clips(store: Store, names: Iterable[Any]) -> There:
    """The clips that are there; names: those that clips of scenes have, in arrays."""
    known = Names(names)
    sizes = np.full(len(known), -1, np.int64)
    others: list[pa.Array] = []
    other_sizes = [np.zeros(0, np.int64)]
    for some, bytes_ in _arrays(listed_clips(store)):
        at = known.places(some)
        sizes[at[at >= 0]] = bytes_[at >= 0]
        others.append(some.filter(pa.array(at < 0)))
        other_sizes.append(bytes_[at < 0])
    left = pa.chunked_array(others, pa.string())
    older = np.zeros(len(sizes), bool), np.zeros(len(left), bool)
    return There(known, sizes, left, np.concatenate(other_sizes), *older)


def clip_names(rows: pa.Table) -> pa.Array:
    """The names of the clips of scenes, below clips/."""
    return pa.array(map(clip_name, *(rows[name].to_pylist() for name in KEYS)), pa.string())


def _arrays(clips: Iterable[Sized]) -> Iterator[tuple[pa.Array, np.ndarray]]:
    clips = iter(clips)
    while some := list(islice(clips, AT_ONCE)):
        names, sizes = zip(*some, strict=True)
        yield pa.array(names, pa.string()), np.array(sizes, np.int64)


def listed_clips(store: Store) -> Iterator[Sized]:
    """The clips that are there, wherever they lie."""
    if is_packed(store):
        return packed_clips(store)
    return ((entry.name, entry.size) for entry in storage.listing(store.uri("clips"), (".mp4",)))


def is_packed(store: Store) -> bool:
    """Whether clips are in tars."""
    return bool((store.read_json(MADE) or {}).get("packed"))


def older_clips(store: Store) -> Iterator[Sized]:
    """What OLDER says, a line after the other."""
    try:
        with storage.stream(store.uri(OLDER)) as file:
            for line in file:
                if (text := line.strip().rstrip(b",")) not in (b"", b"{", b"}", b"{}"):
                    yield from json.loads(b"{" + text + b"}").items()
    except FileNotFoundError:
        return
    except ValueError as error:
        raise UserError(f"{store.uri(OLDER)} is damaged ({error}). Remove it, or restore it.") from error


def write_older(store: Store, clips: Iterable[Sized]) -> None:
    """Write OLDER; without clips it is removed."""
    clips = iter(clips)
    first = next(clips, None)
    if first is None:
        storage.delete(store.uri(OLDER))
    else:
        pieces = ((name, [str(size)]) for name, size in chain([first], clips))
        store.write_pieces(json_object(pieces), OLDER)
