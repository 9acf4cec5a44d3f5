"""What was compacted is what it was: for resuming, selecting, measuring more, exporting and searching for pictures."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from actors.core.catalog import GENERATION
from actors.core.lease import Lease
from actors.core.store import Store
from actors.curation.measuring import measured
from actors.curation.tables import PICTURES, PLACES, SCENES
from pipelines.curation import compact
from pipelines.curation.rows import rows_now
from tests.support import films
from tests.support.corpus import run_here

SETTINGS = ("frames.size=64", "latents.model=tiny", "write.batch_size=2", "select.max_rgb_diff=60000")
BRIGHT = "scores=[tests.support.families:Brightness]"


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two films of six scenes, and the output of a run."""
    folder = tmp_path_factory.mktemp("made")
    lines = ["video_id,url,start,end,caption"]
    for name in "ab":
        films.film(folder / "films" / f"{name}.mp4", shots=(48,) * 4)
        lines += [f"{name},{name}.mp4,{i},{end},scene {i}" for i, end in enumerate([1, 2, 3, 4, 5, 6])]
    (folder / "films" / "scenes.csv").write_text("\n".join(lines))
    run_here("run", *where(folder, "out"), *SETTINGS)
    return folder


def where(folder: Path, output: str) -> list[str]:
    return [f"input={folder / 'films' / 'scenes.csv'}", f"output={folder / output}"]


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "out", tmp_path / "out")


def scenes(output: Path) -> pd.DataFrame:
    return Store(str(output)).read_table("scenes", SCENES).to_pandas().set_index("scene_id").sort_index()


def brightness(output: Path) -> pd.Series:
    return rows_now(Store(str(output)), ["brightness"]).scenes.set_index("scene_id").brightness.sort_index()


def names(output: Path, folder: str) -> list[str]:
    return Store(str(output)).parts(folder)


def test_compact_keeps_the_corpus(output: Path):
    before, shown = scenes(output), (output / "report.html").read_text().count("data:image/jpeg")
    count = len(names(output, "scores"))
    assert count > 2 and shown
    objects = Counter(path.relative_to(output).parts[0] for path in output.rglob("*") if path.is_file())
    assert all(0 < objects[folder] <= count for folder in ("scores", "thumbnails", "keyframes"))
    assert objects.total() <= 3 * count + objects["clips"] + 20, "no other object is one of a part or a scene"
    assert f"compacted {count} parts of scores/" in run_here("compact", output).output
    for folder in ("scores", "thumbnails", "keyframes"):
        (only,) = names(output, folder)
        assert only.startswith(GENERATION)
    places = Store(str(output)).read_table("places", PLACES).to_pandas()
    assert set(places.part) == set(names(output, "scores")) and set(places[PICTURES]) == set(names(output, "keyframes"))
    run_here("select", output)
    pd.testing.assert_frame_equal(scenes(output), before)
    assert (output / "report.html").read_text().count("data:image/jpeg") == shown
    assert "compacted 0 parts" in run_here("compact", output).output


def test_who_compacts_beside_a_run_is_told(output: Path):
    count = len(names(output, "scores"))
    for held in ("score-0", "score-6", "compact"):
        with Lease(Store(str(output)), held):
            result = run_here("compact", output, code=2)
            assert "another run is at work" in result.output and len(names(output, "scores")) == count
            if held == "score-6":
                assert f"compacted {count} parts" in run_here("compact", output, "--force").output
                count = 1
    assert not list((output / "runs").glob("*.lease"))


def test_a_run_goes_on_from_compacted_parts_and_measures_nothing_twice(made: Path, output: Path):
    run_here("compact", output)
    run_here("run", *where(made, "out")[:1], f"output={output}", *SETTINGS)
    assert "measured" not in json.loads((output / "run.json").read_text())
    assert len(names(output, "scores")) == 1


def test_a_family_measures_slices_of_compacted_parts(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = shutil.copytree(output, tmp_path / "other")
    run_here("measure", other, BRIGHT)
    run_here("compact", output)
    monkeypatch.setattr(measured, "SLICE_ROWS", 5)
    run_here("measure", output, BRIGHT)
    family = measured.families_now(Store(str(output)))[0]
    assert names(output, family.folder) == names(output, "scores"), "slices became one part"
    pd.testing.assert_series_equal(brightness(output), brightness(other))
    assert "nothing to do" in run_here("measure", output, BRIGHT).output
    run_here("compact", other)
    pd.testing.assert_series_equal(brightness(output), brightness(other))


def test_compaction_asks_for_no_more_memory_than_a_node_has():
    def node(memory: float, alive: bool = True) -> dict[str, object]:
        return {"Resources": {"memory": memory}, "Alive": alive}

    assert compact._reserved([node(1e9), node(64e9)]) == {"memory": compact.MEMORY_BYTES}
    assert compact._reserved([node(1e9), node(64e9, alive=False)]) == {"memory": 10**9}
    assert compact._reserved([{"Resources": {}, "Alive": True}]) == {}


def test_a_run_compacts_what_it_writes(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compact, "MANY_PARTS", 2)
    run_here("run", *where(made, "compacted"), *SETTINGS)
    parts = names(made / "compacted", "scores")
    assert any(name.startswith(GENERATION) for name in parts) and len(parts) < len(names(made / "out", "scores"))
    assert len(list((made / "compacted" / "scores").iterdir())) == len(parts), "what was compacted is gone"
    pd.testing.assert_frame_equal(scenes(made / "compacted"), scenes(made / "out"))
