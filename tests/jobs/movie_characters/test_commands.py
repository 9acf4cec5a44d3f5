"""The verbs of diffusion as their users run them, one after the other, and each a second time."""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from actors.core import storage
from actors.core.store import Store
from actors.movie_characters.drawer import GenerateConfig
from actors.movie_characters.identities import LORA, write_embedding
from actors.movie_characters.personalise_settings import PersonaliseConfig
from actors.movie_characters.personaliser import Personaliser
from jobs.core.settings import load
from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.cast import CastConfig
from pipelines.movie_characters.compare import CompareConfig
from pipelines.movie_characters.extract import ExtractConfig
from pipelines.movie_characters.films.timeline import TimelineConfig
from pipelines.movie_characters.fuse import FuseConfig
from pipelines.movie_characters.gallery_settings import ClipConfig, FaceConfig
from pipelines.movie_characters.identify_diffusion import IdentifyConfig
from pipelines.movie_characters.personalise import plan_personalise
from pipelines.movie_characters.score import MapConfig, ReportConfig, TopkConfig
from tests.support import corpus

ROOT = Path(__file__).resolve().parents[3]


def run_here(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def run_apart(*commands: list[str]) -> str:
    """In a process and a Ray of their own, whose workers know the store that the environment names."""
    program = (
        "import json, sys; from jobs.movie_characters.__main__ import app; from jobs.core.session import ray_session\n"
    )
    program += "with ray_session():\n for one in json.loads(sys.argv[1]): app(one, standalone_mode=False)"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray_folder:
        command = [sys.executable, "-c", program, json.dumps(commands)]
        environment = {**os.environ, "RAY_TMPDIR": ray_folder}
        told = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert told.returncode == 0, told.stdout
    return told.stdout


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Three pictures of two characters whose names begin alike, and one that is none."""
    folder = tmp_path / "faces"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("Ann_1", "Ann_2", "Anna_1"):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "Bob_1.jpg").write_text("no picture")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_characters_are_learnt_recognised_and_drawn(
    ray_cluster: None, faces: Path, sd_folder: str, tmp_path: Path
) -> None:
    place = str(tmp_path / "out")
    model, workers = f"sd_model_name={sd_folder}", "diffusion.num_cpus=0.5"
    learnt, known = f"output_dir={place}/ids", f"imagic_pretrained_path={place}/ids"
    learn = ["personalise", f"pretrained_model_name_or_path={sd_folder}", f"input_image={faces}", learnt, workers]
    learn += ["emb_train_steps=2", "max_train_steps=2", "lora_learning_rate=0.1", "resolution=16"]
    assert "to do: 4" in run_here(*learn, "--dry-run")
    assert not list(storage.listing(f"{place}/ids"))
    assert "4 rows = 3 done + 1 rejected\nrejected: not_an_image 1" in run_here(*learn, "--max-rejected", 0, code=3)
    (bad,) = Store(f"{place}/ids").read_parts("rejected")
    assert bad["identity"].to_pylist() == ["Bob_1"]
    written = storage.read_bytes(f"{place}/ids/Ann_1/pytorch_lora_weights.safetensors")
    (faces / "Bob_1.jpg").unlink()
    assert "0 identities trained" in run_here(*learn)

    ask = ["identify-diffusion", model, known, f"csv_folder={place}/results", f"image_list={faces}", workers]
    ask += ["resolution=16", "imagic_pipe=true", "stages={samples: [2, 4], keep: [2, 1]}"]
    assert "3 images, 9 pairs of an image and an identity" in run_here(*ask, "--dry-run")
    told = run_here(*ask)
    assert "3 rows = 3 done + 0 rejected" in told and "evaluations of the network per image" in told
    assert "no certainty stated: it takes 20 images" in told
    results = f"{place}/results/Imagic_pipeline"
    rows = list(csv.DictReader(storage.read_bytes(f"{results}/Ann_results.csv").decode().splitlines()))
    assert [row["GT Image name"] for row in rows] == ["Ann_1.png"] * 3 + ["Ann_2.png"] * 3
    for image in (rows[:3], rows[3:]):
        assert {row["input_embeds"] for row in image} == {"Ann_1", "Ann_2", "Anna_1"}
        assert [float(row["loss"]) for row in image] == sorted(float(row["loss"]) for row in image)
    record = json.loads(storage.read_bytes(f"{place}/results/runs/identify-diffusion.json"))
    assert record["evaluations"] <= 3 * (3 * 2 + 2 * 2) and record["rows"]["in"] == 3
    before = storage.read_bytes(f"{results}/Ann_results.csv")
    assert "to do: 0 images" in run_here(*ask, "--dry-run")
    run_here(*ask)
    assert storage.read_bytes(f"{results}/Ann_results.csv") == before
    run_here("score", "topk", f"input_folder={results}", f"output_folder={place}/scores", "k_range=3")
    table = storage.read_bytes(f"{place}/scores/top_3_accuracy_results.csv").decode()
    assert table.splitlines()[1:] == ["Ann,100.0", "Anna,100.0", "SD_MODEL,100.0"]

    # A manifest that comes later moves what is there, and nothing is evaluated again.
    (faces / "pictures.csv").write_text("file,class\nAnn_2.png,Anna\n")
    assert "to do: 0 images" in run_here(*ask, "--dry-run")
    run_here(*ask)
    for kind in ("results", "certainty"):
        tables = {cls: storage.read_bytes(f"{results}/{cls}_{kind}.csv").decode() for cls in ("Ann", "Anna")}
        assert "Ann_2.png," in tables["Anna"] and "Ann_2.png," not in tables["Ann"]

    draw = ["generate", model, known, f"output_folder={place}/drawn", "input_files=Ann_1", workers]
    draw += ["height=16", "width=16", "num_inference_steps=2", "alpha_range=[0,1]", "imagic_pipe=true"]
    assert "to do: 2 of 2" in run_here(*draw, "--dry-run")
    assert "2 images drawn" in run_here(*draw)
    assert "0 images drawn" in run_here(*draw)
    names = [entry.name for entry in storage.listing(f"{place}/drawn", (".png",))]
    assert names == ["Ann_1_seed0_alpha0_guidance7p5.png", "Ann_1_seed0_alpha1_guidance7p5.png"]
    assert storage.read_bytes(f"{place}/drawn/pictures.csv").decode().count(",Ann,Ann_1,0,") == 2
    # What was learnt was only read.
    assert storage.read_bytes(f"{place}/ids/Ann_1/pytorch_lora_weights.safetensors") == written


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_learnt_and_said_may_lie_on_s3(s3: str, faces: Path, sd_folder: str) -> None:
    (faces / "Bob_1.jpg").unlink()
    known, workers = f"imagic_pretrained_path={s3}/ids", "diffusion.num_cpus=0.5"
    learn = ["personalise", f"pretrained_model_name_or_path={sd_folder}", f"input_image={faces}", "resolution=16"]
    learn += [f"output_dir={s3}/ids", "emb_train_steps=2", "max_train_steps=2", workers]
    ask = ["identify-diffusion", f"sd_model_name={sd_folder}", known, f"csv_folder={s3}/results", workers]
    ask += [f"image_list={faces}", "resolution=16", "imagic_pipe=true", "stages={samples: [2, 4], keep: [2, 1]}"]
    assert run_apart(learn, ask).count("3 rows = 3 done + 0 rejected") == 2
    results = f"{s3}/results/Imagic_pipeline"
    rows = list(csv.DictReader(storage.read_bytes(f"{results}/Ann_results.csv").decode().splitlines()))
    assert [row["GT Image name"] for row in rows] == ["Ann_1.png"] * 3 + ["Ann_2.png"] * 3
    assert "to do: 0 images" in run_here(*ask, "--dry-run")
    run_here("score", "topk", f"input_folder={results}", f"output_folder={s3}/scores", "k_range=3")
    table = storage.read_bytes(f"{s3}/scores/top_3_accuracy_results.csv").decode()
    assert table.splitlines()[1:] == ["Ann,100.0", "Anna,100.0", "SD_MODEL,100.0"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_costs_no_identity_more_than_its_last_steps(
    ray_cluster: None, faces: Path, sd_folder: str, tmp_path: Path
) -> None:
    settings = ["emb_train_steps=3", "max_train_steps=60", "resolution=16", "seed=1", "lora_learning_rate=0.01"]
    settings += [f"pretrained_model_name_or_path={sd_folder}", f"input_image={faces}"]
    ids = tmp_path / "ids"
    learn = ["personalise", f"output_dir={ids}", *settings, "checkpoint_s=0"]
    learn += ["diffusion.workers=2", "diffusion.num_cpus=0.5"]

    def learnt() -> set[str]:
        return {path.parent.name for path in ids.glob("*/personalised.json")}

    with corpus.job(tmp_path / "log.txt", *learn, program=("-m", "jobs.movie_characters")) as running:
        # One is there, and the next in the middle of its LoRA.
        running.wait_until(lambda: bool(learnt() and list(ids.glob("checkpoints/*/unet.safetensors"))))
        running.kill()
    there = learnt()
    assert there < {"Ann_1", "Ann_2", "Anna_1"}
    # One that cannot be read costs no other.
    told = run_here(*learn)
    assert (
        "4 rows = 3 done + 1 rejected\nrejected: not_an_image 1" in told
        and f"{3 - len(there)} identities trained" in told
    )
    assert not list(ids.glob("checkpoints/*/*.safetensors"))
    whole = load(PersonaliseConfig, [*settings, f"output={tmp_path / 'whole'}"])
    tasks = plan_personalise(whole).todo
    Personaliser(whole, tasks)({"number": np.arange(len(tasks))})
    for name in ("Ann_1", "Ann_2", "Anna_1"):
        one, other = (load_file(tmp_path / place / name / LORA) for place in ("ids", "whole"))
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], abs=1e-5)


OPTIONS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "extract": (ExtractConfig, {"csv": "a", "video": "b", "output": "c", "category": "d"}, {"show": False}),
    "personalise": (
        PersonaliseConfig,
        {"input_image": "a", "output_dir": "b"},
        {
            "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
            "target_text": "a photo of {}",
            "resolution": 512,
            "center_crop": False,
            "train_batch_size": 4,
            "emb_train_steps": 500,
            "max_train_steps": 1000,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "emb_learning_rate": 1e-3,
            "learning_rate": 1e-6,
            "scale_lr": False,
            "use_8bit_adam": False,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_weight_decay": 1e-2,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1,
            # The reference's no on a CPU.
            "mixed_precision": "auto",
            "seed": 0,
            "log_interval": 10,
            "push_to_hub": False,
            "hub_model_id": None,
        },
    ),
    "identify-diffusion": (
        IdentifyConfig,
        {"imagic_pretrained_path": "a", "csv_folder": "b", "image_list": "c"},
        {
            "sd_model_name": "CompVis/stable-diffusion-v1-4",
            "clip_model_name": None,
            "category_class": False,
            "imagic_pipe": False,
            "alpha": 0,
            "seed": 0,
            "height": None,
            "width": None,
            "resolution": 512,
            "num_inference_steps": 50,
        },
    ),
    "generate": (
        GenerateConfig,
        {"imagic_pretrained_path": "a", "output_folder": "b"},
        {
            "input_files": (),
            "imagic_pipe": False,
            "sd_model_name": "CompVis/stable-diffusion-v1-4",
            "clip_model_name": None,
            "seed_range": (0,),
            "alpha_range": (0,),
            "guidance_scale_range": (7.5,),
            "height": 512,
            "width": 512,
            "num_inference_steps": 50,
        },
    ),
    "identify-clip": (
        ClipConfig,
        {"input_dir": "a", "output_dir": "b", "image_list": "c"},
        {"model_name": "ViT-B-32", "device": "cpu"},
    ),
    "score topk": (
        TopkConfig,
        {"input_folder": "a", "output_folder": "b"},
        {"k_range": 5, "clip_csv": None, "avg": False, "pred_column": "loss"},
    ),
    "score map": (MapConfig, {"input_folder": "a", "output_folder": "b"}, {"clip_csv": None}),
}
"""Of each verb that the reference system has: its settings, those that are needed, and the defaults of all others."""


def named_so(config: Any, name: str) -> Any:
    """The value of a setting by the reference's name."""
    target = getattr(config, "ALIASES", {}).get(name, name)
    path = target if isinstance(target, str) else target[0]
    value = reduce(getattr, path.split("."), config)
    return {0: "cpu", 1: "cuda"}[value] if name == "device" else value


@pytest.mark.parametrize("verb", OPTIONS)
def test_options_bear_the_names_of_the_reference_and_its_defaults(verb: str) -> None:
    kind, needed, defaults = OPTIONS[verb]
    given = [f"{name}={value}" for name, value in needed.items()]
    config = load(kind, given)
    assert {name: named_so(config, name) for name in (*needed, *defaults)} == {**needed, **defaults}
    said = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in defaults.items()]
    assert load(kind, [*given, *said]) == config


