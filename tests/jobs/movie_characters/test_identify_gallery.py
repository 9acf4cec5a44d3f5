"""`identify-clip` as its users run it, over images in known colours: exact cosines, one embedding of each image."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner, Result

from actors.core import storage
from actors.core.store import Store
from actors.movie_characters.vectors import VECTORS
from jobs.movie_characters.__main__ import app
from tests.support import pictures, tars
from tests.support.colours import BLUE, GREEN, RED

ROOT = Path(__file__).parents[3]
YELLOW, PINK = (255, 255, 0), (255, 0, 255)
HALF = 0.5**0.5
EXACT = ("embeddings.dtype=float32", "embeddings.num_cpus=0.5")


def identify(folder: Path, clip: str, *settings: str, output: str = "out", code: int = 0) -> Result:
    given = [f"input_dir={folder / 'gallery'}", f"image_list={folder / 'images'}", f"output_dir={folder / output}"]
    arguments = ["identify-clip", *given, f"model_name={clip}", *EXACT, *settings]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures.write(tmp_path / "gallery", {"Red_One_1": RED, "Green_1": GREEN, "Green_2": YELLOW})
    pictures.write(tmp_path / "images", {"Red_One_7": PINK, "Green_7": GREEN, "Blue_7": BLUE})
    (tmp_path / "images" / "Green_8.jpg").write_bytes(b"no image")
    return tmp_path


def table(folder: Path, cls: str, output: str = "out") -> pd.Series:
    rows = pd.read_csv(folder / output / f"{cls}_results.csv")
    return rows.set_index(["GT Image name", "input_embeds"])["loss"]


def test_cosines_with_each_image_of_the_gallery(folder: Path, clip_folder: str):
    told = identify(folder, clip_folder).stdout
    assert "4 rows = 3 done + 1 rejected" in told
    text = (folder / "out" / "Green_results.csv").read_text()
    assert text.splitlines()[0] == "GT Image name,input_embeds,loss"
    found = table(folder, "Green")
    # Best first.
    assert list(found.index) == [("Green_7.png", name) for name in ("Green_1", "Green_2", "Red_One_1")]
    assert found.to_list() == pytest.approx([1, HALF, 0], abs=2e-3)
    assert table(folder, "Red_One")["Red_One_7.png", "Red_One_1"] == pytest.approx(HALF, abs=2e-3)
    assert Store(str(folder / "out")).parts("rejected")
    before = (folder / "out" / "Green_results.csv").read_bytes()

    # Another image comes, and only that one and the broken one are embedded.
    pictures.write(folder / "images", {"Green_9": YELLOW})
    assert "to do: 2 images to be embedded" in identify(folder, clip_folder, "--dry-run").stdout
    told = identify(folder, clip_folder).stdout
    assert "embed: 1 rows" in told
    assert table(folder, "Green")["Green_9.png"].idxmax() == "Green_2"
    assert (folder / "out" / "Green_results.csv").read_bytes().startswith(before)
    vectors = Store(str(folder / "out")).read_table("vectors", VECTORS).to_pandas()
    assert vectors[vectors.error == ""].uri.is_unique

    # The gallery has two classes, and a probe of them tells yellow from pink; vectors are those that are there.
    (folder / "images" / "Green_8.jpg").unlink()
    vectors_of = f"vectors={folder / 'out'}"
    told = identify(folder, clip_folder, "method=probe", vectors_of, output="probe").stdout
    found = table(folder, "Green", "probe")
    assert found["Green_7.png"].idxmax() == "Green_0"
    record = json.loads((folder / "probe" / "runs" / "identify-clip.json").read_text())
    assert record["rows"]["out"] == 4 and "stages" not in record

    assert "holds results by gallery" in identify(folder, clip_folder, "method=probe", code=2).output


def test_stills_without_a_class_are_identified_but_not_scored(
    tmp_path: Path, clip_folder: str, ray_cluster: None, caplog: pytest.LogCaptureFixture
):
    pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN})
    pictures.write(tmp_path / "images", {"still": GREEN, "frame12": RED})
    (tmp_path / "images" / "still.heic").write_bytes(b"")
    assert "2 rows = 2 done" in identify(tmp_path, clip_folder).stdout
    assert "1 files beside the images are left out, such as still.heic" in caplog.text
    found = table(tmp_path, "unlabelled")
    assert found["still.png"].idxmax() == "Green_1" and found["frame12.png"].idxmax() == "Red_1"
    scored = ["score", "topk", f"input={tmp_path / 'out'}", f"output={tmp_path / 's'}", "k_range=1", "plot=false"]
    refused = CliRunner().invoke(app, scored)
    assert refused.exit_code == 2 and "no image has a class" in refused.output
    # With a labelled one, only that one is scored.
    pictures.write(tmp_path / "images", {"Green_7": GREEN})
    identify(tmp_path, clip_folder)
    told = CliRunner().invoke(app, scored).stdout
    assert "top-1: 100.00 %" in told and "1 images" in told
    assert "2 images without a class are left out" in caplog.text


def test_key_frames_in_tars_in_s3_are_identified_as_those_of_folders(
    tmp_path: Path, clip_folder: str, ray_cluster: None, s3: str
):
    pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN})
    for film, colours in (("tt1", [RED, GREEN]), ("tt2", [GREEN, BLUE])):
        shots = {f"shot_{number:04d}_img_0": colour for number, colour in enumerate(colours)}
        pictures.write(tmp_path / "images" / film, shots)
        path = tars.pack(tmp_path / "images" / film, tmp_path / "packed" / f"{film}.tar")
        storage.upload(path, f"{s3}/films/{film}.tar")
    assert "4 rows = 4 done" in identify(tmp_path, clip_folder).stdout
    arguments = [f"input_dir={tmp_path / 'gallery'}", f"image_list={s3}/films", f"output_dir={s3}/out"]
    result = CliRunner().invoke(app, ["identify-clip", *arguments, f"model_name={clip_folder}", *EXACT])
    assert result.exit_code == 0 and "4 rows = 4 done" in result.stdout, result.output
    found = pd.read_csv(io.BytesIO(storage.read_bytes(f"{s3}/out/unlabelled_results.csv")))
    expected = pd.read_csv(tmp_path / "out" / "unlabelled_results.csv")
    shots = [f"shot_{number:04d}_img_0.png" for number in range(2)]
    assert set(found["GT Image name"]) == {f"{film}/{shot}" for film in ("tt1", "tt2") for shot in shots}
    order = ["GT Image name", "input_embeds"]
    ours, theirs = (one.sort_values(order, ignore_index=True) for one in (found, expected))
    pd.testing.assert_frame_equal(ours, theirs)


def scores(folder: Path, results: str) -> dict[str, object]:
    """What `score report` says of results: the classes of the images, and the answers."""
    arguments = ["score", "report", f"input={folder / results}", f"output={folder / 'scores'}", "plot=false"]
    scored = CliRunner().invoke(app, arguments)
    assert scored.exit_code == 0, scored.output
    answers = pd.read_csv(folder / "scores" / "answers.csv").set_index("GT Image name")[["GT_cls", "answer"]]
    return {str(name): list(row) for name, *row in answers.itertuples()}


def test_a_manifest_says_of_which_class_images_are_through_to_the_figures(
    tmp_path: Path, clip_folder: str, caplog: pytest.LogCaptureFixture
):
    pictures.write(tmp_path / "gallery", {"left": RED, "Red_2": GREEN})
    (tmp_path / "gallery" / "pictures.csv").write_text("file,class\nleft.png,Red\nRed_2.png,Green\n")
    pictures.write(tmp_path / "images", {"still": GREEN, "Green_7": RED, "Blue_7": BLUE})
    identify(tmp_path, clip_folder)
    assert scores(tmp_path, "out")["Green_7.png"] == ["Green", "Red"]
    # It comes later: what is there is moved, and nothing is embedded again.
    manifest = tmp_path / "images" / "pictures.csv"
    manifest.write_text("file,class\nstill.png,Green\nGreen_7.png,Red\n")
    told = identify(tmp_path, clip_folder).stdout
    assert "embed:" not in told and "1 images have no row in pictures.csv" in caplog.text
    names = sorted(path.name for path in (tmp_path / "out").glob("*.csv"))
    assert names == ["Blue_results.csv", "Green_results.csv", "Red_results.csv"]
    expected = {"still.png": ["Green", "Green"], "Green_7.png": ["Red", "Red"]}
    assert expected.items() <= scores(tmp_path, "out").items()
    # A fusion goes by the same classes.
    identify(tmp_path, clip_folder, "method=probe", output="probe")
    models = [f"models.{name}.folder={tmp_path / name}" for name in ("out", "probe")]
    fused = CliRunner().invoke(app, ["fuse", *models, f"output={tmp_path / 'fused'}"])
    assert fused.exit_code == 0, fused.output
    assert expected.items() <= scores(tmp_path, "fused").items()
    # Models that do not agree about it are not fused.
    manifest.unlink()
    identify(tmp_path, clip_folder)
    refused = CliRunner().invoke(app, ["fuse", *models, f"output={tmp_path / 'fused'}"])
    assert refused.exit_code == 2 and "Green_7.png is of several classes: Green (out), Red (probe)" in refused.output
    manifest.write_text("file,class\nstil.png,Green\n")
    assert "not there, such as stil.png" in identify(tmp_path, clip_folder, code=2).output


@pytest.mark.slow
def test_few_images_start_no_ray(folder: Path, clip_folder: str):
    Image.fromarray(data.astronaut()).save(folder / "gallery" / "Eileen_1.png")
    given = [f"gallery={folder / 'gallery'}", f"input={folder / 'gallery'}"]
    runs = [["identify-clip", f"model_name={clip_folder}", f"output={folder / 'clip'}", *given]]
    runs += [["identify-faces", f"output={folder / 'faces'}", *given]]
    program = (
        "import json, sys; from typer.testing import CliRunner; from jobs.movie_characters.__main__ import app\n"
        "print([CliRunner().invoke(app, run).exit_code for run in json.loads(sys.argv[1])], 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(runs)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] False", done.stderr


def test_texts_are_compared_with_images(folder: Path, clip_folder: str):
    # "red" and "green" are the words of these prompts that the model knows.
    identify(folder, clip_folder, "method=prompts", "prompt=a {} thing", 'prompts={"Green": "green"}')
    found = table(folder, "Red_One")["Red_One_7.png"]
    assert found["Red_One_0"] == pytest.approx(HALF, abs=2e-3)
    assert found["Green_0"] == pytest.approx(0, abs=2e-3)


def test_faces_are_compared_alike(tmp_path: Path):
    face = Image.fromarray(data.astronaut())
    for name in ("gallery", "images"):
        (tmp_path / name).mkdir()
    face.save(tmp_path / "gallery" / "Eileen_1.png")
    face.convert("L").save(tmp_path / "images" / "Eileen_2.png")
    Image.fromarray(data.coffee()[:200, :200]).save(tmp_path / "images" / "Cup_1.png")
    settings = [f"input_dir={tmp_path / 'gallery'}", f"image_list={tmp_path / 'images'}", f"output_dir={tmp_path}"]
    result = CliRunner().invoke(app, ["identify-faces", *settings, "faces.num_cpus=0.5"])
    assert "2 rows = 1 done + 1 rejected\nrejected: no_face 1" in result.stdout
    assert table(tmp_path, "Eileen", ".").to_dict() == {("Eileen_2.png", "Eileen_1"): pytest.approx(0.97, abs=0.03)}
    # An image without a face is not searched again, and stays rejected.
    again = CliRunner().invoke(app, ["identify-faces", *settings, "faces.num_cpus=0.5"])
    assert "rejected: no_face 1" in again.stdout and "Cup_1.png: no_face: no face was found" in again.stdout
    assert "stages" not in json.loads((tmp_path / "runs" / "identify-faces.json").read_text())
    # It is wrong in the score, and counted.
    told = CliRunner().invoke(app, ["score", "topk", f"input={tmp_path}", f"output={tmp_path / 's'}", "k_range=1"])
    assert "top-1: 50.00 %" in told.stdout and "2 images, 1 of them without an answer" in told.stdout


def test_mistakes_are_told_before_a_run(folder: Path, clip_folder: str):
    assert "input=" in identify(folder, clip_folder, f"image_list={folder / 'none'}", code=2).output
    assert "Purple" in identify(folder, clip_folder, 'prompts={"Purple": "x"}', code=2).output
    assert "model_name=ViT-X" in identify(folder, "ViT-X", code=2).output
    pictures.write(folder / "gallery", {"nobody": RED})
    assert "CLASS_NUMBER" in identify(folder, clip_folder, code=2).output
