"""Rows of scores/ of a whole corpus in one process: as columns of numbers, some 80 bytes a scene.

Ids are texts, and as such most of what a row holds. Here they are numbers that compare as they do:
    video  place of the video_id among those of the plan, sorted; -1: the plan does not have it
    span   a number for each clip_id
    scene  place of the scene_id among all that are there, sorted
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.core.computed import COMPUTED
from actors.curation.tables import strings

compute: Any = pc
"""Most of its functions are made when it is imported, so that no type checker knows them."""
FEW = ("step", "error", COMPUTED)
"""Columns of a few texts, millions of times."""
OF_FILMS = ("video_index", "fetch_s", "cut_s", "decoded", "source", "decoder")
"""Columns that are of films, where scenes are not asked for them by name."""
ORDER = ("index", "ordinal", "written")
"""Columns by which rows are ordered."""


class Gathered(NamedTuple):
    """Rows of scenes, and after them those of films."""

    rows: pa.Table
    films: pa.Table
    """Columns that only the rows of films have."""


def gathered(tables: Iterable[pa.Table], plan: pd.Series, wanted: Sequence[str], ids: bool) -> Gathered:
    """Rows of tables, as `read_rows` gives them, with video, span and scene, int32, and with `ids` the ids themselves.

    plan: video_index by video_id, sorted. wanted: columns that are asked for. `index` is a video's place in the input:
    it may have changed since its rows were made, as when a film was added to a folder.
    """
    names, places = pa.array(plan.index, pa.string()), plan.to_numpy()
    only = [name for name in OF_FILMS if name not in wanted]
    only += [] if ids else ["video_id"]
    parts: list[tuple[pa.Table, pa.Table, pa.Table]] = []
    for table in tables:
        film = is_in(table, "scene_id", "")
        scenes, films = (_narrow(table.filter(pa.array(some)), names, places) for some in (~film, film))
        dropped = only if ids else [*only, "clip_id"]
        parts.append((scenes.drop_columns(dropped), films.drop_columns(dropped), films.select(only)))
        del table, scenes, films
        # What reading took is given back before the next is read.
        pa.default_memory_pool().release_unused()
    scenes, films, about = (pa.concat_tables(some, promote_options="permissive") for some in zip(*parts, strict=True))
    rows = pa.concat_tables([scenes, films], promote_options="permissive").unify_dictionaries()
    scene = compute.rank(rows["scene_id"], tiebreaker="dense").to_numpy().astype(np.int32)
    rows = rows.append_column("scene", pa.array(scene))
    rows = rows.append_column("span", pa.chunked_array([one.indices for one in rows[_SPAN].chunks], pa.int32()))
    rows = rows.drop_columns([_SPAN] if ids else [_SPAN, "scene_id"])
    del scenes, films, parts
    pa.default_memory_pool().release_unused()
    return Gathered(rows, about)


_SPAN = "clip_id_coded"


def _narrow(rows: pa.Table, names: pa.Array, places: np.ndarray) -> pa.Table:
    video = pc.fill_null(compute.index_in(rows["video_id"], value_set=names), -1)
    index = np.where(is_in(rows, "step", "plan"), rows["video_index"].to_numpy(), np.append(places, -1)[video])
    ordinal = rows.column_names.index("ordinal")
    rows = rows.set_column(ordinal, "ordinal", rows["ordinal"].cast(pa.int32()))
    for number, name in enumerate(rows.column_names):
        if name in FEW and not pa.types.is_dictionary(rows[name].type):
            rows = rows.set_column(number, name, rows[name].dictionary_encode())
    more = {"video": video, "index": pa.array(index.astype(np.int32)), _SPAN: rows["clip_id"].dictionary_encode()}
    for name, values in more.items():
        rows = rows.append_column(name, values)
    return rows


def is_in(rows: pa.Table, name: str, text: str) -> np.ndarray:
    """Which rows have a text in a column, bool (N,)."""
    return (rows[name].to_pandas() == text).to_numpy()


def counted(rows: pa.Table) -> np.ndarray:
    """Which rows count, int64 (n,), in the order of the plan: of those made more than once a sound one, else the last.

    A video may have been scored in a run over another range of the input: this plan leaves it out.
    """
    video, planned = rows["video"].to_numpy(), is_in(rows, "step", "plan")
    made = np.flatnonzero(~planned & (video >= 0))
    made = made[np.lexsort((rows["written"].to_numpy()[made], is_in(rows, "error", "")[made]))]
    same = video[made].astype(np.int64) << 32 | rows["scene"].to_numpy()[made]
    made = made[~pd.Series(same).duplicated(keep="last").to_numpy()]
    del same
    some = np.concatenate([made, np.flatnonzero(planned)])
    return some[np.lexsort((rows["ordinal"].to_numpy()[some], rows["index"].to_numpy()[some]))]


def divided(whole: Gathered, count: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those rows that count, of scenes and of films, with `place`, which is that among all of them.

    Columns are taken one by one, so that no more than one is there twice: nobody else should hold the rows.
    """
    rows, about = whole
    del whole
    scenes = len(rows) - len(about)
    places = [np.flatnonzero(some) for some in (count < scenes, count >= scenes)]
    at = [count[some] for some in places]
    taken = [{"place": some.astype(np.int32)} for some in places]
    for name in rows.column_names:
        values = rows[name]
        rows = rows.drop_columns([name])
        if name in ORDER:
            continue
        array = values.to_pandas(types_mapper=strings).array
        del values
        for columns, some in zip(taken, at, strict=True):
            columns[name] = array.take(some)
        pa.default_memory_pool().release_unused()
    films = about.to_pandas(types_mapper=strings).iloc[at[1] - scenes]
    taken[1] |= {name: films[name].array for name in films}
    return pd.DataFrame(taken[0], copy=False), pd.DataFrame(taken[1], copy=False)
