"""Pages and pictures of directors: bars, a contact sheet, the report of a training, answers drawn on pictures."""

import io
import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from actors.core import storage
from actors.core.storage import Entry
from actors.core.store import Store
from actors.directors.style import palette
from actors.media import archives
from actors.media.images import ImageError, open_image, picture_bytes
from jobs.core.pages import COLOURS, Picture, Section, Table, draw, figure, legend_above, write_page
from pipelines.core.drawing import letters
from pipelines.core.metrics import ENOUGH
from pipelines.directors.guess import Guess, is_picture
from pipelines.directors.metrics import reliability
from pipelines.directors.sample import Screenshot
from pipelines.directors.settings import DirectorsConfig, ExploreConfig
from pipelines.directors.train import Trained

CELL = (192, 108)
"""Largest width and height of a picture on the contact sheet, in pixels."""
BARS = 60
"""Directors shown in a figure; tables have all."""
SMALLEST = 320
"""Least width, in pixels, of a picture with an answer drawn on it."""


# ------------------------------------------------------------------------------------------------------------- explore


def write_exploration(store: Store, shots: Sequence[Screenshot], config: ExploreConfig) -> dict[str, Any]:
    """Write the page of a folder of screenshots; returns the rows of the record."""
    there = [shot for shot in shots if shot.size >= 0]
    count = Counter(shot.director for shot in there)
    films: dict[str, set[str]] = defaultdict(set)
    for shot in there:
        if shot.film:
            films[shot.director].add(shot.film)
    names = [name for name, _ in count.most_common()]
    own = {name: len(films[name]) for name in names} if films else {}
    bars = {"screenshots": count, "films": own} if films else {"screenshots": count}
    counts = [
        draw(store, name, _bars(names, values, name), f"{name.capitalize()} of each director.")
        for name, values in bars.items()
    ]
    sheet, palettes = _contact_sheet(there, names[: config.directors], config)
    storage.write_bytes(store.uri("contact.png"), sheet)
    lost = len(shots) - len(there)
    rows = [[name, own.get(name), count[name], count[name] / own[name] if films else None] for name in names]
    of_films = f"{sum(own.values()):,} films" if films else "unknown films"
    write_page(
        store.uri("report.html"),
        "Screenshots by director",
        f"{len(there):,} screenshots of {of_films} by {len(names):,} directors",
        {"Screenshots": config.input, "Missing files": f"{lost:,}"},
        [
            Section("Counts", "", [*counts, Table(["director", "films", "screenshots", "per film"], rows)]),
            Section(
                "Contact sheet",
                f"{config.per_director} screenshots of each director, drawn at random, with their dominant colours; "
                "the commonest is on top.",
                [Picture(sheet, "" if palettes else "None of these files can be read.")],
            ),
        ],
    )
    # Only those on the contact sheet are opened: where none of them can be read, the others are no pictures either.
    bad = {"not_found": lost, "unreadable": 0 if palettes else len(there)}
    rejected = {code: number for code, number in bad.items() if number}
    return {"in": len(shots), "out": len(shots) - sum(rejected.values()), "rejected": rejected}


def _bars(names: Sequence[str], values: Mapping[str, float], label: str) -> Any:
    shown = list(names[:BARS])
    drawing = figure(8, 1 + 0.24 * len(shown))
    axis = drawing.subplots()
    axis.barh(shown, [values[name] for name in shown], color=COLOURS[0])
    axis.invert_yaxis()
    axis.set(xlabel=label if len(shown) == len(names) else f"{label}; the first {BARS} of {len(names)} directors")
    axis.margins(y=0.01)
    return drawing


