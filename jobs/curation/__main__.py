"""Curation: from films to the scenes worth training on.

python -m jobs.curation run corpus.yaml input=s3://films/ output=s3://corpora/may motion.flow=scaled
"""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import pandas as pd
import typer

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.captioners import check_captioner
from actors.curation.captions import TRIES
from actors.models.clip import check_clip
from jobs.core import run as job
from jobs.curation.report import write_report
from pipelines.curation.explain import explain
from pipelines.curation.filter import place, save_filter
from pipelines.curation.fit_filter import FitConfig, fit, read_labelled
from pipelines.curation.plan import Plan, make_plan
from pipelines.curation.rows import MANY_PARTS, captions, expected_scenes, measurements, rows_now
from pipelines.curation.select import alarms, fail_scenes, select, tally, tell_captions
from pipelines.curation.settings import RETRYABLE, CurationConfig, check

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

INPUT = ("videos", "scenes", "films")
ARTEFACTS = (
    *("plan", "videos", "scores", "thumbnails", "scenes", "rejected"),
    *("clips", "captions", "kept.json", "report.html", "run.json"),
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml | OUTPUT] [key=value]...",
        help="Settings from a file, or those that OUTPUT was made with; then single ones.",
    ),
]
Output = Annotated[str, typer.Argument(help="The output of a run: a path or s3://bucket/prefix.")]


