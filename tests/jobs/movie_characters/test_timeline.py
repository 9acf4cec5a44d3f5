"""`timeline` as its users run it, over a film in known colours."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from jobs.movie_characters.__main__ import app
from tests.support import colours, pictures
from tests.support.colours import BLUE, GREEN, RED


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["timeline", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def settings(tmp_path: Path, clip_folder: str) -> list[str]:
    (tmp_path / "films").mkdir()
    # Two seconds each; a cut in colour alone is one in hue.
    colours.film(tmp_path / "films" / "a film.mkv", [*(RED,) * 8, *(GREEN,) * 8, *(BLUE,) * 8])
    (tmp_path / "films" / "broken.mp4").write_bytes(b"no film")
    gallery = pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN})
    given = f"input_dir: {gallery}, model_name: {clip_folder}, embeddings: {{dtype: float32, num_cpus: 0.5}}"
    model = f"model={{by: clip, settings: {{{given}}}}}"
    return [
        f"input={tmp_path / 'films'}",
        f"output={tmp_path / 'out'}",
        model,
        "shots.detector=content",
        "shots.threshold=10",
    ]


@pytest.mark.slow
def test_a_film_becomes_a_table_and_a_picture(tmp_path: Path, settings: list[str], ray_cluster: None):
    told = run(*settings, "threshold=0.5").stdout
    assert "2 rows = 1 done + 1 rejected\nrejected: not_a_video 1" in told
    shots = pd.read_csv(tmp_path / "out" / "shots.csv")
    assert shots.answer.to_list() == ["Red", "Green", "unknown"]
    assert shots.start_s.to_list() == [0, 2, 4]
    assert shots.frames.to_list() == [2, 2, 2]
    assert (tmp_path / "out" / "timelines" / "a_film.png").exists()
    before = (tmp_path / "out" / "frames" / "a_film" / "a_film_000000.jpg").stat().st_mtime_ns
    # Nothing is decoded or embedded again but the film that failed; and without a threshold nobody is unknown.
    run(*settings)
    assert (tmp_path / "out" / "frames" / "a_film" / "a_film_000000.jpg").stat().st_mtime_ns == before
    assert "unknown" not in pd.read_csv(tmp_path / "out" / "shots.csv").answer.to_list()
    record = json.loads((tmp_path / "out" / "runs" / "timeline.json").read_text())
    assert (record["shots"], record["frames"], record["decoders"]) == (3, 6, {"pyav": 1})
    assert "other settings" in run(*settings, "every_s=2", code=2).output


def test_a_dry_run_tells_what_is_to_do(tmp_path: Path, settings: list[str]):
    told = run(*settings, "--dry-run").stdout
    assert "input: 2 films" in told and "to do: 2 films" in told
    assert not (tmp_path / "out").exists()
    assert "torchcodec" in run(*settings, "video.num_gpus=1", code=2).output
    assert "model.settings.size: there is no such setting" in run(*settings, "model.settings.size=3", code=2).output
