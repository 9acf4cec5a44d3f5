"""Tables that people write: what spreadsheets save is read, and what cannot be trusted is refused with its line."""

from pathlib import Path

import pytest

from actors.core.csv_tables import read_csv_rows, read_csv_table, read_text
from actors.core.errors import UserError

ROWS = [{"path": "a,b.png", "name": "Zoë"}, {"path": "c.png", "name": ""}]


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        'path,name\n"a,b.png",Zoë\nc.png,\n',
        '\ufeffpath,name\r\n"a,b.png",Zoë\r\nc.png,\r\n',
        "path;name\na,b.png;Zoë\nc.png;\n",
        "path\tname\na,b.png\tZoë\nc.png\n",
        " path | name\n a,b.png | Zoë \n\n c.png",
        'path,name,,\n"a,b.png",Zoë,,\n,,,\nc.png,,,\n',
        'name,path\nZoë,"a,b.png"\n,c.png\n',
    ],
    ids=["commas", "mark", "semicolons", "tabs", "bars", "blank columns and rows", "order"],
)
def test_a_table_is_read_however_a_spreadsheet_saves_it(tmp_path: Path, text: str) -> None:
    uri = written(tmp_path, text)
    assert [row for _, row in read_csv_rows(uri, ["path", "name"])] == ROWS
    assert read_csv_table(uri, ["path", "name"])[["path", "name"]].to_dict("records") == ROWS


def test_a_row_is_named_by_the_line_where_it_ends(tmp_path: Path) -> None:
    uri = written(tmp_path, 'path,name\n"two\nlines",a\n\nc,d\n')
    assert [line for line, _ in read_csv_rows(uri, ["path"])] == [3, 5]
    assert read_csv_table(uri, ["path"]).index.to_list() == [3, 5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # A table of pandas would take the first column for an index, and move all others.
        ("path,name\na.png,x,1\nb.png,y,2\n", r"line 2: it has 3 values for 2 columns\. Quote values with a comma"),
        ("path;name\na;b;c\n", r"line 2: .* Quote values with a semicolon"),
        ("path,name,path\na,b,c\n", "column 'path' twice"),
        ("path,title\n", "no column name; it has path, title"),
        ("", "no column path, name; it has none"),
        ('path,name\n"a,b\n', "is not a CSV table: unexpected end of data"),
        ("path,name\na,Zoë\n".encode("latin-1"), r"line 2: not UTF-8 \(byte 0xeb\); save it as UTF-8"),
        ("path,name\n".encode("utf-16"), "is not UTF-8 but UTF-16; save it as UTF-8"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_csv_table(written(tmp_path, text), ["path", "name"])


def test_a_text_has_no_byte_order_mark(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, "\ufeffone\ntwo\n")) == "one\ntwo\n"
