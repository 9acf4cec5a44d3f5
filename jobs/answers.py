"""Pages about who was recognised: top-k, average precision, and who is taken for whom."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from actors import storage
from jobs.pages import COLOURS, Picture, Section, Table, draw, figure, write_page
from pipelines.extraction import ExtractConfig, Extracted
from pipelines.identification import UNKNOWN, Results
from pipelines.metrics import MapConfig, Report, ReportConfig, ScoreConfig, TopkConfig
from pipelines.store import Store

NAMED = 40
"""Of more classes a figure bears no names."""


SHOWN = 6
"""Frames of a category that a page shows."""


def extract_page(config: ExtractConfig, done: Extracted) -> str:
    """Write extract.html: rows of the table and some frames of each category; returns its URI."""
    columns = ["category", "start_time", "end_time", "frames", "code"]
    rows = done.rows[columns].to_numpy().tolist()
    sections = [Section("Rows", content=[Table(columns, rows)])]
    store = Store(config.output)
    for category in done.files:
        entries = list(storage.listing(store.uri(category), (".jpg",)))
        steps = np.linspace(0, len(entries) - 1, min(SHOWN, len(entries))).round().astype(int)
        shown = [Picture(storage.read_bytes(entries[i].uri), entries[i].name) for i in steps]
        sections.append(Section(category, f"{len(entries):,} frames", shown))
    totals = f"{sum(done.files.values()):,} frames of {len(done.files):,} categories"
    return write_page(
        store.uri("extract.html"), "Frames", totals, {"film": config.video, "table": config.csv}, sections
    )


def topk_page(config: TopkConfig, results: Results, tables: Mapping[int, pd.Series]) -> str:
    """Write topk.html and its picture; returns the page's URI."""
    means = {k: table.iloc[-1] for k, table in tables.items()}
    picture = draw(Store(config.output_folder), "topk", curves({config.model: means}), "Mean over true classes")
    first, *_ = tables.values()
    rows = [[cls, *(float(table[cls]) for table in tables.values())] for cls in first.index]
    totals = ", ".join(f"top-{k} {mean:.1f} %" for k, mean in means.items())
    content = [picture, Table(["class", *(f"top-{k}" for k in tables)], rows, "Percent of a class's images")]
    return _page(config, "topk", "Top-k accuracy", totals, results, [Section("Accuracy", content=content)])


def map_page(config: MapConfig, results: Results, values: pd.Series) -> str:
    """Write map.html and its picture; returns the page's URI."""
    drawing = figure(9, 3)
    axes = drawing.subplots()
    axes.bar(range(len(values) - 1), values.iloc[:-1], color=COLOURS[0])
    axes.axhline(values.iloc[-1], color=COLOURS[1], label=f"mean {values.iloc[-1]:.3f}")
    axes.set(ylim=(0, 1), ylabel="average precision")
    _name(axes.xaxis, list(values.index[:-1]), turned=True)
    axes.legend()
    picture = draw(Store(config.output_folder), "average_precision", drawing)
    table = Table(["class", "average precision"], [[name, float(value)] for name, value in values.items()])
    totals = f"mAP {values.iloc[-1]:.3f}" + (", as the reference computes it" if config.formula == "reference" else "")
    return _page(config, "map", "Average precision", totals, results, [Section("Classes", content=[picture, table])])


def report_page(config: ReportConfig, results: Results, report: Report) -> str:
    """Write report.html and its picture; returns the page's URI."""
    picture = draw(Store(config.output_folder), "confusion", matrix(report.confusion), "True class by answer")
    rows = [[name, *map(float, row[:3]), int(row[3])] for name, *row in report.classes.itertuples()]
    sections = [
        Section("Who is taken for whom", content=[picture]),
        Section("Classes", content=[Table(["class", *report.classes.columns], rows)]),
    ]
    if (found := report.unknown) is not None:
        about = [["AUROC", found.auroc], ["equal error rate", found.eer], ["confidence there", found.at]]
        about += [["images of known classes", found.known], [f"images that are {UNKNOWN}", found.unknown]]
        about += [[f"threshold for {UNKNOWN}", report.threshold]]
        sections.append(Section("Known and unknown", content=[Table(["", "value"], about)]))
    totals = f"{100 * report.accuracy:.1f} % answered right, mean reciprocal rank {report.reciprocal_rank:.3f}"
    return _page(config, "report", "Answers", totals, results, sections)


def _page(config: ScoreConfig, name: str, title: str, totals: str, results: Results, sections: list[Section]) -> str:
    classes, identities = results.images.nunique(), results.rows.identity.nunique()
    facts = {
        "results": config.input_folder,
        "images": f"{len(results.images):,} of {classes:,} classes",
        "identities": f"{identities:,} of {results.rows.cls.nunique():,} classes",
    }
    return write_page(Store(config.output_folder).uri(f"{name}.html"), title, totals, facts, sections)


def curves(models: Mapping[str, Mapping[int, float]]) -> Figure:
    """Top-k accuracy in percent over k, a line a model."""
    drawing = figure(6, 3.5)
    axes = drawing.subplots()
    for number, (model, means) in enumerate(models.items()):
        axes.plot(list(means), list(means.values()), "o-", color=COLOURS[number % len(COLOURS)], label=model)
    axes.set(xlabel="k", ylabel="top-k accuracy, %", ylim=(0, 102))
    axes.set_xticks(sorted({k for means in models.values() for k in means})[:50])
    axes.legend()
    return drawing


def matrix(counts: pd.DataFrame) -> Figure:
    """A confusion matrix: shares of each row as shades, counts in the cells where there is room."""
    size = min(12, 2.5 + 0.32 * len(counts))
    drawing = figure(size, size)
    axes = drawing.subplots()
    values = counts.to_numpy()
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= NAMED:
        for (row, column), value in np.ndenumerate(values):
            if value:
                colour = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, str(value), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="answer", ylabel="true class")
    _name(axes.xaxis, list(counts.columns), turned=True)
    _name(axes.yaxis, list(counts.index))
    return drawing


def _name(axis, names: list[str], turned: bool = False) -> None:
    if len(names) > NAMED:
        axis.set_ticks([])
    else:
        axis.set_ticks(range(len(names)), names, fontsize=7, rotation=90 if turned else 0)
