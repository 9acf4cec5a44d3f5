"""Stored losses of identification by diffusion: the parts of answers/, by which a picture counts as done."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.core.stage import Batch
from actors.core.store import Store

ANSWERS = pa.schema(
    [
        ("image", pa.string()),
        ("identity", pa.string()),
        ("question", pa.string()),
        ("losses", pa.list_(pa.float32())),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""Losses of an identity on a picture, in the order of the pairs; question: digest of all that they depend on. A picture
that cannot be read has one row without an identity, with the code."""


def race_digest(digests: Sequence[str], numbers: Sequence[int]) -> str:
    """Digest of a staged question: which identities are eliminated when depends on all that take part."""
    return hashlib.sha256("".join(digests[number] for number in numbers).encode()).hexdigest()


def write_answers(batch: Batch, root: str, identities: list[str], digests: list[str], staged: bool) -> Batch:
    """Write the losses of pictures as a part of answers/; returns how many pictures, and which failed, as JSON."""
    rows: list[dict[str, Any]] = []
    for image, missing, losses, error, message in zip(
        *(batch[name] for name in ("name", "missing", "losses", "error", "message")), strict=True
    ):
        about = {"image": str(image), "error": str(error), "message": str(message)}
        race = race_digest(digests, missing) if staged else ""
        if error:
            rows.append({**about, "identity": "", "question": race, "losses": []})
            continue
        for number in missing:
            spent = losses[number][np.isfinite(losses[number])]
            question = race or digests[number]
            rows.append({**about, "identity": identities[number], "question": question, "losses": spent.tolist()})
    table = pa.Table.from_pylist(rows, ANSWERS)
    Store(root).write_part(
        "answers", table, ["\0".join((row["image"], row["identity"], row["question"])) for row in rows]
    )
    bad = json.dumps([row for row in rows if row["error"]])
    return {"pictures": np.array([len(batch["name"])]), "bad": np.array([bad], object)}
