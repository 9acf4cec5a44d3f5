"""Explain one scene in lines of text: its source, its features, and why it is kept or not."""

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.column_rules import COLUMNS, ColumnRule
from actors.curation.selecting.filter import load_filter, place
from actors.curation.selecting.rules import steadiness
from actors.curation.selecting.select_settings import COMPARED
from actors.curation.tables import LATER, SELECT_AGAIN, more_columns, read_scenes, strings
from pipelines.curation.selecting.columns import numeric
from pipelines.curation.settings import CurationConfig

NEAR = 1000
"""Ids among which those that resemble an unknown one are looked for."""


def explain(config: CurationConfig, name: str) -> list[str]:
    """Lines about a scene: source, features among those of the corpus, filter, rules, rank and captions.

    config: the settings of the last decision; name: a scene_id, or video_id/scene_id where two videos have the same.
    Parts are read one by one. Raises ValueError where the output has no such scene, naming some that it has.
    """
    store = Store(config.output)
    scene = _find(store, name)
    lines = [f"{scene['scene_id']} of video {scene['video_id']}", *_source(store, scene)]
    if scene["error"]:
        return [*lines, *_failure(store, scene), *_captions(scene)]
    among = _among(store, scene, config)
    made = (store.read_json("plan", "settings.json") or {}).get("measured_by", {})
    lines.append("features, and the share of measured scenes that have less")
    told = [one for one in range(len(among.columns)) if among.columns[one] in FEATURES or among.varies[one]]
    width = max(14, *(len(among.columns[one]) for one in told))
    for name, below, count in ((among.columns[one], among.below[one], among.measured[one]) for one in told):
        share = "" if _missing(scene[name]) else f"{100 * below / count:5.1f} %"
        lines.append(f"  {name:{width}} {_number(scene[name]):>10} {share}".rstrip())
    words = {name: scene[name] for name in [*COLUMNS, *more_columns(store)] if isinstance(scene.get(name), str | bool)}
    lines.append("  " + ", ".join(f"{name}={str(value).lower()}" for name, value in words.items() if value != ""))
    lines.append("  measured with " + ", ".join(f"{key}={value}" for key, value in made.items()))
    lines += _filter(scene, config, made)
    lines += _rules(scene, config)
    lines += _rank(scene, config, among)
    return lines + _captions(scene)


# ------------------------------------------------------------------------------------------------------------- reading


def _parts(store: Store, folder: str, columns: list[str]) -> Iterator[pd.DataFrame]:
    again = "" if folder == "scores" else SELECT_AGAIN
    return (part.to_pandas(types_mapper=strings) for part in store.read_parts(folder, columns, LATER, again=again))


def _is(rows: pd.DataFrame, scene: Row) -> pd.Series:
    return (rows.scene_id == scene["scene_id"]) & (rows.video_id == scene["video_id"])


def _find(store: Store, name: str) -> Row:
    found: list[Row] = []
    for part in store.listed("scenes"):
        ids = store.read_whole(part, ["video_id", "scene_id"], again=SELECT_AGAIN)
        keys = ids.to_pandas(types_mapper=strings)
        hit = (keys.scene_id == name) | (keys.video_id + "/" + keys.scene_id == name)
        if hit.any():
            found += read_scenes(store, part).filter(hit.to_numpy()).to_pylist()
    # A duplicate of a scene has its id, and an error.
    sound = [row for row in found if not row["error"]] or found
    if not sound:
        near = _near(store, name)
        raise UserError(f"{store.root} has no scene {name}: it has {', '.join(near) or 'none'}")
    if len({row["video_id"] for row in sound}) > 1:
        which = ", ".join(f"{row['video_id']}/{row['scene_id']}" for row in sound)
        raise UserError(f"{len(sound)} scenes are named {name}: ask for one of {which}")
    return sound[0]


def _near(store: Store, name: str) -> list[str]:
    """Some ids that resemble one: among those that begin as it does, as far as any does."""
    longest, near = 0, []
    for part in _parts(store, "scenes", ["scene_id"]):
        ids = part.scene_id.str
        while longest < len(name) and ids.startswith(name[: longest + 1]).any():
            longest, near = longest + 1, []
        near += part.scene_id[ids.startswith(name[:longest])].tolist()[: NEAR - len(near)]
    return difflib.get_close_matches(name, near, 3, 0)


