"""Curation: from films to the scenes worth training on.

python -m jobs.curation run corpus.yaml input=s3://films/ output=s3://corpora/may motion.flow=scaled
python -m jobs.curation select s3://corpora/may select.count=10000

Where an output stands first, the settings that it was made with apply, and single settings override them.
"""

import sys
from dataclasses import dataclass

from actors.core.store import Store
from actors.curation.tables import check_planned
from jobs.core import status
from jobs.core.settings import SettingsError, load
from jobs.core.status import StatusConfig, progress_lines
from jobs.core.verbs import Run, Verb, Verbs
from jobs.curation import corpus, loop, measure, search
from jobs.curation.verb import last_record, summary

app = Verbs(__doc__)
for verb in (corpus.Run, corpus.Fetch, corpus.Score, corpus.Select, corpus.Export, corpus.Retry):
    app.verb(verb)
for verb in (measure.Measure, measure.Embed, search.Search):
    app.verb(verb)
for verb in (loop.Annotate, loop.FitFilter, loop.Recaption, loop.Evaluate):
    app.verb(verb)


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of `explain`."""

    output: str
    """The output of a run: a path or s3://bucket/prefix."""
    scene: str
    """The scene to explain: its scene_id, or video_id/scene_id where two videos have the same."""


@dataclass(frozen=True)
class FailedConfig:
    """Settings of `failed`."""

    output: str
    """The output of a run: a path or s3://bucket/prefix."""
    rows: bool = False
    """Print every failed row, tab-separated, instead of a line for each error code."""


@app.verb
class Explain(Verb):
    """Explain one scene: its source, its features compared with the corpus, and why it is kept or not."""

    positional = ("output", "scene")

    def settings(self) -> type[ExplainConfig]:
        return ExplainConfig

    def root(self, config: ExplainConfig) -> None:
        return None

    def work(self, config: ExplainConfig, plan: None, run: Run) -> None:
        from pipelines.curation.selecting.explain import explain
        from pipelines.curation.selecting.select import selection_now
        from pipelines.curation.settings import CurationConfig

        store = Store(config.output)
        record = last_record(store)
        if record is None:
            raise SettingsError(f"{config.output} has no selection. Run `run` or `select` first.")
        if record.get("selection", selection_now(store)) != selection_now(store):
            raise SettingsError(f"{config.output} was selected anew by a command that did not end. Run `select`.")
        settings = load(CurationConfig, [], record["settings"] | {"output": config.output})
        for line in explain(settings, config.scene):
            run.say(line)


@dataclass(frozen=True)
class CompactConfig:
    """Settings of `compact`."""

    output: str
    """The output of a run: a path or s3://bucket/prefix."""


@app.verb
class Compact(Verb):
    """Compact the parts of scores/ into files of up to 100 MB, sorted by video, with their pictures."""

    positional = ("output",)

    def settings(self) -> type[CompactConfig]:
        return CompactConfig

    def plan(self, config: CompactConfig) -> None:
        check_planned(Store(config.output))

    def leases(self, config: CompactConfig) -> tuple[str, ...]:
        # Also those of runs, which compact beside their work.
        return (self.name, *corpus.measurings(Store(config.output)))

    def work(self, config: CompactConfig, plan: None, run: Run) -> None:
        from pipelines.curation.compact import compact_output

        done = compact_output(Store(config.output))
        run.say(f"compacted {done.parts} parts of scores/ with {done.rows} rows into {done.made}")


@app.verb
class Status(status.Status):
    """Show how far a run is, also while it runs elsewhere."""

    def plan(self, config: StatusConfig) -> None:
        check_planned(Store(config.output))

    def lines(self, store: Store) -> list[str]:
        from pipelines.curation.rows import how_far

        now = how_far(store)
        first = (
            f"{now.done} of {now.videos} videos done; {now.scenes} scenes, {now.failed_scenes} failed; "
            f"{now.failed_videos} videos failed"
        )
        record = store.read_json("run.json")
        told = [] if record is None else summary(record, store)
        if record is None:
            told = ["Still running or interrupted. Rerun the same command to resume."]
            before = last_record(store)
            told += [] if before is None else ["before it:", *summary(before, store)]
        return [first, *progress_lines(store), *told]


@app.verb
class Failed(Verb):
    """Show what failed, by step and error code, and whether `retry` may help."""

    positional = ("output",)

    def settings(self) -> type[FailedConfig]:
        return FailedConfig

    def plan(self, config: FailedConfig) -> None:
        check_planned(Store(config.output))

    def root(self, config: FailedConfig) -> None:
        return None

    def work(self, config: FailedConfig, plan: None, run: Run) -> None:
        from pipelines.curation.rows import failures
        from pipelines.curation.settings import RETRYABLE

        bad = failures(Store(config.output))
        if config.rows:
            bad.to_csv(sys.stdout, sep="\t", index=False)
            return
        for (step, code), group in bad.groupby(["step", "error"]):
            may = "retry may help" if code in RETRYABLE else "permanent"
            first = group.iloc[0]
            run.say(
                f"{len(group):7d}  {step:7}  {code:18} {may:15} {first.scene_id or first.video_id}: {first.message}"
            )
        if bad.empty:
            run.say("nothing failed")


if __name__ == "__main__":
    app()
