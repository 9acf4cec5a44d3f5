"""Which scenes a person may be asked to label, and which of them a filter doubts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.filter import Filter

if TYPE_CHECKING:
    import pandas as pd


def to_label(rows: "pd.DataFrame", model: Filter | None, labels: Mapping[tuple[str, str], Any]) -> "pd.DataFrame":
    """Of rows of scores/: `asked`, whether they are sound and have all of the seven features; `labelled`, whether there
    is a label; `doubt`, how far the filter's probability is from 0.5, NaN without a filter.

    labels: by video_id and scene_id.
    """
    import pandas as pd

    asked = ((rows.error == "") & rows[list(FEATURES)].notna().all(axis=1)).to_numpy()
    doubt = np.full(len(rows), np.nan, np.float32)
    if model is not None and asked.any():
        doubt[asked] = np.abs(model.probability(rows[asked]) - 0.5)
    labelled = np.zeros(len(rows), bool)
    near = np.flatnonzero(rows.video_id.isin({video_id for video_id, _ in labels}).to_numpy(bool))
    keys = rows.iloc[near][["video_id", "scene_id"]].itertuples(index=False, name=None)
    labelled[near] = [key in labels for key in keys]
    return pd.DataFrame({"asked": asked, "labelled": labelled, "doubt": doubt})


def columns_of(model: Filter | None) -> Sequence[str]:
    """The columns that `to_label` reads."""
    return [*dict.fromkeys([*FEATURES, *(model.features if model else ())])]
