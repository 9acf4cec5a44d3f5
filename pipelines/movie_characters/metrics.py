"""Who each image shows, by what a model said: result files, and how often they are right.

A folder of results has one CSV for every true class, CLASS_results.csv, with the columns of RESULTS: one row for each
image and identity. Losses of a diffusion model are better the lower, cosines of CLIP, in the same column, the higher;
here a score is always better the higher. An image is named CLASS_NUMBER, and so is an identity; `class_of` says which
class that is. Classes are compared as whole names, whatever their case, with a blank for an underscore.

An image without an answer has a row of NaN, and is wrong in every figure.

A class's own file says what is true. A class of which there is no identity cannot be answered: its images are unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.core.errors import UserError
from pipelines.core import metrics as ranking
from pipelines.movie_characters.results import NO_ANSWER, UNKNOWN, Results

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def topk(results: Results, k: int, average: bool = False) -> pd.Series:
    """In how many percent of a true class's images it is among the k best, by true class.

    The k best are identities, of which a class may have several, or, averaged, classes by the mean of their identities.
    Of equal scores what comes first in the file, or in the alphabet, is better.
    """
    if k < 1:
        raise UserError(f"k starts at 1, not {k}")
    rows = results.rows
    if average:
        rows = rows.groupby(["image", "truth", "cls"], sort=True, as_index=False).score.mean()
    best = rows.iloc[np.argsort(-rows.score.to_numpy(), kind="stable")].groupby("image").head(k)
    hit = (best.cls == best.truth).groupby(best.image).any()
    images = results.images
    return 100 * hit.reindex(images.index, fill_value=False).groupby(images).mean()


def mean_interval(shares: pd.Series, images: pd.Series) -> tuple[float, float]:
    """The 95 % interval of the unweighted mean over true classes of shares in 0..1; images: the class of each."""
    return ranking.wilson(float(shares.mean()), ranking.effective(images.value_counts().loc[shares.index].tolist()))


def answers(scores: pd.DataFrame) -> pd.Series:
    """The best class of each image, by its name; of equal ones the first; NO_ANSWER where it has no score."""
    return scores.fillna(-np.inf).idxmax(axis=1).where(scores.notna().any(axis=1), NO_ANSWER)


def average_precision(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """Average precision of each class over all images, in 0..1, by class; NaN where no image is of it.

    For each image classes are ranked, since losses of different images cannot be compared; a class's images should be
    those for which it ranks best. Images of equal rank are taken together, equal scores of an image share the mean of
    their ranks, and a class without a score comes last.
    """
    import pandas as pd

    ranks = scores.rank(axis=1, ascending=False, method="average", na_option="bottom")
    labels = truth.to_numpy()[:, None] == scores.columns.to_numpy()[None]
    return pd.Series(ranking.average_precision(-ranks.to_numpy(), labels), scores.columns)


def reference_precision(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """What the reference system calls average precision, by class: the share of right answers among those that name it.

    0 where no answer does.
    """
    found = answers(scores)
    right = (found == truth).groupby(found).mean()
    return right.reindex(scores.columns).fillna(0.0)


def map_interval(
    scores: pd.DataFrame, truth: pd.Series, formula: Literal["average_precision", "reference"], draws: int = 1000
) -> tuple[float, float]:
    """The 95 % interval of the mean over classes of `average_precision` or `reference_precision`.

    Of the bootstrap over images, and where these are few, at least that of a share of as many images.
    """
    images = len(truth)
    labels = truth.to_numpy()[:, None] == scores.columns.to_numpy()[None]
    if formula == "reference":
        named = (answers(scores).to_numpy()[:, None] == scores.columns.to_numpy()[None]).astype(float)

        def mean(weights: np.ndarray) -> np.ndarray:
            count = weights @ named
            right = np.divide(weights @ (named * labels), count, out=np.zeros_like(count), where=count > 0)
            return right.mean(1, keepdims=True)
    else:
        ranks = scores.rank(axis=1, ascending=False, method="average", na_option="bottom").to_numpy()
        there = labels.any(0)

        def mean(weights: np.ndarray) -> np.ndarray:
            each = ranking.average_precision(-ranks[:, there], labels[:, there], weights)
            return ranking.averages(each, weights @ labels[:, there])["macro"][:, None]

    low, high = ranking.bootstrap(mean, images, draws)
    return ranking.widened(float(mean(np.ones((1, images)))[0, 0]), float(low[0]), float(high[0]), images)


def reciprocal_rank(scores: pd.DataFrame, truth: pd.Series) -> float:
    """Mean of 1 / rank of the true class over images; 0 where it has no score."""
    ranks = scores.rank(axis=1, ascending=False, method="average", na_option="bottom")
    own = truth.to_numpy()[:, None] == scores.columns.to_numpy()[None]
    return float((own * scores.notna().to_numpy() / ranks.to_numpy()).sum(1).mean())


def per_class(found: pd.Series, truth: pd.Series) -> pd.DataFrame:
    """Precision, recall, f1 in 0..1 and support, a row a class, then "macro", their mean over classes with images."""
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    classes = sorted(set(found) | set(truth))
    never: Any = 0
    values: Any = precision_recall_fscore_support(truth, found, labels=classes, zero_division=never)
    table = pd.DataFrame(np.column_stack(values), classes, ["precision", "recall", "f1", "support"])
    there = table[table.support > 0]
    return pd.concat([table, pd.DataFrame([[*there.mean()[:3], there.support.sum()]], ["macro"], table.columns)])


def confusion(found: pd.Series, truth: pd.Series) -> pd.DataFrame:
    """How many images of each true class (rows) got which answer (columns)."""
    import pandas as pd
    from sklearn.metrics import confusion_matrix

    classes = sorted(set(found) | set(truth))
    return pd.DataFrame(confusion_matrix(truth, found, labels=classes), classes, classes)


# ---------------------------------------------------------------------------------------------------------- the unknown


def confidence(scores: pd.DataFrame, lead: bool) -> pd.Series:
    """How sure the best answer of each image is: its score or, with `lead`, how far it stands out.

    Losses of different images cannot be compared; so the lead is in standard deviations of the image's other classes,
    where there are several. An image without an answer is less sure than all others.
    """
    import pandas as pd

    if (silent := scores.isna().all(axis=1)).any():
        sure = confidence(scores[~silent], lead)
        return sure.reindex(scores.index, fill_value=np.nextafter(sure.min(), -np.inf))
    values = scores.to_numpy(float)
    best = np.nanmax(values, axis=1)
    if not lead:
        return pd.Series(best, scores.index)
    if values.shape[1] < 2:
        raise UserError("a lead needs two classes or more: set confidence=score")
    others = values.copy()
    others[np.arange(len(values)), np.nanargmax(values, axis=1)] = np.nan
    # Others that are all alike leave a lead without a measure: it is then very large, or 0. One other has none either.
    spread = np.maximum(np.nanstd(others, axis=1), 1e-12) if values.shape[1] > 2 else 1.0
    return pd.Series((best - np.nanmean(others, axis=1)) / spread, scores.index)


@dataclass(frozen=True)
class OpenSet:
    """How well confidence tells those who are known from those who are not."""

    auroc: float
    """Probability that a known one has more confidence than an unknown one."""
    eer: float
    """Equal error rate: where as large a share of the unknown is accepted as of the known is refused."""
    at: float
    """The confidence where that is."""
    known: int
    unknown: int


def open_set(sure: pd.Series, known: pd.Series) -> OpenSet | None:
    """AUROC and EER of confidences, by whether an image's class is known; None where all or none are."""
    from sklearn.metrics import roc_auc_score, roc_curve

    if known.nunique() < 2:
        return None
    accepted, passed, at = roc_curve(known, sure, drop_intermediate=False)
    gap = accepted - (1 - passed)
    after = int((gap >= 0).argmax())
    # Between two points of the curve its rates run straight.
    share = gap[after] / (gap[after] - gap[after - 1])
    eer = accepted[after] + share * (accepted[after - 1] - accepted[after])
    return OpenSet(
        float(roc_auc_score(known, sure)), float(eer), float(at[after]), int(known.sum()), int((~known).sum())
    )


