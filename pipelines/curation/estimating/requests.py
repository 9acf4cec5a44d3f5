"""Requests to a store that a run over films makes, beside those that read its films: counted once over S3, by what they
grow with (`tests.benchmarks.estimate` compares them with a run's).

Two kinds, as stores have prices for them: PUT, with POST and LIST, and GET, with HEAD. DELETE costs nothing.
"""

import math
from typing import NamedTuple

from actors.core.lease import RENEWED_S
from pipelines.core.reporting import EVERY_S, LAST_S, SLOWER
from pipelines.curation.compact import MANY_PARTS

LISTED = 1000
"""Names that one LIST request tells."""
PICTURE_PARTS = 256
"""Parts of thumbnails/ that the report reads, at most."""
CARDS = 48
"""Clips that the report looks for, at most."""
READINGS = 4
"""How often a run reads each part of scores/ after it was written: to count, to select, to export, to tell."""
LISTINGS = 5
"""How often it lists scores/."""


class Requests(NamedTuple):
    """Requests of both prices."""

    puts: float
    """PUT, POST and LIST."""
    gets: float
    """GET and HEAD."""


ONCE = Requests(13 + 1 + 91, 107 + 1)
"""Of a run of any size: plan, tables and their catalog, settings, records, report."""


def run_requests(parts: float, tables: float, clips: float, seconds: float) -> Requests:
    """Requests of `run` that grow with nothing that a film has for itself.

    parts: of scores/, that are written. tables: tables of which each has a part. seconds: of the run.
    """
    # What was compacted has few parts, of which each was read once for that.
    compacted = parts // MANY_PARTS * MANY_PARTS
    left = parts - compacted
    renewed = seconds / RENEWED_S
    lists = LISTINGS * (left // LISTED) + 2 * (clips // LISTED)
    return Requests(
        ONCE.puts + lists + renewed + 2 * _shown(seconds),
        ONCE.gets + READINGS * left + tables * compacted + min(left, PICTURE_PARTS) + min(clips, CARDS) + renewed,
    )


def _shown(seconds: float) -> float:
    """How often the page and the file of progress are written in so many seconds: ever less often."""
    first, last = EVERY_S / SLOWER, LAST_S / SLOWER
    slower = math.log(min(max(seconds, first), last) / first) / SLOWER
    return min(seconds, first) / EVERY_S + slower + max(0.0, seconds - last) / LAST_S
