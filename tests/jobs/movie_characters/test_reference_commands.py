"""Command lines of the reference system run as printed there, on small inputs and tiny models."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from actors.movie_characters.personalise_settings import PersonaliseConfig
from jobs.movie_characters.__main__ import app
from tests.support import films, hub, pictures, results, tiny_models
from tests.support.colours import GREEN, RED


def run(printed: str, code: int = 0) -> str:
    """Run a command line; returns all that it printed."""
    told = CliRunner().invoke(app, shlex.split(printed))
    assert told.exit_code == code, told.output
    return told.output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Stable Diffusion that makes latents of 16 x 16 from pictures of 512 x 512."""
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd"), levels=6)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pictures.write(tmp_path_factory.mktemp("faces"), {"Ann_1": RED, "Ann_2": (255, 60, 0), "Bob_1": GREEN}))


@pytest.fixture(scope="module")
def learnt(model: str, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Identities Ann_1, Ann_2 and Bob_1, each with a LoRA."""
    from actors.movie_characters.personaliser import Personaliser
    from pipelines.movie_characters.personalise import plan_personalise

    folder = str(tmp_path_factory.mktemp("learnt"))
    config = PersonaliseConfig(
        input=str(faces),
        output=folder,
        pretrained_model_name_or_path=model,
        resolution=64,
        emb_train_steps=2,
        max_train_steps=2,
        lora_learning_rate=0.1,
    )
    tasks = plan_personalise(config).todo
    Personaliser(config, tasks)({"number": np.arange(len(tasks))})
    return folder


def test_extract(tmp_path: Path) -> None:
    film = films.film(tmp_path / "movie.mp4")
    (tmp_path / "dataset.csv").write_text("start_time,end_time,characters\n00:00:01,00:00:01,Mr Bean\n")
    out = tmp_path / "frames"
    run(f"extract --csv {tmp_path}/dataset.csv --video {film} --output {out}/ --category characters --show")
    assert [file.name for file in (out / "Mr_Bean").iterdir()] == ["Mr_Bean_frame_0001.jpg"]
    assert (out / "extract.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_personalise(
    ray_cluster: None, model: str, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub.start(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "mine")
    told = run(
        f"personalise --pretrained_model_name_or_path {model} --input_image {faces}/Ann_1.png "
        f'--target_text "a photo of ann" --output_dir {tmp_path}/out --resolution 512 --center_crop '
        "--train_batch_size 4 --emb_train_steps 500 --max_train_steps 1000 --gradient_accumulation_steps 1 "
        "--emb_learning_rate 0.001 --learning_rate 0.000001 --use_8bit_adam --scale_lr --seed 42 "
        "--mixed_precision fp16 --push_to_hub --hub_model_id me/faces "
        # As printed up to here; fewer steps, so that it takes seconds.
        "emb_train_steps=3 max_train_steps=4"
    )
    hub.stop(server)
    assert "1 rows = 1 done + 0 rejected" in told
    assert "mixed_precision=fp16 needs a GPU: computing in float32" in told
    about = json.loads((tmp_path / "out" / "Ann_1" / "personalised.json").read_text())
    assert [about["losses"][phase][-1][0] for phase in ("embedding", "unet")] == [3, 4]
    assert (tmp_path / "out" / "Ann_1" / "target_text.txt").read_text() == "a photo of ann"
    assert "Ann_1/optimized_embeddings.safetensors" in server.files


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_identify_diffusion(ray_cluster: None, model: str, learnt: str, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text(f"{faces}/Ann_1.png\n{faces}/Bob_1.png\n")
    run(
        f"identify-diffusion --imagic_pretrained_path {learnt} --csv_folder {tmp_path}/out --sd_model_name {model} "
        f"--clip_model_name {model} --image_list {tmp_path}/images.txt --category_class --imagic_pipe --alpha 0.5 "
        "--seed 42 --height 512 --width 512 --resolution 512 --num_inference_steps 50"
    )
    table = tmp_path / "out" / "Imagic_pipeline_cat_avg" / "Ann_results.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["GT Image name", "input_embeds", "loss"]
    assert {row["input_embeds"] for row in rows} == {"Ann", "Bob"}
    assert [float(row["loss"]) for row in rows] == sorted(float(row["loss"]) for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generate(ray_cluster: None, model: str, learnt: str, faces: Path, tmp_path: Path) -> None:
    told = run(
        f"generate --input_files {faces}/Ann_1.png --output_folder {tmp_path}/out --imagic_pretrained_path {learnt} "
        f"--imagic_pipe --sd_model_name {model} --clip_model_name {model} --seed_range 0 10 --alpha_range 0.0 1.0 "
        "--guidance_scale_range 7.0 8.0 --height 512 --width 512 --num_inference_steps 50 "
        # As printed up to here; fewer seeds and steps, so that it takes seconds.
        "seed_range=[0,1] num_inference_steps=2"
    )
    assert "8 images drawn" in told
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 2 * 2 * 2 and Image.open(files[0]).size == (512, 512)


def test_identify_clip_without_a_gpu(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("pipelines.movie_characters.identify_gallery.check_clip", lambda _: pytest.fail("looks it up"))
    told = run(
        f"identify-clip --input_dir {faces} --output_dir {tmp_path}/out --image_list {faces} --model_name ViT-B/32 "
        "--device cuda",
        code=2,
    )
    assert "there is no GPU" in told and "device=cpu" in told
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cosines(tmp_path: Path) -> str:
    """Similarities of two images of each of three classes with two identities of each; all answers are right."""
    names = ("Ann", "Bob", "Eve")
    found = {
        f"{cls}_{n}": {f"{one}_{m}": float(one == cls) for one in names for m in (1, 2)}
        for cls in names
        for n in (1, 2)
    }
    return results.write(tmp_path / "in", found)


def test_score_topk(cosines: str, tmp_path: Path) -> None:
    run(
        f"score topk --input_folder {cosines} --output_folder {tmp_path}/out --k_range 5 --clip_csv --avg "
        "--pred_column loss"
    )
    for k in range(1, 6):
        rows = (tmp_path / "out" / f"top_{k}_avg_accuracy_results.csv").read_text().splitlines()
        assert rows[0] == "GT_cls,Top_k_accuracy" and rows[-1] == "CLIP_MODEL,100.0"


def test_score_map(cosines: str, tmp_path: Path) -> None:
    run(f"score map --input_folder {cosines} --output_folder {tmp_path}/out --clip_csv")
    rows = (tmp_path / "out" / "average_precision_results.csv").read_text().splitlines()
    assert rows[0] == "query_id,average_precision" and rows[-1] == "mAP,1.0"
