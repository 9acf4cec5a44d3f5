"""The one runner of every verb: settings, plan, dry run, Ray, record, row check, exit code.

A verb is a settings class, a `plan` that reads and changes nothing, and a `work`:

    app = Verbs(__doc__)

    @app.verb
    class Embed(Verb):
        \"\"\"Embed key frames with CLIP: one array per film. Rerun to resume.\"\"\"

        def settings(self) -> type[EmbedConfig]: ...
        def plan(self, config: EmbedConfig) -> EmbedPlan: ...
        def preview(self, config: EmbedConfig, plan: EmbedPlan) -> Preview: ...
        def work(self, config: EmbedConfig, plan: EmbedPlan, run: Run) -> None: ...

Its name is the class's in kebab case, its help the class's docstring. `settings` is a method, so that a program which
runs one verb imports only what that one needs.
"""

import inspect
import json
import logging
import platform
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import typer
import yaml

from actors.core import storage, temporary
from actors.core.errors import BrokenRunError, UserError, check_all
from actors.core.lease import Lease
from actors.core.stage import Stage
from actors.core.store import Store
from actors.core.whole_files import remove_abandoned
from actors.models.hub import unreachable_is_told
from jobs.core.counts import first_rejections, listed, nothing_done
from jobs.core.describe import as_schema, as_yaml, plain
from jobs.core.errors import FAILED, REJECTED, exit_codes, failed, inputs_are_named, no_cuda, root_cause
from jobs.core.session import ray_session, start_logging, tell_end
from jobs.core.settings import load
from jobs.core.shared_settings import SharedConfig, in_effect, shared_settings
from jobs.core.status_page import page
from jobs.core.termination import terminable
from pipelines.core.reporting import Report, reporting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """What --dry-run prints."""

    facts: Sequence[str]
    """Inputs found and work left, a line each."""
    artefacts: Mapping[str, str]
    """Where each artefact will be written, by name."""
    pools: Mapping[str, Stage] = field(default_factory=dict)
    """Actor pools by name."""
    tasks: Mapping[str, Stage] = field(default_factory=dict)
    """Task stages by name."""


def located(output: str, *names: str) -> dict[str, str]:
    """The URI of each artefact below an output, by name."""
    return {name: Store(output).uri(name) for name in names}


class Run:
    """One run of a verb, as its work sees it."""

    def __init__(self, store: Store, record: dict[str, Any], verbose: bool = False) -> None:
        self.store = store
        """The output."""
        self.record = record
        """What becomes the run record; `rows`, as {"in": n, "out": m, "rejected": {code: k}}, has to add up."""
        self.lines: list[str] = []
        self._verbose = verbose
        self._session = ExitStack()
        self._has_ray = False

    def ray(self) -> None:
        """Join the cluster or start Ray, once, until the verb ends; raises UserError where a node misses the output."""
        if not self._has_ray:
            self._session.enter_context(ray_session(self._verbose))
            self._has_ray = True
            from pipelines.core.nodes import check_shared

            if self.store.root:
                check_shared(self.store.root)

    def say(self, line: str) -> None:
        """Print a line below the summary of the run."""
        self.lines.append(line)

    def stage(self, name: str, rows: int, seconds: float) -> None:
        """Record how long a stage took for how many rows."""
        self.record.setdefault("stages", {})[name] = {"rows": rows, "seconds": round(seconds, 1)}

    def close(self) -> None:
        """Leave Ray."""
        self._session.close()


