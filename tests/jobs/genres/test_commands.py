"""The verbs of genres as their users run them: from folders of images to a table, a model, predictions and a page."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from actors.core import storage
from jobs.genres.__main__ import app
from tests.support import colours, corpus, tars
from tests.support.servers import BUCKET, s3_client

COLOURS = {"War": colours.RED, "Western": colours.GREEN, "Music": colours.BLUE}


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty films of two key frames each, in the colour of their genre; one frame is broken, one film unknown."""
    folder = tmp_path_factory.mktemp("movienet")
    random = np.random.default_rng(0)
    (folder / "meta").mkdir()
    for number in range(30):
        genre = list(COLOURS)[number % 3]
        name = f"tt{number}"
        frames = folder / "frames" / name
        frames.mkdir(parents=True)
        for shot in range(2):
            noisy = np.clip(np.array(COLOURS[genre]) + random.normal(0, 60, 3), 0, 255).astype(np.uint8)
            image = Image.fromarray(colours.pictures([tuple(noisy)], 36, 48)[0])
            image.save(frames / f"shot_{shot:04d}_img_0.jpg", quality=95)
        if number:
            genres = [genre, "News"] if number == 1 else [genre]
            (folder / "meta" / f"{name}.json").write_text(json.dumps({"genres": genres}))
    broken = folder / "frames" / "tt2" / "shot_0000_img_0.jpg"
    broken.write_bytes(broken.read_bytes()[:-20])
    return folder


@pytest.fixture(scope="module")
def model(clip_folder: str) -> list[str]:
    return [f"embeddings.model={clip_folder}", "embeddings.dtype=float32", "embeddings.num_cpus=0.5"]