def _contact_sheet(shots: Sequence[Screenshot], names: Sequence[str], config: ExploreConfig) -> tuple[bytes, int]:
    """A PNG with one line per director, and the number of directors with a readable picture."""
    width, height = CELL
    name_font, label = letters(15), 260
    sheet = Image.new("RGB", (label + (width + 4) * config.per_director + 28, (height + 8) * len(names) or 1), "white")
    pen = ImageDraw.Draw(sheet)
    random = np.random.default_rng(config.seed)
    readable = 0
    for line, name in enumerate(names):
        top = line * (height + 8) + 4
        pen.multiline_text((6, top + 6), "\n".join(textwrap.wrap(name, 28)), fill="black", font=name_font)
        own = [shot for shot in shots if shot.director == name]
        images = []
        for number in random.choice(len(own), min(config.per_director, len(own)), replace=False):
            left = label + len(images) * (width + 4)
            try:
                picture = open_image(archives.read_bytes(own[number].uri), lambda *_: height)
            except (ImageError, FileNotFoundError):
                continue
            picture.thumbnail(CELL)
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
            images.append(np.asarray(picture))
        if images:
            readable += 1
            colours = palette(images)
            for i, colour in enumerate(colours):
                edges = [top + height * k // len(colours) for k in (i, i + 1)]
                pen.rectangle((sheet.width - 26, edges[0], sheet.width - 4, edges[1]), fill=tuple(colour.tolist()))
    return _png(sheet), readable


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# --------------------------------------------------------------------------------------------------------------- train


def write_report(config: DirectorsConfig, trained: Trained) -> str:
    """Write report.html and its pictures below the output; returns where."""
    store, frames, report = Store(config.output), trained.frames, trained.report
    by, best = {"film": "film", "frame": "picture"}[config.split], report["table"][0]
    held_out = "held-out films" if config.split == "film" else "held-out pictures, whose films were trained on"
    views = config.pictures.views.count
    what = "films" if frames.films_known else "pictures of unknown films"
    source = (
        {"Films": config.films}
        if config.films
        else {"Screenshots": config.input, "Network": config.pictures.backbone.model}
    )
    return write_page(
        store.uri("report.html"),
        "Directors",
        f"{best[f'{by}_top1']:.1%} accuracy on {held_out}, among {len(report['directors'])} directors",
        {
            **source,
            "Trained on": f"{(frames.director >= 0).sum():,} {what}, beside {(frames.director < 0).sum():,} of unknown "
            f"directors; {len(report['labels']):,} pictures were classified",
            "Augmentation": f"{views} stored views of each picture" if views else "off: one vector per picture",
            "Epochs": f"{report['epochs']['trained']}, the best {report['epochs']['best']}",
        },
        _sections(store, config, report),
    )


def _sections(store: Store, config: DirectorsConfig, report: Mapping[str, Any]) -> list[Section]:
    names, labels, chosen = report["directors"], report["labels"], report["answers"].argmax(1)
    sure, stranger = report["calibration"], report["unknown"]
    sections = [
        _accuracy(config, report),
        Section("Each director", "", [_classes(names, labels, chosen), _confusion(store, names, labels, chosen)]),
        Section(
            "Calibration",
            f"Logits are divided by a temperature of {sure['temperature']:.2f}, fitted on the validation split. "
            f"Expected calibration error: {_calibration(sure)}.",
            [_reliability(store, report)],
        ),
        Section(
            "Unknown directors",
            f'Below the threshold the answer is "unknown". Unknown directors here: {stranger["strangers"]}.',
            [
                Table(
                    ["answer for a", "threshold", "AUROC"],
                    [[what, value, stranger["auroc"].get(what)] for what, value in stranger["threshold"].items()],
                )
            ],
        ),
    ]
    if report["importance"]:
        sections.append(
            Section(
                "Style",
                "A random forest on palette, light, shape, sharpness and shot length alone: how much its accuracy "
                "falls when one of them is shuffled. Below: medians of each director.",
                [_importance(store, report["importance"]), _table(report["style"])],
            )
        )
    sections.append(Section("Training data", "", [_table(report["counts"])]))
    if config.plot:
        curves = storage.read_bytes(store.uri("curves.png"))
        sections.append(Section("Training", "", [Picture(curves, f"Best epoch: {report['epochs']['best']}.")]))
    return sections


def _accuracy(config: DirectorsConfig, report: Mapping[str, Any]) -> Section:
    measured = f"in {report['folds']} folds" if report["folds"] else f"on {config.test:.0%} of each director's films"
    return Section(
        "Accuracy",
        f"Measured {measured}. A split by picture leaks: pictures of each test film were trained on. What it scores "
        "above the split by film is films recognised, not directors. The answer for a film is the mean log-probability "
        "of its pictures.",
        [_figures(report["table"])],
    )


def figure_lines(report: Mapping[str, Any]) -> list[str]:
    """Accuracy, calibration and AUROC as lines of text."""
    lines = [f"{'':20}{'split':8}{'picture':>9}{'top 3':>8}{'film':>8}{'top 3':>8}"]
    for row in report["table"]:
        cells = "".join(
            f"{'-' if row[key] is None else format(row[key], '.1%'):>{width}}"
            for key, width in (("picture_top1", 9), ("picture_top3", 8), ("film_top1", 8), ("film_top3", 8))
        )
        side = "picture" if row["film_n"] is None else "film"
        ends = f"{side} {row[f'{side}_low']:.1%} to {row[f'{side}_high']:.1%}, n = {row[f'{side}_n']}"
        lines.append(f"{row['method']:20}{row['split']:8}{cells}  {ends}")
    auroc = ", ".join(f"{what} {value:.3f}" for what, value in report["unknown"]["auroc"].items())
    few = f"not measured: fewer than {ENOUGH} test films of known or of unknown directors"
    error = _calibration(report["calibration"])
    return [*lines, f"calibration error {error}; AUROC of unknown directors: {auroc or few}"]


def _calibration(sure: Mapping[str, Any]) -> str:
    """The calibration error, or why there is none."""
    cases = f"{sure['cases']} test {sure['case']}s"
    if sure["cases"] < ENOUGH:
        return f"not measured: {cases}, and {ENOUGH} are needed"
    return f"{sure['ece']:.3f}, without the temperature {sure['ece_before']:.3f}, from {cases}"


def _figures(table: Sequence[Mapping[str, Any]]) -> Table:
    def percent(row: Mapping[str, Any], key: str, interval: str = "") -> str:
        if row[key] is None:
            return "–"
        ends = f"{row[f'{interval}_low']:.0%}–{row[f'{interval}_high']:.0%}" if interval else ""
        inside = f" ({ends}, n = {row[f'{interval}_n']})" if interval else ""
        return f"{row[key]:.1%}{inside}"

    rows = [
        [
            row["method"],
            {"film": "by film", "frame": "by picture: leaks"}[row["split"]],
            percent(row, "picture_top1", "picture"),
            percent(row, "picture_top3"),
            row["picture_f1"],
            percent(row, "film_top1", "film"),
            percent(row, "film_top3"),
            row["film_f1"],
        ]
        for row in table
    ]
    columns = ["", "split", "picture, top 1", "top 3", "macro F1", "film, top 1", "top 3", "macro F1"]
    return Table(columns, rows, "In brackets: 95 % intervals (Wilson; films are the cases), and the number of cases.")


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(list(rows[0]), [list(row.values()) for row in rows])


def _classes(names: Sequence[str], labels: np.ndarray, chosen: np.ndarray) -> Table:
    from sklearn.metrics import precision_recall_fscore_support

    nothing: Any = {"zero_division": 0}
    found: Any = precision_recall_fscore_support(labels, chosen, labels=range(len(names)), **nothing)
    rows = [[name, *map(float, values[:3]), int(values[3])] for name, *values in zip(names, *found, strict=True)]
    return Table(["director", "precision", "recall", "F1", "pictures"], rows, "By picture.")


def _confusion(store: Store, names: Sequence[str], labels: np.ndarray, chosen: np.ndarray) -> Picture:
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, chosen, labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.36 * min(len(names), BARS)
    drawing = figure(side + 1, side)
    axis = drawing.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axis.set_xticks(ticks, names, rotation=90)
    axis.set_yticks(ticks, names)
    axis.set(xlabel="answer", ylabel="director")
    if len(names) <= 30:
        for row in ticks:
            for column in np.flatnonzero(counts[row]).tolist():
                shade = "white" if shares[row, column] > 0.6 else "black"
                axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=shade)
    return draw(
        store,
        "confusion",
        drawing,
        "Confusion matrix: pictures by director and answer. Darker is a larger share of the director's pictures.",
    )


