"""How log lines look: as text, or each as a JSON object, in the driver and in workers alike."""

import json
import logging
import os
import traceback
from datetime import UTC, datetime
from typing import Any

LOG_FORMAT = "FILMRAY_LOG_FORMAT"
"""Variable of the environment: text or json. `log.format` sets it."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""What every record has; the rest are fields that a line was given by `extra`."""


def as_json() -> bool:
    """Whether log lines are JSON objects."""
    return os.environ.get(LOG_FORMAT) == "json"


def json_line(level: str, logger: str, message: str, time: float | None = None, **fields: Any) -> str:
    """One log line; time: in seconds since 1970, null: now; fields that are None are left out."""
    when = datetime.now(UTC) if time is None else datetime.fromtimestamp(time, UTC)
    about = {"time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": level, "logger": logger}
    about |= {"message": message} | {name: value for name, value in fields.items() if value is not None}
    return json.dumps(about, ensure_ascii=False, default=str)


class LineFormatter(logging.Formatter):
    """Text by a format, or JSON objects, whatever holds when a line is written."""

    def format(self, record: logging.LogRecord) -> str:
        """A line; the traceback of an error is a field of it."""
        if not as_json():
            return super().format(record)
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json_line(record.levelname, record.name, record.getMessage(), record.created, **fields)
