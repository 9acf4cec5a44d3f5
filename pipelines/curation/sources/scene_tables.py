"""Metadata as a table, one scene a row: video_id, url, start, end and, if there is one, caption. CSV or Parquet.

Start and end are seconds, hh:mm:ss.mmm, durations or times of day; empty, null or NaN: from the start, to the end of
the film. A row that cannot be used is a faulty scene of its video. A table is held whole, since the rows of a video
need not be neighbours.
"""

import csv
import io
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from actors.core.csv_tables import DELIMITERS, delimiter_of
from actors.core.errors import UserError
from pipelines.curation.sources.records import (
    BAD_METADATA,
    Fault,
    MetadataError,
    Raw,
    Scene,
    Span,
    folder_of,
    id_fault,
    is_empty,
    named,
    opened,
    place,
    resolved,
    shown,
    time_of,
)

COLUMNS = ("video_id", "url", "start", "end")
"""What a table must have."""
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


class _Row(NamedTuple):
    """A row as it stands in the table."""

    where: str
    """"line" or "row", and its number from 1."""
    values: dict[str, Any]
    problem: str = ""
    """Why its values cannot be trusted."""


def read_csv(input: str) -> list[Raw]:
    """The videos of a table of text; commas, semicolons, tabs or bars are between its columns."""
    return _grouped(input, _csv_rows(input))


def read_parquet(input: str) -> list[Raw]:
    """The videos of a Parquet file."""
    return _grouped(input, _parquet_rows(input))


# ------------------------------------------------------------------------------------------------------------------ csv


def _csv_rows(input: str) -> Iterator[_Row]:
    with opened(input) as file:
        # A byte that is no UTF-8 costs its row; it becomes a code point that no text has.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        first = text.readline()
        # Strict, since otherwise a quote that is never closed swallows all rows after it.
        delimiter = delimiter_of(first, COLUMNS)
        reader = csv.reader(itertools.chain([first] if first else [], text), delimiter=delimiter, strict=True)
        header, line = None, 1
        while True:
            try:
                fields = next(reader, None)
                problem = "" if header is None or not fields else _problem(header, fields, delimiter)
            except csv.Error as error:
                if header is None or "expected after" not in str(error):
                    raise MetadataError(f"{input}, line {line}: broken CSV: {error}; repair the row") from error
                fields, problem = [""], f"broken CSV: {error}; repair the row"
            if fields is None:
                break
            if header is None:
                header = fields
                _check_columns(header, input)
            elif fields:
                yield _Row(f"line {line}", dict(zip(header, fields, strict=False)), problem)
            line = reader.line_num + 1
        if header is None:
            _check_columns([], input)


def _problem(header: list[str], fields: list[str], delimiter: str) -> str:
    if len(fields) != len(header):
        return f"{len(fields)} fields under {len(header)} columns; quote what holds a {DELIMITERS[delimiter]}"
    try:
        "".join(fields).encode()
    except UnicodeEncodeError as error:
        byte = error.object[error.start].encode(errors="surrogateescape").hex()
        return f"not UTF-8 (byte 0x{byte}); save it as UTF-8"
    return ""


# -------------------------------------------------------------------------------------------------------------- parquet


def _parquet_rows(input: str) -> Iterator[_Row]:
    with opened(input) as file:
        data = file.read()
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
        names = table.schema_arrow.names
        _check_columns(names, input)
        wanted = [name for name in (*COLUMNS, "caption") if name in names]
        number = 0
        for batch in table.iter_batches(columns=wanted):
            columns = [_python_values(batch.column(name)) for name in wanted]
            for values in zip(*columns, strict=True):
                number += 1
                yield _Row(f"row {number}", dict(zip(wanted, values, strict=True)))
    except (pa.ArrowException, OSError) as error:
        raise MetadataError(f"{input}: broken Parquet: {error}; write it again") from error