def learn_threshold(sure: pd.Series, right: pd.Series, known: pd.Series) -> float:
    """The confidence below which "unknown" is the better answer: most images are then answered right.

    An image is answered right where its class is known, the answer names it and is accepted, or where its class is
    unknown and the answer is refused. The threshold lies halfway between two images. Raises ValueError where there are
    no images of one of both kinds.
    """
    if known.nunique() < 2:
        raise UserError("a threshold is trained from images of known and of unknown classes, and one kind is missing")
    order = np.argsort(sure.to_numpy(), kind="stable")
    values = sure.to_numpy()[order]
    gain_accepted = (right & known).to_numpy()[order].astype(int)
    gain_refused = (~known).to_numpy()[order].astype(int)
    # Of n images the first i are refused.
    total = np.concatenate([[0], gain_refused.cumsum()]) + np.concatenate([gain_accepted[::-1].cumsum()[::-1], [0]])
    cut = np.concatenate([[True], np.diff(values) > 0, [True]])
    best = int(np.where(cut, total, -1).argmax())
    if best in (0, len(values)):
        return float(values[0] if best == 0 else np.nextafter(values[-1], np.inf))
    return float((values[best - 1] + values[best]) / 2)


def known_classes(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """Whether the true class of each image is one that can be answered."""
    return truth.isin(scores.columns)


def with_unknown(found: pd.Series, sure: pd.Series, threshold: float | None) -> pd.Series:
    """Answers, with UNKNOWN where confidence is below the threshold; no answer stays none."""
    return found if threshold is None else found.mask((sure < threshold) & (found != NO_ANSWER), UNKNOWN)


def truths(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """What is right for each image: its class, or UNKNOWN where there is no identity of it."""
    return truth.where(truth.isin(scores.columns), UNKNOWN)


def topk_curve(results: Results, ks: Sequence[int]) -> pd.DataFrame:
    """Unweighted mean of `topk` over classes with its 95 % interval: k, accuracy, low, high; in 0..1."""
    import pandas as pd

    shares = {k: topk(results, k) / 100 for k in ks}
    rows = [[k, float(found.mean()), *mean_interval(found, results.images)] for k, found in shares.items()]
    return pd.DataFrame(rows, columns=["k", "accuracy", "low", "high"])
