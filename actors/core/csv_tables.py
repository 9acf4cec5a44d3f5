"""Lists and CSV tables that people write by hand or with a spreadsheet."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.core import storage
from actors.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""What may stand between columns, by its name."""


def read_text(uri: str) -> str:
    """A text in UTF-8, without its byte order mark. Raises UserError where it is in another encoding."""
    data = storage.read_bytes(uri)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{uri} is not UTF-8 but UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UserError(f"{uri}, line {line}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from error


def delimiter_of(header: str, needed: Sequence[str]) -> str:
    """What is between the columns of a header: the first that gives all that are needed, else a comma."""
    for delimiter in DELIMITERS:
        if set(needed) <= {name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])}:
            return delimiter
    return ","


def read_csv_rows(uri: str, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of its line; names and values without blanks around them.

    Commas, semicolons, tabs or bars are between its columns. A value that a short row lacks is empty; rows without any
    value are left out. Raises UserError where it is no CSV in UTF-8, a column of `needed` is missing, a column is
    there twice, or a row has more values than there are columns.
    """
    columns, rows = _read(uri, needed)
    return [(line, dict(zip(columns, values, strict=True))) for line, values in rows]


def read_csv_table(uri: str, needed: Sequence[str]) -> pd.DataFrame:
    """The rows of `read_csv_rows` as a table of text; the index is their lines."""
    columns, rows = _read(uri, needed)
    import pandas as pd

    return pd.DataFrame([values for _, values in rows], [line for line, _ in rows], columns, dtype=str)


def _read(uri: str, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = read_text(uri)
    try:
        # Strict, since otherwise a quote that is never closed swallows all rows after it.
        delimiter = delimiter_of(text.partition("\n")[0], needed)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = [name.strip() for name in next(table, [])]
        given = [(table.line_num, [value.strip() for value in row]) for row in table]
    except csv.Error as error:
        raise UserError(f"{uri} is not a CSV table: {error}") from error
    while columns and not columns[-1]:
        columns.pop()
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"{uri} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    if twice := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise UserError(f"{uri} has the column {', '.join(map(repr, twice))} twice; keep one of them")
    rows = []
    for line, values in given:
        while len(values) > len(columns) and not values[-1]:
            values.pop()
        if len(values) > len(columns):
            raise UserError(
                f"{uri}, line {line}: it has {len(values)} values for {len(columns)} columns. "
                f"Quote values with a {DELIMITERS[delimiter]}."
            )
        if any(values):
            rows.append((line, values + [""] * (len(columns) - len(values))))
    return columns, rows
