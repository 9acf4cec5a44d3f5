"""Clips of a film are written whatever becomes of the process that decodes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core.child import CHILD, Child
from actors.core.store import Store
from actors.curation.exporting.clips import ClipsConfig
from actors.curation.exporting.export import ExportJob, export_films
from actors.media.film import VideoConfig
from tests.support import films


@pytest.mark.parametrize(("deaths", "errors"), [(1, {""}), (2, {"crashed"})])
def test_a_process_that_dies_once_costs_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, errors: set[str]
) -> None:
    film = films.film(tmp_path / "a.mp4", (24, 24, 24))
    wanted = [{"scene_id": f"a.{i}", "start_s": float(i), "end_s": i + 1.0, "steady": True} for i in range(3)]
    start, left = Child._start, [deaths]

    def doomed(self: Child) -> Any:
        pipe = start(self)
        if left[0]:
            left[0] -= 1
            self.interrupt()
        return pipe

    CHILD.kill()
    monkeypatch.setattr(Child, "_start", doomed)
    job = ExportJob(Store(str(tmp_path / "out")), ClipsConfig(), VideoConfig(), None)
    about = {"video_id": "a", "uri": str(film), "wanted": json.dumps(wanted)}
    rows = list(export_films({name: np.array([value]) for name, value in about.items()}, job))
    assert sorted(row["scene_id"][0] for row in rows) == ["a.0", "a.1", "a.2"]
    assert {row["error"][0] for row in rows} == errors
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == (3 if errors == {""} else 0)
    CHILD.kill()
