"""How the rows of a run are told when it ends: how many came out, and which were rejected, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.core.store import Store

SHOWN = 3
"""Rejected rows that a command prints."""
REASONS = ("code", "error", "message")
"""Columns of a table of rejected rows that say why."""


def nothing_done(record: Mapping[str, Any]) -> str:
    """Why a run failed of which no row came out; "" where some did, where there were none, or they are not counted."""
    rows = record.get("rows")
    if not rows or rows["out"] or not rows["in"]:
        return ""
    return f"none of {rows['in']} rows came out{listed(rows['rejected'])}"


def first_rejections(store: Store, folder: str) -> list[str]:
    """A line for each of the first SHOWN rows of a table of rejected rows: which, its code, and the message."""
    rows, count = [], 0
    for part in store.read_parts(folder):
        rows += part.slice(0, SHOWN - len(rows)).to_pylist()
        count += len(part)
    lines = []
    for row in rows:
        which = next((row[name] for name in ("uri", "path") if row.get(name)), None)
        which = which or next(value for name, value in row.items() if name not in REASONS and value not in ("", None))
        reasons = [str(row[name]) for name in REASONS if row.get(name)]
        lines.append(": ".join([f"  {which}", *reasons]))
    return lines + ([f"  and {count - SHOWN} more: {store.uri(folder)}"] if count > SHOWN else [])


def examples(lines: Sequence[str]) -> list[str]:
    """The first SHOWN of some lines, indented, and how many there are more: for rejected rows that are in no table."""
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"  {line}" for line in lines[:SHOWN]] + more


def listed(counts: Mapping[str, int]) -> str:
    """Counts by name, after a colon; nothing where there are none."""
    return ": " + ", ".join(f"{name} {n}" for name, n in counts.items()) if counts else ""


def decoder_lines(decoders: Mapping[str, int], by_nvdec: bool) -> list[str]:
    """What has decoded films, as lines, where it was not one decoder for all; by_nvdec: a GPU was to."""
    others = sum(count for name, count in decoders.items() if name != "nvdec")
    lines = [f"decoded by{listed(decoders)}"] if len(decoders) > 1 or by_nvdec else []
    if by_nvdec and others:
        lines.append(f"NOTE: {others} of {sum(decoders.values())} films were not decoded by NVDEC alone, though asked")
    return lines
