"""Schemas of the tables of a curated corpus."""

import pyarrow as pa

from actors.curation.cut import FEATURES
from actors.curation.perceptual_hash import HASH_BYTES

SCORES = pa.schema(
    [
        ("video_index", pa.int64()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("clip_id", pa.string()),
        ("scene_id", pa.string()),
        ("ordinal", pa.int64()),
        ("caption", pa.string()),
        ("first", pa.int64()),
        ("end", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.float32()) for name in FEATURES[:-1]),
        ("no_frames", pa.int32()),
        ("phash", pa.binary(HASH_BYTES)),
        ("step", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("decoded", pa.int64()),
        ("source", pa.int64()),
        ("decoder", pa.string()),
        ("scenes", pa.int64()),
        ("fetch_s", pa.float32()),
        ("cut_s", pa.float32()),
        ("latents_s", pa.float32()),
        ("written", pa.float64()),
    ]
)
"""What is measured: one row a scene, and one a film with scene_id "", written when its last scene has passed."""
VIDEOS = pa.schema([("video_index", pa.int64()), ("video_id", pa.string()), ("scenes", pa.int64())])
"""The input: how many scenes of each video are to be cut; -1: known when the film has been decoded."""
THUMBNAILS = pa.schema([("video_id", pa.string()), ("scene_id", pa.string()), ("thumbnail", pa.binary())])

CAPTIONS = pa.schema(
    [
        ("video_id", pa.string()),
        ("scene_id", pa.string()),
        ("caption", pa.string()),
        ("recaption", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("requests", pa.int32()),
        ("tokens_in", pa.int64()),
        ("tokens_out", pa.int64()),
        ("by", pa.string()),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("written", pa.float64()),
    ]
)
"""One row an answer: the caption that was sent, and its recaption, or the code caption_failed."""
