"""Pairs of a face and a body of one character in one panel: found, decoded once, and stored small for training.

plan   driver  the pairs of crops/, the part of each series, and the pairs still to decode
decode task    N -> 1: each crop is decoded once; a whole part of pairs/
read   task    1 -> N: the pairs of some series, from pairs/
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.comic_characters.crops import CROPS
from actors.comic_characters.pairs import KEY, REJECTED_PAIRS, Labels, Sizes, prepare_pairs, read_pairs
from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from pipelines.comic_characters.sequences import read_sequences
from pipelines.core.progress import Progress
from pipelines.core.ray_data import finish, fitted, ray_task, set_context

if TYPE_CHECKING:
    import pandas as pd
    from ray.data import Dataset

    # Workers that decode pay for no import of torch.
    from pipelines.comic_characters.settings import ComicsConfig

PARTS = ("train", "valid", "test")
PAIRS_A_PART = 256


@dataclass(frozen=True)
class PretrainPlan:
    """The pairs, the part of each series, and the pairs to decode."""

    pairs: pd.DataFrame
    """Columns of KEY."""
    alone: int
    """Faces and bodies without a partner."""
    parts: dict[str, str]
    """Series to one of PARTS."""
    todo: pd.DataFrame
    """Pairs that are not in pairs/."""


def plan_pretraining(config: ComicsConfig) -> PretrainPlan:
    """Find the pairs of crops/, and those to decode.

    Raises UserError where there are no crops, too few series or pairs, or pairs decoded at another size.
    """
    store = Store(config.output)
    made = store.read_json("pairs.json")
    if made not in (None, config.backbone.sizes()):
        raise UserError(f"{config.output} has pairs of {made} pixels. Use another output, or these sizes.")
    crops = store.read_table("crops", CROPS)
    # pandas is imported where there is something to look at: refusing takes no time.
    pairs, alone = find_pairs(crops.to_pandas()) if len(crops) else (None, 0)
    if pairs is None or pairs.empty:
        raise UserError(f"{config.output} has no face and body of one character in crops/. Run `crop` first.")
    parts = split_series(
        pairs.series_id, config.pretrain.shares, config.pretrain.training.seed, held_out(config.labels)
    )
    count, least = int((pairs.series_id.map(parts) == "train").sum()), config.pretrain.training.batch_size
    if count < least:
        raise UserError(f"{count} pairs to train on are fewer than pretrain.training.batch_size={least}. Lower it.")
    done = prepared(store)

    import pandas as pd

    known = pd.MultiIndex.from_frame(pairs).isin(pd.MultiIndex.from_frame(done[done.error == ""][KEY]))
    return PretrainPlan(pairs, alone, parts, pairs[~known])


def find_pairs(crops: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Faces and bodies with one char_index in one panel: columns of KEY; and how many have no partner.

    Where a character has several of a kind, the first one counts.
    """
    place = ["series_id", "page_id", "char_index"]
    sound = crops[crops.error == ""]
    named = sound[sound.char_index.notna()].drop_duplicates([*place, "type"])
    face, body = (
        named[named.type == kind][[*place, "index"]].rename(columns={"index": kind}) for kind in ("face", "body")
    )
    pairs = face.merge(body, on=place)[KEY].astype({"face": int, "body": int})
    return pairs.sort_values(KEY, ignore_index=True), len(sound) - 2 * len(pairs)


def held_out(labels: str) -> dict[str, str]:
    """Series in the validation and test labels, with their part, so that none of them is trained on."""
    found = {}
    for split, part in (("validation", "valid"), ("test", "test")):
        uri = Store(labels).uri(f"{split}_sequences.json")
        if labels and storage.exists(uri):
            found |= {one.series: part for one in read_sequences(uri) if one.series}
    return found


def split_series(
    series: Iterable[str], shares: tuple[float, float, float], seed: int, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Split series into PARTS, at least one each; adding a series moves few others.

    known: series whose part is fixed; a part that has some of these gets no others.

    Raises UserError where there are fewer than three.
    """

    def place(name: str) -> bytes:
        return hashlib.blake2b(name.encode(), key=str(seed).encode()).digest()

    names = sorted(set(series), key=place)
    if len(names) < len(PARTS):
        raise UserError(f"{len(names)} series cannot be split into {', '.join(PARTS)}. At least 3 are needed.")
    told = {name: part for name, part in (known or {}).items() if name in names}
    kinds = []
    for part, share in zip(PARTS[1:], shares[1:], strict=True):
        if part not in told.values():
            kinds += [part] * max(1, round(len(names) * share / sum(shares)))
    rest = [name for name in names if name not in told]
    if len(rest) <= len(kinds):
        raise UserError(
            f"none is left to train on: {len(told)} of {len(names)} series are in the validation or test labels"
        )
    return told | dict(zip(rest, kinds + ["train"] * (len(rest) - len(kinds)), strict=True))


def prepared(store: Store) -> pd.DataFrame:
    """The rows of pairs/, with the columns of REJECTED_PAIRS."""
    import pandas as pd

    parts = [part.to_pandas() for part in store.read_parts("pairs", REJECTED_PAIRS.names)]
    rows = pd.concat([REJECTED_PAIRS.empty_table().to_pandas(), *parts])
    # A pair that was tried again has several rows; the sound one counts.
    return rows.sort_values("error", kind="stable").drop_duplicates(KEY)


def pair_tables(todo: pd.DataFrame, rows: int) -> list[pa.Table]:
    """Pairs as tables of so many rows."""
    table = pa.Table.from_pandas(todo.assign(error="", message=""), preserve_index=False)
    return [table.slice(first, rows) for first in range(0, len(table), rows)]


def decode_pairs(config: ComicsConfig, todo: pd.DataFrame) -> None:
    """Decode pairs in parallel."""
    import ray

    store = Store(config.output)
    stage = fitted({}, tasks_of(config), config.autoscaling)["decode"]
    set_context()
    tables = pair_tables(todo, PAIRS_A_PART)
    work: Any = partial(prepare_pairs, store=store, sizes=config.backbone.sizes())
    rows = ray.data.from_arrow(tables).map_batches(work, batch_size=None, batch_format="pyarrow", **ray_task(stage))
    finish(rows, "pairs", Progress("pairs", len(todo), "pairs"))


def tasks_of(config: ComicsConfig) -> dict[str, Stage]:
    """Task stages of `pretrain` before its training, by name."""
    return {"decode": config.pretrain.decode}


def dataset(
    store: Store, series: set[str], sizes: Sizes, labels: Labels | None = None, columns: Collection[str] = ()
) -> Dataset:
    """The pairs of these series: face and body, uint8 (S, S, 3), and numbers of labels by column, -1 without."""
    import ray

    read: Any = partial(read_pairs, store=store, series=series, sizes=sizes, labels=labels, names=tuple(columns))
    names = [{"part": name} for name in store.parts("pairs")]
    return ray.data.from_items(names, override_num_blocks=len(names)).map_batches(
        read, batch_size=1, **ray_task(Stage(workers=0, num_cpus=0.5))
    )