@app.command()
def run(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Do all of it: fetch, score, select, export, report. The same command after a kill does only what is missing."""
    _do("run", settings, dry_run, max_rejected)


@app.command()
def fetch(settings: Settings = None, dry_run: job.DryRun = False) -> None:
    """Download what the input names by http(s) into OUTPUT/videos, and nothing else."""
    with job.exit_codes():
        config = _config(settings)
        plan = _plan(config, dry_run)
        if dry_run:
            _tell_plan(config, plan)
            return
        from pipelines.curation.score import fetch_all

        with job.ray_session():
            codes = fetch_all(config, plan.remote)
        there = codes.pop("", 0)
        print(f"{there} videos are there, {sum(codes.values())} failed{job.listed(codes)}")


@app.command()
def score(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Fetch, cut and measure what is missing in OUTPUT/scores; select afterwards."""
    _do("score", settings, dry_run, max_rejected)


@app.command(name="select")
def select_(settings: Settings = None) -> None:
    """Decide anew which scenes are kept, from OUTPUT/scores; measures nothing."""
    _do("select", settings)


@app.command()
def fit_filter(
    output: Output, settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None
) -> None:
    """Learn from labels which scenes are good, for select.by=classifier, and say how well that works."""
    with job.exit_codes():
        config = job.load(FitConfig, settings or [], {"output": output})
        with ExitStack() as session:
            if len(Store(output).parts("scores")) > MANY_PARTS:
                session.enter_context(job.ray_session())
            labelled = read_labelled(config)
            if labelled.workers(config) > 1:
                session.enter_context(job.ray_session())
            fitted = fit(labelled, config)
        uri = place(output, config.filter)
        save_filter(fitted, uri)
        _redraw(Store(output))
        _tell_fit(fitted.about["report"], uri)


@app.command()
def export(settings: Settings = None) -> None:
    """Write clips, frames, shards and kept.json of the scenes that are kept."""
    _do("export", settings)


@app.command()
def recaption(settings: Settings = None, dry_run: job.DryRun = False) -> None:
    """Have a vision-language model improve the captions of what is kept; each scene is asked for once."""
    if not dry_run:
        _do("recaption", settings)
        return
    with job.exit_codes():
        from pipelines.curation.export import kept_scenes

        config = _config(settings)
        _tell_estimate(config, kept_scenes(Store(config.output)))


@app.command()
def evaluate(settings: Settings = None, dry_run: job.DryRun = False) -> None:
    """Prove by CLIPScore that recaptions are better than captions, and kept scenes better than random ones."""
    with job.exit_codes():
        config = _config(settings)
        check_clip(config.embeddings)
        if dry_run:
            _tell_evaluation_plan(config)
    if not dry_run:
        _do("evaluate", settings)


@app.command()
def retry(
    settings: Settings = None,
    codes: Annotated[
        str | None, typer.Option(help="Error codes to try again, with commas; else those that may pass.")
    ] = None,
    dry_run: job.DryRun = False,
    max_rejected: job.MaxRejected = None,
) -> None:
    """Run again, but also over what failed and may succeed now."""
    again = frozenset(codes.split(",")) if codes else frozenset(RETRYABLE)
    _do("retry", settings, dry_run, max_rejected, again)


@app.command(name="annotate")
def annotate_(
    output: Output,
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
) -> None:
    """Label scenes on a page in the browser: 1 good, 0 bad, s skip, u undo, q stop."""
    with job.exit_codes():
        from jobs.curation.annotate import TOKEN, AnnotateConfig, annotate

        config = job.load(AnnotateConfig, settings or [], {"output": output})
        annotate(config, _config([output]), os.environ.get(TOKEN))


@app.command(name="explain")
def explain_(output: Output, scene: Annotated[str, typer.Argument(help="A scene_id, or video_id/scene_id.")]) -> None:
    """All about one scene: its source, its features among those of the corpus, and why it is kept or not."""
    with job.exit_codes():
        record = Store(output).read_json("run.json")
        if record is None or "rows" not in record:
            raise job.SettingsError(f"{output} has decided nothing yet: `run` or `select` does")
        config = job.load(CurationConfig, [], record["settings"] | {"output": output})
        print(*explain(config, scene), sep="\n")


@app.command()
def status(output: Output) -> None:
    """How far a run is, also while it runs."""
    with job.exit_codes():
        store = Store(output)
        scenes, films, videos = rows_now(store)
        found = films[films.step != "plan"].set_index("video_id").scenes.reindex(videos.index)
        expected = videos.where(videos >= 0, found)
        done = int((scenes.groupby("video_id").size().reindex(videos.index, fill_value=0) >= expected).sum())
        bad = int((scenes.error != "").sum()), int((films.error != "").sum())
        print(f"{done} of {len(videos)} videos done; {len(scenes)} scenes, {bad[0]} failed; {bad[1]} videos failed")
        record = store.read_json("run.json")
        if record is None:
            print("not finished: it runs, or was ended; the same command goes on where it stopped")
        else:
            _tell(record, store)


@app.command()
def failed(
    output: Output, rows: Annotated[bool, typer.Option("--rows", help="Every row, tab-separated.")] = False
) -> None:
    """What failed so far, by step and code, and what `retry` would try again."""
    with job.exit_codes():
        scenes, films, _ = rows_now(Store(output), ["attempts", "message"])
        answers = captions(Store(output)).rename(columns={"code": "error"}).assign(step="caption")
        bad = pd.concat([rows[rows.error != ""] for rows in (scenes, films, answers)])
        columns = ["video_id", "scene_id", "step", "error", "attempts", "message"]
        if rows:
            bad[columns].to_csv(sys.stdout, sep="\t", index=False)
            return
        for (step, code), group in bad.groupby(["step", "error"]):
            may = "retry may help" if code in RETRYABLE else "for good"
            first = group.iloc[0]
            print(f"{len(group):7d}  {step:7}  {code:18} {may:15} {first.scene_id or first.video_id}: {first.message}")
        if bad.empty:
            print("nothing failed")


def _do(
    command: str,
    arguments: Sequence[str] | None,
    dry_run: bool = False,
    max_rejected: int | None = None,
    again: frozenset[str] = frozenset(),
) -> None:
    with job.exit_codes():
        config = _config(arguments)
        store = Store(config.output)
        plan = _plan(config, dry_run, again) if command in ("run", "score", "retry") else None
        if dry_run and plan:
            _tell_plan(config, plan)
            return
        before = store.read_json("run.json") or {}
        storage.delete(store.uri("run.json"))
        record: dict[str, Any] = {
            "status": "done",
            "error": None,
            "command": command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": asdict(config),
            "versions": job.versions(),
            "input": {name: getattr(plan, name) for name in INPUT} if plan else before.get("input", {}),
            "export": before.get("export"),
            "captions": before.get("captions"),
            "drift": before.get("drift", {}),
        }
        started = time.monotonic()
        try:
            with ExitStack() as session:
                _steps(command, config, plan, again, record, session)
        except BaseException as error:
            if before and "measured" not in record and job.users_mistake(error):
                # Nothing was done, so what was true before still is.
                record = before
            else:
                record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            record.setdefault("seconds", round(time.monotonic() - started, 1))
            if "rows" in record and max_rejected is not None and _rejected(record) > max_rejected:
                record["status"] = "rejected"
            if "rows" in record:
                write_report(store, record)
            store.write_json(record, "run.json")
        _tell(record, store)
        if record["status"] == "rejected":
            raise typer.Exit(job.REJECTED)


def _steps(
    command: str,
    config: CurationConfig,
    plan: Plan | None,
    again: frozenset[str],
    record: dict[str, Any],
    session: ExitStack,
) -> None:
    store = Store(config.output)
    forgotten = _forget_captions(config) if "caption_failed" in again else set()
    if plan and plan.todo:
        from pipelines.curation.score import score

        session.enter_context(job.ray_session())
        record["measured"] = asdict(score(config, plan.remote))
    if len(store.parts("scores")) > MANY_PARTS:
        session.enter_context(job.ray_session())
    if command in ("score", "export", "recaption", "evaluate"):
        scenes, films, videos = rows_now(store)
        expected = expected_scenes(scenes, films, videos)
        record |= measurements(scenes, films)
    else:
        selected = select(config)
        expected = selected.expected
        record |= selected.costs
        record["drift"] = selected.drift
    if command == "score":
        return
    if command == "recaption":
        session.enter_context(job.ray_session())
        _recaption(config, record)
    elif command == "evaluate":
        _evaluate(config, record, session)
    elif command != "select":
        from pipelines.curation.export import export

        session.enter_context(job.ray_session())
        exported = export(config)
        fail_scenes(store, exported.failed)
        record["export"] = {"written": exported.written, "there": exported.there, "seconds": round(exported.seconds, 1)}
    if forgotten:
        _recaption(config, record, forgotten)
    counted = tally(store, expected)
    record["rows"] = {"in": counted.rows, "kept": counted.kept, "dropped": counted.dropped, "failed": counted.failed}
    record["lost_videos"] = counted.lost_videos
    record["alarms"] = alarms(counted, record["drift"])


def _forget_captions(config: CurationConfig) -> set[tuple[str, str]]:
    """Forget captions that failed, where a captioner is there to be asked again; returns the keys of their scenes."""
    store = Store(config.output)
    if (captions(store).code == "").all():
        return set()
    from pipelines.curation.recaption import forget_failed

    check_captioner(config.captions)
    return forget_failed(store)


def _recaption(config: CurationConfig, record: dict[str, Any], only: set[tuple[str, str]] | None = None) -> None:
    """Caption kept scenes, or only some of them."""
    from pipelines.curation.export import kept_scenes

    scenes = kept_scenes(Store(config.output))
    _ask(config, record, [row for row in scenes if only is None or (row["video_id"], row["scene_id"]) in only])


def _ask(config: CurationConfig, record: dict[str, Any], scenes: list[Row]) -> None:
    """Caption scenes, and tell scenes/, rejected/ and kept.json."""
    from pipelines.curation.export import renew_kept_json
    from pipelines.curation.recaption import recaption as ask

    store = Store(config.output)
    _tell_estimate(config, scenes)
    record["captions"] = asdict(ask(config, scenes))
    tell_captions(store)
    renew_kept_json(store)


def _redraw(store: Store) -> None:
    """Draw the report of the last run again: something that it shows has come."""
    record = store.read_json("run.json")
    if record and "rows" in record:
        write_report(store, record)


def _evaluate(config: CurationConfig, record: dict[str, Any], session: ExitStack) -> None:
    """Caption what is to be compared, then score and compare it."""
    from pipelines.curation.evaluate import evaluate as prove
    from pipelines.curation.evaluate import plan_evaluation
    from pipelines.curation.recaption import unasked

    plan = plan_evaluation(config)
    if config.evaluate.recaption and unasked(config, plan.scenes):
        try:
            check_captioner(config.captions)
        except ValueError as error:
            raise UserError(f"{error}; evaluate.recaption=false compares the captions that there are") from error
        session.enter_context(job.ray_session())
        _ask(config, record, plan.scenes)
        plan = plan_evaluation(config)
    if plan.todo:
        session.enter_context(job.ray_session())
    record["evaluation"] = prove(config, plan)


def _config(arguments: Sequence[str] | None) -> CurationConfig:
    first, *rest = arguments or [""]
    if "=" in first or first.endswith((".yaml", ".yml")):
        return job.load(CurationConfig, arguments or [])
    made = Store(first).read_json("plan", "settings.json") if first else None
    if made is None:
        raise job.SettingsError(
            f"{first or 'no settings'}: give a settings file (.yaml), the output of a run, or input=... output=..."
        )
    # An output may have been moved since.
    return job.load(CurationConfig, rest, made["settings"] | {"output": first})


def _plan(config: CurationConfig, dry_run: bool, again: frozenset[str] = frozenset()) -> Plan:
    check(config)
    return make_plan(config, again, dry_run)


def _rejected(record: dict[str, Any]) -> int:
    return sum(record["rows"]["failed"].values()) + sum(record["lost_videos"].values())


def _tell_plan(config: CurationConfig, plan: Plan) -> None:
    from pipelines.curation.score import stages_of

    fetched = ", some to be fetched" if plan.remote else ""
    facts = [
        f"input: {plan.videos} videos, {plan.scenes} named scenes, {plan.films} films to be cut by shot detection",
        f"to do: {plan.todo} videos, {plan.todo_scenes} named scenes{fetched}",
    ]
    job.tell_plan(config, facts, *stages_of(config, plan.remote), _places(config, ARTEFACTS))


def _tell_evaluation_plan(config: CurationConfig) -> None:
    from pipelines.curation.evaluate import plan_evaluation, stages_of

    plan = plan_evaluation(config)
    kept, drawn = plan.rows.kept, plan.rows.random
    facts = [
        f"compared: {kept.sum()} kept scenes and {drawn.sum()} random ones, {(kept & drawn).sum()} of them both",
        f"to do: {len(plan.todo)} scenes to be scored, {len(plan.texts)} texts, and what is captioned before",
    ]
    names = ("captions", "evaluation", "evaluation.json", "kept.json", "report.html", "run.json")
    job.tell_plan(config, facts, *stages_of(config), _places(config, names))
    if config.evaluate.recaption:
        _tell_estimate(config, plan.scenes)


def _places(config: CurationConfig, names: Sequence[str]) -> dict[str, str]:
    return {name: Store(config.output).uri(name) for name in names}


def _tell_estimate(config: CurationConfig, scenes: list[Row]) -> None:
    from pipelines.curation.recaption import estimate, unasked

    cost, settings = estimate(config, unasked(config, scenes)), config.captions
    price = ""
    if settings.by != "transformers":
        price = (
            f", ${cost.usd:.2f} at {settings.usd_in:g} and {settings.usd_out:g} a million, {TRIES} times that at most"
        )
    tokens = f"{cost.tokens_in} tokens to send and {cost.tokens_out} to receive"
    print(f"{cost.scenes} of {len(scenes)} scenes to caption with {settings.model}: about {tokens}{price}")


def _tell_fit(report: dict[str, Any], uri: str) -> None:
    """What a filter is worth."""
    lost = f"; {report['lost']} more are of scenes that were not measured" if report["lost"] else ""
    kinds = f"{report['good']} good, {report['bad']} bad"
    print(f"{report['scenes']} labelled scenes of {report['videos']} videos: {kinds}{lost}")
    for note in report["notes"]:
        print(note)
    kind = "good" if report["good"] >= report["bad"] else "bad"
    print(f"on videos that it has not seen, with 95 % intervals over videos; always {kind!r} in brackets:")
    for name, m in report["metrics"].items():
        print(f"  {name:9} {m['value']:.3f}  {m['low']:.3f} to {m['high']:.3f}  ({m['always']:.3f})")
    curve = [(part["metrics"]["accuracy"]["value"], part["videos"]) for part in report["learning_curve"]]
    print("accuracy learnt from " + ", ".join(f"{videos} videos {value:.3f}" for value, videos in curve))
    ordered = sorted(report["importance"].items(), key=lambda item: -item[1])
    print("importance: " + ", ".join(f"{name} {share:.2f}" for name, share in ordered))
    print(f"filter: {uri}")


def _tell_evaluation(result: dict[str, Any]) -> None:
    groups = f"{result['kept']} kept scenes and {result['random']} random ones, {result['both']} of them both"
    print(f"compared: {groups}; {result['scored']} scored now")
    for one in result["comparisons"]:
        left_out = f", left out{job.listed(one['left_out'])}" if one["left_out"] else ""
        if one["means"] is None:
            print(f"{one['name']}: nothing to compare{left_out}")
            continue
        means = f"{one['means'][0]:.1f} - {one['means'][1]:.1f} = {one['difference']:+.2f}"
        interval = "" if one["interval"] is None else " [{:+.2f}, {:+.2f}]".format(*one["interval"])
        effect = "" if one["effect"] is None else f", d {one['effect']:.2f}"
        counts = " and ".join(map(str, one["scenes"][: 1 if one["paired"] else 2]))
        of = f"{counts} scenes of {one['videos']} videos"
        print(f"{one['name']}: {means}{interval}, p {one['p']:.2g}{effect}; {of}{left_out}")


def _tell(record: dict[str, Any], store: Store) -> None:
    """A summary of at most ten lines."""
    why = f": {record['error']}" if record["error"] else ""
    print(f"{record['command']} {record['status']} after {record['seconds']:.0f} s{why}")
    if measured := record.get("measured"):
        rate = measured["scenes"] / max(measured["seconds"], 1e-9)
        what = f"{measured['scenes']} scenes of {measured['films']} films"
        print(f"measured {what} in {measured['seconds']:.0f} s, {rate:.1f} scenes/s")
    if evaluation := record.get("evaluation"):
        _tell_evaluation(evaluation)
    elif rows := record.get("rows"):
        dropped, failed = sum(rows["dropped"].values()), sum(rows["failed"].values())
        print(f"{rows['in']} scenes = {rows['kept']} kept + {dropped} dropped + {failed} failed")
        lists = {"dropped": rows["dropped"], "failed": rows["failed"], "videos lost": record["lost_videos"]}
        for name, counts in lists.items():
            if counts:
                print(f"{name}{job.listed(counts)}")
    for alarm in record.get("alarms", ()):
        print(f"ALARM: {alarm}")
    if exported := record.get("export"):
        print(f"clips: {exported['written']} written, {exported['there']} were there")
    if said := record.get("captions"):
        cost = f"{said['requests']} requests, {said['tokens_in']} + {said['tokens_out']} tokens, ${said['usd']:.2f}"
        print(f"captions: {said['captioned']} made, {said['failed']} failed, {said['left']} left; {cost}")
    if record.get("rows"):
        print(f"report: {store.uri('report.html')}")


if __name__ == "__main__":
    app()
