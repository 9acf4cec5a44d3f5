"""On which device and in which precision rows were computed, stored beside them; and whether an output mixes these.

A row's text is "DEVICE DTYPE", as "cuda bfloat16", or where several models worked on it "MODEL: DEVICE DTYPE, ...". A
method that runs on CPUs alone stands by its name. It is "" or null where nothing was computed, and in rows of earlier
versions: how these were computed is unknown.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

COMPUTED = "computed"
"""The column, or key of a JSON file, that holds it."""


def joined(*parts: str) -> str:
    """One text of several, which may be empty."""
    return ", ".join(filter(None, parts))


def mixed(counts: Mapping[Any, int], what: str, rows: str, remedy: str) -> list[str]:
    """A sentence for each model whose values were computed in more than one way.

    Args:
        counts: rows by what is stored of them; unknown ones are left out.
        what: the values, where the stored text names no model, as "vectors".
        rows: what has them, as "images".
        remedy: what to do, as a sentence.
    """
    ways: dict[str, Counter[str]] = defaultdict(Counter)
    for text, count in counts.items():
        for part in text.split(", ") if isinstance(text, str) and text and count else ():
            model, _, way = part.rpartition(": ")
            ways[model or what][way] += int(count)
    return [f"{_told(name, rows, found)}. {remedy}" for name, found in sorted(ways.items()) if len(found) > 1]


def _told(name: str, rows: str, found: Counter[str]) -> str:
    first, *others = [(f"{count:,}", _in_words(way)) for way, count in found.most_common()]
    rest = "".join(f", of {count} {way}" for count, way in others)
    verb = "were" if name.endswith("s") else "was"
    return f"{name} of {first[0]} {rows} {verb} computed {first[1]}{rest}: these are not exactly comparable"


def _in_words(way: str) -> str:
    device, _, dtype = way.partition(" ")
    return f"on {device} in {dtype}" if dtype else f"by {way}"


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many rows there are of each stored text; of rows that lack it, of ""."""
    return Counter(row.get(COMPUTED) or "" for row in rows)
