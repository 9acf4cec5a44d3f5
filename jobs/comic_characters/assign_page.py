"""What `assign` of comic characters shows: panels with boxes, the curve of the threshold, and who was known."""

from collections import Counter

import numpy as np

from actors.core import storage
from actors.core.store import Store
from jobs.core.pages import COLOURS, Picture, Section, Table, draw, figure, legend_above, shortened, write_page
from pipelines.comic_characters.assign import DRAWN, Assignment, AssignPlan
from pipelines.comic_characters.settings import ComicsConfig

SHOWN = 24
"""Pictures on the page at most."""


def write_assignment(config: ComicsConfig, plan: AssignPlan, found: Assignment) -> str:
    """Write report.html, and threshold.png where there is a curve; returns the page's URI."""
    store = Store(storage.join(config.output, config.assign.folder))
    count = sum(len(one.instances) for one in plan.sequences)
    clusters = [int(one.clusters.max(initial=-1)) + 1 for one in found.sequences]
    totals = f"{count:,} instances in {len(clusters):,} sequences: {sum(clusters):,} characters"
    if plan.bank:
        totals += f", {sum(len(one.names) for one in found.sequences):,} of them known by name"
    constraints = "nobody twice in a panel, boxes of one char_index together" if config.assign.constraints else "none"
    facts = {
        "method": f"{config.assign.method}, threshold {plan.threshold.value:.3g} ({plan.threshold.why})",
        "constraints": constraints,
        "vectors": store.uri().removesuffix(config.assign.folder) + "embeddings",
    }
    if found.agreement:
        split = " (it has also taught the threshold)" if config.assign.split == "validation" else ""
        facts[f"B-cubed on {config.assign.split}{split}"] = (
            f"F1 {found.agreement.f1:.3f}, precision {found.agreement.precision:.3f}, "
            f"recall {found.agreement.recall:.3f}"
        )
    sections = [_sequences(store, plan, found)]
    if plan.bank:
        sections.append(_known(plan, found))
    if plan.threshold.taught:
        sections.append(_threshold(store, plan))
    return write_page(store.uri("report.html"), "Who is the same", totals, facts, sections)


def _sequences(store: Store, plan: AssignPlan, found: Assignment) -> Section:
    names = list(found.pictures.items())
    shown = [names[i] for i in np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)]
    pictures = []
    for number, name in shown:
        one = found.sequences[number]
        count = int(one.clusters.max()) + 1
        lost = int((one.clusters < 0).sum())
        caption = f"{shortened(one.sequence.name, 100)}: {count} character{'s' * (count > 1)}"
        if lost:
            caption += f"; {lost} instances have no vector"
        if len({instance[1] for instance in one.sequence.instances}) > DRAWN:
            caption += f"; the first {DRAWN} panels"
        pictures.append(Picture(storage.read_bytes(store.uri(name)), caption))
    text = "A colour is one character within its sequence; numbers go by who comes first"
    text += ", names are those of the bank." if plan.bank else "."
    if len(shown) < len(found.sequences):
        text += f" {len(shown)} of {len(found.sequences):,} sequences; all are in clusters.json."
    return Section("Sequences", text, pictures)


def _known(plan: AssignPlan, found: Assignment) -> Section:
    assert plan.bank is not None
    examples = np.diff(plan.bank.starts, append=len(plan.bank.vectors)).tolist()
    sequences, instances = Counter[str](), Counter[str]()
    for one in found.sequences:
        for number, name in one.names.items():
            sequences[name] += 1
            instances[name] += int((one.clusters == number).sum())
    rows = [
        [name, count, sequences[name], instances[name]] for name, count in zip(plan.bank.names, examples, strict=True)
    ]
    rest = sum(int((one.clusters >= 0).sum()) for one in found.sequences) - instances.total()
    rows.append(["nobody of these", None, None, rest])
    text = "Who is nearer to the examples of a character than the threshold has its name; others stay unknown."
    return Section("Known by name", text, [Table(["name", "examples", "sequences", "instances"], rows)])


def _threshold(store: Store, plan: AssignPlan) -> Section:
    taught = plan.threshold.taught
    assert taught is not None
    thresholds = [row["threshold"] for row in taught["curve"]]
    drawing = figure(7, 4)
    axis = drawing.subplots()
    for name, colour, label in (("precision", 2, "precision"), ("recall", 3, "recall"), ("f1", 0, "F1")):
        values = [row[name] for row in taught["curve"]]
        axis.plot(thresholds, values, color=COLOURS[colour], linewidth=2.2 if name == "f1" else 1.3, label=label)
    axis.axvline(taught["threshold"], color=COLOURS[1], linestyle=":", label=f"best: {taught['threshold']:.2f}")
    if plan.threshold.value != taught["threshold"]:
        axis.axvline(plan.threshold.value, color=COLOURS[5], label=f"used: {plan.threshold.value:.2f}")
    axis.set(xlabel="threshold (distance)", ylabel="B-cubed", xlim=(0, thresholds[-1]), ylim=(0, 1.03))
    legend_above(drawing)
    caption = f"B-cubed on {taught['instances']:,} instances of {taught['sequences']:,} validation sequences."
    kept = [row for row in taught["curve"][4::5] if row["threshold"] != taught["threshold"]]
    kept = sorted([*kept, *(row for row in taught["curve"] if row["threshold"] == taught["threshold"])], key=_by)
    rows = [
        [f"{row['threshold']:.2f}{' best' * (row['threshold'] == taught['threshold'])}"]
        + [row[name] for name in ("precision", "recall", "f1")]
        for row in kept
    ]
    text = "The larger the threshold, the more are taken for the same: recall grows and precision falls."
    table = Table(["threshold", "precision", "recall", "F1"], rows)
    return Section("Threshold", text, [draw(store, "threshold", drawing, caption), table])


def _by(row: dict[str, float]) -> float:
    return row["threshold"]