class Verb:
    """One verb; see above. A verb without a record overrides `root` to return None."""

    needs_result = True
    """Whether a run fails where not one of its rows came out."""

    positional: tuple[str, ...] = ()
    """Settings that may be given without their names, in this order."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    def settings(self) -> type[Any]:
        """The settings class."""
        raise NotImplementedError

    def load(self, arguments: Sequence[str]) -> Any:
        """Settings from the command line."""
        return load(self.settings(), arguments, positional=self.positional)

    def outputs(self, config: Any) -> Sequence[str]:
        """Folders that it writes into; whether it can is checked before anything else."""
        root = self.root(config)
        return [] if root is None else [root]

    def plan(self, config: Any) -> Any:
        """What there is to do; raises UserError where that cannot work, with all that can be known before work begins:
        settings, counts, names, keys and models. Changes nothing, loads no model, starts no Ray, opens no picture."""

    def check(self, config: Any, plan: Any) -> None:
        """Raise UserError where something is missing that a dry run does not need, as the key of a service.

        plan: None where `plan` raised, since both are told at once.
        """

    def preview(self, config: Any, plan: Any) -> Preview:
        """What --dry-run prints."""
        return Preview(["This command changes nothing."], {})

    def estimate(self, config: Any, run: Run) -> list[str]:
        """What --dry-run prints of what the work will take, measured on a sample, where settings have estimate.films.

        Writes nothing to the output.
        """
        raise NotImplementedError

    def work(self, config: Any, plan: Any, run: Run) -> None:
        """Do it."""
        raise NotImplementedError

    def root(self, config: Any) -> str | None:
        """Where the record goes, below runs/; None: nowhere."""
        return config.output

    def leases(self, config: Any) -> tuple[str, ...]:
        """Names of what only one run at a time should do to an output; none where the verb only reads it."""
        return (self.name,)

    def open(self, config: Any, plan: Any, store: Store) -> dict[str, Any]:
        """What a record has from the start, beside settings and versions."""
        return {}

    def close(self, record: dict[str, Any], store: Store) -> None:
        """Keep the record of a run that has ended, well or not; a user's mistake does not come here."""
        store.write_json(record, "runs", f"{self.name}.json")

    def rejected(self, record: Mapping[str, Any]) -> int:
        """How many rows of a record failed; raises RuntimeError where its rows do not add up."""
        rows = record.get("rows")
        if not rows:
            return 0
        rejected = sum(rows["rejected"].values())
        if rows["in"] != rows["out"] + rejected:
            raise RuntimeError(f"{rows['in']} rows in, but {rows['out']} out and {rejected} rejected")
        return rejected

    def rejections(self, config: Any) -> str | None:
        """The table of rejected rows, below the record's root; None where the verb prints them itself."""
        return "rejected"

    def summary(self, record: Mapping[str, Any], store: Store) -> list[str]:
        """The lines that say how a run ended."""
        lines = [f"{record['command']} {record['status']} after {record['seconds']:.0f} s"]
        if rows := record.get("rows"):
            lines.append(f"{rows['in']} rows = {rows['out']} done + {sum(rows['rejected'].values())} rejected")
            if rows["rejected"]:
                lines.append(f"rejected{listed(rows['rejected'])}")
        for name, stage in record.get("stages", {}).items():
            rate = f", {stage['rows'] / stage['seconds']:.1f} rows/s" if stage["seconds"] else ""
            lines.append(f"{name}: {stage['rows']} rows in {stage['seconds']:.0f} s{rate}")
        return lines + [f"NOTE: {note}" for note in record.get("notes", ())]


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    names = ("ray", "torch", "diffusers", "open_clip_torch", "av", "opencv-python-headless", "scenedetect-headless")
    names += ("numpy", "pyarrow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _wants_estimate(config: Any) -> bool:
    return bool(hasattr(config, "estimate") and config.estimate.films)


def _check_estimate(verb: Verb, config: Any) -> None:
    if _wants_estimate(config) and type(verb).estimate is Verb.estimate:
        raise UserError(f"estimate.films={config.estimate.films}: `{verb.name}` has no estimate. Set it to 0.")


def check_and_plan(verb: Verb, config: Any, dry: bool = False) -> Any:
    """The plan of a verb; raises one UserError with all that is missing: in it, in the outputs, and for a run."""
    plans: list[Any] = []

    def plan() -> None:
        with inputs_are_named():
            plans.append(verb.plan(config))

    def check() -> None:
        if dry:
            _check_estimate(verb, config)
        else:
            verb.check(config, plans[0] if plans else None)

    check_all(*(partial(storage.check_writable, folder) for folder in verb.outputs(config)), plan, check)
    return plans[0]


def execute(
    verb: Verb,
    config: Any,
    plan: Any,
    max_rejected: int | None = None,
    verbose: bool = False,
    force: bool = False,
) -> Run:
    """Do the work of a verb and keep its record; force: also where another run is at work on its output.

    Raises:
        HeldError: another run is at work there.
        RuntimeError: the rows of the record do not add up.
        typer.Exit: with REJECTED where more rows were rejected than allowed, with FAILED where none came out.
    """
    root = verb.root(config)
    store, started = Store(root or ""), time.monotonic()
    record: dict[str, Any] = {
        "status": "done",
        "error": None,
        "command": verb.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(config),
        "versions": versions(),
    }
    run, report = Run(store, record, verbose), None
    # Of runs on this machine that were killed.
    temporary.remove_abandoned()
    with ExitStack() as held:
        if root is not None:
            for name in verb.leases(config):
                held.enter_context(Lease(store, name, force, verb=verb.name, run=record["started"]))
            if "://" not in storage.absolute(root):
                remove_abandoned(storage.absolute(root))
            record |= verb.open(config, plan, store)
            report = held.enter_context(reporting(store, verb.name, partial(page, verb, record, store)))
        rejected = _worked(verb, config, plan, run, started, max_rejected, report)
    table = verb.rejections(config) if rejected and root is not None else None
    first = first_rejections(store, table) if table else []
    told = [] if root is None else [*verb.summary(record, store), *first]
    tell_end(record, told, run.lines)
    if record["status"] == "rejected":
        raise failed(REJECTED, f"{rejected} rows rejected, and --max-rejected allows {max_rejected}")
    if record["status"] == "failed":
        raise failed(FAILED, record["error"])
    return run


def _worked(
    verb: Verb, config: Any, plan: Any, run: Run, started: float, max_rejected: int | None, report: Report | None
) -> int:
    """Do the work and keep the record, however it ends, where there is a report; returns how many rows failed."""
    record, store, users, interrupted = run.record, run.store, False, False
    try:
        verb.work(config, plan, run)
        rejected = verb.rejected(record)
        if verb.needs_result and (reason := nothing_done(record)):
            record |= {"status": "failed", "error": reason}
        if max_rejected is not None and rejected > max_rejected:
            record["status"] = "rejected"
        return rejected
    except BaseException as error:
        cause = root_cause(error)
        users, interrupted = cause.users, isinstance(error, KeyboardInterrupt)
        if reason := no_cuda(cause, config):
            record |= {"status": "failed", "error": reason}
            raise BrokenRunError(reason) from error
        record |= {"status": "failed", "error": str(cause)}
        raise
    finally:
        record.setdefault("seconds", round(time.monotonic() - started, 1))
        try:
            # Before Ray is left, which takes seconds: what stops a job may kill it soon.
            if report and not users:
                _keep(verb, record, store, interrupted)
            if report:
                report.close(mistaken=users)
        finally:
            run.close()


def _keep(verb: Verb, record: dict[str, Any], store: Store, interrupted: bool) -> None:
    try:
        verb.close(record, store)
    except OSError as fault:
        if not interrupted:
            raise
        log.warning("The record of this run could not be written: %s", fault)


def _tell_preview(config: Any, preview: Preview) -> None:
    print(yaml.safe_dump(plain(config), sort_keys=False))
    for fact in preview.facts:
        print(fact)
    for name, stage in {**preview.tasks, **preview.pools}.items():
        kind = "actors" if name in preview.pools else "tasks"
        count = stage.workers or "as many as fit"
        each = f"{stage.num_cpus:g} CPUs, {stage.num_gpus:g} GPUs, {stage.batch_size} rows a call"
        print(f"{name}: {count} {kind} of {each}")
    for name, uri in preview.artefacts.items():
        print(f"{name}: {uri}")


def _tell_estimate(verb: Verb, config: Any, verbose: bool) -> None:
    run = Run(Store(""), {}, verbose)
    try:
        print(*verb.estimate(config, run), sep="\n", flush=True)
    finally:
        run.close()


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTINGS.yaml] [key=value | --key value]...",
        help="A settings file, then single settings, which override it. --settings lists all.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings, inputs, resources and outputs; do nothing.")]
