"""Scores that are added to a corpus: measured in the decode pass or later, once, with the same values."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from actors.core.errors import UserError
from actors.core.stage import codes_in
from actors.core.store import Store
from actors.curation.measuring.measured import families_now
from actors.curation.measuring.scoring import PartScorer
from jobs.curation.verb import load_settings
from pipelines.curation.cutting.frames import bare
from pipelines.curation.measuring.families import columns_now
from pipelines.curation.measuring.measure import left, tasks_of
from pipelines.curation.measuring.measure_settings import MeasureConfig, check_scores
from pipelines.curation.rows import rows_now
from pipelines.curation.settings import CurationConfig
from tests.support import films
from tests.support.corpus import run_here

ROOT = Path(__file__).parents[3]
HERE = "tests.support.families:"
BOTH = f"scores=[{HERE}Brightness,{HERE}Change]"
SECONDS = 6
SETTINGS = ("frames.size=64", "latents.model=tiny", "write.batch_size=4", "select.max_rgb_diff=60000")


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film of six scenes, one of them too short, and the output of a run without further scores."""
    folder = tmp_path_factory.mktemp("made")
    films.film(folder / "films" / "a.mp4", shots=(48,) * 4)
    ends = [1, 2, 3, 4, 5, 5.5]
    captions = ["one", "bad two", "three words here", "none", "five", "six"]
    lines = [f"a,a.mp4,{i},{end},{said}" for i, (end, said) in enumerate(zip(ends, captions, strict=True))]
    (folder / "films" / "scenes.csv").write_text("\n".join(["video_id,url,start,end,caption", *lines]))
    run_here("run", *where(folder, "out"), *SETTINGS)
    return folder


def where(folder: Path, output: str) -> list[str]:
    return [f"input={folder / 'films' / 'scenes.csv'}", f"output={folder / output}"]


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "out", tmp_path / "out")


def scores(output: Path, *columns: str) -> pd.DataFrame:
    return rows_now(Store(str(output)), columns).scenes.set_index("scene_id").sort_index()[list(columns)]


def parts(output: Path) -> dict[Path, tuple[float, bytes]]:
    files = sorted((output / "measured").rglob("*.parquet"))
    return {file: (os.stat(file).st_mtime_ns, file.read_bytes()) for file in files}


def test_families_are_added_to_a_finished_corpus_once(output: Path):
    told = run_here("measure", output, BOTH).output
    assert f"{HERE}Brightness: 6 scenes" in told and "1 could not be measured (odd 1)" in told
    rows = scores(output, "brightness", "pictures", "change", "word", "mean_colour")
    assert rows.brightness.between(0.05, 0.95).all() and (rows.pictures == [3, 3, 3, 3, 3, 2]).all()
    failed = rows.index[1]
    assert rows.change.isna().to_list() == [name == failed for name in rows.index]
    assert rows.word.drop(failed).to_list() == ["one", "three", "", "five", "six"]
    assert all(len(colour) == 3 for colour in rows.mean_colour.drop(failed))

    # Done: nothing is measured, and Ray is not asked.
    before = parts(output)
    assert "nothing to do" in run_here("measure", output, BOTH).output
    assert parts(output) == before

    # Another setting is another version: all is measured again, and counts from then on.
    run_here("measure", output, BOTH, "measure.own.Change.scale=2")
    twice = scores(output, "change")
    np.testing.assert_allclose(twice.change, 2 * rows.change, rtol=1e-6)
    assert before.items() <= parts(output).items()


def test_a_part_that_is_torn_or_missing_is_measured_again(output: Path):
    run_here("measure", output, BOTH)
    rows, before = scores(output, "brightness", "change"), parts(output)
    assert len(before) == 4
    torn, gone, *_ = before
    torn.write_bytes(before[torn][1][:-20])
    gone.unlink()
    with pytest.raises(UserError, match=r"scores of tests.*measure .*scores=\["):
        scores(output, "brightness", "change")
    run_here("measure", output, BOTH)
    pd.testing.assert_frame_equal(scores(output, "brightness", "change"), rows)
    assert parts(output).keys() == before.keys()


def test_the_decode_pass_measures_the_same(made: Path, output: Path):
    run_here("measure", output, BOTH)
    told = run_here("run", *where(made, "passed"), *SETTINGS, BOTH).output
    assert "Brightness: 6 scenes; nothing to do" in told and "Change: 6 scenes; nothing to do" in told
    names = ["brightness", "pictures", "change", "word"]
    pd.testing.assert_frame_equal(scores(made / "passed", *names), scores(output, *names))
    colours = [scores(folder, "mean_colour").mean_colour.dropna() for folder in (made / "passed", output)]
    assert len(colours[0]) == 5 and all(map(np.array_equal, *colours))


