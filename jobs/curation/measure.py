"""The verb that adds scores to a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from actors.core.errors import UserError
from actors.core.store import Store
from jobs.core import verbs
from jobs.core.verbs import Preview
from jobs.curation.verb import CurationVerb, places

if TYPE_CHECKING:
    from pipelines.curation.settings import CurationConfig


def add_scores(config: CurationConfig, run: verbs.Run) -> None:
    """Measure what is missing of the families that settings name, and record what there is."""
    if not config.scores:
        return
    from pipelines.curation.measuring.measure import is_done, measure_families

    if not is_done(config):
        run.ray()
    added = measure_families(config)
    run.record["scores"] = {name: asdict(one) for name, one in added.items()}
    notes = [note for one in added.values() for note in one.notes]
    run.record["notes"] = [*run.record.get("notes", []), *notes]


class Measure(CurationVerb):
    """Add scores to a corpus: scores=[quality, text] or your own classes. Rerun to resume."""

    def plan(self, config: CurationConfig) -> None:
        from actors.curation.measuring.family import FAMILIES
        from pipelines.curation.measuring.measure_settings import check_scores

        super().plan(config)
        if not config.scores:
            raise UserError(f"Name the scores to add, as in scores=[quality]. There are {', '.join(sorted(FAMILIES))}.")
        check_scores(config.scores, config.measure)

    def preview(self, config: CurationConfig, plan: None) -> Preview:
        from pipelines.curation.measuring.measure import left, stages_of, tasks_of

        store = Store(config.output)
        facts = [
            f"{task.name}: {len(left(store, task))} of {len(store.parts('scores'))} parts of scores/ to measure"
            for task in tasks_of(config)
        ]
        return Preview(facts, places(config, "measured", "run.json"), stages_of(config), {})

    def steps(self, config: CurationConfig, plan: None, run: verbs.Run) -> None:
        add_scores(config, run)


class Embed(Measure):
    """Measure embeddings, for `search`, select.semantic_dedupe and select.balance: `measure` of scores=[embedding]."""

    def load(self, arguments: Sequence[str]) -> CurationConfig:
        return replace(super().load(arguments), scores=["embedding"])
