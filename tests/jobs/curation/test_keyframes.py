"""Key frames that the decode pass leaves: later verbs open no film, a scene has them once, older outputs work on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.core.store import Store
from actors.curation.cutting.keyframes import decode_jpeg
from actors.curation.tables import CAPTIONS, EVALUATION
from pipelines.curation.selecting.annotate import key_frames, scenes_to_label, with_key_frames
from pipelines.curation.selecting.label_settings import AnnotateConfig
from tests.support import corpus, films
from tests.support.corpus import run_here
from tests.support.servers import Gemini

SECONDS = 6
KEPT = 4
STAMPS = {f"a, {i}": [24 * i, 24 * i + 12, 24 * i + 18] for i in range(SECONDS)}
"""Of a scene of a second that is sampled every 6 frames, by its caption: the frames 0, 2 and 3 of four."""


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film of six scenes, all sound, and the output of a run that keeps four of them."""
    folder = tmp_path_factory.mktemp("made")
    films.film(folder / "films" / "a.mp4", shots=(48,) * 4)
    lines = [f'a,a.mp4,{i},{i + 1},"a, {i}"' for i in range(SECONDS)]
    (folder / "films" / "scenes.csv").write_text("\n".join(["video_id,url,start,end,caption", *lines]))
    rules = ["select.max_rgb_diff=60000", "select.min_velocity=0", f"select.count={KEPT}"]
    where = [f"input={folder / 'films' / 'scenes.csv'}", f"output={folder / 'out'}"]
    run_here("run", *where, *rules, "frames.size=64", "latents.model=tiny", "write.batch_size=4")
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "out", tmp_path / "out")


@pytest.fixture
def no_films(made: Path, tmp_path: Path) -> Any:
    """The films are elsewhere meanwhile."""
    (made / "films").rename(made / "gone")
    yield
    (made / "gone").rename(made / "films")


def service(gemini: Gemini) -> list[str]:
    return [f"captions.endpoint={gemini.endpoint}", "captions.pause_s=0.01"]


def clip(folder: str) -> list[str]:
    return [
        f"embeddings.model={folder}",
        "embeddings.dtype=float32",
        "embeddings.num_cpus=0.5",
        "evaluate.resamples=99",
    ]


def asked(gemini: Gemini) -> dict[str, list[int]]:
    """The frames that were sent, by caption."""
    return {caption: [films.read_stamp(picture) for picture in pictures] for caption, pictures in gemini.asked}


@pytest.mark.slow
def test_without_the_films_scenes_are_captioned_evaluated_and_labelled(
    output: Path, no_films: None, gemini: Gemini, clip_folder: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    assert f"captions: {KEPT} made, 0 failed" in run_here("recaption", output, *service(gemini)).output
    assert f"pictures: {KEPT} scenes from keyframes/, 0 from the 0 films opened" in caplog.text
    assert asked(gemini).items() <= STAMPS.items() and len(asked(gemini)) == KEPT
    # Whole pictures, not the squares that are measured.
    assert {picture.shape for _, pictures in gemini.asked for picture in pictures} == {(120, 160, 3)}

    run_here("evaluate", output, *service(gemini), *clip(clip_folder))
    rows = Store(str(output)).read_table("evaluation", EVALUATION).to_pandas()
    assert len(rows) >= KEPT and (rows.error == "").all() and (rows.frames == 3).all()
    assert (rows.pictures == "keyframes").all()
    assert json.loads((output / "evaluation.json").read_text())["pictures"] == "keyframes"

    store, scenes = Store(str(output)), scenes_to_label(Store(str(output)), 3).scenes
    assert AnnotateConfig(str(output), show="keyframes").show == "keyframes"
    assert with_key_frames(store, scenes) == set(range(SECONDS)) == set(range(len(scenes)))
    rows_to_label: list[Any] = scenes.to_dict("records")
    for row in rows_to_label:
        shown = [films.read_stamp(decode_jpeg(data)) for data in key_frames(store, row)]
        assert shown == STAMPS[row["caption"]]


@pytest.mark.slow
def test_an_output_of_an_earlier_version_opens_films_and_the_pictures_are_the_same(
    output: Path, gemini: Gemini, clip_folder: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    shutil.rmtree(output / "keyframes")
    run_here("recaption", output, *service(gemini))
    assert f"pictures: 0 scenes from keyframes/, {KEPT} from the 1 films opened" in caplog.text
    assert asked(gemini).items() <= STAMPS.items() and len(asked(gemini)) == KEPT
    run_here("evaluate", output, *service(gemini), *clip(clip_folder))
    assert "have no key frames: every second sampled frame is scored" in caplog.text
    rows = Store(str(output)).read_table("evaluation", EVALUATION).to_pandas()
    assert (rows.pictures == "sampled").all() and (rows.frames == 2).all()
    # Scores of the one kind do not count for the other.
    told = run_here("evaluate", output, *service(gemini), *clip(clip_folder), "evaluate.pictures=keyframes").output
    assert f"{len(rows)} scored now" in told
    assert with_key_frames(Store(str(output)), scenes_to_label(Store(str(output)), 3).scenes) == set()
    # The same command goes on without asking for what is there, and measures nothing again.
    before = corpus.contents(output)
    run_here("run", output)
    assert corpus.contents(output) == before and not (output / "keyframes").exists()


def test_a_torn_part_costs_a_decode_and_no_scene(output: Path, gemini: Gemini):
    for part in (output / "keyframes").iterdir():
        part.write_bytes(part.read_bytes()[:-7])
    run_here("recaption", output, *service(gemini))
    assert asked(gemini).items() <= STAMPS.items() and len(asked(gemini)) == KEPT
    assert (Store(str(output)).read_table("captions", CAPTIONS).to_pandas().code == "").all()


def test_a_scene_has_key_frames_once_where_a_run_died_before_its_scores_were_there(output: Path):
    corpus.assert_key_frames(output)
    lost = sorted((output / "scores").iterdir())[0]
    lost.unlink()
    # Scenes come in other parts than before: what the dead run left belongs to no row.
    run_here("run", output, "write.batch_size=1")
    corpus.assert_key_frames(output)
    rows = corpus.table(output, "scores")
    assert sorted(rows.scene_id[rows.scene_id != ""]) == sorted(set(rows.scene_id) - {""}) and len(rows) >= SECONDS
