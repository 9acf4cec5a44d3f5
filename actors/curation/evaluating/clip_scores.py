"""CLIPScores of scenes: how well a text fits the frames, by the embeddings of both."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa

from actors.core.computed import COMPUTED
from actors.core.stage import Batch
from actors.core.store import Store
from actors.curation.tables import EVALUATION
from actors.models.clip import EmbeddingsConfig

KEYS = ["video_id", "scene_id"]
TEXTS = ["caption", "recaption"]
SCORED = ["frames", "score_caption", "score_recaption", "error", "message", "model", COMPUTED]
"""What scoring adds to a row."""


def score_scenes(
    batch: Batch,
    about: pd.DataFrame,
    places: dict[str, int],
    vectors: np.ndarray,
    store: Store,
    model: EmbeddingsConfig,
) -> Batch:
    """Score scenes and write them as a part of evaluation/; returns how many they were.

    Args:
        batch: video_id, scene_id, embeddings of the frames, error, message.
        about: rows of EVALUATION by KEYS.
        places: each text's row in `vectors`, float32 (N, D).
        model: what made the embeddings.
    """
    keys = list(zip(map(str, batch["video_id"]), map(str, batch["scene_id"]), strict=True))
    rows = about.loc[keys].drop(columns=SCORED).reset_index()
    for text in TEXTS:
        rows[f"score_{text}"] = [
            clip_score(frames, vectors[places[words]]) if words and len(frames) else math.nan
            for words, frames in zip(rows[text], batch["embeddings"], strict=True)
        ]
    rows["frames"] = [len(frames) for frames in batch["embeddings"]]
    rows["error"] = np.where((batch["error"] == "") & (rows.frames == 0), "no_frames", batch["error"])
    rows["message"], rows["model"] = batch["message"], model.name()
    rows[COMPUTED] = np.where(rows.frames > 0, model.computed, "")
    table = pa.Table.from_pandas(rows, schema=EVALUATION, preserve_index=False)
    names = rows[[*KEYS, *TEXTS, "error", "model", "pictures"]].to_numpy().tolist()
    store.write_part("evaluation", table, ["\0".join(row) for row in names])
    return {"scenes": np.array([len(rows)])}


def clip_score(frames: np.ndarray, text: np.ndarray) -> float:
    """Mean of 100 * max(cos, 0) over frames: vectors (T, D) and one (D,), all of length 1."""
    return float(100 * np.maximum(frames @ text, 0).mean())
