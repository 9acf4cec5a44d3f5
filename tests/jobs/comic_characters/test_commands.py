"""The verbs of comic characters from the command line, on a comic that draws itself."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from actors.comic_characters.network import Head, make_backbone
from actors.comic_characters.network_settings import HeadConfig
from actors.core import storage
from actors.core.store import Store
from jobs.comic_characters.__main__ import app
from pipelines.comic_characters.embed import read_embeddings
from pipelines.comic_characters.model import backbone_uri, keep_model
from tests.support import corpus
from tests.support.comics import write_comic
from tests.support.embedded_comics import embedded_comic


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    write_comic(tmp_path, series=2)
    with (tmp_path / "merged_face_body.csv").open("a") as file:
        file.write("s0,99_0,face,0,0,1,1,9,9\n")
    return [
        f"input={tmp_path / 'panels'}",
        f"boxes={tmp_path / 'merged_face_body.csv'}",
        f"output={tmp_path / 'out'}",
    ]


def test_crop(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    told = run("crop", *settings, "--dry-run").output
    assert "1 cannot be cut: missing_page 1" in told and "as many as fit tasks" in told
    assert not (tmp_path / "out").exists()
    told = run("crop", *settings, "crop.batch_size=4", "--max-rejected", 0, code=3).output
    assert "1 rejected" in told and "rows/s" in told
    record = json.loads((tmp_path / "out/runs/crop.json").read_text())
    made = list((tmp_path / "out").glob("comics_crops*/**/*.jpg"))
    assert record["status"] == "rejected"
    assert record["rows"] == {"in": len(made) + 1, "out": len(made), "rejected": {"missing_page": 1}}
    assert "crop: 0 rows" in run("crop", *settings, "--max-rejected", 1).output
    assert "another output" in run("crop", *settings, "crop.face_scale=2", code=2).stderr


TINY = [
    "backbone={name: resnet10, face_size: 32, body_size: 32}",
    "pretrain.training={epochs: 2, batch_size: 8, checkpoint_s: 0}",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pretrain(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    write_comic(tmp_path, series=4)
    run("crop", *settings)
    told = run("pretrain", *settings, *TINY, "--dry-run").output
    assert "train: 1 actors" in told and "of 2" in told and not (tmp_path / "out/pairs").exists()
    told = run("pretrain", *settings, *TINY).output
    assert "2 epochs; the best: epoch" in told and "identity_mean_position" in told
    record = json.loads((tmp_path / "out/runs/pretrain.json").read_text())
    assert record["rows"]["in"] == record["rows"]["out"] == sum(record["pairs"].values())
    assert {part: len(series) for part, series in record["series"].items()} == {"train": 2, "valid": 1, "test": 1}
    weights = (tmp_path / "out/pretrain/model.safetensors").read_bytes()
    assert record["best_by"]["retrieval"] == "views" and 0 < record["best"]["retrieval"] <= 1
    assert "decode: 0 rows" in run("pretrain", *settings, *TINY).output
    assert (tmp_path / "out/pretrain/model.safetensors").read_bytes() == weights
    # With labels of two series, characters are searched instead, and this is another training.
    series = tuple(f"{record['series'][part][0]}_" for part in ("valid", "train"))
    sequences = json.loads((tmp_path / "sequences.json").read_text())
    own = [one for one in sequences if one["seq_id"].startswith(series)]
    (tmp_path / "validation_sequences.json").write_text(json.dumps(own))
    run("pretrain", *settings, *TINY, f"labels={tmp_path}")
    record = json.loads((tmp_path / "out/runs/pretrain.json").read_text())
    assert record["best_by"]["retrieval"] == "identities" and record["best_by"]["queries"] >= 10
    assert record["best"]["retrieval"] == record["best"]["identity_map_at_r"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tune(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    """On a backbone with its first weights, which tells colours apart."""
    sequences = json.loads((tmp_path / "sequences.json").read_text())
    for split, part in (("train", sequences[:2]), ("validation", sequences[2:])):
        (tmp_path / f"{split}_sequences.json").write_text(json.dumps(part))
    run("crop", *settings)
    backbone = make_backbone("resnet10").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in backbone.items()}, tmp_path / "weights.safetensors")
    more = [*settings, TINY[0], f"labels={tmp_path}", f"features.weights={tmp_path / 'weights.safetensors'}"]
    more += ["fine_tune.training={epochs: 3, batch_size: 2, checkpoint_s: 0}", "fine_tune.head.padding=learned"]
    assert "2 sequences to train on, 2 to validate" in run("fine-tune", *more, "--dry-run").output
    (crop := next((tmp_path / "out/comics_crops").glob("s0/0_0/bodies/*.jpg"))).unlink()
    assert "1 rejected" in run("fine-tune", *more).output, crop
    record = json.loads((tmp_path / "out/runs/fine-tune.json").read_text())
    assert record["rows"]["rejected"] == {"missing_crop": 1} and 0 < record["best"]["query_mrr"] <= 1
    assert record["stages"]["features"]["rows"] == record["rows"]["in"]
    assert (tmp_path / "out/fine-tune/model.safetensors").exists()
    kept = {path.name for path in (tmp_path / "out/model").iterdir()}
    assert kept == {"backbone.safetensors", "head.safetensors", "settings.json"}
    run("fine-tune", *more)
    again = json.loads((tmp_path / "out/runs/fine-tune.json").read_text())
    assert again["stages"]["features"]["rows"] == 1 and again["best"] == record["best"]


def save_head(output: Path) -> None:
    """A backbone and a head with their first weights, as if they were trained."""
    (output / "pretrain").mkdir(parents=True)
    (output / "fine-tune").mkdir()
    backbone = {name: tensor.contiguous() for name, tensor in make_backbone("resnet10").state_dict().items()}
    save_file(backbone, output / "pretrain/model.safetensors")
    save_file(Head(HeadConfig(dimensions=16), 512).state_dict(), output / "fine-tune/model.safetensors")


def test_embed(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    save_head(output)
    run("crop", *settings)
    more = [*settings, TINY[0], "fine_tune.head.dimensions=16", "embed.batch_size=10"]
    told = run("embed", *more, "--dry-run").output
    assert "embed: 1 actors" in told and "read: 1 tasks" in told and "write: 1 tasks" in told
    assert "features of 32 instances, vectors of 32" in told
    assert not (output / "embeddings").exists()
    next((output / "comics_crops").glob("s0/0_0/bodies/*.jpg")).write_bytes(b"torn")
    assert "rejected: broken_crop 1" in run("embed", *more).output
    found = read_embeddings(Store(str(output)))
    assert found.vectors.shape == (31, 16) and len(list((output / "embeddings").iterdir())) == 4
    run("embed", *more, "--max-rejected", 0, code=3)
    record = json.loads((output / "runs/embed.json").read_text())
    assert record["stages"]["features"]["rows"] == 1 and record["stages"]["embed"]["rows"] == 10


def test_a_model_is_used_on_other_comics(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    """Weights and the settings that they were trained with come from the other output; nothing has to be said again."""
    model = tmp_path / "model"
    save_head(model)
    refused = run("embed", *settings, f"model={model}", code=2).stderr
    assert "holds no model" in refused and "model/settings.json" in refused
    trained = app.verbs["fine-tune"].load([f"output={model}", TINY[0], "fine_tune.head.dimensions=16"])
    keep_model(trained, backbone_uri(trained))
    run("crop", *settings)
    run("embed", *settings, f"model={model}")
    found = read_embeddings(Store(str(tmp_path / "out")))
    assert found.vectors.shape[1] == 16
    used = json.loads((tmp_path / "out/runs/embed.json").read_text())["settings"]
    assert used["backbone"] == asdict(trained)["backbone"] and not (tmp_path / "out/fine-tune").exists()
    # The threshold that was fitted for these weights comes with them.
    made = json.loads((tmp_path / "out/embeddings.json").read_text())
    assign = trained.assign
    fit = {"method": assign.method, "constraints": assign.constraints, "by": made, "threshold": 0.41, "curve": []}
    (model / "model/threshold.json").write_text(json.dumps(fit))
    assert "threshold: 0.41" in run("assign", *settings, f"model={model}", "--dry-run").output
    # Scores compare its head and stage 1, and train an ablation's head here.
    (tmp_path / "sequences.json").rename(tmp_path / "test_sequences.json")
    more = [f"labels={tmp_path}", "score.photographs={model: resnet18, weights: nowhere.safetensors}"]
    more += [f"model={model}", "score.ablations={cat: [fine_tune.head.fusion=cat]}"]
    assert "input: 32 instances of test" in run("score", *settings, *more, "--dry-run").output


def test_score(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    """With a head that has learnt nothing; what cannot be compared is told as a row."""
    output = tmp_path / "out"
    save_head(output)
    (tmp_path / "sequences.json").rename(tmp_path / "test_sequences.json")
    run("crop", *settings)
    more = [*settings, TINY[0], "fine_tune.head.dimensions=16", f"labels={tmp_path}", "score.draws=20"]
    more += ["score.rerank={k1: 4, k2: 2}", "score.photographs={model: resnet18, weights: nowhere.safetensors}"]
    assert "Run `embed` first" in run("score", *more, code=2).stderr
    run("embed", *more)
    told = run("score", *more, "score.ablations={cat: [fine_tune.head.fusion=cat]}", "--dry-run").output
    assert "input: 32 instances of test" in told and "stage 1 0, colours 32" in told
    assert "ablation cat: fine_tune.head.fusion=cat" in told and not (output / "scores").exists()
    wrong = run("score", *more, "score.ablations={other: [crop.quality=9]}", code=2).stderr
    assert "score.ablations.other: only pretrain" in wrong
    told = run("score", *more).output
    assert "stage 2, re-ranked: MAP@R" in told and "ImageNet resnet18: not compared: score.photographs.weights" in told
    found = json.loads((output / "scores/scores.json").read_text())
    assert found["facts"]["series"] == 2 and list(found["methods"])[:3] == ["random", "colours", "stage 1"]
    faceless = sum(one[2] is None for one in read_embeddings(Store(str(output))).instances)
    assert found["guessed"]["stage 1, only face"] == found["guessed"]["stage 2, only face"] == faceless > 0
    value = found["methods"]["stage 1"]["within"]["bcubed_f1"]
    assert 0 < value["low"] <= value["value"] <= value["high"] <= 1
    rows = (output / "scores/scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 26 * len(found["methods"]) + 1 and rows[-1].startswith("ImageNet resnet18")
    page = (output / "scores/report.html").read_text()
    assert "ImageNet resnet18" in page and (output / "scores/map_at_r.png").exists()
    again = run("score", *more).output
    assert "colours: 0 rows" in again and json.loads((output / "scores/scores.json").read_text()) == found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_embed_and_score_killed_on_s3_end_as_undisturbed_in_a_folder(
    ray_cluster: None, s3: str, settings: list[str], tmp_path: Path
) -> None:
    output, copy = tmp_path / "out", f"{s3}/out"
    save_head(output)
    (tmp_path / "sequences.json").rename(tmp_path / "test_sequences.json")
    run("crop", *settings)
    for entry in storage.listing(str(tmp_path)):
        storage.upload(tmp_path / entry.name, f"{s3}/{entry.name}")
    more = [TINY[0], "fine_tune.head.dimensions=16", "features.batch_size=2", "embed.batch_size=10", "score.draws=20"]
    more += ["score.photographs={model: resnet18, weights: nowhere.safetensors}"]
    here = [*settings, *more, f"labels={tmp_path}"]
    for verb in ("embed", "score"):
        run(verb, *here)
    there = [one.replace(str(tmp_path), s3) for one in here]
    for verb in ("embed", "score"):
        done = corpus.names(copy, "features")
        with corpus.job(tmp_path / "log.txt", verb, *there, program=("-m", "jobs.comic_characters")) as job:
            job.wait_until(partial(_more, copy, done))
            job.kill()
        kept = corpus.contents(copy, "features")
        assert not storage.exists(f"{copy}/runs/{verb}.json")
        with corpus.job(tmp_path / "log.txt", verb, *there, program=("-m", "jobs.comic_characters")) as job:
            job.wait()
        assert kept.items() <= corpus.contents(copy, "features").items()
    ours, theirs = (read_embeddings(Store(place)) for place in (copy, str(output)))
    assert ours.instances == theirs.instances
    assert ours.vectors == pytest.approx(theirs.vectors, abs=1e-5)
    found, expected = (json.loads(storage.read_bytes(f"{place}/scores/scores.json")) for place in (copy, output))
    assert found == expected


def _more(output: str, done: set[str]) -> bool:
    """Whether some of the features are there, and not yet all."""
    return len(corpus.names(output, "features") - done) >= 2


def test_assign(tmp_path: Path) -> None:
    """Without Ray, which it does not need."""
    config, _ = embedded_comic(tmp_path)
    bank = tmp_path / "bank.csv"
    bank.write_text("name,instance\nAnna & co,s2_0_0_body_0\n")
    more = [f"output={config.output}", f"labels={tmp_path}", f"assign.bank={bank}", "assign.pictures=2"]
    assert "threshold: " in run("assign", *more, "--dry-run").output and not (tmp_path / "out/assign").exists()
    told = run("assign", *more).output
    assert "the best of 4 sequences" in told and "bank: 1 characters, 1 examples" in told and "B-cubed: " in told
    page = (tmp_path / "out/assign/report.html").read_text()
    assert page.count("<img") == 3 and "Anna &amp; co" in page and 'src="http' not in page
    assert (tmp_path / "out/assign/threshold.png").exists()
    assert json.loads((tmp_path / "out/runs/assign.json").read_text())["bcubed"]["f1"] > 0.9
    told = run("assign", *more, "labels=''", "assign.threshold=0.5", "assign.folder=mine").output
    assert "threshold: 0.5, assign.threshold" in told and "8 sequences" in told and "B-cubed" not in told


def test_what_is_needed_is_told(settings: list[str]) -> None:
    assert "output: this setting is required" in run("crop", *settings[:2], code=2).stderr
    assert "boxes: this setting is required" in run("crop", settings[0], settings[2], code=2).stderr
    assert "crop.quality" in run("crop", *settings, "crop.quality=high", code=2).stderr
    assert "there is no such file" in run("crop", *settings, "boxes=nowhere.csv", code=2).stderr


REFERENCE = "experiment=sim_clr_comics_crops_face_body_aligned_infonce_multi"


def test_named_experiments_and_hydra_overrides_of_the_reference_are_understood(
    settings: list[str], tmp_path: Path
) -> None:
    """As `pretrain.py` and `fine_tune.py` of the reference are run, down to the plan."""
    pretrain, fine_tune = app.verbs["pretrain"], app.verbs["fine-tune"]
    whole = pretrain.load([*settings, REFERENCE]).pretrain
    assert (whole.training.epochs, whole.training.batch_size, whole.identity) == (500, 320, True)
    overrides = ["trainer.max_epochs=20", "datamodule.batch_size=64"]
    stage_1 = pretrain.load([*settings, REFERENCE, *overrides]).pretrain.training
    assert (stage_1.epochs, stage_1.batch_size, stage_1.learning_rate) == (20, 64, 0.0005)
    stage_2 = fine_tune.load([*settings, REFERENCE, *overrides]).fine_tune.training
    assert (stage_2.epochs, stage_2.batch_size, stage_2.learning_rate) == (20, 64, 0.00075)
    assert fine_tune.load([*settings, *overrides]).pretrain.training.epochs == 500
    for count, expected in ((0, (1, 0.0)), (1, (1, 1.0)), (4, (4, 1.0))):
        training = pretrain.load([*settings, REFERENCE, f"trainer.gpus={count}"]).pretrain.training
        assert (training.workers, training.num_gpus) == expected
    assert pretrain.load([f"pictures={tmp_path}", settings[2]]).input == str(tmp_path)
    wrong = run("pretrain", *settings, "experiment=sim_clr", code=2).stderr
    assert "experiment=sim_clr does not exist" in wrong and REFERENCE.partition("=")[2] in wrong
    assert "trainer.gpus=-1" in run("pretrain", *settings, "trainer.gpus=-1", code=2).stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_lines_of_the_reference_run(ray_cluster: None, settings: list[str], tmp_path: Path) -> None:
    write_comic(tmp_path, series=4)
    run("crop", *settings)
    small = [REFERENCE, "trainer.max_epochs=1", "datamodule.batch_size=8", "trainer.gpus=0", TINY[0]]
    told = run("pretrain", *settings, *small, "--dry-run").output
    assert "epochs: 1\n" in told and "train: 1 actors of 1 CPUs, 0 GPUs, 8 rows a call" in told
    assert "1 epochs; the best: epoch" in run("pretrain", *settings, *small).output
    assert json.loads((tmp_path / "out/runs/pretrain.json").read_text())["settings"]["experiment"]
