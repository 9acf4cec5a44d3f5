"""What `score` of genres draws: bars of every genre, curves, calibration, and the page that shows them."""

from itertools import product
from typing import Any

import numpy as np

from actors.core.store import Store
from jobs.core.pages import COLOURS, Picture, Section, Table, draw, figure, legend_above, write_page
from pipelines.core.metrics import AVERAGES, ENOUGH, FEW, calibration, curve
from pipelines.genres.score import LOGISTIC, Judged, ScoreConfig

COLUMNS = {
    "precision": "precision@0.5",
    "recall": "recall@0.5",
    "f1": "F1@0.5",
    "chosen_precision": "precision",
    "chosen_recall": "recall",
    "chosen_f1": "F1",
    "support": "films",
}
"""Columns of the table, in this order: at .5, then by each genre's own threshold."""


def write_report(store: Store, judged: Judged, found: dict[str, Any], config: ScoreConfig) -> str:
    """Write PNGs and report.html from what `figures` found; returns the page's URI."""
    best = found["methods"][judged.best]["ap"]
    enough = len(judged.films) >= ENOUGH
    totals = ", ".join(f"{name} AP {_between(best[name])}" for name in AVERAGES) if enough else found["notes"][-1]
    how = f"{config.folds} folds over films, {config.seeds} draws of them" if config.folds else "films not learnt from"
    facts = {"films": f"{len(judged.films)} of {config.input}", "scored": judged.best, "how": how}
    if found["notes"]:
        facts["notes"] = "; ".join(found["notes"])
    about = f"Average precision ×100 of {len(judged.films)} films, with 95 % intervals of the bootstrap over films, "
    about += f"wider below {FEW} films."
    each = f"What {judged.best} is worth for each genre, at a probability of .5 and at the genre's own threshold. "
    each += f"Average precision is stated from {ENOUGH} films of a genre on."
    sections = [
        *([Section("Methods", about, [_methods(found)])] if enough else []),
        Section("Genres", each, [*_bars(store, judged, found), _table(found)]),
        Section("Precision and recall", "", [_curves(store, judged)]),
    ]
    if enough:
        text = "Whether films that get a probability have the genre as often."
        sections.append(Section("Calibration", text, [_calibration(store, judged)]))
    return write_page(store.uri("report.html"), "Genres", totals, facts, sections)


def _methods(found: dict[str, Any]) -> Table:
    rows = []
    for name, method in found["methods"].items():
        leading = method["lead_on_logistic_regression"]
        leads = [_between(leading[kind], "+") if leading else "" for kind in ("macro", "weighted")]
        rows.append([name, *(_between(method["ap"][kind]) for kind in AVERAGES), *leads])
    beside = [f"{kind}, beside {LOGISTIC}" for kind in ("macro", "weighted")]
    return Table(["method", *AVERAGES, *beside], rows)


def _between(row: dict[str, float], sign: str = "") -> str:
    """A value in percent, with its interval."""
    value, low, high = (f"{100 * row[name]:{sign}.1f}" for name in ("ap", "ap_low", "ap_high"))
    return f"{value} [{low}, {high}]"


def _table(found: dict[str, Any]) -> Table:
    there = [name for name in COLUMNS if name in next(iter(found["table"].values()))]
    rows = []
    for genre, row in found["table"].items():
        values = [int(row[name]) if name == "support" else row[name] for name in there]
        rows.append([genre, *values, "–" if row["ap"] is None else _between(row)])
    return Table(["genre", *(COLUMNS[name] for name in there), "AP ×100"], rows)


def _bars(store: Store, judged: Judged, found: dict[str, Any]) -> list[Picture]:
    names = [name for name in judged.films.genre_names if found["table"][name]["ap"] is not None]
    if not names:
        return []
    names.sort(key=lambda name: found["table"][name]["ap"])
    values, low, high = (
        100 * np.array([found["table"][name][column] for name in names]) for column in ("ap", "ap_low", "ap_high")
    )
    drawing = figure(8, 0.9 + 0.26 * len(names))
    axis = drawing.subplots()
    around = np.maximum(0, [values - low, high - values])
    axis.barh(names, values, color=COLOURS[0], xerr=around, ecolor=COLOURS[5], capsize=2)
    share = 100 * judged.films.genres.mean(0)
    by_chance = [share[judged.films.genre_names.index(name)] for name in names]
    axis.plot(by_chance, names, "|", color=COLOURS[1], markersize=10, markeredgewidth=2, label="by chance")
    axis.set(xlabel="average precision ×100", xlim=(0, 100))
    legend_above(drawing)
    return [draw(store, "average_precision", drawing, "Average precision of each genre, with its 95 % interval.")]


def _curves(store: Store, judged: Judged) -> Picture:
    labels, scores = judged.films.genres, judged.answers[judged.best].scores[0]
    there = np.flatnonzero(labels.any(0))
    columns = 4
    lines = -(-len(there) // columns)
    drawing = figure(9, 0.4 + 1.9 * lines)
    axes = drawing.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for (line, column), number in zip(product(range(lines), range(columns)), there, strict=False):
        precision, recall = curve(scores[:, number], labels[:, number])
        axis = axes[line, column]
        axis.step(recall, precision, where="post", color=COLOURS[0])
        axis.axhline(labels[:, number].mean(), color=COLOURS[1], linestyle=":")
        axis.set_title(judged.films.genre_names[number], fontsize="medium")
        axis.set(xlim=(0, 1), ylim=(0, 1.03))
    for axis in axes.flatten()[len(there) :]:
        axis.remove()
    drawing.supxlabel("recall")
    drawing.supylabel("precision")
    return draw(store, "curves", drawing, "Precision over recall; dotted: by chance.")


def _calibration(store: Store, judged: Judged) -> Picture:
    bins, error = calibration(judged.answers[judged.best].scores[0], judged.films.genres)
    drawing = figure(5, 4)
    axis = drawing.subplots()
    axis.plot([0, 1], [0, 1], color=COLOURS[7], linestyle=":")
    axis.plot(bins.probability, bins.true, marker="o", color=COLOURS[0])
    for row in bins.itertuples():
        axis.annotate(
            f"{row.count:,}", (row.probability, row.true), (4, -10), textcoords="offset points", fontsize="small"
        )
    axis.set(xlabel="probability", ylabel="share that have the genre", xlim=(0, 1), ylim=(0, 1))
    caption = f"Expected calibration error {error:.3f}, over all films and genres; the numbers count answers."
    return draw(store, "calibration", drawing, caption)
