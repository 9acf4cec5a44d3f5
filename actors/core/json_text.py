"""JSON that is larger than memory: made piece by piece, as `json.dumps(…, indent=1, ensure_ascii=False)` makes it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from actors.core.errors import BrokenRunError, machine_fault


def json_list(values: Iterable[Any], depth: int = 0) -> Iterator[str]:
    """The text of a list; depth: in how many others it lies."""
    begin = "["
    for value in values:
        text = json.dumps(value, indent=1, ensure_ascii=False).replace("\n", _line(depth + 1))
        yield f"{begin}{_line(depth + 1)}{text}"
        begin = ","
    yield "[]" if begin == "[" else f"{_line(depth)}]"


def json_object(items: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """The text of an object; items: its names, each with the pieces of the text of its value."""
    begin = "{"
    for name, pieces in items:
        yield f"{begin}{_line(1)}{json.dumps(name, ensure_ascii=False)}: "
        yield from pieces
        begin = ","
    yield "{}" if begin == "{" else f"{_line(0)}}}"


def _line(depth: int) -> str:
    return "\n" + " " * depth


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write a file of this machine; raises BrokenRunError where it has no room for it."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
    except OSError as error:
        raise BrokenRunError(machine_fault(error, writing=True) or str(error)) from error
