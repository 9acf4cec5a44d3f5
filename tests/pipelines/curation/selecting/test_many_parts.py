"""A selection over many parts, held against what pandas says of all rows at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pipelines.curation.rows
import pipelines.curation.selecting.select
from actors.core.store import Store
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.tables import PLACES, REJECTED, SCENES
from pipelines.curation.rows import Ranges, failures, how_far
from pipelines.curation.selecting.select import select
from tests.pipelines.curation.outputs import Row, config, film, scene, write_plan, write_scores

VIDEOS, SCENES_A_VIDEO = 30, 12
TABLES = (("scenes", SCENES), ("places", PLACES), ("rejected", REJECTED))


def random_rows(random: np.random.Generator) -> list[Row]:
    """Rows with many equal ranks and hashes, with gaps and faults; a third is made a second time."""
    rows = []
    for video in random.permutation(VIDEOS + 2).tolist():
        for place in range(SCENES_A_VIDEO):
            # Ids do not sort as they are numbered, and two videos share those of their scenes.
            name = f"v{video % 29}.{place // 3}_{place % 3}"
            about: Row = {
                "video_id": f"v{video}",
                "ordinal": place,
                "mean_velocity": random.choice([0.05, 1.0, 2.0, np.nan], p=[0.1, 0.4, 0.4, 0.1]),
                "max_velocity": random.choice([2.0, 4.0]),
                "no_frames": int(random.choice([2, 8, 20])),
                "phash": bytes([number] * 24) if (number := int(random.integers(60))) else None,
                "written": random.random(),
            }
            failed = {"error": "truncated"} if random.random() < 0.1 else {}
            rows.append(scene(name, **about | failed))
            if random.random() < 0.3:
                again = {"error": "crashed"} if random.random() < 0.5 else {"mean_velocity": 1.5}
                rows.append(scene(name, **about | again | {"written": random.random()}))
        about = {"decoded": 9 + video, "source": 10, "decoder": "pyav"}
        rows.append(film(f"v{video}", SCENES_A_VIDEO, **about, **({"error": "truncated"} if video == 3 else {})))
    return rows


def straight(rows: pd.DataFrame, plan: list[str], select: SelectConfig) -> pd.DataFrame:
    """Video, scene, reason and group of all scenes, by the words of the documentation."""
    rows = rows[rows.video_id.isin(plan)]
    rows = rows.assign(sound=rows.error == "").sort_values(["sound", "written"])
    rows = rows.drop_duplicates(["video_id", "scene_id"], keep="last")
    rows = rows.assign(index=rows.video_id.map(plan.index)).sort_values(["index", "ordinal"]).reset_index(drop=True)
    rows["reason"] = ""
    rules = {
        "too_short": rows.no_frames < 4,
        "unmeasured": rows.mean_velocity.isna(),
        "static": rows.mean_velocity < 0.1,
    }
    for reason, broken in rules.items():
        rows.loc[rows.sound & (rows.reason == "") & broken, "reason"] = reason
    rows["rank"] = (rows.mean_velocity / rows.max_velocity).astype(np.float32)
    passed = rows[rows.sound & (rows.reason == "")]
    best = passed.sort_values(["rank", "scene_id", "video_id"], ascending=[False, True, True])
    groups: dict[Any, int] = {}
    shared = rows.phash[rows.phash.notna() & rows.phash.duplicated(keep=False)]
    for value in shared if select.dedupe is not None else ():
        groups.setdefault(value, len(groups))
    rows["group"] = rows.phash.map(groups)
    unlike = best[~best.index.isin(best[rows.group[best.index].notna() & best.phash.duplicated()].index)]
    left = unlike.drop_duplicates(["video_id", "clip_id"])
    most = int(select.fraction * len(passed)) if select.fraction is not None else select.count
    rows.loc[passed.index, "reason"] = "near_duplicate"
    rows.loc[unlike.index, "reason"] = "same_span"
    rows.loc[left.index, "reason"] = "not_selected"
    rows.loc[left.index[:most], "reason"] = ""
    return rows[["video_id", "scene_id", "reason", "error", "group"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [SelectConfig(), SelectConfig(count=25), SelectConfig(dedupe=0, fraction=0.2), SelectConfig(dedupe=0)]
)
def test_of_many_parts_what_is_kept_is_what_pandas_keeps_of_all_rows(
    tmp_path: Path, how: SelectConfig, monkeypatch: pytest.MonkeyPatch
):
    random = np.random.default_rng(how.count or 0)
    store, rows = Store(str(tmp_path)), random_rows(random)
    for start in range(0, len(rows), 37):
        write_scores(store, *rows[start : start + 37])
    # Of two videos there is no word in the plan.
    plan = [f"v{number}" for number in random.permutation(VIDEOS)]
    bad = scene("w.0_0", error="bad_span", step="plan", video_index=VIDEOS)
    write_plan(store, dict.fromkeys(plan, SCENES_A_VIDEO), [bad])
    # A few videos are held at once, and at the end all.
    monkeypatch.setattr(pipelines.curation.rows, "RANGE_ROWS", 200)
    monkeypatch.setattr(pipelines.curation.selecting.select, "PART_ROWS", 75)
    monkeypatch.setattr(pipelines.curation.selecting.select, "PARTS", 2)
    made = select(replace(config(tmp_path), select=how))
    assert len(Ranges(store)) > 3 and len(store.listed("scenes")) == 5
    assert made.expected == VIDEOS * SCENES_A_VIDEO + 1
    assert made.costs["films"]["worst"] == f"v{VIDEOS - 1}"
    found = store.read_table("scenes", SCENES).to_pandas()
    scenes = pd.DataFrame([row for row in rows if row["scene_id"]])
    wanted = straight(scenes, plan, how)
    rest = pd.DataFrame([{**bad, "reason": "", "group": np.nan}])[list(wanted)]
    wanted = pd.concat([wanted, rest], ignore_index=True)
    for name, column in (("group", "duplicate_group"), *((name, name) for name in wanted if name != "group")):
        pd.testing.assert_series_equal(found[column], wanted[name], check_names=False, check_dtype=False)
    assert {*wanted.reason} >= {"", "same_span", "too_short", "unmeasured", "static"}
    lost = store.read_table("rejected", REJECTED).to_pandas()
    assert len(lost) == (wanted.error != "").sum() + 1
    assert list(lost.video_id[lost.scene_id == ""]) == ["v3"]
    if how.fraction is None:
        return
    tables = [store.read_table(folder, schema) for folder, schema in TABLES]
    failed, far = failures(store), how_far(store)
    monkeypatch.undo()
    again = select(replace(config(tmp_path), select=how))
    assert len(Ranges(store)) == len(store.listed("scenes")) == 1
    assert (again.expected, again.costs) == (made.expected, made.costs)
    for (folder, schema), before in zip(TABLES, tables, strict=True):
        assert store.read_table(folder, schema).equals(before), folder
    assert how_far(store) == far
    pd.testing.assert_frame_equal(failures(store), failed)
