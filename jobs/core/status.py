"""How far the verbs of an output are, from outside."""

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from jobs.core.counts import listed
from jobs.core.verbs import Run, Verb
from pipelines.core.progress import duration, line

LEAST_S = 1.0
"""Fewest seconds between two looks."""


@dataclass(frozen=True)
class StatusConfig:
    """Settings of `status`."""

    output: str
    """The output of a run: a path or s3://bucket/prefix."""
    watch: bool = False
    """Refresh until no run is at work on the output any more; exit with 1 if the last one failed or was killed."""
    interval_s: float = 5.0
    """Seconds between two looks with `watch`, at least 1; each is a few requests to the store."""

    def __post_init__(self) -> None:
        if self.interval_s < LEAST_S:
            raise UserError(f"interval_s={self.interval_s}: set at least {LEAST_S:g}")


class Status(Verb):
    """Show how far each verb of an output is, also while it runs elsewhere."""

    positional = ("output",)

    def settings(self) -> type[StatusConfig]:
        return StatusConfig

    def root(self, config: StatusConfig) -> None:
        return None

    def work(self, config: StatusConfig, plan: None, run: Run) -> None:
        store, why = Store(config.output), ""
        if config.watch:
            from jobs.core.watch import watch

            why = watch(store, config.interval_s, partial(progress_lines, store))
        for text in self.lines(store):
            run.say(text)
        if why:
            run.record |= {"status": "failed", "error": why}

    def lines(self, store: Store) -> list[str]:
        """What is shown of an output."""
        entries = [entry.name for entry in storage.listing(store.uri("runs"), (".json",))]
        if not entries:
            raise UserError(f"{store.root} has no run records. Give the output of a command that has begun.")
        told = [
            text
            for name in entries
            if not name.endswith(".progress.json")
            for text in self.summary(store.read_json("runs", name), store)
        ]
        return told + progress_lines(store)


def progress_lines(store: Store) -> list[str]:
    """A line for each stage that is in progress below an output, or was when its run was interrupted."""
    lines: list[str] = []
    for entry in storage.listing(store.uri("runs"), (".progress.json",)):
        try:
            stages: dict[str, dict[str, Any]] = json.loads(storage.read_bytes(entry.uri))
        except FileNotFoundError:
            # Its run has ended since it was listed.
            continue
        for stage, about in stages.items():
            numbers = (about[key] for key in ("done", "total", "unit", "rate", "remaining_s"))
            ago = duration(max(time.time() - about["time"], 0.0))
            note = f", {about['note']}" if about["note"] else ""
            failed = listed(about.get("codes", {})).replace(": ", ", failed ", 1)
            name = entry.name.removesuffix(".progress.json")
            lines.append(f"{name} {line(stage, *numbers)}{note}{failed} ({ago} ago)")
    return lines