MaxRejected = Annotated[int | None, typer.Option("--max-rejected", min=0, help="Exit with 3 if more rows fail.")]
ShowSettings = Annotated[bool, typer.Option("--settings", help="Print all settings as YAML, with their meaning.")]
ShowSchema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a settings file, for editors.")]
Force = Annotated[bool, typer.Option("--force", help="Run although another run is at work on the output.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also print what libraries and workers log.")]


class Verbs(typer.Typer):
    """The verbs of a capability as commands; every one takes settings in any of the usual forms."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=doc)
        self.verbs: dict[str, Verb] = {}
        self.callback()(_nothing)

    def verb(self, kind: type[Verb]) -> type[Verb]:
        """Add a verb; its class's docstring is the help."""
        verb = kind()
        self.verbs[verb.name] = verb
        context = {
            "ignore_unknown_options": True,
            "allow_extra_args": True,
            "token_normalize_func": lambda token: token.replace("_", "-"),
        }
        self.command(verb.name, help=inspect.getdoc(kind), context_settings=context)(_command(verb))
        return kind

    def commands(self) -> dict[str, Verb]:
        """Every verb by what is typed for it, those of groups included."""
        found = dict(self.verbs)
        for group in self.registered_groups:
            if isinstance(group.typer_instance, Verbs):
                inner = group.typer_instance.commands()
                found |= {f"{group.name} {name}": verb for name, verb in inner.items()}
        return found


def _nothing() -> None:
    """Without a callback Typer makes an app of one verb a command without a name."""


def _command(verb: Verb) -> Any:
    def command(
        arguments: Arguments = None,
        dry_run: DryRun = False,
        max_rejected: MaxRejected = None,
        settings: ShowSettings = False,
        schema: ShowSchema = False,
        verbose: Verbose = False,
        force: Force = False,
    ) -> None:
        start_logging(verbose)
        with shared_settings(arguments or []), exit_codes(), terminable():
            if schema:
                print(json.dumps(as_schema(verb.settings(), SharedConfig), indent=2))
                return
            if settings:
                print(as_yaml(verb.settings(), verb.load(arguments) if arguments else None))
                print(as_yaml(SharedConfig, in_effect()), end="")
                return
            with inputs_are_named():
                config = verb.load(arguments or [])
            if dry_run:
                with unreachable_is_told(), inputs_are_named():
                    _tell_preview(config, verb.preview(config, check_and_plan(verb, config, dry_run)))
                    if _wants_estimate(config):
                        _tell_estimate(verb, config, verbose)
                return
            plan = check_and_plan(verb, config)
            execute(verb, config, plan, max_rejected, verbose, force)

    return command
