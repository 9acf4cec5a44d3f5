"""CSV tables that people write by hand or with a spreadsheet, row by row with their lines."""

import csv
import io
from collections.abc import Sequence

from actors.core import storage
from actors.core.errors import UserError


def read_csv_rows(uri: str, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table, each with the number of its line; names and values without blanks around them.

    A value that a short row lacks is empty. Raises UserError where it is no CSV in UTF-8, a column of `needed` is
    missing, or a row has more values than there are columns.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in next(table, [])]
        given = [(table.line_num, row) for row in table if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{uri} is not a CSV table: {error}") from error
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"{uri} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    rows = []
    for line, values in given:
        if len(values) > len(columns):
            raise UserError(
                f"{uri}, line {line}: it has {len(values)} values for {len(columns)} columns. Quote values with commas."
            )
        values += [""] * (len(columns) - len(values))
        rows.append((line, {name: value.strip() for name, value in zip(columns, values, strict=True)}))
    return rows
