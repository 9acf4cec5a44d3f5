"""What is raised over one record is that record's row; what every record would meet ends the run."""

import errno
import json
from collections.abc import Iterator

import pytest

from actors.core.addresses import AddressError
from actors.core.errors import BrokenRunError, UserError
from actors.core.stage import Row
from actors.curation.guard import guarded


def cutting(error: Exception) -> list[Row]:
    """The rows of a task of four scenes, one of which is done; it raises after the second."""

    def cut(task: Row) -> Iterator[Row]:
        done = set(json.loads(task["skip"]))
        for scene_id in ("a", "b", "c", "d"):
            if scene_id == "c" and not task.get("error"):
                raise error
            if scene_id not in done:
                yield {"scene_id": scene_id, "error": task.get("error", ""), "message": task.get("message", "")}

    return list(guarded(cut, {"skip": '["a"]'}))


@pytest.mark.parametrize(
    "error", [UnicodeError("label empty"), OverflowError(), OSError(errno.EIO, "bad sector"), AddressError("no such")]
)
def test_a_record_that_raises_is_a_row(error: Exception):
    rows = cutting(error)
    assert [(row["scene_id"], row["error"]) for row in rows] == [("b", ""), ("c", "exception"), ("d", "exception")]
    assert rows[1]["message"].startswith(type(error).__name__) and str(error) in rows[1]["message"]


@pytest.mark.parametrize(
    "error",
    [
        UserError("cookies"),
        BrokenRunError("disk"),
        OSError(errno.ENOSPC, "full"),
        ConnectionError("store"),
        ImportError("yt_dlp"),
    ],
)
def test_what_every_record_would_meet_ends_the_run(error: Exception):
    with pytest.raises(type(error)):
        cutting(error)
