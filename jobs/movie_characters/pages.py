"""Pages of movie characters: extracted frames, accuracies, comparisons of models, timelines."""

from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from actors.core import storage
from actors.core.store import Store
from jobs.core.pages import (
    COLOURS,
    Picture,
    Section,
    Table,
    clock,
    colours_of,
    draw,
    duration,
    figure,
    legend_above,
    thumbnail,
    write_page,
)
from pipelines.movie_characters.compare import CompareConfig, Comparison
from pipelines.movie_characters.extract import ExtractConfig, Extracted
from pipelines.movie_characters.films.tables import Appearances
from pipelines.movie_characters.films.timeline import TimelineConfig
from pipelines.movie_characters.metrics import mean_interval
from pipelines.movie_characters.results import UNKNOWN, Results
from pipelines.movie_characters.score import (
    MapConfig,
    Precisions,
    Report,
    ReportConfig,
    ScoreConfig,
    TopkConfig,
    model_row,
)

NAMED = 40
"""Most classes whose names a figure shows."""


MEAN_OVER_CLASSES = "Mean over true classes, with 95 % intervals"
SHOWN = 6
"""Frames per category that a page shows."""


def extract_page(config: ExtractConfig, done: Extracted) -> str:
    """Write extract.html: rows of the table and some frames of each category; returns its URI."""
    columns = ["category", "start_time", "end_time", "frames", "code"]
    rows = done.rows[columns].to_numpy().tolist()
    sections = [Section("Rows", content=[Table(columns, rows)])]
    store = Store(config.output)
    for category in done.files:
        entries = list(storage.listing(store.uri(category), (".jpg",)))
        steps = np.linspace(0, len(entries) - 1, min(SHOWN, len(entries))).round().astype(int)
        shown = [Picture(thumbnail(storage.read_bytes(entries[i].uri)), entries[i].name) for i in steps]
        sections.append(Section(category, f"{len(entries):,} frames", shown, grid=True))
    totals = f"{sum(done.files.values()):,} frames of {len(done.files):,} categories"
    return write_page(
        store.uri("extract.html"), "Frames", totals, {"film": config.input, "table": config.csv}, sections
    )


def topk_page(config: TopkConfig, results: Results, tables: Mapping[int, pd.Series]) -> str:
    """Write topk.html and its picture; returns the page's URI."""
    model = results.by or model_row(results)
    means = [
        (k, float(table.iloc[-1]) / 100, *mean_interval(table.iloc[:-1] / 100, results.images))
        for k, table in tables.items()
    ]
    curve = pd.DataFrame(means, columns=["k", "accuracy", "low", "high"]).assign(model=model)
    picture = draw(Store(config.output), "topk", curves(curve), MEAN_OVER_CLASSES)
    first, *_ = tables.values()
    counts = results.images.value_counts()
    rows = [
        [cls, *(float(table[cls]) for table in tables.values()), int(counts.get(cls, len(results.images)))]
        for cls in first.index
    ]
    totals = ", ".join(
        f"top-{k} {100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" for k, mean, low, high in means
    )
    content = [picture, Table(["class", *(f"top-{k}" for k in tables), "images"], rows, "Percent of a class's images")]
    return _page(config, "topk", "Top-k accuracy", totals, results, [Section("Accuracy", content=content)])


def map_page(config: MapConfig, results: Results, found: Precisions) -> str:
    """Write map.html and its picture; returns the page's URI."""
    values, mean = found.values.iloc[:-1], found.values.iloc[-1]
    drawing = figure(9, 3)
    axes = drawing.subplots()
    axes.bar(range(len(values)), values, color=COLOURS[0])
    if found.interval:
        axes.axhline(mean, color=COLOURS[1], label=f"mean {mean:.3f}")
    axes.set(ylim=(0, 1), ylabel="average precision")
    _name(axes.xaxis, list(values.index), turned=True)
    if found.interval:
        legend_above(drawing)
    picture = draw(Store(config.output), "average_precision", drawing)
    rows = [
        [name, float(value), int(count)]
        for (name, value), count in zip(found.values.items(), found.images, strict=True)
    ]
    table = Table(["class", "average precision", "images"], rows)
    totals = found.note
    if found.interval:
        low, high = found.interval
        totals = f"mAP {mean:.3f} [{low:.3f}, {high:.3f}]"
        totals += ", as the reference computes it" if config.formula == "reference" else ""
    return _page(config, "map", "Average precision", totals, results, [Section("Classes", content=[picture, table])])


