"""What curation's verbs share: settings, the run record, the steps that fill it, and its summary."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actors.core import storage
from actors.core.catalog import ReplacedError
from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.tables import check_planned
from jobs.core.counts import decoder_lines, listed
from jobs.core.describe import inline, settings_of
from jobs.core.errors import root_cause
from jobs.core.settings import SettingsError, load, read_arguments
from jobs.core.verbs import Run, Verb

if TYPE_CHECKING:
    from pipelines.curation.kept import Chosen
    from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

LAST = ("runs", "last.json")
"""The record of the last command that left a selection, while another one runs or was killed."""


class CurationVerb(Verb):
    """A verb whose record is OUTPUT/run.json.

    The record is moved to `LAST` while the verb runs, so that `status` sees an unfinished run, and restored where a
    user's mistake ends the verb before anything was measured.
    """

    needs_result = False

    def plan(self, config: Any) -> Any:
        check_planned(Store(config.output))

    def rejections(self, config: CurationConfig) -> None:
        return None

    def settings(self) -> type[CurationConfig]:
        from pipelines.curation.settings import CurationConfig

        return CurationConfig

    def load(self, arguments: Sequence[str]) -> Any:
        return load_settings(self.settings(), arguments)

    def open(self, config: CurationConfig, plan: Any, store: Store) -> dict[str, Any]:
        before = last_record(store) or {}
        kept = {name: before.get(name) for name in ("export", "captions")}
        return {"input": before.get("input", {}), **kept, "drift": before.get("drift", {})}

    def work(self, config: CurationConfig, plan: Any, run: Run) -> None:
        before, started = run.store.read_json("run.json"), time.monotonic()
        if before is not None and "rows" in before:
            run.store.write_json(before, *LAST)
        storage.delete(run.store.uri("run.json"))
        try:
            self.steps(config, plan, run)
        except Exception as error:
            cause = root_cause(error)
            # The record is that of the command which has replaced what this one wrote.
            run.record["replaced"] = cause.name == ReplacedError.__name__
            # Where the cause is no user's mistake, the runner keeps the record.
            if cause.users and "measured" in run.record:
                seconds = round(time.monotonic() - started, 1)
                self.close(run.record | {"status": "failed", "error": str(cause), "seconds": seconds}, run.store)
            elif cause.users and before is not None and run.store.read_json("run.json") is None:
                run.store.write_json(before, "run.json")
            raise

    def steps(self, config: Any, plan: Any, run: Run) -> None:
        """Do it, and fill the record."""
        raise NotImplementedError

    def close(self, record: dict[str, Any], store: Store) -> None:
        if record.pop("replaced", False):
            return
        if "rows" in record:
            from jobs.curation.report import write_report

            write_report(store, record)
        store.write_json(record, "run.json")

    def rejected(self, record: Mapping[str, Any]) -> int:
        if "rows" not in record:
            return 0
        kinds = record["rows"]["failed"], record["lost_videos"], record["incomplete_videos"]
        return sum(sum(counts.values()) for counts in kinds)

    def summary(self, record: Mapping[str, Any], store: Store) -> list[str]:
        return summary(record, store)


def check_selected(config: CurationConfig) -> None:
    """Raise UserError for what is no output of a run, or has no selection yet: for verbs that work on kept scenes."""
    check_planned(Store(config.output))
    if not Store(config.output).parts("scenes"):
        raise UserError(f"{config.output} has no selection. Run `run` or `select` first.")


def last_record(store: Store) -> dict[str, Any] | None:
    """The record of the last command that left a selection, whatever was killed or failed since."""
    record = store.read_json("run.json")
    return record if record is not None and "rows" in record else store.read_json(*LAST)


def load_settings(kind: type[Any], arguments: Sequence[str]) -> Any:
    """Settings from the command line, as `load`; the output of an earlier run may stand first: its settings apply then.

    Raises SettingsError where the first argument is neither a setting, a settings file nor such an output.
    """
    names = read_arguments(kind, arguments)[1]
    if not names or names[0].endswith((".yaml", ".yml")):
        return load(kind, arguments)
    made = Store(names[0]).read_json("plan", "settings.json")
    if made is None:
        raise SettingsError(
            f"{names[0]!r} is neither a settings file (.yaml) nor the output of a run. Write settings as key=value, as "
            "in input=films output=results."
        )
    # An output may have been moved since: it is where it was found.
    return load(kind, arguments, made["settings"], positional=("output",))


def overriding(config: CurationConfig, store: Store) -> list[str]:
    """The settings of a command that are not those of the run which its output is from, as key=value."""
    made = store.read_json("plan", "settings.json")
    if made is None:
        return []
    kind = type(config)
    before = {one.path: one.value for one in settings_of(kind, values=load(kind, [], made["settings"]))}
    now = [one for one in settings_of(kind, values=config) if not one.group and one.path != "output"]
    return [f"{one.path}={inline(one.value)}" for one in now if before.get(one.path) != one.value]


def places(config: CurationConfig, *names: str) -> dict[str, str]:
    """Where artefacts of an output lie, by name."""
    return {name: Store(config.output).uri(name) for name in names}


# ---------------------------------------------------------------------------------------------------------------- steps


def count(run: Run) -> int:
    """Check that every scene of the input has a row, and record what the rows cost; returns the number of scenes."""
    from pipelines.curation.rows import inventory
    from pipelines.curation.selecting.select import selection_now

    run.record["selection"] = selection_now(run.store)
    expected, costs = inventory(run.store)
    run.record |= costs
    return expected


def decide(config: CurationConfig, run: Run) -> int:
    """Select scenes and record what the rows cost; returns the number of scenes of the input."""
    from pipelines.curation.selecting.select import select

    selected = select(config)
    run.record |= selected.costs
    run.record |= {"drift": selected.drift, "selection": selected.selection}
    return selected.expected


def write_kept(config: CurationConfig, run: Run) -> None:
    """Export the kept scenes, and record how many were written."""
    from pipelines.curation.exporting.export import export_scenes

    exported = export_scenes(config, run.ray)
    counts = {"written": exported.written, "there": exported.there, "seconds": round(exported.seconds, 1)}
    run.record["export"] = counts
    if exported.fitted:
        run.record["export"]["for_training"] = exported.fitted


def caption(config: CurationConfig, scenes: Chosen, run: Run) -> None:
    """Caption scenes, and record what that took."""
    from actors.curation.captioning.recaptioners import check_captioner
    from pipelines.curation.captioning.recaption import caption_scenes, unasked

    # Before Ray starts, which takes a while.
    check_captioner(config.captions)
    if unasked(config, scenes):
        run.ray()
    log.info(estimated(config, scenes))
    run.record["captions"] = asdict(caption_scenes(config, scenes, run.ray))


def settle(expected: int, run: Run) -> None:
    """Record how the rows add up; raises IncompleteError where they do not, ReplacedError where they are of others."""
    from pipelines.curation.exporting.export import clips_behind
    from pipelines.curation.exporting.trainers import seen_by_trainers
    from pipelines.curation.selecting.select import alarms, check_selection, tally

    check_selection(run.store, run.record["selection"])
    counted = tally(run.store, expected)
    rows = {"in": counted.rows, "kept": counted.kept, "dropped": counted.dropped, "failed": counted.failed}
    run.record |= {"rows": rows, "lost_videos": counted.lost_videos}
    run.record["incomplete_videos"] = counted.incomplete_videos
    run.record["alarms"] = alarms(counted, run.record["drift"])
    if seen := seen_by_trainers(run.store, run.record["settings"]["export"]["caption"]):
        run.record["trainers"] = asdict(seen)
        for text, times in seen.repeated:
            told = f"one caption is that of {times} of {seen.scenes} kept scenes: {text[:80]!r}"
            run.record["alarms"].append(told)
    missing, unwanted = clips_behind(run.store)
    if missing or unwanted:
        behind = f"{missing} kept scenes have no clip yet, {unwanted} clips are of scenes that are not kept"
        command = f"python -m jobs.curation export {shlex.quote(run.store.root)}"
        run.record["notes"] = [*run.record.get("notes", []), f"{behind}: renew them with {command}"]


def estimated(config: CurationConfig, scenes: Chosen) -> str:
    """What captioning scenes will cost, as a line."""
    from actors.models.vlm.asking import TRIES
    from pipelines.curation.captioning.recaption import estimate, unasked

    cost, settings = estimate(config, unasked(config, scenes)), config.captions
    price = ""
    if settings.service:
        usd_in, usd_out = settings.prices
        rates = f"${usd_in:g} and ${usd_out:g} per million"
        price = f", ${cost.usd:.2f} at {rates}, at most {TRIES} times that with retries"
    tokens = f"{cost.tokens_in} input and {cost.tokens_out} output tokens"
    styles = f", {cost.captions} captions" if len(settings.styles) > 1 else ""
    told = f"about {tokens}{price}{_captioning_time(config, cost.captions)}"
    return f"{cost.scenes} of {len(scenes)} scenes to caption with {settings.model}{styles}: {told}"


def _captioning_time(config: CurationConfig, captions: int) -> str:
    """How long captions take, by the rate that is set, else by that of the last command; "" where there is none."""
    rate = config.captions.requests_per_minute
    before = (last_record(Store(config.output)) or {}).get("captions") or {}
    if rate is None and before.get("requests") and before.get("seconds"):
        rate = 60 * before["requests"] / before["seconds"]
    return f", {captions / rate:.1f} min at {rate:.3g} requests a minute" if rate else ""


# -------------------------------------------------------------------------------------------------------------- summary


def summary(record: Mapping[str, Any], store: Store) -> list[str]:
    """A run record in at most ten lines."""
    why = f": {record['error']}" if record["error"] else ""
    lines = [f"{record['command']} {record['status']} after {record['seconds']:.0f} s{why}"]
    if measured := record.get("measured"):
        rate = measured["scenes"] / max(measured["seconds"], 1e-9)
        what = f"{measured['scenes']} scenes of {measured['films']} videos"
        lines.append(f"scored {what} in {measured['seconds']:.0f} s, {rate:.1f} scenes/s")
        video = record["settings"]["video"]
        by_nvdec = video["decoder"] == "torchcodec" and video["num_gpus"] > 0
        lines += decoder_lines(record.get("films", {}).get("decoders", {}), by_nvdec)
    lines += record.get("changed", ())
    lines += _added(record.get("scores", {}))
    if evaluation := record.get("evaluation"):
        lines += _evaluation(evaluation)
    elif rows := record.get("rows"):
        dropped, failed = sum(rows["dropped"].values()), sum(rows["failed"].values())
        lines.append(f"{rows['in']} scenes = {rows['kept']} kept + {dropped} dropped + {failed} failed")
        lists = {"dropped": rows["dropped"], "failed": rows["failed"], "videos lost": record["lost_videos"]}
        lists["videos with scenes lost"] = record.get("incomplete_videos", {})
        lines += [f"{name}{listed(counts)}" for name, counts in lists.items() if counts]
    lines += [f"NOTE: {note}" for note in record.get("notes", ())]
    lines += [f"ALARM: {alarm}" for alarm in record.get("alarms", ())]
    if exported := record.get("export"):
        lines.append(f"clips: {exported['written']} written, {exported['there']} existed")
        lines += [exported["for_training"]] if "for_training" in exported else []
    if made := record.get("captions"):
        cost = f"{made['requests']} requests, {made['tokens_in']} + {made['tokens_out']} tokens, ${made['usd']:.2f}"
        lines.append(f"captions: {made['captioned']} made, {made['failed']} failed, {made['left']} left; {cost}")
    if record.get("rows"):
        lines.append(f"report: {store.uri('report.html')}")
    return lines


def _added(scores: dict[str, Any]) -> list[str]:
    """What an output has of families, a line each."""
    lines = []
    for name, one in scores.items():
        failed = ", ".join(f"{code} {count}" for code, count in sorted(one["failed"].items()))
        told = f"; {sum(one['failed'].values())} could not be measured ({failed})" if failed else ""
        new = f"{one['now']} parts now, {one['seconds']:.0f} s" if one["now"] else "nothing to do"
        lines.append(f"{name}: {one['scenes']} scenes; {new}{told}")
    return lines


def _evaluation(result: Mapping[str, Any]) -> list[str]:
    groups = f"{result['kept']} kept and {result['random']} random scenes, {result['both']} in both groups"
    lines = [f"compared: {groups}; {result['scored']} scored now"]
    for one in result["comparisons"]:
        left_out = f", left out{listed(one['left_out'])}" if one["left_out"] else ""
        if one["means"] is None:
            lines.append(f"{one['name']}: nothing to compare{left_out}")
            continue
        means = f"{one['means'][0]:.1f} - {one['means'][1]:.1f} = {one['difference']:+.2f}"
        interval = "" if one["interval"] is None else " [{:+.2f}, {:+.2f}]".format(*one["interval"])
        effect = "" if one["effect"] is None else f", d {one['effect']:.2f}"
        counts = " and ".join(map(str, one["scenes"][: 1 if one["paired"] else 2]))
        of = f"{counts} scenes of {one['videos']} videos"
        lines.append(f"{one['name']}: {means}{interval}, p {one['p']:.2g}{effect}; {of}{left_out}")
    return lines + [f"NOTE: {note}" for note in result.get("notes", ())]
