"""The manifest of a folder of images, `pictures.csv` beside them: whose each image is, whatever its name.

file,class                       both are needed
subject01_left.png,subject01     other columns may follow; `generate` writes what each image was drawn from
"""

import csv
import io
import logging
from collections.abc import Collection, Mapping, Sequence

from actors.core import storage
from actors.core.csv_tables import read_csv_rows
from actors.core.errors import UserError
from actors.movie_characters.names import checked_class, class_identity, identity_class

log = logging.getLogger(__name__)

MANIFEST = "pictures.csv"
"""Name of the file. It holds for the images of its own folder, not for those of folders below."""
FILE, CLASS = "file", "class"
"""Columns that a manifest needs."""
SHOWN = 3
"""Names that a message lists."""

Rows = dict[str, dict[str, str]]
"""Rows of a manifest by the name of the image, each with all of its columns."""


def read_manifest(folder: str) -> Rows:
    """The manifest of a folder, no rows where it has none; raises UserError where it cannot be used."""
    uri = storage.join(folder, MANIFEST)
    try:
        given = read_csv_rows(uri, (FILE, CLASS))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        # A store may forbid what is not there.
        log.warning("classes are read from the names of images, since the manifest cannot be read: %s", error)
        return {}
    rows: Rows = {}
    for line, row in given:
        name, cls = row[FILE], row[CLASS]
        if not name or not cls:
            raise UserError(f"{uri}, line {line}: {FILE if not name else CLASS} is empty. Fill it, or remove the row.")
        if name in rows and rows[name][CLASS] != cls:
            raise UserError(f"{uri}, line {line}: {name} is of {cls} here, and of {rows[name][CLASS]} further up")
        if identity_class(class_identity(checked_class(cls, f"{uri}, line {line}"))) != cls:
            raise UserError(f"{uri}, line {line}: the class {cls!r} cannot be part of a file name; choose another name")
        rows[name] = row
    return rows


def check_complete(rows: Rows, names: Collection[str], folder: str) -> list[str]:
    """The images of a folder without a row; raises UserError for rows without an image, as a misspelt name leaves."""
    if rows and (lost := [name for name in rows if name not in names]):
        raise UserError(
            f"{storage.join(folder, MANIFEST)} has rows of {len(lost)} images that are not there, such as "
            f"{', '.join(lost[:SHOWN])}. Correct the names or remove the rows; if `generate` was interrupted, rerun it."
        )
    return [name for name in names if name not in rows] if rows else []


def write_manifest(folder: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the manifest of a folder, rows with FILE and CLASS and whatever else, in the order of the names."""
    columns = list(dict.fromkeys([FILE, CLASS, *(name for row in rows for name in row)]))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: str(row[FILE])))
    storage.write_bytes(storage.join(folder, MANIFEST), text.getvalue().encode())