@dataclass
class _Among:
    """A scene among those of its corpus."""

    columns: list[str]
    """Numbers that are known of scenes, the seven features first."""
    passed: int = 0
    """Scenes that pass the rules."""
    better: int = 0
    """Of these, those that rank higher."""
    bar: tuple[float, str] | None = None
    """Rank and id of the last scene that is kept."""
    chosen: tuple[float, str] | None = None
    """Rank and id of the scene that stands for the same span, the same group of near-duplicates or concept."""

    def __post_init__(self) -> None:
        count = len(self.columns)
        self.below, self.measured = np.zeros(count, int), np.zeros(count, int)
        """Measured scenes that have less of each column, and that have a value."""
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)

    @property
    def varies(self) -> np.ndarray:
        """Which columns have more than one value."""
        return self._low < self._high

    def add(self, values: np.ndarray, mine: np.ndarray) -> None:
        """Count measured scenes: their values (N, C), and those of the scene (C,)."""
        there = np.isfinite(values)
        self.below += (values < mine).sum(axis=0)
        self.measured += there.sum(axis=0)
        self._low = np.minimum(self._low, np.where(there, values, np.inf).min(axis=0, initial=np.inf))
        self._high = np.maximum(self._high, np.where(there, values, -np.inf).max(axis=0, initial=-np.inf))


def _ranks(rows: pd.DataFrame, config: CurationConfig) -> np.ndarray:
    rank = rows.probability if config.select.by == "classifier" else steadiness(rows)
    return rank.to_numpy(np.float32)


def _among(store: Store, scene: Row, config: CurationConfig) -> _Among:
    among = _Among(numeric(more_columns(store)))
    mine = pd.DataFrame([scene])[among.columns].astype(np.float32).to_numpy()[0]
    rank = _ranks(pd.DataFrame([scene]), config)[0]
    columns = ["video_id", "clip_id", "scene_id", "probability", "reason", "error", "duplicate_group"]
    columns += ["concept"] if scene["reason"] == "concept_full" else []
    for part in _parts(store, "scenes", [*columns, *among.columns]):
        rows = part[part.error == ""]
        among.add(rows[among.columns].astype(np.float32).to_numpy(), mine)
        rows = rows[rows.reason.isin(COMPARED)]
        ranks = _ranks(rows, config)
        among.passed += len(rows)
        among.better += int(((ranks > rank) | ((ranks == rank) & (rows.scene_id < scene["scene_id"]))).sum())
        for value, scene_id in zip(ranks[rows.reason == ""], rows.scene_id[rows.reason == ""], strict=True):
            among.bar = min(among.bar or (math.inf, ""), (float(value), scene_id))
        if scene["reason"] == "near_duplicate":
            stands = (rows.duplicate_group == scene["duplicate_group"]) & (rows.reason != "near_duplicate")
        elif scene["reason"] == "concept_full":
            stands = (rows.concept == scene["concept"]) & (rows.reason == "")
        else:
            span = (rows.video_id == scene["video_id"]) & (rows.clip_id == scene["clip_id"])
            stands = span & ~rows.reason.isin(["near_duplicate", "same_span"])
        for value, scene_id in zip(ranks[stands], rows.scene_id[stands], strict=True):
            # Of a concept the last that is kept; of others there is one.
            among.chosen = min(among.chosen or (math.inf, ""), (float(value), scene_id))
    return among


# -------------------------------------------------------------------------------------------------------------- telling


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None) -> str:
    return "missing" if value is None or math.isnan(value) else f"{value:.4g}"


def _source(store: Store, scene: Row) -> list[str]:
    lines = [] if _missing(scene["start_s"]) else [f"  {scene['start_s']:.3f} s to {scene['end_s']:.3f} s"]
    about: Any = {}
    for rows in _parts(store, "scores", ["video_id", "scene_id", "uri", "first", "end", "written"]):
        for row in rows[_is(rows, scene)].to_dict("records"):
            about = max(about, row, key=lambda one: one.get("written", 0)) if about else row
    if about:
        cut = f"frames {about['first']} to {about['end']} of its span"
        lines.insert(0, f"  {about['uri']}" + ("" if (about["first"], about["end"]) == (0, -1) else f", {cut}"))
    if scene["width"]:
        lines.append(f"  {scene['width']} x {scene['height']} pixels, {scene['no_frames']} frames were looked at")
    return lines


