"""The rows of scores/: which of them count, whether they add up to the input, and what they cost."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.curation import SCORES, VIDEOS
from pipelines.store import Store


class IncompleteError(RuntimeError):
    """Rows do not add up: something of the input has no row, or has two."""


def rows_now(store: Store) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """What is there of the plan: scenes and films with the columns of SCORES, in its order, and its scenes per video.

    Of rows that were made more than once a sound one counts, else the last. A video of unknown scenes counts -1.
    """
    videos = store.read_table("plan/videos", VIDEOS).to_pandas().set_index("video_id")
    rejected = store.read_table("plan/rejected", SCORES).to_pandas(types_mapper=strings)
    if videos.empty and rejected.empty:
        raise ValueError(f"{store.root} has no plan: it is not the output of a run, or none has begun")
    rows = store.read_table("scores", SCORES).to_pandas(types_mapper=strings)
    # A video may have been scored in a run over another range of the input: this plan leaves it out.
    rows = rows[rows.video_id.isin(videos.index)]
    # Its place in the input may have changed since, as when a film was added to a folder.
    rows = rows.assign(video_index=rows.video_id.map(videos.video_index), sound=rows.error == "")
    rows = rows.sort_values(["sound", "written"])
    rows = rows.drop_duplicates(["video_id", "scene_id"], keep="last").drop(columns="sound")
    rows = pd.concat([rows, rejected]).sort_values(["video_index", "ordinal"]).reset_index(drop=True)
    return rows[rows.scene_id != ""].reset_index(drop=True), rows[rows.scene_id == ""], videos.scenes


def expected_scenes(scenes: pd.DataFrame, films: pd.DataFrame, videos: pd.Series) -> int:
    """How many scenes the input has; raises IncompleteError where scores/ has fewer or more of a video."""
    planned = scenes.step == "plan"
    passed = films[films.step != "plan"].set_index("video_id").reindex(videos.index)
    expected = videos.where(videos >= 0, passed.scenes)
    have = scenes[~planned].groupby("video_id").size().reindex(videos.index, fill_value=0)
    # More than a failed pass had: it was tried again, and ended before its film was.
    halfway = (videos < 0) & (passed.error != "") & (have > expected)
    missing = expected.isna() | (have < expected) | halfway
    if missing.any():
        some = ", ".join(missing.index[missing][:5])
        raise IncompleteError(f"{missing.sum()} videos have scenes without a row ({some}): run the same command again")
    extra = have > expected
    if extra.any():
        some = ", ".join(extra.index[extra][:5])
        raise IncompleteError(
            f"{extra.sum()} videos have more scenes in scores/ than in the input ({some}): the input has changed; "
            "use another output for it"
        )
    return int(expected.sum() + planned.sum())


def measurements(scenes: pd.DataFrame, films: pd.DataFrame) -> dict[str, Any]:
    """What the rows cost: rows per second and worker of each stage, decoded over source frames of films, by whom."""
    costs = {
        "fetch": films.fetch_s[films.fetch_s > 0],
        "cut": films.cut_s[films.cut_s > 0],
        "latents": scenes.latents_s[scenes.latents_s > 0],
    }
    cut = ~scenes.step.isin(["plan", "fetch"])
    rows = {"fetch": len(costs["fetch"]), "cut": int(cut.sum()), "latents": len(costs["latents"])}
    stages = {
        name: {
            "rows": rows[name],
            "seconds": round(float(s.sum()), 2),
            "rows_per_s": round(rows[name] / float(s.sum()), 2),
        }
        for name, s in costs.items()
        if s.sum() > 0
    }
    read = films[films.source > 0]
    about: dict[str, Any] = {"decoded": int(read.decoded.sum()), "source": int(read.source.sum())}
    about["decoders"] = {str(name): int(films) for name, films in read.decoder.value_counts().items()}
    if len(read):
        ratio = (read.decoded / read.source).to_numpy()
        about |= {"worst_ratio": round(float(ratio.max()), 3), "worst": str(read.video_id.iloc[int(ratio.argmax())])}
    return {"stages": stages, "films": about}


def strings(kind: pa.DataType) -> Any:
    """Types for `Table.to_pandas`: strings stay Arrow's, at a fraction of the memory."""
    return pd.StringDtype("pyarrow", na_value=np.nan) if pa.types.is_string(kind) else None
