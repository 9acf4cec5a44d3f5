"""Chosen scenes of a whole corpus as numbers, some 30 bytes each. They are found a range of videos at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.core.store import Store
from actors.curation.tables import Look
from pipelines.curation.rows import Ranges

compute: Any = pc
"""Most of its functions are made when it is imported, so that no type checker knows them."""


def numbered(
    store: Store,
    columns: Sequence[str],
    chosen: Callable[[pd.DataFrame], Any],
    more: Sequence[str],
    look: Look | None = None,
) -> pd.DataFrame:
    """The scenes for which `chosen` gives True, in the order of the plan, with the columns `more` of theirs, and

        video, scene  int32, which compare as the ids do: scenes with those of their video
        part, row     where the row lies below the store; part: a category

    columns, look: as those of `Ranges`.
    """
    ranges = Ranges(store, columns, look)
    names = ranges.videos.index.sort_values()
    parts: dict[str, int] = {}
    found: list[pd.DataFrame] = []
    for rows in ranges:
        scenes = rows.scenes[np.asarray(chosen(rows.scenes), bool)]
        among = names.get_indexer(rows.videos.index.sort_values()).astype(np.int32)
        code, some = pd.factorize(scenes.part)
        number = np.array([parts.setdefault(str(part), len(parts)) for part in some], np.int32)
        scene = compute.rank(pa.array(scenes.scene_id, pa.string()), tiebreaker="dense")
        of = {"video": among[scenes.video], "scene": scene.to_numpy().astype(np.int32), "part": number[code]}
        found.append(pd.DataFrame(of | {name: scenes[name].to_numpy() for name in ("row", "index", *more)}))
        del rows, scenes
    whole = pd.concat(found, ignore_index=True).sort_values("index", kind="stable", ignore_index=True)
    kind: Any = pd.CategoricalDtype(list(parts))
    whole["part"] = pd.Categorical.from_codes(whole["part"].to_numpy(), dtype=kind)
    return whole.drop(columns="index")
