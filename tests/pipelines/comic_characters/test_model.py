"""A model of one comic on another: weights, settings, threshold and bank come with it, from a folder or S3."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.comic_characters.checkpoints import read_backbone
from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from jobs.comic_characters.__main__ import app
from pipelines.comic_characters.assign import assign, names_of, plan_assignment
from pipelines.comic_characters.embed import plan_embedding
from pipelines.comic_characters.model import BANK, THRESHOLD, backbone_uri, find_model, keep_model
from pipelines.comic_characters.sequences import read_sequences
from pipelines.comic_characters.settings import ComicsConfig
from tests.pipelines.comic_characters.test_embed import HEAD, cut_comic, embed, save_weights


@pytest.fixture
def trained(tmp_path: Path) -> ComicsConfig:
    """A comic with a model, a threshold fitted on its labels, and a bank."""
    folder = tmp_path / "trained"
    folder.mkdir()
    config = cut_comic(folder, str(folder / "out"))
    assert keep_model(config, backbone_uri(config)) == str(folder / "out/model")
    for split in ("validation", "test"):
        shutil.copy(folder / "sequences.json", folder / f"{split}_sequences.json")
    config = replace(config, labels=str(folder))
    embed(config, plan_embedding(config))
    first = read_sequences(str(folder / "sequences.json"))[0]
    names = dict(zip(dict.fromkeys(first.characters), ("Ann", "Bob"), strict=False))
    rows = [
        f"{names[who]},{next(iter(names_of(one).values()))}"
        for one, who in zip(first.instances, first.characters, strict=True)
        if who in names
    ]
    (folder / "bank.csv").write_text("\n".join(["name,instance", *rows]))
    config = replace(config, assign=replace(config.assign, bank=str(folder / "bank.csv"), pictures=0))
    record, _ = assign(config, plan_assignment(config))
    assert record["threshold"]["why"] == "the best of 2 sequences of the validation split" and record["named"]
    return config


def other(tmp_path: Path, model: str) -> ComicsConfig:
    """Another comic, its faces and bodies cut, as the command line loads it: nothing is said but the model."""
    folder = tmp_path / "other"
    if not folder.exists():
        folder.mkdir()
        cut_comic(folder, str(folder / "out"))
        # It has no weights of its own.
        shutil.rmtree(folder / "out/pretrain")
        shutil.rmtree(folder / "out/fine-tune")
    return app.verbs["assign"].load([f"output={folder / 'out'}", f"model={model}", "assign.pictures=0"])


def works(tmp_path: Path, model: str, trained: ComicsConfig) -> None:
    config = other(tmp_path, model)
    assert config.backbone == trained.backbone and config.fine_tune.head == HEAD
    embed(config, plan_embedding(config))
    plan = plan_assignment(config)
    fitted = Store(trained.output).read_json("threshold.json")["threshold"]
    assert plan.threshold.value == fitted and find_model(model).uri(THRESHOLD) in plan.threshold.why
    record, _ = assign(config, plan)
    assert plan.bank is not None and plan.bank.names == ["Ann", "Bob"] and record["named"]
    # What was found here is not the model's.
    assert not (tmp_path / "other/out/model").exists()
    without = replace(config, assign=replace(config.assign, bank=""))
    assert plan_assignment(without).bank is None


def test_a_model_of_an_output_works_on_another_comic(trained: ComicsConfig, tmp_path: Path) -> None:
    works(tmp_path, trained.output, trained)


def test_a_model_works_from_a_copy_of_its_folder_alone(trained: ComicsConfig, tmp_path: Path) -> None:
    shutil.move(Path(trained.output) / "model", tmp_path / "copied")
    moved = Path(trained.output) / "model"
    works(tmp_path, str(tmp_path / "copied"), trained)
    assert not moved.exists()


@pytest.mark.parametrize("below", ["", "/model"])
def test_a_model_works_from_s3(trained: ComicsConfig, tmp_path: Path, s3: str, below: str) -> None:
    for path in (Path(trained.output) / "model").iterdir():
        storage.upload(path, f"{s3}/out/model/{path.name}")
    works(tmp_path, f"{s3}/out{below}", trained)


def test_what_was_made_by_other_weights_is_refused(trained: ComicsConfig, tmp_path: Path) -> None:
    config = other(tmp_path, trained.output)
    embed(config, plan_embedding(config))
    dbscan = replace(config, assign=replace(config.assign, method="dbscan"))
    with pytest.raises(UserError, match=r"fitted for assign.method=agglomerative. Set assign.threshold"):
        plan_assignment(dbscan)
    model = Path(trained.output) / "model"
    for name, told in ((BANK, "is of other weights"), (THRESHOLD, "fitted for other weights")):
        found = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**found, "by": {"features": "else"}}))
        with pytest.raises(UserError, match=told):
            plan_assignment(config)
        (model / name).write_text(json.dumps(found))


def test_training_again_takes_threshold_and_bank_away_only_if_weights_changed(trained: ComicsConfig) -> None:
    model = Path(trained.output) / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert len(before) == 5
    keep_model(trained, backbone_uri(trained))
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    save_weights(trained.output, seed=1)
    keep_model(trained, backbone_uri(trained))
    after = {path.name for path in model.iterdir()}
    assert after == before.keys() - {THRESHOLD, BANK}


def test_a_head_trained_here_on_a_backbone_of_another_output_is_whole(trained: ComicsConfig, tmp_path: Path) -> None:
    config = other(tmp_path, trained.output)
    head = Path(trained.output) / "fine-tune/model.safetensors"
    (Path(config.output) / "fine-tune").mkdir()
    shutil.copy(head, Path(config.output) / "fine-tune/model.safetensors")
    keep_model(config, backbone_uri(config))
    here = replace(config, model="")
    assert read_backbone(backbone_uri(here)) == read_backbone(backbone_uri(trained))
    assert plan_embedding(here).backbone.folder == plan_embedding(trained).backbone.folder


def test_where_there_is_no_model_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model: neither .*settings.json nor .*model/settings.json exists"):
        app.verbs["embed"].load([f"output={tmp_path}", f"model={tmp_path}/nothing"])