def _failure(store: Store, scene: Row) -> list[str]:
    columns = ["video_id", "scene_id", "step", "code", "message", "attempts"]
    bad = [row for rows in _parts(store, "rejected", columns) for row in rows[_is(rows, scene)].to_dict("records")]
    return [f"failed: {row['code']} at {row['step']}, tried {row['attempts']} times: {row['message']}" for row in bad]


def _filter(scene: Row, config: CurationConfig, made: dict[str, Any]) -> list[str]:
    uri = place(config.output, config.filter)
    if config.select.by != "classifier" and not storage.exists(uri):
        return []
    model = load_filter(uri, made)
    if lacking := [name for name in model.features if name not in scene]:
        return [f"filter {uri} reads {', '.join(lacking)}, which scenes/ does not hold yet: run `select`"]
    rows = pd.DataFrame([scene])
    probability, *_ = model.probability(rows)
    parts = model.contributions(rows)[0]
    report = model.about["report"]
    of = f"{report['scenes']} labels of {report['videos']} videos, xgboost {model.about['versions']['xgboost']}"
    lines = [
        f"filter {uri}, from {of}",
        f"  good with probability {probability:.3f}, log-odds {parts.sum():+.2f}, which are the sum of",
        f"  {parts[-1]:+.2f} of any scene",
        *(f"  {parts[i]:+.2f} of {model.features[i]}" for i in np.argsort(-np.abs(parts[:-1]), kind="stable")),
    ]
    if not _missing(scene["probability"]) and abs(scene["probability"] - probability) > 1e-4:
        lines.append(f"  the filter has changed: scenes/ was decided with probability {scene['probability']:.3f}")
    return lines


def _rules(scene: Row, config: CurationConfig) -> list[str]:
    rules = [
        ("frozen", "longest_hold_s", "select.max_hold_s", config.select.max_hold_s, -1),
        ("too_short", "no_frames", "frames.min", config.frames.min, 1),
        ("too_long", "no_frames", "frames.max", config.frames.max, -1),
        ("static", "mean_velocity", "select.min_velocity", config.select.min_velocity, 1),
        ("cut_inside", "max_rgb_diff", "select.max_rgb_diff", config.select.max_rgb_diff, -1),
    ]
    lines = ["rules"]
    for reason, feature, setting, threshold, side in rules:
        if _missing(scene[feature]):
            lines.append(f"  {reason:10} not known: {feature} is missing")
            continue
        margin = side * (scene[feature] - threshold)
        broken = "broken by" if margin < 0 else "kept by"
        lines.append(
            f"  {reason:10} {broken} {abs(margin):.4g}: {feature} {scene[feature]:.4g}, {setting} {threshold:g}"
        )
    return lines + [_column_rule(scene, rule) for rule in config.select.column_rules]


def _column_rule(scene: Row, rule: ColumnRule) -> str:
    value = scene.get(rule.column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"  {rule.name:10} not known: {rule.column} is missing"
    broken = "broken" if rule.broken(pd.Series([value]))[0] else "kept"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
    return f"  {rule.name:10} {broken}: {rule.column} {shown}, dropped where {rule.meaning}"


def _rank(scene: Row, config: CurationConfig, among: _Among) -> list[str]:
    word = "probability" if config.select.by == "classifier" else "steadiness"
    own = float(_ranks(pd.DataFrame([scene]), config)[0])
    lines = ["kept" if scene["kept"] else f"dropped: {scene['reason']}"]
    if scene["reason"] not in COMPARED:
        return lines
    lines.append(f"  {word} {own:.4g}: rank {among.better + 1} of {among.passed} that pass the rules")
    shared = {"same_span": "span", "near_duplicate": "group of near-duplicates", "concept_full": "concept"}.get(
        scene["reason"]
    )
    if shared and among.chosen:
        lines.append(f"  {among.chosen[1]} of the same {shared} has {among.chosen[0]:.4g}")
    if among.bar and not scene["kept"]:
        lines.append(f"  the last that is kept, {among.bar[1]}, has {among.bar[0]:.4g}, {among.bar[0] - own:.4g} more")
    elif among.bar:
        lines.append(f"  the last that is kept, {among.bar[1]}, has {among.bar[0]:.4g}, {own - among.bar[0]:.4g} less")
    return lines


def _captions(scene: Row) -> list[str]:
    told = [(name, scene.get(name)) for name in ("caption", "recaption")]
    return [f"{name}: {text}" for name, text in told if text] or ["no caption"]
