"""Who each image shows, by what a model said: result files, and how often they are right.

A folder of results has one CSV for every true class, CLASS_results.csv, with the columns of RESULTS: one row for each
image and identity. Losses of a diffusion model are better the lower, cosines of CLIP, in the same column, the higher;
here a score is always better the higher. An image is named CLASS_NUMBER, and so is an identity; `class_of` says which
class that is. Classes are compared as whole names, whatever their case, with a blank for an underscore.

A class's own file says what is true. A class of which there is no identity cannot be answered: its images are unknown.
"""

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score, roc_curve

from actors.core import storage
from pipelines.core import metrics as ranking

log = logging.getLogger(__name__)

IMAGE, IDENTITY, LOSS = RESULTS = ("GT Image name", "input_embeds", "loss")
"""Columns of a file of results."""
UNKNOWN = "unknown"
"""The answer for who is none of the identities."""
SUFFIX = "_results.csv"
_METRICS = re.compile(r"(top_\d+(_avg)?_accuracy|average_precision)_results\.csv")
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)$", re.IGNORECASE)


@dataclass(frozen=True)
class Results:
    """What a model said."""

    rows: pd.DataFrame
    """One row an image and identity: image, truth (class), identity, cls (its class), score."""
    doubles: int = 0
    """Rows that were left out, since the same image and identity came again: the last one counts."""
    broken: int = 0
    """Rows that were left out, since their loss is no finite number."""
    lost: tuple[str, ...] = ()
    """Images of which no row is left."""

    @property
    def images(self) -> pd.Series:
        """The true class of each image, by its name, in the order of the files."""
        return self.rows.drop_duplicates("image").set_index("image").truth


@lru_cache(1 << 16)
def stem(name: str) -> str:
    """The name of an image or identity without folder and suffix of an image."""
    return _IMAGE_NAME.sub("", name.strip().rpartition("/")[2])


@lru_cache(1 << 16)
def class_of(name: str) -> str:
    """The class of an image: what its name has before the last underscore.

    Frames of `extract` are CLASS_frame_NUMBER and are of CLASS. Raises ValueError where there is no underscore.
    """
    cls, _, _ = stem(name).rpartition("_")
    if not cls:
        raise ValueError(f"{name}: the name says no class; images are named CLASS_NUMBER, as in Ann_001.jpg")
    return cls.removesuffix("_frame") or cls


@lru_cache(1 << 16)
def identity_class(name: str) -> str:
    """The class of an identity CLASS_NUMBER, or of one that stands for all of a class and bears its name."""
    cls, _, number = stem(name).rpartition("_")
    return class_of(name) if cls and number.isdigit() else stem(name)


def key(cls: str) -> str:
    """What two spellings of a class have in common."""
    return cls.strip().replace(" ", "_").casefold()


def read_results(folder: str, clip_csv: bool) -> Results:
    """The results in a folder, a path or s3://; clip_csv: they are cosines, and not losses.

    Raises ValueError where there are none, or a file has other columns.
    """
    tables = []
    for entry in storage.listing(folder, (SUFFIX,)):
        if "/" in entry.name or _METRICS.fullmatch(entry.name):
            continue
        found = read_table(entry.uri)
        if not found.empty:
            tables.append(found.assign(truth=entry.name.removesuffix(SUFFIX)))
    if not tables:
        raise ValueError(f"{folder} has no results: files named CLASS{SUFFIX} with the columns {','.join(RESULTS)}")
    rows = pd.concat(tables, ignore_index=True).rename(columns={IMAGE: "image", IDENTITY: "identity", LOSS: "score"})
    rows["score"] = pd.to_numeric(rows.score, errors="coerce") * (1 if clip_csv else -1)
    sound = rows[np.isfinite(rows.score)]
    rows_once = sound.drop_duplicates(["truth", "image", "identity"], keep="last").reset_index(drop=True)
    rows_once["cls"] = rows_once.identity.map(identity_class)
    if rows_once.empty:
        raise ValueError(f"{folder}: no loss is a finite number")
    spelt = {key(name): name for name in [*rows_once.cls, *rows_once.truth]}
    for column in ("cls", "truth"):
        rows_once[column] = rows_once[column].map(lambda name: spelt[key(name)])
    twice = rows_once.drop_duplicates(["image", "truth"])
    if (again := twice.image[twice.image.duplicated()]).size:
        raise ValueError(f"{folder}: {again.iloc[0]} is in the files of two classes; an image has one")
    lost = sorted(set(rows.image) - set(rows_once.image))
    return Results(rows_once, len(sound) - len(rows_once), len(rows) - len(sound), tuple(lost))


