"""Verbs that make a corpus: run and its single steps."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.core import storage
from actors.core.errors import check_all
from actors.core.store import Store
from jobs.core import verbs
from jobs.core.verbs import Preview, Verb
from jobs.curation.measure import add_scores
from jobs.curation.verb import (
    CurationVerb,
    caption,
    check_selected,
    count,
    decide,
    load_settings,
    overriding,
    places,
    settle,
    write_kept,
)

if TYPE_CHECKING:
    from pipelines.curation.cutting.plan import Plan
    from pipelines.curation.settings import CurationConfig, RetryConfig

ARTEFACTS = (
    *("plan", "videos", "scores", "measured", "thumbnails", "keyframes", "scenes", "rejected"),
    *("clips", "captions", "kept.json", "report.html", "run.json"),
)


def measure(config: CurationConfig, run: verbs.Run, again: frozenset[str] = frozenset()) -> None:
    """Plan and score what is missing; again: error codes of rows to make again."""
    from pipelines.curation.cutting.plan import make_plan

    plan, started = make_plan(config, again), time.time()
    run.record["changed"] = changed(config, plan)
    run.record["input"] = {name: getattr(plan, name) for name in ("videos", "scenes", "films")}
    if plan.todo:
        from pipelines.curation.cutting.score import score

        run.ray()
        left = partial(make_plan, config, again, before=started)
        run.record["measured"] = asdict(score(config, plan, left))


def changed(config: CurationConfig, plan: Plan) -> list[str]:
    """What has changed in the input since it was measured, as a line, if anything."""
    return (
        [f"changed in the input (videos.changed={config.videos.changed}): {plan.changes()}"] if plan.changes() else []
    )


def planned(config: CurationConfig, again: frozenset[str] = frozenset()) -> Preview:
    """The plan of `run` or a part of it."""
    from pipelines.curation.cutting.plan import make_plan
    from pipelines.curation.cutting.score import stages_of

    plan = make_plan(config, again, dry=True)
    fetched = ", some to download" if plan.remote else ""
    facts = [
        f"input: {plan.videos} videos, {plan.scenes} named scenes, {plan.films} films for shot detection",
        f"to do: {plan.todo} videos, {plan.todo_scenes} named scenes{fetched}",
        *changed(config, plan),
    ]
    return Preview(facts, places(config, *ARTEFACTS), *stages_of(config, plan.remote))


def estimated(config: CurationConfig, run: verbs.Run, export: bool, again: frozenset[str] = frozenset()) -> list[str]:
    """What `run` or a part of it will take, measured on a sample."""
    from pipelines.curation.estimating.estimate import estimate, told

    found = estimate(config, again, export, run.ray)
    return ["estimate: nothing to measure"] if found is None else told(config, *found)


MEASURING = "score-"
"""How leases of what downloads and measures begin."""


def measuring(config: CurationConfig) -> str:
    """Name of the lease of what downloads and measures; runs over other ranges of the input have their own."""
    return f"{MEASURING}{config.videos.start}"


def measurings(store: Store) -> list[str]:
    """Names of such leases: of a run over the whole input, and of those that lie there."""
    lying = storage.listing(store.uri("runs"), (".lease",))
    names = (entry.name.removesuffix(".lease") for entry in lying)
    return sorted({f"{MEASURING}0", *(name for name in names if name.startswith(MEASURING))})


class Run(CurationVerb):
    """Run everything: fetch, score, select, export, report. Rerun to resume."""

    def plan(self, config: CurationConfig) -> None:
        from pipelines.curation.selecting.columns import check_selectable
        from pipelines.curation.settings import check

        check_all(partial(check, config), partial(check_selectable, config, config.scores))

    def leases(self, config: Any) -> tuple[str, ...]:
        return (measuring(config),)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        return planned(config)

    def estimate(self, config: CurationConfig, run: verbs.Run) -> list[str]:
        return estimated(config, run, export=True)

    def steps(self, config: CurationConfig, plan: None, run: verbs.Run) -> None:
        measure(config, run)
        add_scores(config, run)
        expected = decide(config, run)
        write_kept(config, run)
        settle(expected, run)


class Fetch(Verb):
    """Download the videos that the input names by http(s) into OUTPUT/videos. Rerun to resume."""

    def settings(self) -> type[CurationConfig]:
        from pipelines.curation.settings import CurationConfig

        return CurationConfig

    def load(self, arguments: Any) -> CurationConfig:
        from pipelines.curation.settings import CurationConfig

        return load_settings(CurationConfig, arguments)

    def plan(self, config: CurationConfig) -> None:
        from pipelines.curation.settings import check

        check(config)

    def leases(self, config: CurationConfig) -> tuple[str, ...]:
        return (measuring(config),)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        return planned(config)

    def work(self, config: CurationConfig, plan: None, run: verbs.Run) -> None:
        from pipelines.curation.cutting.plan import make_plan
        from pipelines.curation.cutting.score import fetch_all

        plan_now = make_plan(config)
        codes: Counter[str] = Counter()
        if plan_now.todo:
            run.ray()
            codes = fetch_all(config, plan_now)
        there = codes.pop("", 0)
        run.record["rows"] = {"in": there + codes.total(), "out": there, "rejected": dict(codes)}


class Score(CurationVerb):
    """Fetch and measure what is missing in OUTPUT/scores; select afterwards. Rerun to resume."""

    def plan(self, config: CurationConfig) -> None:
        from pipelines.curation.settings import check

        check(config)

    def leases(self, config: Any) -> tuple[str, ...]:
        return (measuring(config),)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        return planned(config)

    def estimate(self, config: CurationConfig, run: verbs.Run) -> list[str]:
        return estimated(config, run, export=False)

    def steps(self, config: CurationConfig, plan: None, run: verbs.Run) -> None:
        measure(config, run)
        add_scores(config, run)
        count(run)


class Select(CurationVerb):
    """Select the scenes to keep by the scores that exist; measures nothing."""

    def plan(self, config: CurationConfig) -> None:
        from pipelines.curation.selecting.columns import check_selectable

        super().plan(config)
        check_selectable(config)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        facts = [f"to judge: the scenes of {len(Store(config.output).parts('scores'))} parts of scores/"]
        return Preview(facts, places(config, "scenes", "places", "rejected", "report.html", "run.json"))

    def steps(self, config: CurationConfig, plan: None, run: verbs.Run) -> None:
        expected = decide(config, run)
        if differing := overriding(config, run.store):
            run.record["notes"].append(
                f"{' '.join(differing)} holds for this selection alone: `run`, `retry` and the next `select` go by the "
                "settings of the run"
            )
        settle(expected, run)


class Export(CurationVerb):
    """Write clips, frames, layouts for trainers and kept.json of the scenes that are kept. Rerun to resume."""

    def plan(self, config: CurationConfig) -> None:
        from actors.curation.exporting.presets import load_preset

        def preset() -> None:
            if config.export.preset:
                load_preset(config.export.preset)

        check_all(partial(check_selected, config), preset)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        from pipelines.curation.exporting.fit_clips import fitted_of
        from pipelines.curation.kept import kept_scenes

        names = ["clips", "kept.json", "report.html", "run.json"]
        names += ["frames"] if config.export.frames else []
        kept = kept_scenes(Store(config.output))
        facts = [f"to export: {len(kept)} kept scenes"]
        facts += [fitted_of(config, kept).told()] if config.export.preset else []
        facts += [f"layouts for trainers: {', '.join(config.export.layouts)}"] if config.export.layouts else []
        return Preview(facts, places(config, *names), {}, {"export": config.export})

    def steps(self, config: CurationConfig, plan: None, run: verbs.Run) -> None:
        expected = count(run)
        write_kept(config, run)
        settle(expected, run)


class Retry(CurationVerb):
    """Run everything, and try again what failed and may succeed now."""

    def settings(self) -> type[RetryConfig]:
        from pipelines.curation.settings import RetryConfig

        return RetryConfig

    def plan(self, config: RetryConfig) -> None:
        from pipelines.curation.selecting.columns import check_selectable
        from pipelines.curation.settings import check

        check_all(partial(check, config), partial(check_selectable, config, config.scores))

    def check(self, config: RetryConfig, plan: None) -> None:
        from actors.curation.captioning.recaptioners import check_captioner
        from pipelines.curation.rows import captions_by_style

        if "caption_failed" in config.again() and (captions_by_style(Store(config.output)).code != "").any():
            check_captioner(config.captions)

    def leases(self, config: Any) -> tuple[str, ...]:
        return (measuring(config),)

    def preview(self, config: RetryConfig, plan: None) -> Preview:
        return planned(config, config.again())

    def open(self, config: Any, plan: None, store: Store) -> dict[str, Any]:
        # An output is always made with the settings of `run`.
        return {**super().open(config, plan, store), "settings": asdict(config.run())}

    def estimate(self, config: RetryConfig, run: verbs.Run) -> list[str]:
        return estimated(config.run(), run, export=True, again=config.again())

    def steps(self, config: RetryConfig, plan: None, run: verbs.Run) -> None:
        from pipelines.curation.captioning.recaption import forget_failed
        from pipelines.curation.kept import kept_scenes

        measure(config.run(), run, config.again())
        add_scores(config.run(), run)
        forgotten = forget_failed(run.store) if "caption_failed" in config.again() else set()
        expected = decide(config, run)
        write_kept(config, run)
        if forgotten:
            kept = kept_scenes(run.store)
            caption(config, [row for row in kept if (row["video_id"], row["scene_id"]) in forgotten], run)
        settle(expected, run)
