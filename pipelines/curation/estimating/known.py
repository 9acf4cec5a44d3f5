"""What is known of films before they are measured: how long they are, how large their pictures, how many bytes."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from actors.core import storage
from actors.core.child import Child, ChildFault
from actors.core.stage import Row
from actors.media.formats import open_container
from pipelines.curation.cutting.order import BYTES_A_SECOND
from pipelines.curation.cutting.plan import LOCAL
from pipelines.curation.estimating.scaling import Sample

log = logging.getLogger(__name__)

MOST = 512
"""Films of which containers are opened; of more, as many are drawn, and stand for the others."""
AT_ONCE = 8
"""Containers that are opened at once: a store is waited for."""
STALL_S = 120.0
"""Seconds in which no container is read, after which the next one is left out."""
PIXELS_A_SECOND = 50e6
"""Decoding so many pixels takes about as long as measuring the frames of a second of film."""


@dataclass
class Drawn:
    """Draws films at random while they pass, each as likely as any other, and adds up what there is of all."""

    rng: np.random.Generator
    films: list[Row] = field(default_factory=list)
    """Rows of plan/todo."""
    bytes: list[int | None] = field(default_factory=list)
    """Bytes of each; None: not known."""
    count: int = 0
    """Films that passed."""
    all_bytes: float = 0.0
    """Bytes of those of which they are known."""

    def add(self, film: Row, size: int | None) -> None:
        """Take a film, or not."""
        self.count += 1
        self.all_bytes += size or 0
        if len(self.films) < MOST:
            self.films.append(film)
            self.bytes.append(size)
        elif (at := int(self.rng.integers(self.count))) < MOST:
            self.films[at], self.bytes[at] = film, size

    @property
    def factor(self) -> float:
        """How many times as much as the drawn films all films are: by bytes where they are known, else by number."""
        if self.count == len(self.films):
            return 1.0
        known = all(self.bytes) and sum(filter(None, self.bytes))
        return self.all_bytes / known if known else self.count / len(self.films)

    def at(self, sample: Sample) -> list[Row]:
        """The films of a sample of those that are drawn."""
        return [self.films[at] for at in sample.chosen]

    def spread(self, values: np.ndarray) -> float:
        """Half of the 95 % interval of `factor` times the sum of values, float (N,), as a share of it."""
        if self.count == len(self.films):
            return 0.0
        by = np.array(self.bytes, float) if all(self.bytes) else np.ones(len(values))
        lacking = values - by * values.sum() / by.sum()
        left = 1 - len(values) / self.count
        return float(1.96 * lacking.std() / values.mean() * np.sqrt(left / len(values)))


@dataclass(frozen=True)
class Known:
    """Of films, float (N,)."""

    seconds: np.ndarray
    """Seconds that are measured: of scenes that are left, or of the whole film."""
    pixels: np.ndarray
    """Pixels that are decoded for that."""
    probed: int
    """Films whose containers tell."""

    @property
    def sizes(self) -> np.ndarray:
        """About how long each takes; above 0."""
        return self.seconds + self.pixels / PIXELS_A_SECOND + 0.1

    @property
    def about(self) -> np.ndarray:
        """What it may grow with, float (N, 3): as such, with seconds, with pixels."""
        return np.stack([np.ones(len(self.seconds)), self.seconds, self.pixels], axis=1)


def known_of(films: Sequence[Row], sizes: Sequence[int | None]) -> Known:
    """What is known of films of plan/todo, and bytes of each; opens their containers, but none behind http."""
    told = {at: one for at, one in enumerate(_probed([film["url"] for film in films])) if one}
    lengths = np.array(
        [
            _length(film, told[at][0] if at in told else None, size)
            for at, (film, size) in enumerate(zip(films, sizes, strict=True))
        ]
    )
    rates = np.array([told[at][1] if at in told else math.inf for at in range(len(films))])
    measured, decoded, rates = map(_completed, (*lengths.T, rates))
    return Known(measured, decoded * rates, len(told))


def _completed(values: np.ndarray) -> np.ndarray:
    """Values where those that are not known, which are infinite, are like the others."""
    finite = np.isfinite(values)
    return np.where(finite, values, values[finite].mean() if finite.any() else 1.0)


def _length(film: Row, duration_s: float | None, size: int | None) -> tuple[float, float]:
    """Seconds to measure of a film, and to decode; infinite where nothing tells."""
    if duration_s is None:
        duration_s = math.inf if size is None else size / BYTES_A_SECOND
    spans = json.loads(film["spans"] or "null")
    if spans is None:
        return duration_s, duration_s
    ends = [duration_s if span["end_s"] is None else min(span["end_s"], duration_s) for span in spans]
    measured = sum(max(0.0, end - span["start_s"]) for span, end in zip(spans, ends, strict=True))
    return measured, max(ends)


def _probed(urls: Sequence[str]) -> list[tuple[float, float] | tuple[()]]:
    """Seconds and pixels a second of films; () where a container does not tell, or kills who opens it."""
    child, found = Child(), []
    while len(found) < len(urls):
        try:
            for one in child.stream(containers, urls[len(found) :], stall_s=STALL_S, timeout_s=math.inf):
                found.append(one)
        except ChildFault as fault:
            log.warning("The container of %s was not read: %s", urls[len(found)], fault)
            found.append(())
    child.kill()
    return found


def containers(urls: Sequence[str]) -> Iterator[tuple[float, float] | tuple[()]]:
    """Seconds and pixels a second of each film, as its container has them; () where it does not tell."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda url: _container(url) if url.startswith(LOCAL) else (), urls)


def _container(url: str) -> tuple[float, float] | tuple[()]:
    try:
        with storage.stream(url) as data, open_container(data) as film:
            stream = film.streams.video[0]
            seconds = (film.duration or 0) / 1e6
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            return (seconds, rate * stream.width * stream.height) if seconds > 0 and rate > 0 else ()
    except (OSError, ValueError, IndexError):
        return ()
