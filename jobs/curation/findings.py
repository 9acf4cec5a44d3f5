"""What a filter, captions and an evaluation have to show in the report: each only where it has been made."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.core.store import Store
from actors.curation.selecting.filter import load_filter, place
from pipelines.curation.rows import captions

PAIRS = 24
"""Captions that are shown beside their recaptions, at most."""
MEASURES = {
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "brier": "Brier score (lower is better)",
    "gain": "accuracy above always answering one",
}


@dataclass(frozen=True)
class Chart:
    """Points on two linear axes, in the units of a small picture."""

    points: list[dict[str, Any]]
    """x, y, low and high (the ends of an interval) in the picture, and words."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: float | None = None
    """y of a level to compare with."""

    WIDTH, HEIGHT = 252, 176
    LEFT, RIGHT, TOP, BOTTOM = 34, 244, 10, 148

    @property
    def path(self) -> str:
        """SVG path through the points."""
        return "M" + "L".join(f"{point['x']:g} {point['y']:g}" for point in self.points)


def _x(share: float) -> float:
    return round(Chart.LEFT + share * (Chart.RIGHT - Chart.LEFT), 1)


def _y(share: float) -> float:
    return round(Chart.BOTTOM - share * (Chart.BOTTOM - Chart.TOP), 1)


def filter_findings(store: Store, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What `fit-filter` reported of the filter in use or at hand; None where there is none."""
    uri = place(store.root, settings["filter"])
    try:
        report = load_filter(uri).about["report"]
    except ValueError as error:
        if settings["filter"] is None and store.read_json("filter.json") is None:
            return None
        return {"uri": uri, "wrong": str(error)}
    importance = sorted(report["importance"].items(), key=lambda item: -item[1])
    return {
        "uri": uri,
        "wrong": "",
        "report": report,
        "metrics": [{"name": MEASURES.get(name, name), **values} for name, values in report["metrics"].items()],
        "importance": importance,
        "calibration": _calibration(report["calibration"]),
        "learning": _learning(report["learning_curve"]),
    }


def _calibration(bins: list[dict[str, Any]]) -> Chart:
    points = [
        {
            "x": _x(one["predicted"]),
            "y": _y(one["good"]),
            "words": f"{one['scenes']:,} scenes called good with {one['predicted']:.2f}: {one['good']:.0%} are",
        }
        for one in bins
    ]
    shares = [(share, f"{share:g}") for share in (0, 0.5, 1)]
    return Chart(points, [(_x(share), text) for share, text in shares], [(_y(share), text) for share, text in shares])


def _learning(curve: list[dict[str, Any]]) -> Chart:
    parts = [{**part["metrics"]["accuracy"], "videos": part["videos"], "scenes": part["scenes"]} for part in curve]
    least = np.floor(10 * min(min(part["low"], part["always"]) for part in parts)) / 10
    most = max(part["scenes"] for part in parts)

    def up(value: float) -> float:
        return _y((value - least) / (1 - least))

    points = [
        {
            "x": _x(part["scenes"] / most),
            "y": up(part["value"]),
            "low": up(part["low"]),
            "high": up(part["high"]),
            "words": f"from {part['scenes']:,} scenes of {part['videos']:,} videos: accuracy {part['value']:.3f}, "
            f"{part['low']:.3f} to {part['high']:.3f}",
        }
        for part in parts
    ]
    ticks = [least, (1 + least) / 2, 1.0]
    return Chart(
        points,
        [(_x(0), "0"), *((point["x"], f"{part['scenes']:,}") for point, part in zip(points, parts, strict=True))],
        [(up(value), f"{value:.2g}") for value in ticks],
        up(parts[-1]["always"]),
    )


def evaluation_findings(store: Store) -> dict[str, Any] | None:
    """evaluation.json as `evaluate` left it; None where there is none."""
    return store.read_json("evaluation.json")


def caption_pairs(store: Store) -> dict[tuple[str, str], tuple[str, str]]:
    """A seeded sample of captions and recaptions, by (video_id, scene_id); empty where there are none."""
    if not store.parts("captions"):
        return {}
    rows = captions(store, "caption")
    rows = rows[rows.code == ""].sort_values(["video_id", "scene_id"])
    drawn = rows.sample(min(PAIRS, len(rows)), random_state=0).to_dict("records")
    return {(row["video_id"], row["scene_id"]): (row["caption"] or "", row["recaption"] or "") for row in drawn}