def report_page(config: ReportConfig, results: Results, report: Report) -> str:
    """Write report.html and its picture; returns the page's URI."""
    picture = draw(Store(config.output), "confusion", matrix(report.confusion), "True class by answer")
    rows = [[name, *map(float, row[:3]), int(row[3])] for name, *row in report.classes.itertuples()]
    sections = [
        Section("Confusion", content=[picture]),
        Section("Classes", content=[Table(["class", *report.classes.columns], rows)]),
    ]
    if (found := report.unknown) is not None:
        about = [["AUROC", found.auroc], ["equal error rate", found.eer], ["confidence there", found.at]]
        about += [["images of known classes", found.known], [f"images that are {UNKNOWN}", found.unknown]]
        about += [[f"threshold for {UNKNOWN}", report.threshold]]
        sections.append(Section("Known and unknown", content=[Table(["", "value"], about)]))
    low, high = report.interval
    totals = f"{100 * report.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] answered right, "
    totals += f"mean reciprocal rank {report.reciprocal_rank:.3f}"
    return _page(config, "report", "Answers", totals, results, sections)


def compare_page(config: CompareConfig, compared: Comparison) -> str:
    """Write compare.html and its pictures; returns the page's URI."""
    store = Store(config.output)
    table = compared.accuracy
    bars = draw(store, "robustness", robustness(table), "Share that is right, with 95 % intervals")
    sections = [
        Section("Under filters", content=[bars, _table(table)]),
        Section(
            "Model against model",
            "McNemar's exact test on the same images: how many only one of the two has right, and p.",
            [_table(compared.mcnemar)],
        ),
    ]
    shown = draw(store, "topk", curves(compared.topk), MEAN_OVER_CLASSES)
    sections.append(Section("Top-k", content=[shown, _table(compared.topk)]))
    if len(compared.alpha):
        swept = draw(store, "alpha", alpha_curve(compared.alpha), f"Alpha of {config.alpha_model}, undisturbed")
        sections.append(Section("Alpha", content=[swept, _table(compared.alpha)]))
    best = table.loc[table.groupby("filter", sort=False).accuracy.idxmax()]
    leaders = zip(best["filter"], best["model"], 100 * best["accuracy"].to_numpy(), strict=True)
    totals = ", ".join(f"{name}: {model} {share:.1f} %" for name, model, share in leaders)
    facts = {"images": f"{int(table.images.max()):,}", "models": ", ".join(config.models)}
    return write_page(store.uri("compare.html"), "Models compared", totals, facts, sections)


def robustness(table: pd.DataFrame) -> Figure:
    """Bars of accuracy in percent with intervals, grouped by filter, one colour per model."""
    filters, models = list(dict.fromkeys(table["filter"])), list(dict.fromkeys(table["model"]))
    drawing = figure(max(6, 1.2 * len(filters) * max(1, len(models) / 3)), 3.5)
    axes = drawing.subplots()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        rows = table[table.model == model].set_index("filter").loc[filters]
        height = 100 * rows.accuracy
        spread = np.clip([height - 100 * rows.low, 100 * rows.high - height], 0, None)
        at = np.arange(len(filters)) - 0.4 + (number + 0.5) * width
        axes.bar(at, height, width, yerr=spread, capsize=2, color=COLOURS[number % len(COLOURS)], label=model)
    strengths = table.drop_duplicates("filter").strength
    names = [f"{name} {strength:g}" if strength else name for name, strength in zip(filters, strengths, strict=True)]
    axes.set_xticks(range(len(filters)), names)
    axes.set(ylabel="right, %", ylim=(0, 105))
    legend_above(drawing)
    return drawing


def alpha_curve(table: pd.DataFrame) -> Figure:
    """Accuracy in percent over alpha, with its interval."""
    drawing = figure(6, 3.5)
    axes = drawing.subplots()
    axes.plot(table.alpha, 100 * table.accuracy, "o-", color=COLOURS[0])
    axes.fill_between(table.alpha, 100 * table.low, 100 * table.high, color=COLOURS[0], alpha=0.2)
    axes.set(xlabel="alpha", ylabel="right, %", ylim=(0, 105))
    return drawing


MANY = 20
"""Characters that a timeline shows: those with the most time on screen."""
HUNDREDS = 500
"""Shots that a page lists per film."""
STEPS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 3600)
"""Seconds between two ticks of a timeline, of which the first that leaves at most ten ticks is taken."""


def timeline_page(config: TimelineConfig, found: Appearances) -> str:
    """Write timeline.html and a picture of each film; returns the page's URI."""
    store, colours = Store(config.output), {**colours_of(found.characters), UNKNOWN: COLOURS[-1]}
    lengths = _lengths(found.segments)
    totals = ", ".join(f"{name} {duration(length)}" for name, length in lengths.head(MANY).items())
    facts = {"films": f"{len(found.films):,}", "shots": f"{len(found.shots):,}", "model": config.model.by}
    sections = chain([_faces(store, found, lengths, colours)], _films(store, found, colours))
    return write_page(store.uri("timeline.html"), "Who is on screen", totals, facts, sections)


