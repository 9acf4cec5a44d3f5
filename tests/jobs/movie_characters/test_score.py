"""`score` as its users run it: names, columns and last rows of its tables, a page, a record, and what it refuses."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.results import Results, write_about
from pipelines.movie_characters.score import model_row
from tests.support import results

LOSSES = {
    f"{cls}_{number}": {f"{name}_1": (name != cls) + 0.1 * number * (name == "Bob") for name in ("Ann", "Bob", "Eve")}
    for cls in ("Ann", "Bob", "Eve", "Zoe")
    for number in range(3)
}
"""All of four classes are right but for Zoe, of whom there is no identity."""


def score(verb: str, folder: Path, *settings: str, code: int = 0) -> Result:
    arguments = ["score", verb, f"input_folder={folder / 'in'}", f"output_folder={folder / 'out'}", *settings]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results.write(tmp_path / "in", LOSSES)
    return tmp_path


def test_topk_writes_a_table_for_each_k(folder: Path):
    told = score("topk", folder, "k_range=[1,3]").stdout
    assert "top-1: 75.00 %" in told
    text = (folder / "out" / "top_1_accuracy_results.csv").read_text()
    assert text == "GT_cls,Top_k_accuracy\nAnn,100.0\nBob,100.0\nEve,100.0\nZoe,0.0\nSD_MODEL,75.0\n"
    names = sorted(file.name for file in (folder / "out").iterdir() if file.is_file())
    assert names == ["top_1_accuracy_results.csv", "top_3_accuracy_results.csv", "topk.html", "topk.png"]
    record = json.loads((folder / "out" / "runs" / "score-topk.json").read_text())
    assert record["rows"] == {"in": 12, "out": 12, "rejected": {}}
    assert record["topk"]["1"] == 75


def test_averaged_tables_of_clip_bear_their_names(folder: Path):
    score("topk", folder, "k_range=1", "avg=true", "clip_csv=true")
    text = (folder / "out" / "top_1_avg_accuracy_results.csv").read_text()
    assert text.splitlines()[-1].startswith("CLIP_MODEL,")


def test_map_writes_ours_and_the_reference_formula(folder: Path):
    told = score("map", folder).stdout
    # All images of the three classes are right: the interval is that of 12 cases.
    assert "mAP: 1.0000 [0.758, 1.000], mean over 3 classes" in told and "12 images" in told
    record = json.loads((folder / "out" / "runs" / "score-map.json").read_text())
    assert record["map"] == 1 and record["map_95"][0] == pytest.approx(0.758, abs=1e-3)
    assert "images</th>" in (folder / "out" / "map.html").read_text()
    file = folder / "out" / "average_precision_results.csv"
    rows = dict(line.split(",") for line in file.read_text().splitlines())
    # Zoe has no identity, so nobody can be ranked for her.
    assert list(rows) == ["query_id", "Ann", "Bob", "Eve", "mAP"]
    score("map", folder, "formula=reference")
    rows = dict(line.split(",") for line in file.read_text().splitlines())
    # Zoe's first image gets the first name of three equal ones, the others that of the two who tie.
    assert float(rows["Ann"]) == pytest.approx(3 / 6)
    assert float(rows["mAP"]) == pytest.approx((3 / 6 + 1 + 1) / 3)


def test_few_images_have_no_map(folder: Path):
    results.write(folder / "few" / "in", {name: found for name, found in LOSSES.items() if "Zoe" not in name})
    told = score("map", folder / "few").stdout
    assert "no mAP: only 9 images, and 10 are needed" in told and "mAP: 1" not in told
    assert "map" not in json.loads((folder / "few" / "out" / "runs" / "score-map.json").read_text())
    table = (folder / "few" / "out" / "average_precision_results.csv").read_text()
    # The reference's file is data: what it is worth is said where people read.
    assert float(table.splitlines()[-1].removeprefix("mAP,")) > 0
    assert "only 9 images" in (folder / "few" / "out" / "map.html").read_text()


def test_report_learns_who_is_unknown(folder: Path):
    results.write(folder / "in", {f"{name}{copy}": found for name, found in LOSSES.items() for copy in range(4)})
    told = score("report", folder, f"validation={folder / 'in'}").stdout
    assert "unknown: AUROC 1.000, equal error rate 0.000" in told
    assert "right answers: 100.00 %" in told
    assert (folder / "out" / "confusion.csv").read_text().splitlines()[-1] == "unknown,0,0,0,12"
    about = json.loads((folder / "out" / "report.json").read_text())
    again = score("report", folder, f"threshold={about['threshold']}").stdout
    assert "right answers: 100.00 %" in again


def test_few_strangers_have_no_figure(folder: Path):
    told = score("report", folder).stdout
    assert "AUROC 1" not in told and "no AUROC or equal error rate: only 3 images of unknown classes" in told
    # 9 of 12 are right: the interval of Wilson.
    assert "right answers: 75.00 % [46.8, 91.1]" in told and "12 images" in told


def test_images_that_the_model_rejected_are_wrong(folder: Path):
    write_about(str(folder / "in"), "gallery of faces", False, [], ["Ann_7", "Ann_8", "Ann_9"])
    told = score("topk", folder, "k_range=1").stdout
    assert "top-1: 62.50 %" in told and "15 images, 3 of them without an answer, counted as wrong" in told
    record = json.loads((folder / "out" / "runs" / "score-topk.json").read_text())
    assert record["rows"] == {"in": 15, "out": 12, "rejected": {"no_answer": 3}}
    refused = score("topk", folder, "clip_csv=true", code=2)
    assert "lower is better: remove clip_csv=true" in refused.stderr


def test_an_image_without_a_loss_is_told_and_may_fail_the_run(folder: Path):
    results.write(folder / "in", {"Ann_9": {"Ann_1": float("inf")}, **LOSSES})
    assert "13 rows = 12 done + 1 rejected" in score("topk", folder, "--max-rejected", "0", code=3).stdout


def test_a_dry_run_writes_nothing(folder: Path):
    told = score("topk", folder, "--dry-run").stdout
    assert "12 images of 4 classes, 3 identities of 3 classes" in told
    assert "top_5_accuracy_results.csv" in told
    assert not (folder / "out").exists()


def test_mistakes_are_told(folder: Path):
    assert "k_range starts at 1" in score("topk", folder, "k_range=0", code=2).output
    assert "has no results" in score("map", folder, f"input_folder={folder / 'none'}", code=2).output


def test_scores_may_stand_in_a_column_of_another_name_and_pages_be_left_out(folder: Path):
    for file in (folder / "in").iterdir():
        file.write_text(file.read_text().replace(",loss", ",distance"))
    assert "no column loss" in score("topk", folder, code=2).output
    told = score("topk", folder, "pred_column=distance", "plot=false").stdout
    assert "top-1: 75.00 %" in told and "page" not in told
    assert not list((folder / "out").glob("topk.*"))


@pytest.mark.parametrize(
    ("by", "higher", "name"),
    [
        ("", True, "CLIP_MODEL"),
        ("gallery of ViT-B-32:openai:float32", True, "CLIP_MODEL"),
        ("gallery of dlib:1:1024", True, "FACE_MODEL"),
        ("fusion of clip, faces", True, "FUSED_MODEL"),
        ("diffusion, SD_pipeline", False, "SD_MODEL"),
    ],
)
def test_a_tables_last_row_is_called_by_its_model(by: str, higher: bool, name: str):
    assert model_row(Results(pd.DataFrame(), by=by, higher=higher)) == name