def test_what_the_documentation_says_of_a_verb_is_there() -> None:
    settings: dict[str, Any] = {verb: kind for verb, (kind, _, _) in OPTIONS.items()}
    settings |= {"identify-faces": FaceConfig, "fuse": FuseConfig, "timeline": TimelineConfig}
    settings |= {"compare": CompareConfig, "score report": ReportConfig, "score cast": CastConfig}
    told = (ROOT / "docs/movie_characters.md").read_text()
    rows = re.findall(r"^(?:\| `|python -m jobs.movie_characters )((?:score )?[a-z-]+) ([^`\n]+)", told, re.MULTILINE)
    assert {verb for verb, _ in rows} == set(settings)
    for verb, options in rows:
        result = CliRunner().invoke(app, [*verb.split(), "--help"])
        assert result.exit_code == 0, result.output
        names = {field.name for field in fields(settings[verb])} | set(getattr(settings[verb], "ALIASES", ()))
        said = re.findall(r"(?<![\w.])([a-z_0-9]+)[\w.]*=", options) + re.findall(r"--([a-z]+)", options)
        assert names.issuperset(said), verb


@pytest.mark.parametrize(
    ("missing", "verb", "extra"),
    [
        ("peft", "personalise", "movie-characters"),
        ("transformers", "identify-diffusion", "movie-characters"),
        ("peft", "generate", "movie-characters"),
        ("bitsandbytes", "personalise", "adam8bit"),
        ("dlib", "identify-faces", "faces"),
        ("face_recognition_models", "compare", "faces"),
        ("peft", "compare", "movie-characters"),
        ("dlib", "timeline", "faces"),
    ],
)
def test_an_extra_that_is_missing_is_named_before_anything_is_done(
    missing: str, verb: str, extra: str, sd_folder: str, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, f"{missing}.optim.adamw", None)
    place = str(tmp_path / "out")
    model = {"movie-characters": f"{{by: diffusion, settings: {{imagic_pretrained_path: {tmp_path}}}}}"}
    model["faces"] = f"{{by: faces, settings: {{input_dir: {faces}}}}}"
    (tmp_path / "film.mp4").write_bytes(b"a film")
    write_embedding(np.zeros((1, 77, 8), np.float32), str(tmp_path / "identities"), "Ann_1", "optimized_embeddings")
    settings = {
        "personalise": [f"pretrained_model_name_or_path={sd_folder}", f"input_image={faces}", f"output_dir={place}"],
        "identify-diffusion": [f"imagic_pretrained_path={tmp_path}", f"image_list={faces}", f"csv_folder={place}"],
        "generate": [f"imagic_pretrained_path={tmp_path / 'identities'}", f"output_folder={place}"],
        "identify-faces": [f"input_dir={faces}", f"image_list={faces}", f"output_dir={place}"],
        "compare": [f"image_list={faces}", f"output={place}", f"models.one={model.get(extra)}"],
        "timeline": [f"input={tmp_path / 'film.mp4'}", f"output={place}", f"model={model.get(extra)}"],
    }[verb]
    given = [*settings, *(["use_8bit_adam=true"] if extra == "adam8bit" else [])]
    told = CliRunner().invoke(app, [verb, *given])
    assert told.exit_code == 2, told.output
    assert f'-e ".[{extra}]"' in told.output
    assert not Path(place).exists()


def test_mistakes_are_told(sd_folder: str, faces: Path, tmp_path: Path) -> None:
    ids = f"imagic_pretrained_path={tmp_path / 'none'}"
    ask = ["identify-diffusion", f"csv_folder={tmp_path / 'out'}", f"image_list={faces}"]
    told = CliRunner().invoke(app, [*ask, ids, f"sd_model_name={tmp_path / 'none'}"])
    assert told.exit_code == 2 and "give a folder" in told.output
    told = CliRunner().invoke(app, [*ask, ids, f"sd_model_name={sd_folder}"])
    assert told.exit_code == 2 and "holds no identities" in told.output
    assert not (tmp_path / "out").exists()
