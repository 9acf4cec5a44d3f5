"""Verbs that improve a corpus: label, fit a filter, caption, evaluate."""

from __future__ import annotations

import os
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.core.errors import UserError, check_all
from actors.core.store import Store
from actors.curation.tables import check_planned
from jobs.core.verbs import Preview, Run, Verb
from jobs.curation.verb import (
    CurationVerb,
    caption,
    check_selected,
    count,
    estimated,
    load_settings,
    places,
    settle,
)

if TYPE_CHECKING:
    from pipelines.curation.evaluating.evaluate import Plan as Todo
    from pipelines.curation.settings import CurationConfig


class Annotate(Verb):
    """Label scenes on a page in the browser: 1 good, 0 bad, s skip, u undo, q stop."""

    positional = ("output",)

    def settings(self) -> type[Any]:
        from pipelines.curation.selecting.label_settings import AnnotateConfig

        return AnnotateConfig

    def plan(self, config: Any) -> None:
        check_planned(Store(config.output))

    def root(self, config: Any) -> None:
        """Labels are files of people, which no run makes again."""
        return

    def preview(self, config: Any, plan: None) -> Preview:
        from pipelines.curation.selecting.annotate import count_to_label

        facts = [f"to label: {count_to_label(Store(config.output))} scenes"]
        return Preview(facts, {"labels": config.files()[1]})

    def work(self, config: Any, plan: None, run: Run) -> None:
        from jobs.curation.annotate import TOKEN, annotate
        from pipelines.curation.settings import CurationConfig

        annotate(config, load_settings(CurationConfig, [config.output]), os.environ.get(TOKEN))


class FitFilter(Verb):
    """Train the filter of select.by=classifier from labels, and report its quality on held-out videos."""

    positional = ("output",)

    def settings(self) -> type[Any]:
        from pipelines.curation.selecting.label_settings import FitConfig

        return FitConfig

    def plan(self, config: Any) -> None:
        from pipelines.curation.selecting.labels import labels_for

        labels_for(config.output, config.labels)

    def preview(self, config: Any, plan: None) -> Preview:
        from actors.curation.selecting.filter import place
        from pipelines.curation.selecting.fit_filter import read_labelled

        labelled = read_labelled(config)
        facts = [f"input: {len(labelled.scenes)} labelled scenes of {labelled.scenes.video_id.nunique()} videos"]
        return Preview(facts, {"filter": place(config.output, config.filter)})

    def work(self, config: Any, plan: None, run: Run) -> None:
        from actors.curation.selecting.filter import place, save_filter
        from pipelines.curation.selecting.fit_filter import fit, read_labelled

        labelled = read_labelled(config)
        if labelled.workers(config) > 1:
            run.ray()
        fitted, uri = fit(labelled, config), place(config.output, config.filter)
        save_filter(fitted, uri)
        # The report of the last run shows the filter, too.
        record = run.store.read_json("run.json")
        if record and "rows" in record:
            from jobs.curation.report import write_report

            write_report(run.store, record)
        for line in fit_lines(fitted.about["report"], uri):
            run.say(line)
        own = [] if config.filter is None else [f"filter={config.filter}"]
        command = ["python", "-m", "jobs.curation", "select", config.output, "select.by=classifier", *own]
        run.say(f"next: {shlex.join(command)}")


