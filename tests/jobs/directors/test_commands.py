"""Directors as users run them."""

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load
from typer.testing import CliRunner, Result

from actors.core import storage
from jobs.directors.__main__ import app
from jobs.directors.pages import with_answer
from pipelines.directors.guess import Guess
from tests.support import colours, corpus, films, tars
from tests.support.tiny_models import backbone


def run_here(*arguments: object, code: int = 0) -> Result:
    """Run the job in this process, and so in the cluster that it has joined."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_sample_takes_screenshots_of_sound_films_and_rejects_the_others(ray_cluster: None, tmp_path: Path):
    for name in ("A/one", "A/two", "B/three"):
        films.film(tmp_path / f"films/{name}.mp4", shots=(24, 24))
    films.text_file(tmp_path / "films/B/four.mp4")
    out = tmp_path / "out"
    arguments = ("sample", f"input={tmp_path / 'films'}", f"output={out}", "screenshots.per_film=4")
    told = run_here(*arguments, "--dry-run").stdout
    assert "4 films of 2 directors" in told and "to do: 4 films" in told and not out.exists()
    run_here(*arguments, "--max-rejected", 0, code=3)
    rows = list(csv.DictReader((out / "manifest.csv").open()))
    assert {(row["director"], row["film"]) for row in rows} == {("A", "one"), ("A", "two"), ("B", "three")}
    assert len(rows) == 12 and all((out / row["path"]).is_file() for row in rows)
    before = (out / "manifest.csv").read_bytes()
    told = run_here(*arguments).stdout
    assert "4 rows = 3 done + 1 rejected" in told and "not_a_video 1" in told
    assert (out / "manifest.csv").read_bytes() == before
    record = read_json(out / "runs/sample.json")
    assert record["rows"]["rejected"] == {"not_a_video": 1} and record["stages"]["sample"]["rows"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input=x"], "input and output are required"),
        (["input=/nowhere", "output=x"], "has no films"),
        (["input=x", "output=y", "screenshots.per_film=0"], "per_film from 1"),
        (["input=x", "output=y", "screenshots.frames=3"], "there is no such setting"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], message: str):
    assert message in run_here("sample", *arguments, code=2).output


def screenshots(folder: Path, counts: dict[str, int]) -> Path:
    """Folders <director>/<film>/ of three pictures each, all films of a director in his shades."""
    random = np.random.default_rng(0)
    for number, (director, films_of) in enumerate(counts.items()):
        for film in range(films_of):
            path = folder / director / f"film {film}"
            path.mkdir(parents=True)
            for i in range(3):
                shade = np.roll([200, 60, 30], number) + random.integers(-25, 25, 3)
                noise = random.integers(-20, 20, (36, 64, 1))
                Image.fromarray((shade + noise).clip(0, 255).astype(np.uint8)).save(path / f"{i}.png")
    return folder


def test_explore_shows_bars_and_a_contact_sheet(tmp_path: Path):
    data = screenshots(tmp_path / "shots", {"Agnès Varda": 2, "Bong": 3})
    (data / "Bong/film 0/0.png").write_text("no picture")
    assert "15 screenshots of 2 directors" in run_here("explore", f"data={data}", "--dry-run").stdout
    assert not (data / "explore").exists()
    told = run_here("explore", f"data={data}", "per_director=3").stdout
    assert "15 rows = 15 done + 0 rejected" in told
    page = (data / "explore/report.html").read_text()
    assert "15 screenshots of 5 films by 2 directors" in page and "Agnès Varda" in page
    with Image.open(data / "explore/contact.png") as sheet:
        # Bong, with most pictures, comes first: his colour stands in the middle of the first line's first cell.
        pixel = sheet.getpixel((260 + 96, 4 + 54))
    assert isinstance(pixel, tuple) and pixel[1] == max(pixel)
    for name in ("screenshots.png", "films.png"):
        assert Image.open(data / "explore" / name).width > 500
    # Its own pictures are none of the screenshots.
    assert "15 rows" in run_here("explore", f"data={data}").stdout


def test_a_folder_in_which_directors_or_some_films_are_unknown_is_refused(tmp_path: Path):
    (tmp_path / "Varda/Cléo").mkdir(parents=True)
    for name in ("Varda/a.png", "Varda/Cléo/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert "films of 1 of 2 pictures are unknown, for example of Varda/a.png" in re.sub(
        r"\s+", " ", run_here("explore", f"data={tmp_path}", code=2).output
    )
    told = run_here("explore", f"data={tmp_path}", "film_separator=_", code=2).output
    assert "film_separator=_: the name of Varda/a.png has none" in told
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    assert "the director of c.png is unknown" in run_here("explore", f"data={tmp_path}", code=2).output
    assert "has no screenshots" in run_here("explore", f"data={tmp_path / 'none'}", code=2).output
    assert "input is missing" in run_here("explore", code=2).output


def flat(folder: Path, counts: dict[str, int]) -> Path:
    """Pictures of `screenshots` as <director>/<film>_<number>.png."""
    for path in screenshots(folder / "deep", counts).rglob("*.png"):
        director, film = path.parts[-3:-1]
        (folder / "flat" / director).mkdir(parents=True, exist_ok=True)
        path.rename(folder / "flat" / director / f"{film}_{path.name}")
    return folder / "flat"


def guess_films(model: Path, data: Path, tmp_path: Path) -> list[str]:
    """Classify a folder of pictures, a tar and a video file; returns the films that have an answer."""
    root = tmp_path / "some"
    (root / "Rouge").mkdir(parents=True)
    for picture in sorted((data / "Rouge").iterdir())[:3]:
        (root / "Rouge" / picture.name).write_bytes(picture.read_bytes())
    tars.pack(data / "Vert", root / "Vert.tar")
    films.film(root / "clip.mp4", shots=(24, 24))
    films.text_file(root / "broken.mp4")
    settings = ("guess", model, "--film", root, "screenshots.per_film=4")
    before = run_here(*settings, "--dry-run").stdout
    assert "15 pictures of 4 films" in before and "screenshots of 2 video files" in before
    told = run_here(*settings).stdout
    assert "no_pictures 1" in told and "broken.mp4: not_a_video" in told
    answered = sorted(read_json(model / "runs/guess.json")["films"])
    # What has been taken is not taken again; the broken file may have been repaired.
    assert "to do: 0 vectors, screenshots of 1 video files" in run_here(*settings, "--dry-run").stdout
    answer = re.search("^Vert: .*$", told, re.M)
    assert answer and answer[0] in run_here("guess", model, "--film", root / "Vert.tar").stdout
    return answered


@pytest.mark.slow
def test_pictures_of_unknown_films_are_trained_on_with_a_split_by_picture_and_a_warning(
    ray_cluster: None, tmp_path: Path
):
    data, model = flat(tmp_path, {"Rouge": 4, "Vert": 4, "Bleu": 4}), tmp_path / "model"
    network = f"pictures.backbone.model={backbone(tmp_path / 'network')}"
    settings = [f"input={data}", network, "training.epochs=5", "pictures.views.count=1"]
    assert "36 screenshots of unknown films by 3" in run_here("train", *settings, f"output={model}", "--dry-run").stdout
    told = run_here("train", *settings, f"output={model}").stdout
    assert "36 pictures of unknown films of 3 directors to train on" in told and "This leaks" in told
    report = read_json(model / "report.json")
    assert {row["split"] for row in report["table"]} == {"frame"} and report["table"][0]["film_top1"] is None
    assert {row["films"] for row in report["counts"]} == {None} and "film" not in report["unknown"]["auroc"]
    assert "by film" not in (model / "report.html").read_text().replace("the split by film", "")
    assert "Vert" in run_here("guess", model, "--image", data / "Vert").stdout
    films_told = guess_films(model, data, tmp_path)
    assert films_told == ["Rouge", "Vert", "clip"]
    # Once the films are known, they are split.
    told = run_here("train", *settings, f"output={tmp_path / 'other'}", "film_separator=_").stdout
    assert "12 films of 3 directors to train on" in told and "This leaks" not in told
    report = read_json(tmp_path / "other/report.json")
    assert {row["split"] for row in report["table"]} == {"film", "frame"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tar_in_s3_is_guessed_as_it_is_from_disk(ray_cluster: None, tmp_path: Path, s3: str):
    data, model = flat(tmp_path, {"Rouge": 4, "Vert": 4, "Bleu": 4}), tmp_path / "model"
    network = f"pictures.backbone.model={backbone(tmp_path / 'network')}"
    run_here("train", f"input={data}", network, "training.epochs=1", "pictures.views.count=1", f"output={model}")
    tar = tars.pack(data / "Vert", tmp_path / "Vert.tar")
    storage.upload(tar, f"{s3}/films/Vert.tar")
    # A Ray of its own: the one of the tests was started before the credentials were there.
    with corpus.job(
        tmp_path / "log.txt", "guess", model, "--film", f"{s3}/films", program=("-m", "jobs.directors")
    ) as job:
        there = job.wait()
    answers = [re.search("^Vert: .*$", told, re.M) for told in (run_here("guess", model, "--film", tar).stdout, there)]
    assert answers[0] and answers[1] and answers[0][0] == answers[1][0]


def test_a_manifest_may_leave_films_unknown_and_explore_counts_none(tmp_path: Path):
    data = flat(tmp_path, {"Rouge": 2, "Vert": 3})
    rows = [f"{path.parent.name},{path.relative_to(data)}" for path in sorted(data.rglob("*.png"))]
    (data / "manifest.csv").write_text("\n".join(["director,path", *rows]))
    run_here("explore", f"data={data}")
    assert "15 screenshots of unknown films by 2 directors" in (data / "explore/report.html").read_text()
    assert not (data / "explore/films.png").exists()
    (data / "manifest.csv").write_text("\n".join(["director,path,film", *(f"{row},one" for row in rows)]))
    run_here("explore", f"data={data}")
    assert "15 screenshots of 2 films by 2 directors" in (data / "explore/report.html").read_text()


@pytest.mark.parametrize("size", [(1, 1), (20, 200), (1920, 800)])
def test_an_answer_is_drawn_on_a_band_in_letters_that_suit_the_picture(size: tuple[int, int]):
    long = "Apichatpong Weerasethakul-Nochnichtzuende"
    picture = with_answer(Image.new("RGB", size, (90, 0, 0)), Guess(long, [(long, 0.9), ("Bong", 0.1)]))
    pixels = np.asarray(picture)
    shown = picture.width * size[1] / size[0]
    band = pixels[round(shown) + 1 :]
    assert picture.width >= 320 and (pixels[: round(shown) - 1] == (90, 0, 0)).all()
    rows = np.flatnonzero((band.max(2) > 200).any(1))
    columns = np.flatnonzero((band.max(2) > 200).any(0))
    # Nothing is cut off, and letters have at least a thirtieth of the longer side.
    assert rows[0] > 0 and rows[-1] < len(band) - 1 and columns[0] > 0 and columns[-1] < picture.width - 1
    assert len(band) > 3 * max(size) / 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_directors_of_films_are_learned_and_a_film_not_seen_is_given_to_its_own(ray_cluster: None, tmp_path: Path):
    random = np.random.default_rng(0)
    shades = {"Rouge": (200, 50, 40), "Azul": (40, 70, 200), "Verde": (50, 180, 60), "Gelb": (210, 190, 40)}

    def movie(path: Path, director: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        of_film = random.integers(-30, 30, 3)
        tones = [np.clip(shades[director] + of_film + random.integers(-25, 25, 3), 0, 255) for _ in range(20)]
        colours.film(path, [(int(r), int(g), int(b)) for r, g, b in tones])

    for director in shades:
        for number in range(5):
            movie(tmp_path / f"films/{director}/{number}.mkv", director)
    movie(tmp_path / "films/Once/0.mkv", "Rouge")
    movie(tmp_path / "unseen/Azul/x.mkv", "Azul")
    shots, model = tmp_path / "shots", tmp_path / "model"
    run_here("sample", f"input={tmp_path / 'films'}", f"output={shots}", "screenshots.per_film=6")
    run_here("sample", f"input={tmp_path / 'unseen'}", f"output={tmp_path / 'new'}", "screenshots.per_film=6")
    network = f"pictures.backbone.model={backbone(tmp_path / 'network')}"
    settings = [f"data={shots}", f"output={model}", network, "pictures.backbone.num_cpus=0.5"]
    settings += ["training.epochs=60", "training.learning_rate=3e-3", "pictures.views.count=1"]
    told = run_here("train", *settings, "--dry-run").stdout
    assert "126 screenshots of 21 films by 5 directors" in told and "252 of 252 vectors" in told and not model.exists()
    told = run_here("train", *settings, "--plot", tmp_path / "curves").stdout
    assert "20 films of 4 directors to train on, 1 of unknown directors" in told
    assert Image.open(tmp_path / "curves.png").width > 300
    report = read_json(model / "report.json")
    table = {(row["method"], row["split"]): row for row in report["table"]}
    assert table["head", "film"]["film_top1"] >= 0.75 and ("head", "frame") in table
    assert report["importance"] and report["unknown"]["threshold"]["film"] > 0
    page = (model / "report.html").read_text()
    assert page.count("<img") == 4 and "by picture: leaks" in page
    record = read_json(model / "runs/train.json")
    assert record["rows"] == {"in": 126, "out": 126, "rejected": {}} and record["stages"]["embed"]["rows"] == 252
    again = run_here("train", *settings).stdout
    assert "embed: 0 rows" in again and read_json(model / "report.json")["table"] == report["table"]
    told = run_here("guess", model, "--image", tmp_path / "new/Azul", "--save", tmp_path / "saved").stdout
    # Of so few films the threshold is a matter of luck.
    assert re.search(r"all 6 as one film: (Azul|unknown) \(Azul", told), told
    assert len(list((tmp_path / "saved").glob("*.png"))) == 6
    one = next((tmp_path / "new/Azul").glob("*.jpg"))
    told = run_here("guess", model, "-i", one, "--top", 2, "-s", tmp_path / "one.jpg").stdout
    assert one.name in told and "one film" not in told and Image.open(tmp_path / "one.jpg").width >= 320
    assert read_json(model / "runs/guess.json")["stages"]["embed"]["rows"] == 0
    other = backbone(tmp_path / "other", seed=1)
    refused = run_here("guess", model, f"backbone.model={other}", "--image", one, code=2).output
    assert "The model was trained on vectors of" in refused


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_killed_on_s3_ends_with_the_model_of_a_folder(ray_cluster: None, s3: str, tmp_path: Path):
    data = screenshots(tmp_path / "shots", {"Rouge": 4, "Vert": 4, "Bleu": 4})
    for path in data.rglob("*.png"):
        storage.upload(path, f"{s3}/shots/{path.relative_to(data)}")
    network = f"pictures.backbone.model={backbone(tmp_path / 'network')}"
    # One picture at a time, so that the kill falls between two, and vectors do not depend on their company.
    settings = [network, "pictures.backbone.batch_size=1", "pictures.write.batch_size=2", "training.epochs=5"]

    arguments = ["train", f"data={s3}/shots", f"output={s3}/model", *settings]
    start = partial(corpus.job, tmp_path / "log.txt", *arguments, program=("-m", "jobs.directors"))
    with start() as job:
        job.wait_until(lambda: bool(corpus.names(f"{s3}/shots", "features")))
        job.kill()
    before = corpus.names(f"{s3}/shots", "features")
    assert not storage.exists(f"{s3}/model/model.json")
    with start() as job:
        assert "36 rows = 36 done + 0 rejected" in job.wait()
    told = run_here("train", f"data={tmp_path}/shots", f"output={tmp_path}/model", *settings).stdout
    assert "36 rows = 36 done + 0 rejected" in told
    assert before <= corpus.names(f"{s3}/shots", "features")
    for name in ("report.json", "model.json"):
        of_s3, of_folder = (json.loads(storage.read_bytes(f"{root}/model/{name}")) for root in (s3, tmp_path))
        assert of_s3.get("table") == of_folder.get("table") and of_s3.keys() == of_folder.keys()
    weights = [load(storage.read_bytes(f"{root}/model/model.safetensors")) for root in (s3, tmp_path)]
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weight, weights[1][name], atol=1e-5)
    picture = next((data / "Vert/film 0").glob("*.png"))
    for root in (s3, tmp_path):
        assert "Vert" in run_here("guess", f"{root}/model", "--image", picture).stdout
