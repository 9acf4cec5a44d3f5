"""What is raised over one record becomes that record's row; only what every record would meet ends the run."""

import json
from collections.abc import Callable, Iterator

from actors.core.addresses import AddressError
from actors.core.errors import BrokenRunError, UserError, machine_fault
from actors.core.stage import Row

CODE = "exception"
"""Code of a record over which something was raised that nobody has thought of."""


def ends_the_run(error: BaseException) -> bool:
    """Whether every record would meet an error: settings, a library, a full disk or a store that is away."""
    if isinstance(error, AddressError):
        return False
    return isinstance(error, (UserError, BrokenRunError, ImportError, MemoryError, ConnectionError)) or bool(
        machine_fault(error)
    )


def message_of(error: BaseException) -> str:
    """An error in a row: its kind and what it says."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def guarded(cut: Callable[[Row], Iterator[Row]], task: Row) -> Iterator[Row]:
    """The rows that `cut` yields of a task. Where it raises, those that are missing have the code `exception`.

    task: as `cut` takes it; with `error` and `message` set it has to yield failed rows of all but the ids in `skip`.
    """
    have = set(json.loads(task["skip"]))
    try:
        for row in cut(task):
            have.add(row["scene_id"])
            yield row
    except Exception as error:
        if ends_the_run(error):
            raise
        failed = {"error": CODE, "message": message_of(error), "skip": json.dumps(sorted(have))}
        yield from cut(task | failed)