def fit_lines(report: dict[str, Any], uri: str) -> list[str]:
    """The quality of a filter, in lines."""
    lost = f"; {report['lost']} more labels are of scenes without scores" if report["lost"] else ""
    kinds = f"{report['good']} good, {report['bad']} bad"
    lines = [f"{report['scenes']} labelled scenes of {report['videos']} videos: {kinds}{lost}", *report["notes"]]
    kind = "good" if report["good"] >= report["bad"] else "bad"
    lines.append(f"on held-out videos, with 95 % intervals over videos; always {kind!r} in brackets:")
    for name, m in report["metrics"].items():
        lines.append(f"  {name:9} {m['value']:.3f}  {m['low']:.3f} to {m['high']:.3f}  ({m['always']:.3f})")
    curve = [(part["metrics"]["accuracy"]["value"], part["videos"]) for part in report["learning_curve"]]
    lines.append("accuracy by training videos: " + ", ".join(f"{videos}: {value:.3f}" for value, videos in curve))
    ordered = sorted(report["importance"].items(), key=lambda item: -item[1])
    lines.append("importance: " + ", ".join(f"{name} {share:.2f}" for name, share in ordered))
    return [*lines, f"filter: {uri}"]


class Recaption(CurationVerb):
    """Caption kept scenes with a vision-language model. Each caption is requested once; rerun to resume."""

    def plan(self, config: CurationConfig) -> None:
        check_selected(config)

    def check(self, config: CurationConfig, plan: None) -> None:
        from actors.curation.captioning.recaptioners import check_captioner

        check_captioner(config.captions)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        from pipelines.curation.kept import kept_scenes

        names = ("captions", "scenes", "rejected", "kept.json", "report.html", "run.json")
        return Preview([estimated(config, kept_scenes(Store(config.output)))], places(config, *names))

    def steps(self, config: CurationConfig, plan: None, run: Run) -> None:
        from pipelines.curation.kept import kept_scenes

        expected = count(run)
        caption(config, kept_scenes(run.store), run)
        settle(expected, run)


class Evaluate(CurationVerb):
    """Compare recaptions with captions, and kept scenes with random ones, by CLIPScore. Rerun to resume."""

    def plan(self, config: CurationConfig) -> Todo:
        from actors.models.clip import check_clip

        check_all(partial(check_selected, config), partial(check_clip, config.embeddings))
        # These import what takes seconds.
        from pipelines.curation.captioning.recaption import improving
        from pipelines.curation.evaluating.evaluate import check_comparable, plan_evaluation

        config = improving(config)
        todo = plan_evaluation(config)
        check_comparable(config, todo)
        return todo

    def check(self, config: CurationConfig, plan: Todo | None) -> None:
        if plan is None or not config.evaluate.recaption:
            return
        from actors.curation.captioning.recaptioners import check_captioner
        from pipelines.curation.captioning.recaption import improving, unasked

        if not unasked(improving(config), plan.scenes):
            return
        try:
            check_captioner(config.captions)
        except UserError as error:
            raise UserError(f"{error} Or set evaluate.recaption=false to compare existing captions.") from error

    def preview(self, config: CurationConfig, plan: Todo) -> Preview:
        from pipelines.curation.captioning.recaption import improving
        from pipelines.curation.evaluating.evaluate import stages_of

        config, todo = improving(config), plan
        kept, drawn = todo.rows.kept, todo.rows.random
        facts = [
            f"compared: {kept.sum()} kept and {drawn.sum()} random scenes, {(kept & drawn).sum()} in both groups",
            f"to do: {len(todo.todo)} scenes to be scored, {len(todo.texts)} texts, after captioning",
        ]
        if config.evaluate.recaption:
            facts.append(estimated(config, todo.scenes))
        names = ("captions", "evaluation", "evaluation.json", "kept.json", "report.html", "run.json")
        return Preview(facts, places(config, *names), *stages_of(config))

    def steps(self, config: CurationConfig, plan: Todo, run: Run) -> None:
        from pipelines.curation.captioning.recaption import improving, unasked
        from pipelines.curation.evaluating.evaluate import evaluate, plan_evaluation

        config, todo = improving(config), plan
        expected = count(run)
        if config.evaluate.recaption and unasked(config, todo.scenes):
            caption(config, todo.scenes, run)
            todo = plan_evaluation(config)
        if todo.todo:
            run.ray()
        run.record["evaluation"] = evaluate(config, todo)
        settle(expected, run)
