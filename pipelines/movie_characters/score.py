"""Tables of how accurate results are: those of the reference system, and a report of classes and unknowns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.core.metrics import ENOUGH, wilson
from pipelines.movie_characters import metrics as ident
from pipelines.movie_characters.metrics import OpenSet
from pipelines.movie_characters.results import IMAGE, LOSS, Results, by_class, labelled, read_results, write_csv

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoreConfig:
    """Settings that the verbs of `score` share."""

    ALIASES: ClassVar[dict[str, Any]] = {"input_folder": "input", "output_folder": "output"}

    input: str
    """Results: a folder or s3:// with a CLASS_results.csv per true class."""
    output: str
    """Where tables, figures and the page are written: a path or s3://."""
    clip_csv: bool | None = None
    """Scores are similarities (CLIP, faces or a fusion), higher is better; false: losses of a diffusion model. null: as
    the results say in identified.json, else losses."""
    pred_column: str = LOSS
    """Column of the result files that holds the score or loss."""
    plot: bool = True
    """Draw figures and write the page; false writes the tables only."""


@dataclass(frozen=True)
class TopkConfig(ScoreConfig):
    """Settings of `score topk`."""

    k_range: int | list[int] = 5
    """Values of k: a number n stands for 1 to n, a list for its numbers; each from 1."""
    avg: bool = False
    """Rank classes by the mean over their identities; false: rank identities, of which a class may have several."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"k_range starts at 1: {self.k_range}")

    @property
    def ks(self) -> list[int]:
        """The numbers that are asked for."""
        return list(range(1, self.k_range + 1)) if isinstance(self.k_range, int) else sorted(set(self.k_range))


@dataclass(frozen=True)
class MapConfig(ScoreConfig):
    """Settings of `score map`."""

    formula: Literal["average_precision", "reference"] = "average_precision"
    """average_precision ranks the classes of each image; reference is the reference system's formula, the precision of
    the answers that name a class."""


@dataclass(frozen=True)
class ReportConfig(ScoreConfig):
    """Settings of `score report`."""

    avg: bool = False
    """The score of a class is the mean over its identities; false: that of its best identity."""
    confidence: Literal["auto", "score", "lead"] = "auto"
    """The measure below whose threshold an answer is "unknown": the best score, or its lead over the other classes.
    auto: the score where higher is better, else the lead, since losses of different images cannot be compared."""
    validation: str = ""
    """Results of other images, some of unknown classes, from which the threshold for "unknown" is trained: a folder or
    s3://."""
    threshold: float | None = None
    """Confidence below which an answer is "unknown", as trained by an earlier report; null: never."""

    def __post_init__(self) -> None:
        if self.validation and self.threshold is not None:
            raise UserError("Set validation or threshold, not both.")

    def lead(self, results: Results) -> bool:
        """Whether confidence is the lead."""
        return not results.higher if self.confidence == "auto" else self.confidence == "lead"


def model_row(results: Results) -> str:
    """Name of a table's last row: as the reference system has it for CLIP and diffusion, else after the model."""
    if not results.higher:
        return "SD_MODEL"
    for kind, name in {"dlib": "FACE_MODEL", "fusion of": "FUSED_MODEL"}.items():
        if kind in results.by:
            return name
    return "CLIP_MODEL"


def write_topk(config: TopkConfig, results: Results) -> dict[int, pd.Series]:
    """Write one table for each k; returns them, in percent by class, the model's row last."""
    import pandas as pd

    tables = {}
    middle = "_avg" if config.avg else ""
    for k in config.ks:
        values = _closed(ident.topk(results, k, config.avg), model_row(results))
        table = pd.DataFrame({"GT_cls": values.index, "Top_k_accuracy": values.to_numpy()})
        write_csv(Store(config.output).uri(f"top_{k}{middle}_accuracy_results.csv"), table)
        tables[k] = values
    return tables


@dataclass(frozen=True)
class Precisions:
    """What `score map` found."""

    values: pd.Series
    """By class, in 0..1; last the mean, NaN where it is not stated."""
    images: pd.Series
    """Images of each class, and of all."""
    interval: tuple[float, float] | None
    """The 95 % interval of the mean; None where it is not stated."""
    note: str = ""
    """Why the mean is not stated."""


