"""What every job does around its work: settings from YAML and key=value, one Ray, and what is printed at the end."""

import copy
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from pydantic import TypeAdapter, ValidationError

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store

Config = TypeVar("Config")

DONE, FAILED, USAGE, REJECTED = 0, 1, 2, 3
"""Exit codes: done, failed, bad usage or settings, more rows rejected than allowed."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
MaxRejected = Annotated[int | None, typer.Option(min=0, help="Exit with 3 where more rows than this failed.")]
"""Options that verbs share."""


class SettingsError(UserError):
    """A setting that does not exist or does not hold; the message names it by its dotted path."""


def load(config: type[Config], arguments: Sequence[str], base: dict[str, Any] | None = None) -> Config:
    """Settings from an optional YAML file (a path or s3://, first argument without `=`) and key=value after it.

    base: settings below both, such as those that an output was made with. Values are read as YAML, so `a.b=1`,
    `a.b=null` and `a={b: [x, y]}` mean what they would in the file, where a key may be dotted, too.
    """
    tree: dict[str, Any] = copy.deepcopy(base or {})
    for position, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key and equals:
            _merge(tree, {key: _parse(argument, value)})
        elif position == 0:
            _merge(tree, read_yaml(argument))
        else:
            raise SettingsError(f"{argument!r} is no setting: write key=value, as in frames.interval_ms=500")
    try:
        return TypeAdapter(config).validate_python(tree, extra="forbid")
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors())) from error


def read_yaml(uri: str) -> dict[str, Any]:
    """A settings file as a tree; an empty file has no settings."""
    try:
        tree = yaml.safe_load(storage.read_bytes(uri)) or {}
    except FileNotFoundError as error:
        raise SettingsError(f"there is no settings file {uri}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{uri} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{uri} holds no settings: it must be `key: value` lines")
    return tree


def _parse(argument: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"{argument!r}: the value is not YAML: {error}") from error


def _merge(tree: dict[str, Any], other: dict[Any, Any]) -> None:
    for dotted, value in other.items():
        key, dot, rest = str(dotted).partition(".")
        if dot:
            value = {rest: value}
        if isinstance(value, dict):
            group = tree.get(key)
            tree[key] = group if isinstance(group, dict) else {}
            _merge(tree[key], value)
        else:
            tree[key] = value


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        return f"{path}: there is no such setting"
    if problem["type"] == "missing":
        return f"{path}: this setting is needed"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what a user can mend into a line on standard error and exit code 2, and what broke the run into 1."""
    start_logging()
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if users_mistake(error):
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(USAGE) from error
        # Ray tells a worker's error as a text of many lines, of which the last one says what happened.
        last = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
        print(f"{''.join(traceback.format_exception(error))}failed: {last}", file=sys.stderr)
        raise typer.Exit(FAILED) from error


def users_mistake(error: BaseException) -> bool:
    """Whether it is a ValueError of ours; libraries have their own, as Arrow for torn files, Ray for a worker's."""
    return isinstance(error, ValueError) and type(error).__module__.startswith(
        ("builtins", "actors.", "pipelines.", "jobs.")
    )


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


def listed(counts: Mapping[str, int]) -> str:
    """How often each is there, after a colon; nothing where there is none."""
    return ": " + ", ".join(f"{name} {n}" for name, n in counts.items()) if counts else ""


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


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = (
        "ray",
        "torch",
        "diffusers",
        "open_clip_torch",
        "av",
        "opencv-python-headless",
        "scenedetect-headless",
        "numpy",
        "pyarrow",
    )
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster that the environment names, or start one here; leave what was there before running."""
    import ray

    if ray.is_initialized():
        yield
        return
    root = str(Path(__file__).resolve().parents[2])
    # A submitted job has its working directory from Ray; elsewhere workers find the packages by this path.
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else {"env_vars": {"PYTHONPATH": path}}
    # Ray ends a worker after a second without work where there are more than CPUs, and starts it again at seconds each.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    # A cluster has its dashboard already; on one machine it makes the start longer.
    ray.init(runtime_env=environment, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def start_logging() -> None:
    """One line an event on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("ray", "boto3", "botocore", "urllib3", "s3transfer", "httpx2", "google_genai"):
        logging.getLogger(name).setLevel(logging.WARNING)
