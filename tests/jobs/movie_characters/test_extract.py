"""`extract` as its users run it: the reference system's options, every row of the table accounted for, resume."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.core.settings import load
from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.extract import ExtractConfig
from tests.support import films

TABLE = """\
start_time,end_time,who
00:00:01,00:00:01.5,Mr Bean
2,2.25,Mr Bean
00:00:02,00:00:01,Ann
soon,later,Ann
00:01:00,00:01:01,Ann
00:00:00,00:00:00,Ann
00:00:00,00:00:00,unlabelled
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films.film(tmp_path_factory.mktemp("film") / "film.mp4")


def run(folder: Path, film: Path, *more: str, category: str = "who", code: int = 0, table: str = TABLE) -> Result:
    (folder / "table.csv").write_text(table)
    options = ["--csv", str(folder / "table.csv"), "--video", str(film), "--category", category]
    result = CliRunner().invoke(app, ["extract", *options, "--output", str(folder / "out"), *more])
    assert result.exit_code == code, result.output
    return result


def test_every_row_is_frames_or_says_why_not(tmp_path: Path, film: Path):
    told = run(tmp_path, film, "--show").stdout
    assert "7 rows = 3 done + 4 rejected" in told
    assert "rejected: bad_interval 1, bad_time 1, no_frames 1, bad_category 1" in told
    names = sorted(file.name for file in (tmp_path / "out" / "Mr_Bean").iterdir())
    assert names == [f"Mr_Bean_frame_{n:04d}.jpg" for n in range(1, 21)]
    assert [file.name for file in (tmp_path / "out" / "Ann").iterdir()] == ["Ann_frame_0001.jpg"]
    assert "Mr_Bean_frame_0020" in (tmp_path / "out" / "extract.html").read_text()
    record = json.loads((tmp_path / "out" / "runs" / "extract.json").read_text())
    assert record["files"] == {"Ann": 1, "Mr_Bean": 20}


def test_the_same_command_makes_only_what_is_missing(tmp_path: Path, film: Path):
    run(tmp_path, film)
    gone, left = (tmp_path / "out" / "Mr_Bean" / f"Mr_Bean_frame_000{n}.jpg" for n in (3, 4))
    was, stood = gone.read_bytes(), left.stat().st_mtime_ns
    gone.unlink()
    assert "frames: 1 written, 20 existed" in run(tmp_path, film).stdout
    assert gone.read_bytes() == was
    assert left.stat().st_mtime_ns == stood
    assert "frames: 0 written, 21 existed" in run(tmp_path, film, "show=false").stdout


def test_a_kill_between_two_frames_changes_nothing(tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        pass

    def frames(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / "out").glob("*/*.jpg")}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run(whole, film)
    move = os.replace

    def dying(source: Any, target: Any) -> None:
        if str(target).endswith("Mr_Bean_frame_0007.jpg"):
            # As SIGKILL leaves it: what was being written stays, and nothing is tidied up.
            raise Killed
        move(source, target)

    monkeypatch.setattr("os.replace", dying)
    monkeypatch.setattr("os.unlink", lambda *_, **__: None)
    with pytest.raises(Killed):
        run(killed, film)
    monkeypatch.undo()
    for lease in killed.rglob("*.lease"):  # this process, which holds it, lives on
        lease.unlink()
    assert len(frames(killed)) == 7
    assert "frames: 14 written, 7 existed" in run(killed, film).stdout
    assert frames(killed) == frames(whole)


def test_frames_of_another_table_are_not_taken_for_those_of_this(tmp_path: Path, film: Path):
    run(tmp_path, film)
    later = TABLE.replace("00:00:01,00:00:01.5", "00:00:01.2,00:00:01.5")
    told = run(tmp_path, film, code=2, table=later).output
    assert "holds frames of Mr_Bean of other intervals or another film: use another output" in told
    assert "holds frames of Ann, Mr_Bean of" in run(tmp_path, film, "by_index=true", code=2).output
    header, *rows = TABLE.splitlines()
    assert "0 written, 21 existed" in run(tmp_path, film, table="\n".join([header, *rows[::-1]])).stdout
    # Another category may come to the same place.
    assert "frames: 1 written" in run(tmp_path, film, table=f"{header}\n1,1,Bob\n").stdout
    assert "0 written, 21 existed" in run(tmp_path, film).stdout


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path, film: Path):
    told = run(tmp_path, film, category="character", code=2).output
    assert "no column character; it has start_time, end_time, who" in told


def test_a_dry_run_writes_nothing(tmp_path: Path, film: Path):
    told = run(tmp_path, film, "--dry-run").stdout
    assert "7 rows of 3 categories, 3 of them cannot be read" in told
    assert not (tmp_path / "out").exists()


def test_how_the_film_is_decoded_is_called_as_in_other_verbs(tmp_path: Path):
    given = ["csv=table.csv", "--video", "film.mp4", "output=out", "category=who"]
    config = load(ExtractConfig, [*given, "decode.stall_s=7"])
    assert (config.input, config.decode.stall_s) == ("film.mp4", 7)
    assert load(ExtractConfig, [*given[:1], "input=film.mp4", *given[3:], "video.stall_s=7"]) == config