def _films(store: Store, found: Appearances, colours: Mapping[str, str]) -> Iterator[Section]:
    """Each film's bands and shots, one after the other: there may be thousands."""
    shots_of, parts_of = (dict(list(table.groupby("film"))) for table in (found.shots, found.segments))
    for film, about in found.films.items():
        shots, parts = shots_of.get(film, found.shots.iloc[:0]), parts_of.get(film, found.segments.iloc[:0])
        if about["error"]:
            yield Section(film, f"{about['error']}: {about['message']}")
        if len(shots):
            picture = draw(store, f"timelines/{film}", bands(parts, float(shots.end_s.max()), colours), BANDS)
            shown = shots.drop(columns="film").head(HUNDREDS)
            told = f"{len(shots):,} shots" + (f", of which the first {HUNDREDS} are listed" * (len(shots) > HUNDREDS))
            yield Section(film, told, [picture, _table(_clocked(shown))])


def _faces(store: Store, found: Appearances, lengths: pd.Series, colours: Mapping[str, str]) -> Section:
    """The surest frame of each character, with the mark that it has in all bands."""
    pictures = []
    for name in [name for name in lengths.index if name != UNKNOWN][:MANY]:
        own = found.segments[found.segments.character == name]
        # People whom the gallery does not know have no score.
        best = own.loc[own.score.fillna(-1).idxmax()]
        image = thumbnail(storage.read_bytes(store.uri("frames", str(best.film), str(best.image))))
        pictures.append(Picture(image, f"{name}: {duration(lengths[name])}", colours[name]))
    return Section("Characters", "The frame of each with the best score." if pictures else "None.", pictures, grid=True)


BANDS = "Where frames show each character, fainter where it has fewer of its shot's votes"


def bands(segments: pd.DataFrame, end: float, colours: Mapping[str, str]) -> Figure:
    """A band per character, filled where frames show it; fainter where its share of the shot's votes is smaller."""
    names = list(_lengths(segments).head(MANY).index)
    drawing = figure(11, 1 + 0.3 * len(names))
    axes = drawing.subplots()
    for number, name in enumerate(names):
        for row in segments[segments.character == name].itertuples():
            length, alpha = row.end_s - row.start_s, 0.3 + 0.7 * row.share
            axes.barh(number, length, 0.8, row.start_s, color=colours[name], alpha=alpha)
    axes.set_yticks(range(len(names)), names)
    step = next((step for step in STEPS_S if end / step <= 10), STEPS_S[-1])
    times = np.arange(0, end, step)
    axes.set_xticks(times, [clock(time).removesuffix(".00") for time in times])
    axes.set(ylim=(max(len(names), 1) - 0.5, -0.5), xlim=(0, end))
    return drawing


def _lengths(segments: pd.DataFrame) -> pd.Series:
    """For how many seconds frames show each character, longest first."""
    lengths = (segments.end_s - segments.start_s).groupby(segments.character).sum()
    return lengths.sort_values(ascending=False, kind="stable")


def _clocked(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(**{name: rows[name].map(clock) for name in ("start_s", "end_s")})


def _table(rows: pd.DataFrame) -> Table:
    return Table([str(name) for name in rows.columns], rows.astype(object).to_numpy().tolist())


def _page(config: ScoreConfig, name: str, title: str, totals: str, results: Results, sections: list[Section]) -> str:
    classes, identities = results.images.nunique(), results.rows.identity.nunique()
    facts = {
        "results": config.input,
        "images": f"{len(results.images):,} of {classes:,} classes",
        "identities": f"{identities:,} of {results.rows.cls.nunique():,} classes",
    }
    return write_page(Store(config.output).uri(f"{name}.html"), title, totals, facts, sections)


def curves(table: pd.DataFrame) -> Figure:
    """Top-k accuracy in percent over k, one line per model with its interval; columns model, k, accuracy, low, high."""
    drawing = figure(6, 3.5)
    axes = drawing.subplots()
    for number, (model, rows) in enumerate(table.groupby("model", sort=False)):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(rows.k, 100 * rows.accuracy, "o-", color=colour, label=str(model))
        axes.fill_between(rows.k, 100 * rows.low, 100 * rows.high, color=colour, alpha=0.15)
    axes.set(xlabel="k", ylabel="top-k accuracy, %", ylim=(0, 102))
    axes.set_xticks(sorted(set(table.k))[:50])
    legend_above(drawing)
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