def _python_values(column: Any) -> list[Any]:
    """Text, numbers and None; durations and times of day in seconds, and as text what is none of these."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _python_values(column.storage)
    if pa.types.is_dictionary(kind):
        return _python_values(column.dictionary_decode())
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        ticks = column.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64()).to_pylist()
        return [None if value is None else value / _PER_SECOND[kind.unit] for value in ticks]
    if pa.types.is_string_view(kind):
        column = column.cast(pa.string())
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # As bytes, since one text that is no UTF-8 must not cost the others.
        column = column.cast(pa.binary() if pa.types.is_string(kind) else pa.large_binary())
        return [None if value is None else value.decode(errors="surrogateescape") for value in column.to_pylist()]
    if (pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)) or pa.types.is_decimal(kind):
        return column.to_pylist()
    if pa.types.is_null(kind):
        return [None] * len(column)
    return [str(value) if value.is_valid else None for value in column]


# ------------------------------------------------------------------------------------------------------------- grouping


def _check_columns(names: list[str], input: str) -> None:
    missing = [name for name in COLUMNS if name not in names]
    twice = [name for name in (*COLUMNS, "caption") if names.count(name) > 1]
    if missing or twice:
        problem = f"no column {', '.join(missing)}" if missing else f"column {', '.join(twice)} stands twice"
        has = ", ".join(names) or "none"
        raise MetadataError(f"{input}: {problem}; it has {has}, and needs {', '.join(COLUMNS)}, may have caption")


@dataclass
class _Group:
    """The rows of a video."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)


def _grouped(input: str, rows: Iterable[_Row]) -> list[Raw]:
    """The videos of a table in the order of their first rows; each row is a span with one scene."""
    folder = folder_of(input)
    videos: dict[str, _Group] = {}
    for row in rows:
        source = f"{input}, {row.where}"
        video_id = _text(row.values.get("video_id"))
        name = named(video_id, f"({row.where})")
        group = videos.setdefault(name, _Group())
        k = len(group.spans)
        caption, start_s, end_s = "", 0.0, None
        fault = Fault(BAD_METADATA, place(source, (), row.problem)) if row.problem else None
        fault = fault or id_fault(video_id, source, ("video_id",))
        try:
            if fault is None:
                caption = _caption(row.values.get("caption"), source)
                _set_url(group, row.values["url"], folder, source)
                start_s, end_s = _times(row.values, source)
        except _Unusable as error:
            fault = error.fault
        if fault is not None:
            group.faults[k] = fault
        scene = Scene(f"{name}.{k}_0", caption, 0, -1, k)
        group.spans.append(Span(f"{name}.{k}", start_s, end_s, (scene,)))
    return [Raw(name, group.url, group.spans, faults=group.faults) for name, group in videos.items()]


class _Unusable(Exception):
    """A row that cannot be used."""

    def __init__(self, code: str, source: str, column: str, text: str) -> None:
        self.fault = Fault(code, place(source, (column,), text))


def _text(video_id: Any) -> str:
    """An id as text: pandas makes whole numbers floats where one of them is missing."""
    if is_empty(video_id) and not isinstance(video_id, str):
        return ""
    if isinstance(video_id, float) and math.isfinite(video_id) and video_id == int(video_id):
        return str(int(video_id))
    return str(video_id)


def _caption(value: Any, source: str) -> str:
    if is_empty(value) and not isinstance(value, str):
        return ""
    if not isinstance(value, str):
        raise _Unusable(BAD_METADATA, source, "caption", f"must be text, not {shown(value)}")
    # What no text can hold becomes U+FFFD.
    return value.encode(errors="surrogateescape").decode(errors="replace")


def _set_url(group: _Group, value: Any, folder: str, source: str) -> None:
    if is_empty(value) or not value:
        raise _Unusable("bad_url", source, "url", "is empty; give https://…, s3://…, file://… or a path")
    if not isinstance(value, str):
        raise _Unusable(BAD_METADATA, source, "url", f"must be text, not {shown(value)}")
    if not value.isprintable() and any(0xD800 <= ord(char) < 0xE000 for char in value):
        raise _Unusable("bad_url", source, "url", f"{shown(value)} is not UTF-8; write it again")
    url = resolved(value, folder)
    group.url = group.url or url
    if url != group.url:
        about = f"is {url}, but the video's rows before have {group.url}; give it one"
        raise _Unusable(BAD_METADATA, source, "url", about)


def _times(values: dict[str, Any], source: str) -> tuple[float, float | None]:
    found: list[float | None] = []
    for column in ("start", "end"):
        try:
            found.append(time_of(values[column]))
        except UserError as error:
            raise _Unusable("bad_span", source, column, str(error)) from error
    return found[0] or 0.0, found[1]