@pytest.fixture(scope="module")
def output(ray_cluster: None, films: Path, model: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    arguments = ["embed", f"input={films}/frames", f"output={folder}", *model, "images.read.num_cpus=0.25"]
    before = run(*arguments, "--dry-run").stdout
    assert "30 folders of images, 0 video files" in before and "to do: 30 films" in before
    assert not list(folder.iterdir())
    told = run(*arguments).stdout
    assert "60 rows = 59 done + 1 rejected" in told and "broken_image 1" in told
    return folder


def test_from_images_to_a_table_a_model_and_a_page(output: Path, films: Path, model: list[str]) -> None:
    vectors = np.load(output / "features" / "tt4.npy")
    assert vectors.dtype == np.float16 and vectors.shape == (2, 3)
    assert len(np.load(output / "features" / "tt2.npy")) == 1

    told = run("process", f"meta={films}/meta", f"output={output}").stdout
    assert "30 rows = 29 done + 1 rejected" in told and "no_meta 1" in told and "News 1" in told
    assert read(output / "runs" / "process.json")["rejected"][0]["film"] == "tt0"

    assert "23 train, 3 valid, 3 test" in run("train", f"films={output}/films.npz", f"output={output}").stdout
    told = run("score", f"films={output}/films.npz", f"output={output}", "draws=20", "zero_shot=true", *model).stdout
    few = "average precision and calibration are not measured: 3 films, and 10 are needed"
    assert few in told and "average precision micro" not in told
    page = (output / "report.html").read_text()
    assert few in page and page.count("data:image/png;base64,") == 1
    assert read(output / "score.json")["methods"]["predictions"] == {"ap": {}, "lead_on_logistic_regression": None}

    run("predict", f"films={output}", f"model={output}/model", f"output={output}/answers")
    all_of_them = f"predictions={output}/answers/known.parquet"
    with np.load(output / "films.npz") as known:
        named = known["ids"].tolist()
    rows = pd.read_parquet(output / "answers" / "predictions.parquet")
    rows[rows.id.isin(named)].to_parquet(output / "answers" / "known.parquet")
    more = [f"output={output}", "draws=20", "zero_shot=true", *model]
    told = run("score", f"films={output}/films.npz", all_of_them, *more).stdout
    assert "predictions: average precision micro" in told and "zero-shot CLIP: average precision" in told
    assert "29 films" in told and "no average precision of War: fewer than 10 films have such a genre" in told
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "Western" in page and 'src="http' not in page
    assert {path.name for path in output.glob("*.png")} == {"average_precision.png", "curves.png", "calibration.png"}
    table = read(output / "score.json")["table"]
    assert table["War"]["ap"] is None and table["Western"]["ap_low"] < table["Western"]["ap_high"]

    rows = pd.read_parquet(output / "answers" / "predictions.parquet")
    likeliest = rows.loc[rows.groupby("id").probability.idxmax()].set_index("id").genre
    assert all(likeliest[f"tt{number}"] == list(COLOURS)[number % 3] for number in range(30))
    assert read(output / "runs" / "train.json")["status"] == "done"


def test_what_is_embedded_is_not_read_again(output: Path, films: Path, model: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (output / "features").iterdir()}
    arguments = [f"input={films}/frames", f"output={output}", *model]
    assert "60 rows = 59 done + 1 rejected" in run("embed", *arguments).stdout
    assert {path: path.stat().st_mtime_ns for path in (output / "features").iterdir()} == before
    assert "to do: 0 films" in run("embed", *arguments, "--dry-run").stdout
    assert "1 rejected" in run("embed", *arguments, "--max-rejected", "0", code=3).stdout
    other = run("embed", *arguments, "embeddings.dtype=bfloat16", code=2).output
    assert "has vectors of" in other and "Use another output" in other


@pytest.mark.parametrize("verb", ["process", "train", "predict", "score"])
def test_a_dry_run_writes_nothing(output: Path, films: Path, tmp_path: Path, verb: str) -> None:
    run("process", f"meta={films}/meta", f"output={output}")
    run("train", f"films={output}/films.npz", f"output={tmp_path}/before")
    where = {
        "process": [f"meta={films}/meta", f"output={output}"],
        "train": [f"films={output}/films.npz", f"output={tmp_path}/new"],
        "predict": [f"films={output}/films.npz", f"model={tmp_path}/before/model", f"output={tmp_path}/new"],
        "score": [f"films={output}/films.npz", f"output={tmp_path}/new", "folds=3"],
    }
    before = {path: path.stat().st_mtime_ns for path in (*output.rglob("*"), *tmp_path.rglob("*"))}
    told = run(verb, *where[verb], "--dry-run").stdout
    assert "input: " in told and f"runs/{verb}.json" in told
    assert {path: path.stat().st_mtime_ns for path in (*output.rglob("*"), *tmp_path.rglob("*"))} == before


def test_mistakes_name_what_to_do(model: list[str], tmp_path: Path) -> None:
    assert "n_epochz" in run("train", "n_epochz=3", code=2).output
    assert "`train` first" in run("predict", f"films={tmp_path}", f"model={tmp_path}", code=2).output
    told = run("embed", f"input={tmp_path}", f"output={tmp_path}/o", *model, code=2).output
    assert "neither folders of images" in told
    assert "heads: gru" in run("score", "folds=5", "heads=[gru]", code=2).output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tars_in_s3_are_embedded_as_folders_are(
    output: Path, films: Path, model: list[str], s3: str, tmp_path: Path
) -> None:
    names = ("tt2", "tt3", "tt4")
    for name in names:
        path = tars.pack(films / "frames" / name, tmp_path / f"{name}.tar")
        storage.upload(path, f"{s3}/films/{name}.tar")
    arguments = ["embed", f"input={s3}/films", f"output={s3}/out", *model]
    # A Ray of its own: the one of the tests was started before the credentials were there.
    with corpus.job(tmp_path / "log.txt", *arguments, program=("-m", "jobs.genres")) as job:
        told = job.wait()
    assert "6 rows = 5 done + 1 rejected" in told and "broken_image 1" in told
    for name in names:
        found, expected = (
            np.load(io.BytesIO(storage.read_bytes(f"{root}/features/{name}.npy"))) for root in (f"{s3}/out", output)
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it_on_s3_with_a_kill_between_two_films(
    films: Path, model: list[str], output: Path, s3: str, s3_server: dict[str, str], tmp_path: Path
) -> None:
    for path in films.rglob("*.*"):
        storage.upload(path, f"{s3}/{path.relative_to(films)}")
    # One film after the other.
    slow = ["images.read.workers=1", "images.read.batch_size=1", "embeddings.batch_size=1"]
    arguments = ["embed", f"input={s3}/frames", f"output={s3}/out", *model, *slow]
    start = partial(corpus.job, tmp_path / "log.txt", *arguments, program=("-m", "jobs.genres"))

    def stored() -> dict[str, Any]:
        """When each film's vectors were written."""
        listed = s3_client(s3_server).list_objects_v2(Bucket=BUCKET, Prefix=f"{s3.split('/', 3)[3]}/out/features/")
        return {entry["Key"]: entry["LastModified"] for entry in listed.get("Contents", ())}

    with start() as job:
        job.wait_until(lambda: sum(name.endswith(".json") for name in stored()) >= 3)
        job.kill()
    before = stored()
    with start() as job:
        assert "60 rows = 59 done + 1 rejected" in job.wait()
    after = stored()
    whole = {name for name in before if name.removesuffix("npy").removesuffix("json") + "json" in before}
    assert 3 <= len(whole) < len(after) and all(after[name] == before[name] for name in whole)
    for path in (output / "features").glob("*.npy"):
        vectors = np.load(io.BytesIO(storage.read_bytes(f"{s3}/out/features/{path.name}")))
        # One image at a time, the model rounds otherwise.
        np.testing.assert_allclose(np.load(path), vectors, atol=0.002)
    assert len(after) == len(list((output / "features").iterdir()))
    run("process", f"meta={s3}/meta", f"output={s3}/out")
    run("train", f"films={s3}/out/films.npz", f"output={s3}/out")
    assert "3 films, and 10 are needed" in run("score", f"films={s3}/out/films.npz", f"output={s3}/out").stdout
    run("predict", f"films={s3}/out", f"model={s3}/out/model", f"output={s3}/answers")
    rows = pd.read_parquet(io.BytesIO(storage.read_bytes(f"{s3}/answers/predictions.parquet")))
    likeliest = rows.loc[rows.groupby("id").probability.idxmax()].set_index("id").genre
    assert all(likeliest[f"tt{number}"] == list(COLOURS)[number % 3] for number in range(30))
