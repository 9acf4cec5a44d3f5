"""What `score` of comic characters draws: bars of every method, and the page with all tables."""

import numpy as np

from actors.core.store import Store
from jobs.core.pages import COLOURS, Picture, Section, Table, draw, figure, write_page
from pipelines.comic_characters.learning.retrieval import CLUSTERS, RANKS
from pipelines.comic_characters.score import OURS, PLACES, Found, Value
from pipelines.comic_characters.settings import ComicsConfig

NAMES = {
    "map_at_r": "MAP@R",
    "map": "mAP",
    "mrr": "MRR",
    "r_precision": "R-precision",
    "cmc_1": "CMC@1 = P@1",
    "cmc_5": "CMC@5",
    "cmc_10": "CMC@10",
    "ami": "AMI",
    "nmi": "NMI",
    "ari": "ARI",
    "bcubed_precision": "B-cubed precision",
    "bcubed_recall": "B-cubed recall",
    "bcubed_f1": "B-cubed F1",
}
"""Scores as they are called."""
ABOUT = {
    "between": "One instance of each character is searched for among all others, of all series at once: of each series "
    "the largest set of characters who are known to differ.",
    "within": "Every instance is searched for in its own series, among those that are known to be the same or another "
    "character; every sequence is clustered by itself.",
}


def write_report(store: Store, found: Found, config: ComicsConfig) -> str:
    """Write PNGs and report.html from what `score` found; returns the page's URI."""
    best = found.methods[OURS]
    totals = ", ".join(f"MAP@R {place} series {between(best[place]['map_at_r'])}" for place in PLACES)
    facts = {name: f"{count:,}" for name, count in found.facts.items()}
    facts |= {f"not compared: {name}": note for name, note in found.notes.items()}
    facts |= {"too few": "; ".join(found.few)} if found.few else {}
    sections = [_bars_of(store, found)]
    for place in PLACES:
        tables = [_table(found, place, RANKS, ahead=True), _table(found, place, CLUSTERS)]
        text = f"{ABOUT[place]} All ×100, with 95 % intervals of the bootstrap over series, wider where these are few."
        sections.append(Section(f"{place.capitalize()} series", text, tables))
    return write_page(store.uri("report.html"), "Comic characters", totals, facts, sections)


def between(value: Value, sign: str = "") -> str:
    """A score in percent, with its interval."""
    if np.isnan(value["value"]):
        return "–"
    if np.isnan(value["low"]):
        return f"{100 * value['value']:{sign}.1f}"
    return _interval(value, ("value", "low", "high"), sign)


def _interval(value: Value, names: tuple[str, str, str], sign: str = "") -> str:
    if np.isnan(value[names[0]]):
        return "–"
    middle, low, high = (f"{100 * value[name]:{sign}.1f}" for name in names)
    return f"{middle} [{low}, {high}]"


def _table(found: Found, place: str, scores: tuple[str, ...], ahead: bool = False) -> Table:
    rows = []
    for name, places in found.methods.items():
        cells = [between(places[place][score]) for score in scores]
        if ahead:
            value = places[place]["map_at_r"]
            cells.append("" if name == OURS else _interval(value, ("ahead", "ahead_low", "ahead_high"), "+"))
        rows.append([name, *cells, found.guessed[name]])
    columns = [NAMES[score] for score in scores] + ([f"{OURS} ahead by, MAP@R"] if ahead else [])
    rows += [[name, *["–"] * len(columns), "–"] for name in found.notes]
    caption = "Guessed: instances without such a part, whose vector is random."
    return Table(["method", *columns, "guessed"], rows, caption)


def _bars_of(store: Store, found: Found) -> Section:
    names = list(found.methods)
    drawing = figure(9, 1.2 + 0.3 * len(names))
    axes = drawing.subplots(1, len(PLACES), sharey=True)
    for axis, place in zip(axes, PLACES, strict=True):
        values, low, high = (
            100 * np.array([found.methods[name][place]["map_at_r"][which] for name in names])
            for which in ("value", "low", "high")
        )
        around = np.nan_to_num(np.maximum(0, [values - low, high - values]))
        colours = [COLOURS[2] if name.startswith(OURS) else COLOURS[0] for name in names]
        axis.barh(names, np.nan_to_num(values), color=colours, xerr=around, ecolor=COLOURS[5], capsize=2)
        axis.set(xlabel=f"MAP@R ×100, {place} series", xlim=(0, 100))
    axes[0].invert_yaxis()
    picture: Picture = draw(store, "map_at_r", drawing, "MAP@R of every method, with its 95 % interval.")
    return Section("Methods", "", [picture])
