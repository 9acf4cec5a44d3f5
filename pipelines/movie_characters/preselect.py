"""Which classes identification by diffusion evaluates, chosen per image from another model's results."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.core.errors import UserError
from actors.movie_characters.names import key, stem
from pipelines.movie_characters.results import by_class, read_about, read_results

Numbers = range | tuple[int, ...]
"""Numbers of identities, in their order."""


@dataclass(frozen=True)
class PreselectConfig:
    """Evaluate only the classes that another model ranks best for an image."""

    folder: str = ""
    """Results of the other model, a folder or s3:// with a CLASS_results.csv per true class; empty: all classes are
    evaluated."""
    clip_csv: bool | None = None
    """The other model's scores are similarities (CLIP, faces or a fusion), higher is better; false: losses of a
    diffusion model. null: as the results say in identified.json, else similarities."""
    best: int = 10
    """How many of its best classes are evaluated, each with all of its identities; from 2. Fewer cost less time."""

    def __post_init__(self) -> None:
        if self.best < 2:
            raise UserError(f"best={self.best}: it starts at 2, since one class alone is always the answer")


class Preselection:
    """Another model's scores of images, found by name whatever the suffix."""

    def __init__(self, config: PreselectConfig, identities: Sequence[str]) -> None:
        """Read the results; raises UserError where there are none. identities: the class of each."""
        higher = config.clip_csv
        if higher is None and read_about(config.folder).says_higher is None:
            higher = True
        scores = by_class(read_results(config.folder, higher))
        classes = {key(cls): column for column, cls in enumerate(scores.columns)}
        self._column = np.array([classes.get(key(cls), -1) for cls in identities])
        # The last column is that of classes that it does not know.
        self._scores = np.column_stack([scores.to_numpy(float), np.full(len(scores), np.nan)])
        stems = Counter(map(stem, scores.index))
        # A name without its folder stands for an image only where no other one has it.
        self._row = {stem(image): row for row, image in enumerate(scores.index) if stems[stem(image)] == 1}
        self._row |= {image: row for row, image in enumerate(scores.index)}
        self._count = config.best

    def scores(self, picture: str) -> np.ndarray | None:
        """Score of the class of each identity, float64 (K,), NaN where it has none.

        None where fewer than two classes have a score: then no identity can be left out.
        """
        row = self._row.get(picture, self._row.get(stem(picture)))
        if row is None:
            return None
        found = self._scores[row, self._column]
        return found if len(np.unique(self._column[np.isfinite(found)])) > 1 else None

    def best(self, picture: str) -> Numbers:
        """The identities of the best classes, or all of them."""
        scores = self.scores(picture)
        if scores is None:
            return range(len(self._column))
        order = np.argsort(-scores, kind="stable")
        known = order[np.isfinite(scores[order])]
        classes = list(dict.fromkeys(self._column[known].tolist()))[: self._count]
        return tuple(np.flatnonzero(np.isin(self._column, classes)).tolist())
