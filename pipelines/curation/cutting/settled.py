"""Videos of a changed input that stand there as when it was last planned: they are told by a digest of their text, and
what is left of them by the rows of scores/, so that they are not parsed again."""

import logging
import math
from collections import defaultdict

import numpy as np
import pyarrow as pa

from actors.core.catalog import DamagedError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.tables import DIGEST, INPUT, NEW_CAPTIONS, PLAN_AGAIN, STALE, strings
from pipelines.curation.cutting.counting import counted
from pipelines.curation.cutting.reading import Reading
from pipelines.curation.settings import CurationConfig
from pipelines.curation.sources.records import Known

log = logging.getLogger(__name__)

RULES = "rules"
"""What the writer of a plan tells of the settings by which its rows were told apart."""
FORM = 1
"""Another one when videos are read in another way."""

SLICE = 4096
"""Rows of the last plan that are read at once."""
SAME = 4
"""Digests that may begin with the same 64 bits; of more, some videos would be parsed again."""


def rules(config: CurationConfig) -> list[object]:
    """Settings on which it depends whether a row is of the input."""
    return [FORM, config.videos.changed, config.windows.named]


class Settled:
    """The videos of the last plan that are whole in scores/, or lack only scenes that are to be tried again."""

    def __init__(
        self, config: CurationConfig, rows: Reading, again: frozenset[str] = frozenset(), until: float = math.inf
    ) -> None:
        """again, until: as `Done`."""
        self._table, self._known = pa.Table.from_batches([], INPUT), np.zeros(0, bool)
        self._wanted: dict[str, frozenset[str]] = {}
        self._moved = self._known
        try:
            self._read(config, rows, again, until)
        except DamagedError as error:
            log.warning("The whole input is read again: %s", error)
        known = np.flatnonzero(self._known)
        self._places = known.tolist()
        self._digests: list[bytes] = self._table[DIGEST].take(pa.array(known)).to_pylist()
        starts = np.array([_start(digest) for digest in self._digests], np.uint64)
        self._order = np.argsort(starts)
        self._starts, self._next = starts[self._order], 0
        self._rows, self._first = list[Row](), 0

    def _read(self, config: CurationConfig, rows: Reading, again: frozenset[str], until: float) -> None:
        store = rows.store
        last = store.catalog().tables.get("plan/videos")
        if last is None or last.about.get(RULES) != rules(config) or config.windows.named or not rows:
            return
        table = store.read_table("plan/videos", INPUT, (DIGEST,), again=PLAN_AGAIN).combine_chunks()
        videos = table.drop_columns([DIGEST]).to_pandas(types_mapper=strings)
        counts = counted(config, rows, videos, again, until)
        wanted: dict[str, list[str]] = defaultdict(list)
        for video_id, scene_id in zip(counts.again.video_id, counts.again.scene_id, strict=True):
            wanted[video_id].append(scene_id)
        self._wanted = {video_id: frozenset(ids) for video_id, ids in wanted.items()}
        now = counts.videos.loc[videos.video_id]
        tried = videos.video_id.map(counts.again.video_id.value_counts()).fillna(0).to_numpy(int)
        named = (videos.scenes >= 0).to_numpy()
        whole = now.have.to_numpy() + tried == videos.scenes.to_numpy()
        self._known = np.where(named, whole, now.done.to_numpy(bool) & (tried == 0))
        self._known &= table[DIGEST].is_valid().to_numpy() & ~videos.video_id.isin(_open(store)).to_numpy()
        self._moved, self._table = now.moved.to_numpy(bool), table

    def lookup(self, digest: bytes) -> Known | None:
        """The video with this digest, where it is settled."""
        number = self._number(digest)
        if number is None:
            return None
        self._next = number + 1
        row = self._row(self._places[number])
        video_id, origin = row["video_id"], (row["film"], row["version"])
        return Known(video_id, row["url"], origin, self._places[number], self._wanted.get(video_id, frozenset()))

    def planned(self, known: Known) -> Row:
        """Its row of the last plan/videos."""
        return self._row(known.at)

    def _number(self, digest: bytes) -> int | None:
        # Most stand in the order of the last plan.
        if self._next < len(self._digests) and self._digests[self._next] == digest:
            return self._next
        first = int(np.searchsorted(self._starts, np.uint64(_start(digest))))
        for number in self._order[first : first + SAME].tolist():
            if self._digests[number] == digest:
                return number
        return None

    def _row(self, place: int) -> Row:
        # Many rows at once where they come in order; single ones take long.
        if self._first + len(self._rows) <= place < self._first + len(self._rows) + SLICE:
            self._rows, self._first = self._table.slice(place, SLICE).to_pylist(), place
        if self._first <= place < self._first + len(self._rows):
            return self._rows[place - self._first]
        return {name: self._table[name][place].as_py() for name in INPUT.names}

    def moved(self, known: Known) -> bool:
        """Whether it lay elsewhere when it was measured."""
        return bool(self._moved[known.at])


def _open(store: Store) -> set[str]:
    """Videos of which the last plan says more than that they are there: they are compared with their rows again."""
    ids: set[str] = set()
    for name, schema in (("plan/stale", STALE), ("plan/captions", NEW_CAPTIONS)):
        ids |= set(store.read_table(name, schema, again=PLAN_AGAIN)["video_id"].to_pylist())
    return ids


def _start(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")