def _reliability(store: Store, report: Mapping[str, Any]) -> Picture:
    drawing = figure(5, 4)
    axis = drawing.subplots()
    axis.plot([0, 1], [0, 1], color=COLOURS[7], linestyle=":")
    for name, key, colour in (("with temperature", "answers", COLOURS[0]), ("without", "raw", COLOURS[1])):
        bins = reliability(report[key], report["labels"])
        axis.plot(bins.probability, bins.true, marker="o", label=name, color=colour)
    axis.set(xlabel="probability of the answer", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    legend_above(drawing)
    return draw(store, "calibration", drawing, "On the dotted line, probabilities equal accuracy.")


def _importance(store: Store, rows: Sequence[Mapping[str, Any]]) -> Picture:
    drawing = figure(7, 1 + 0.26 * len(rows))
    axis = drawing.subplots()
    losses, deviations = ([row[key] for row in rows] for key in ("loss", "deviation"))
    axis.barh([row["name"] for row in rows], losses, xerr=deviations, color=COLOURS[0], ecolor=COLOURS[5])
    axis.invert_yaxis()
    axis.set(xlabel="accuracy lost")
    return draw(store, "importance", drawing)


# --------------------------------------------------------------------------------------------------------------- guess


def in_words(answer: Guess) -> str:
    """An answer as text: "Agnès Varda (Agnès Varda 63%, …)"."""
    return f"{answer.name} ({', '.join(f'{name} {chance:.0%}' for name, chance in answer.top)})"


def save_answers(save: str, found: Sequence[Entry], answers: Mapping[str, Guess]) -> None:
    """Write pictures with their answers into a folder, as NAME.png; or, where `save` names a picture, one there."""
    single = is_picture(save)
    for entry in found:
        if answer := answers.get(entry.uri):
            image = open_image(archives.read_bytes(entry.uri), lambda *sides: min(sides))
            name = save if single else storage.join(save, f"{entry.name}.png")
            kind = "PNG" if name.lower().endswith(".png") else "JPEG"
            storage.write_bytes(name, picture_bytes(with_answer(image, answer), kind, quality=92))


def with_answer(image: Image.Image, answer: Guess) -> Image.Image:
    """A picture with its answer on a band below, in letters that fit its size; a tiny picture is enlarged first."""
    if image.width < SMALLEST:
        image = image.resize((SMALLEST, max(1, round(image.height * SMALLEST / image.width))), Image.Resampling.NEAREST)
    size = max(14, round(0.04 * max(image.width, image.height)))
    large, small = letters(round(1.3 * size)), letters(size)
    room = image.width - size
    lines = [(line, large) for line in _wrapped(answer.name, large, room)]
    for name, chance in answer.top:
        lines += [(line, small) for line in _wrapped(f"{chance:.0%}  {name}", small, room)]
    heights = [round(1.25 * font.size) for _, font in lines]
    canvas = Image.new("RGB", (image.width, image.height + sum(heights) + size), "black")
    canvas.paste(image)
    pen, at = ImageDraw.Draw(canvas), image.height + size // 2
    for (line, font), height in zip(lines, heights, strict=True):
        pen.text((size // 2, at), line, fill="white", font=font)
        at += height
    return canvas


def _wrapped(text: str, font: Any, room: float) -> list[str]:
    """Text as lines of at most `room` pixels; a longer word is broken."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while font.getlength(lines[-1]) > room and len(lines[-1]) > 1:
            cut = max(1, sum(font.getlength(lines[-1][: i + 1]) <= room for i in range(len(lines[-1]))))
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    return lines