def test_without_stored_key_frames_films_are_opened(output: Path):
    run_here("measure", output, f"scores=[{HERE}Brightness]")
    rows = scores(output, "brightness")
    shutil.rmtree(output / "keyframes")
    shutil.rmtree(output / "measured")
    run_here("measure", output, f"scores=[{HERE}Brightness]")
    pd.testing.assert_frame_equal(scores(output, "brightness"), rows)


def test_scores_of_captions_follow_them(output: Path):
    run_here("measure", output, f"scores=[{HERE}Words]")
    rows = scores(output, "words", "new_words")
    assert rows.words.to_list() == [1, 2, 3, 1, 1, 1] and rows.new_words.isna().all()
    before = parts(output)
    answer = recaption(output, rows.index[2], "a b c d e")
    run_here("measure", output, f"scores=[{HERE}Words]")
    rows = scores(output, "words", "new_words")
    assert rows.new_words.fillna(0).to_list() == [0, 0, 5, 0, 0, 0]
    assert not set(parts(output)) & set(before), "the version before is let go of"
    assert "nothing to do" in run_here("measure", output, f"scores=[{HERE}Words]").output
    assert answer.is_file()


def recaption(output: Path, scene_id: str, text: str) -> Path:
    """Store an answer as `recaption` does."""
    import pyarrow as pa

    from actors.curation.tables import CAPTIONS

    row: dict[str, Any] = dict.fromkeys(CAPTIONS.names)
    row |= {"video_id": "a", "scene_id": scene_id, "caption": "", "recaption": text, "code": "", "written": 1.0}
    name = Store(str(output)).write_part("captions", pa.Table.from_pylist([row], CAPTIONS), [scene_id])
    return output / "captions" / name


def test_a_family_may_look_at_all_scenes_of_a_video(output: Path):
    run_here("measure", output, f"scores=[{HERE}Video]")
    rows = scores(output, "seen", "wide")
    assert (rows.seen == 6).all() and (rows.wide == 1).all()


def test_what_is_stored_says_what_it_is(output: Path):
    run_here("measure", output, BOTH)
    store = Store(str(output))
    assert {name: str(kind) for name, kind in columns_now(store).items()}["mean_colour"].startswith("fixed_size_list")
    for family in families_now(store):
        for name in store.parts(family.folder):
            part = pq.read_table(output / family.folder / name)
            assert part.schema.equals(family.schema)
            assert part["computed"].to_pylist() == [""] * len(part)
    about = json.loads((output / "measured" / f"{HERE.replace(':', '.')}Change.json").read_text())
    assert (about["scenes"], about["failed"], about["settings"]["scale"]) == (6, {"odd": 1}, 1.0)


def test_what_failed_is_tried_again_on_request(made: Path, output: Path):
    (made / "films").rename(made / "gone")
    told = run_here("measure", output, "scores=sound").output
    (made / "gone").rename(made / "films")
    assert "6 could not be measured (not_found 6)" in told
    assert scores(output, "has_sound").has_sound.isna().all()
    assert "nothing to do" in run_here("measure", output, "scores=sound").output
    told = run_here("measure", output, "scores=sound", "measure.retry=true").output
    assert "sound: 6 scenes; 2 parts now" in told and "could not" not in told
    rows = scores(output, "has_sound", "loudness")
    assert (rows.has_sound == False).all() and rows.loudness.isna().all()  # noqa: E712


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "Name the scores to add"),
        (["scores=[txt]"], "there is no family txt"),
        (["scores=[nowhere.module:Family]"], "cannot be loaded"),
        ([f"scores=[{HERE}Nothing]"], "cannot be loaded"),
        ([f"scores=[{HERE}Change]", "measure.own.Change.scale=much"], "measure.own.Change: scale"),
        ([f"scores=[{HERE}Change]", "measure.own.Change.scales=2"], "measure.own.Change: scales"),
    ],
)
def test_what_cannot_be_measured_is_said_before_any_work(output: Path, scores: list[str], said: str):
    result = run_here("measure", output, *scores, code=2)
    assert said in result.output
    assert not (output / "measured").exists()


def test_the_family_of_the_documentation_works(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scores.md").read_text(), re.DOTALL)[0]
    assert len(code.splitlines()) <= 30
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "colour.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "mypackage.colour:Colour"
    check_scores([name], MeasureConfig(own={"Colour": {"least": 8}}))
    config = load_settings(CurationConfig, [str(output), f"scores={name}", "measure.own.Colour.least=8"])
    (task,) = tasks_of(config)
    store = Store(str(output))
    made = PartScorer(store, task, bare(config, keyframes=512), {})({"part": np.array(left(store, task))})
    assert made["scenes"].sum() == 6 and not codes_in(made) and not left(store, task)
    shares = pq.read_table(output / task.folder)["coloured"].to_numpy()
    assert ((shares >= 0) & (shares <= 1)).all()