def read_table(uri: str) -> pd.DataFrame:
    """One file of results with the columns of RESULTS, all of them text but the last; raises ValueError for others."""
    data = storage.read_bytes(uri)
    try:
        table = pd.read_csv(io.BytesIO(data), dtype={IMAGE: str, IDENTITY: str})
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri} is no CSV file of results: {error}") from error
    table.columns = [name.strip() for name in table.columns]
    if missing := [name for name in RESULTS if name not in table]:
        raise ValueError(f"{uri} has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    return table[list(RESULTS)].astype({IMAGE: str, IDENTITY: str})


def write_results(folder: str, rows: pd.DataFrame, descending: bool) -> list[str]:
    """Write rows with the columns of RESULTS into the file of each image's class, best first; returns the classes.

    What a file holds of other images and identities stays; the same image and identity is replaced.
    """
    classes = rows[IMAGE].map(class_of)
    for cls, group in rows.groupby(classes):
        uri = storage.join(folder, f"{cls}{SUFFIX}")
        before = [read_table(uri)] if storage.exists(uri) else []
        merged = pd.concat([*before, group[list(RESULTS)]]).drop_duplicates([IMAGE, IDENTITY], keep="last")
        merged = merged.sort_values(LOSS, ascending=not descending, kind="stable")
        merged = merged.sort_values(IMAGE, kind="stable")
        write_csv(uri, merged)
    return sorted(set(classes))


def write_csv(uri: str, table: pd.DataFrame) -> None:
    """Write a table as CSV, without an index."""
    storage.write_bytes(uri, table.to_csv(index=False, lineterminator="\n").encode())


# ------------------------------------------------------------------------------------------------------------ measuring


def by_class(results: Results, average: bool = False) -> pd.DataFrame:
    """Scores of classes, images by classes: of the best identity of each, or the mean over them; NaN where it has none.

    Images are in the order of `results.images`, classes sorted.
    """
    grouped = results.rows.groupby(["image", "cls"], sort=True).score
    table = (grouped.mean() if average else grouped.max()).unstack()
    return table.reindex(results.images.index)


def topk(results: Results, k: int, average: bool = False) -> pd.Series:
    """In how many percent of a true class's images it is among the k best, by true class.

    The k best are identities, of which a class may have several, or, averaged, classes by the mean of their identities.
    Of equal scores what comes first in the file, or in the alphabet, is better.
    """
    if k < 1:
        raise ValueError(f"k starts at 1, not {k}")
    rows = results.rows
    if average:
        rows = rows.groupby(["image", "truth", "cls"], sort=True, as_index=False).score.mean()
    best = rows.iloc[np.argsort(-rows.score.to_numpy(), kind="stable")].groupby("image").head(k)
    hit = (best.cls == best.truth).groupby(best.image).any()
    images = results.images
    return 100 * hit.reindex(images.index).groupby(images).mean()


def answers(scores: pd.DataFrame) -> pd.Series:
    """The best class of each image, by its name; of equal ones the first."""
    return scores.fillna(-np.inf).idxmax(axis=1)


def average_precision(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """Average precision of each class over all images, in 0..1, by class; NaN where no image is of it.

    For each image classes are ranked, since losses of different images cannot be compared; a class's images should be
    those for which it ranks best. Images of equal rank are taken together, equal scores of an image share the mean of
    their ranks, and a class without a score comes last.
    """
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


def reciprocal_rank(scores: pd.DataFrame, truth: pd.Series) -> float:
    """Mean of 1 / rank of the true class over images; 0 for those that are unknown."""
    ranks = scores.rank(axis=1, ascending=False, method="average", na_option="bottom")
    own = truth.to_numpy()[:, None] == scores.columns.to_numpy()[None]
    return float((own / ranks.to_numpy()).sum(1).mean())


def per_class(found: pd.Series, truth: pd.Series) -> pd.DataFrame:
    """Precision, recall, f1 in 0..1 and support, a row a class, then "macro", their mean over classes with images."""
    classes = sorted(set(found) | set(truth))
    never: Any = 0
    values: Any = precision_recall_fscore_support(truth, found, labels=classes, zero_division=never)
    table = pd.DataFrame(np.column_stack(values), classes, ["precision", "recall", "f1", "support"])
    there = table[table.support > 0]
    return pd.concat([table, pd.DataFrame([[*there.mean()[:3], there.support.sum()]], ["macro"], table.columns)])


def confusion(found: pd.Series, truth: pd.Series) -> pd.DataFrame:
    """How many images of each true class (rows) got which answer (columns)."""
    classes = sorted(set(found) | set(truth))
    return pd.DataFrame(confusion_matrix(truth, found, labels=classes), classes, classes)


# ---------------------------------------------------------------------------------------------------------- the unknown


def confidence(scores: pd.DataFrame, lead: bool) -> pd.Series:
    """How sure the best answer of each image is: its score or, with `lead`, how far it stands out.

    Losses of different images cannot be compared; so the lead is in standard deviations of the image's other classes,
    where there are several.
    """
    values = scores.to_numpy(float)
    best = np.nanmax(values, axis=1)
    if not lead:
        return pd.Series(best, scores.index)
    if values.shape[1] < 2:
        raise ValueError("a lead needs two classes or more: set confidence=score")
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
        raise ValueError("a threshold is learnt from images of known and of unknown classes, and one kind is missing")
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
    """Answers, with UNKNOWN where confidence is below the threshold."""
    return found if threshold is None else found.mask(sure < threshold, UNKNOWN)


def truths(scores: pd.DataFrame, truth: pd.Series) -> pd.Series:
    """What is right for each image: its class, or UNKNOWN where there is no identity of it."""
    return truth.where(truth.isin(scores.columns), UNKNOWN)


def topk_curve(results: Results, ks: Sequence[int], average: bool = False) -> pd.Series:
    """Unweighted mean of `topk` over classes, by k."""
    return pd.Series({k: float(topk(results, k, average).mean()) for k in ks})
