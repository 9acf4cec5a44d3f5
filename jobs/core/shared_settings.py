"""Settings that every verb has: they are of its process and of its workers, which read them from the environment."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from actors.core.errors import UserError
from actors.core.log_format import LOG_FORMAT, as_json
from actors.core.patience import PATIENCE, PATIENCE_S, patience_s


@dataclass(frozen=True)
class StoreConfig:
    """How a store is dealt with."""

    patience_s: float = PATIENCE_S
    """Seconds for which a store that is away is waited for, also in the middle of a run; 0: not at all."""

    def __post_init__(self) -> None:
        if not 0 <= self.patience_s < float("inf"):
            raise UserError(f"store.patience_s={self.patience_s}: give seconds, 0 or more")


@dataclass(frozen=True)
class LogConfig:
    """How log lines look."""

    format: Literal["text", "json"] = "text"
    """Log lines, warnings of workers, the summary and errors as text, or each as a JSON object on a line of standard
    error, for a log collector. With json a terminal shows no live progress."""


@dataclass(frozen=True)
class SharedConfig:
    """Settings of every verb."""

    store: StoreConfig = field(default_factory=StoreConfig)
    """How a store is dealt with, for results and inputs."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is written to standard error."""


def in_effect() -> SharedConfig:
    """What holds now."""
    return SharedConfig(StoreConfig(patience_s()), LogConfig("json" if as_json() else "text"))


def put_into_effect(config: SharedConfig, groups: Sequence[str]) -> None:
    """Let the settings of some groups hold, here and in workers that are started from now on."""
    if (given := os.environ.get(LOG_FORMAT, "text")) not in ("text", "json"):
        raise UserError(f"{LOG_FORMAT}={given}: give text or json")
    if "store" in groups:
        os.environ[PATIENCE] = f"{config.store.patience_s:g}"
    if "log" in groups:
        os.environ[LOG_FORMAT] = config.log.format
    # Where they are shown at all.
    logging.captureWarnings(as_json())


@contextmanager
def shared_settings(arguments: Sequence[str]) -> Iterator[None]:
    """What these settings change holds until the end of the block; arguments: of a command, in which `log.format` is
    looked for first, so that whatever is wrong with them is told in that form."""
    before = {name: os.environ.get(name) for name in (PATIENCE, LOG_FORMAT)}
    if re.search(r"(?:^| )(?:--)?log\.format[= ]json(?: |$)", " ".join(arguments)):
        os.environ[LOG_FORMAT] = "json"
    logging.captureWarnings(as_json())
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        logging.captureWarnings(as_json())
