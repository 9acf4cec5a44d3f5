"""What every job does around its work: settings from YAML and key=value, one Ray, and what is printed at the end."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
import yaml

from actors.core.stage import Stage
from actors.core.store import Store
from jobs.core import errors
from jobs.core.errors import REJECTED, root_cause
from jobs.core.session import ray_session, start_logging
from jobs.core.settings import SettingsError, load
from jobs.core.verbs import listed, versions

__all__ = ["SettingsError", "listed", "load", "ray_session", "versions"]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
MaxRejected = Annotated[int | None, typer.Option(min=0, help="Exit with 3 where more rows than this failed.")]
"""Options that verbs share."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """As jobs.core.errors.exit_codes, with logging."""
    start_logging()
    with errors.exit_codes():
        yield


def users_mistake(error: BaseException) -> bool:
    """Whether the user can mend it."""
    return root_cause(error).users


@contextmanager
def recorded(verb: str, config: Any, root: str, max_rejected: int | None = None) -> Iterator[dict[str, Any]]:
    """Around the work of a verb: what becomes runs/VERB.json below root, and a summary on standard output.

    The work may set any keys; `rows`, as {"in": n, "out": m, "rejected": {code: k}}, has to add up, and `stages`, as
    {name: {"rows": n, "seconds": s}}, is told as rows per second. A user's mistake leaves the record as it was.

    Raises:
        RuntimeError: the rows do not add up.
        typer.Exit: with REJECTED where more rows were rejected than allowed.
    """
    store, started = Store(root), time.monotonic()
    record: dict[str, Any] = {
        "status": "done",
        "error": None,
        "command": verb,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(config),
        "versions": versions(),
    }
    rejected = 0
    try:
        yield record
        if rows := record.get("rows"):
            rejected = sum(rows["rejected"].values())
            if rows["in"] != rows["out"] + rejected:
                raise RuntimeError(
                    f"{rows['in']} rows came in, but {rows['out']} went out and {rejected} were rejected"
                )
            if max_rejected is not None and rejected > max_rejected:
                record["status"] = "rejected"
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        record["seconds"] = round(time.monotonic() - started, 1)
        if not ((error := sys.exception()) and users_mistake(error)):
            store.write_json(record, "runs", f"{verb}.json")
    _tell(record)
    if record["status"] == "rejected":
        raise typer.Exit(REJECTED)


def _tell(record: dict[str, Any]) -> None:
    print(f"{record['command']} {record['status']} after {record['seconds']:.0f} s")
    if rows := record.get("rows"):
        print(f"{rows['in']} rows = {rows['out']} done + {sum(rows['rejected'].values())} rejected")
        if rows["rejected"]:
            print(f"rejected{listed(rows['rejected'])}")
    for name, stage in record.get("stages", {}).items():
        rate = f", {stage['rows'] / stage['seconds']:.1f} rows/s" if stage["seconds"] else ""
        print(f"{name}: {stage['rows']} rows in {stage['seconds']:.0f} s{rate}")


def tell_plan(
    config: Any,
    facts: Sequence[str],
    pools: Mapping[str, Stage],
    tasks: Mapping[str, Stage],
    artefacts: Mapping[str, str],
) -> None:
    """What --dry-run says: settings, facts (inputs found, what is to do), resources, and where everything will go."""
    print(yaml.safe_dump(asdict(config), sort_keys=False))
    for fact in facts:
        print(fact)
    for name, stage in {**tasks, **pools}.items():
        kind = "actors" if name in pools else "tasks"
        count = stage.workers or "as many as fit"
        each = f"{stage.num_cpus:g} CPUs, {stage.num_gpus:g} GPUs, {stage.batch_size} rows a call"
        print(f"{name}: {count} {kind} of {each}")
    for name, uri in artefacts.items():
        print(f"{name}: {uri}")