def write_map(config: MapConfig, results: Results) -> Precisions:
    """Write the table of average precisions, of classes that can be answered and have images."""
    import pandas as pd

    scores, truth = by_class(results), results.images
    if config.formula == "reference":
        values = ident.reference_precision(scores, truth)
    else:
        values = ident.average_precision(scores, truth).dropna()
    counts = truth.value_counts().reindex(values.index, fill_value=0)
    values, interval, note = _closed(values, "mAP"), None, ""
    # The file is the reference's, for programs: it has the mean of however few.
    table = pd.DataFrame({"query_id": values.index, "average_precision": values.to_numpy()})
    write_csv(Store(config.output).uri("average_precision_results.csv"), table)
    if len(truth) < ENOUGH:
        values["mAP"] = np.nan
        note = f"no mAP: only {len(truth)} images, and {ENOUGH} are needed"
    elif len(values) > 1:
        interval = ident.map_interval(scores, truth, config.formula)
    return Precisions(values, pd.concat([counts, pd.Series({"mAP": len(truth)})]), interval, note)


def _closed(values: pd.Series, name: str) -> pd.Series:
    """Values with their mean as a last row."""
    import pandas as pd

    return pd.concat([values, pd.Series({name: values.mean()})])


@dataclass(frozen=True)
class Report:
    """What `score report` found."""

    classes: pd.DataFrame
    """precision, recall, f1, support, by class; last macro."""
    confusion: pd.DataFrame
    """Images of a true class (row) that got an answer (column)."""
    accuracy: float
    """Share of all images that are answered right; of an unknown one that is "unknown"."""
    interval: tuple[float, float]
    """Its 95 % interval, by Wilson."""
    images: int
    unanswered: int
    """Images without an answer, counted as wrong."""
    reciprocal_rank: float
    unknown: OpenSet | None
    """None where no image, or every one, is of an unknown class."""
    threshold: float | None
    """Below it the answer is "unknown"; None: never."""
    note: str = ""
    """Why there is no figure for unknown characters, though some are unknown."""


def write_report(config: ReportConfig, results: Results) -> Report:
    """Write classes.csv, confusion.csv, answers.csv and report.json; returns what is in them."""
    import pandas as pd

    scores = by_class(results, config.avg)
    truth, found, sure = results.images, ident.answers(scores), ident.confidence(scores, config.lead(results))
    threshold = config.threshold
    if config.validation:
        others = read_results(config.validation, config.clip_csv, config.pred_column)
        threshold = learnt(labelled(others, config.validation), config)
    right, said = ident.truths(scores, truth), ident.with_unknown(found, sure, threshold)
    known = ident.known_classes(scores, truth)
    share, fewer = float((said == right).mean()), min(int(known.sum()), int((~known).sum()))
    note = ""
    if 0 < fewer < ENOUGH:
        kind = "known" if known.mean() < 0.5 else "unknown"
        note = f"no AUROC or equal error rate: only {fewer} images of {kind} classes, and {ENOUGH} are needed"
    report = Report(
        ident.per_class(said, right),
        ident.confusion(said, right),
        share,
        wilson(share, len(truth)),
        len(truth),
        len(results.unanswered),
        ident.reciprocal_rank(scores, truth),
        None if note else ident.open_set(sure, known),
        threshold,
        note,
    )
    store = Store(config.output)
    write_csv(store.uri("classes.csv"), report.classes.rename_axis("class").reset_index())
    write_csv(store.uri("confusion.csv"), report.confusion.rename_axis("GT_cls").reset_index())
    answers = pd.DataFrame({IMAGE: scores.index, "GT_cls": truth, "answer": said, "confidence": sure})
    write_csv(store.uri("answers.csv"), answers)
    about: dict[str, Any] = asdict(report)
    store.write_json(json.loads(json.dumps(about, default=_plain)), "report.json")
    return report


def learnt(results: Results, config: ReportConfig) -> float:
    """The threshold for "unknown" that these results teach."""
    scores, truth = by_class(results, config.avg), results.images
    known = ident.known_classes(scores, truth)
    return ident.learn_threshold(ident.confidence(scores, config.lead(results)), ident.answers(scores) == truth, known)


def _plain(value: Any) -> Any:
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        return value.to_dict("index")
    return value.item() if isinstance(value, np.generic) else str(value)
