"""How far the verbs of an output are, from outside."""

import json
import time
from dataclasses import dataclass
from typing import Any

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from jobs.core.verbs import Run, Verb
from pipelines.core.progress import duration, line


@dataclass(frozen=True)
class StatusConfig:
    """Settings of `status`."""

    output: str
    """The output of a run: a path or s3://bucket/prefix."""


class Status(Verb):
    """Show how far each verb of an output is, also while it runs elsewhere."""

    positional = ("output",)

    def settings(self) -> type[StatusConfig]:
        return StatusConfig

    def root(self, config: StatusConfig) -> None:
        return None

    def work(self, config: StatusConfig, plan: None, run: Run) -> None:
        store = Store(config.output)
        entries = [entry.name for entry in storage.listing(store.uri("runs"), (".json",))]
        if not entries:
            raise UserError(f"{config.output} has no run records. Give the output of a command that has begun.")
        for name in entries:
            if not name.endswith(".progress.json"):
                for text in self.summary(store.read_json("runs", name), store):
                    run.say(text)
        for text in progress_lines(store):
            run.say(text)


def progress_lines(store: Store) -> list[str]:
    """A line for each stage that is in progress below an output, or was when its run was interrupted."""
    lines: list[str] = []
    for entry in storage.listing(store.uri("runs"), (".progress.json",)):
        stages: dict[str, dict[str, Any]] = json.loads(storage.read_bytes(entry.uri))
        for stage, about in stages.items():
            numbers = (about[key] for key in ("done", "total", "unit", "rate", "remaining_s"))
            ago = duration(max(time.time() - about["time"], 0.0))
            note = f", {about['note']}" if about["note"] else ""
            lines.append(f"{entry.name.removesuffix('.progress.json')} {line(stage, *numbers)}{note} ({ago} ago)")
    return lines
