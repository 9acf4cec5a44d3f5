"""Files of results as models leave them."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

Losses = Mapping[str, Mapping[str, float]]


def write(folder: Path, losses: Losses) -> str:
    """A file for every class: losses of identities, by image, which is named CLASS_NUMBER. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pd.DataFrame(
        [(image, identity, loss) for image, found in losses.items() for identity, loss in found.items()],
        columns=["GT Image name", "input_embeds", "loss"],
    )
    for cls, group in rows.groupby(rows["GT Image name"].str.rpartition("_")[0]):
        group.to_csv(folder / f"{cls}_results.csv", index=False)
    return str(folder)
