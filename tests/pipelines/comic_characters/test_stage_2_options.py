"""Networks that are shared or not, views for a frozen network, heads of one part, banks of pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from actors.comic_characters.augment_settings import CopiesConfig, ViewsConfig
from actors.comic_characters.checkpoints import read_backbone
from actors.comic_characters.crops import crop_name, decode
from actors.comic_characters.network import FeatureExtractor, load_networks
from actors.comic_characters.network_settings import BackboneConfig, FeaturesConfig, HeadConfig
from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.core.store import Store
from jobs.comic_characters.__main__ import app
from pipelines.comic_characters.bank import find_bank
from pipelines.comic_characters.embed import plan_embedding, read_embeddings
from pipelines.comic_characters.features import find_backbone
from pipelines.comic_characters.learning.fine_tune import drawn
from pipelines.comic_characters.learning.pretrain import loss, make_model, networks_of
from pipelines.comic_characters.settings import ComicsConfig, FineTuneConfig, PretrainConfig
from tests.actors.comic_characters.test_checkpoints import simclr, stage_2
from tests.pipelines.comic_characters import test_embed
from tests.pipelines.comic_characters.learning.test_pretrain import batch
from tests.pipelines.comic_characters.test_embed import cut_comic, embed


def test_networks_of_their_own_learn_from_their_own_pictures() -> None:
    torch.manual_seed(0)
    model: Any = make_model("resnet10", 8, shared=False).train()
    rows = batch()
    torch.autograd.backward(model(*(rows[kind].permute(0, 3, 1, 2).float() for kind in rows))[0].square().sum() * 1e3)
    assert any(one.grad is not None for one in model.face.parameters())
    assert all(one.grad is None for one in model.body.parameters())
    loss(PretrainConfig(), model, rows).backward()
    assert all(one.grad is not None for one in model.body.backbone.parameters())
    networks = networks_of(model)
    assert networks["face"] is model.face.backbone and networks["body"] is model.body.backbone
    shared = networks_of(make_model("resnet10", 8))
    assert shared["face"] is shared["body"]
    # What it writes is what features are taken from.
    weights = save({name: tensor.contiguous() for name, tensor in model.eval().state_dict().items()})
    picture = torch.randn(2, 3, 32, 32)
    for projection in (False, True):
        config = BackboneConfig("resnet10", 32, 32, shared=False, projection=projection)
        found, own = load_networks(config, weights), networks_of(model, projection)
        for kind in ("face", "body"):
            torch.testing.assert_close(found[kind](picture), own[kind](picture))  # pyright: ignore[reportArgumentType]


def test_what_is_new_changes_no_description_of_before() -> None:
    assert BackboneConfig().described() == {"name": "resnet50", "face_size": 96, "body_size": 128}
    assert BackboneConfig(shared=False).described()["shared"] is False
    with pytest.raises(UserError, match=r"Set backbone.shared=false"):
        ComicsConfig("out", features=FeaturesConfig(weights={"face": "a", "body": "b"}))


def _batch(config: ComicsConfig) -> Batch:
    [first, *_] = [one for part in plan_embedding(config).parts for one in part if None not in one]
    series, page, face, body = first
    columns: Batch = {"series_id": np.array([series], object), "page_id": np.array([page], object)}
    return columns | {"face": np.array([face], float), "body": np.array([body], float)}


def test_views_of_a_crop_are_features_of_their_own_and_always_the_same(tmp_path: Path) -> None:
    config = cut_comic(tmp_path, str(tmp_path / "out"))
    rows, weights = _batch(config), find_backbone(config).weights

    def features(copies: CopiesConfig | None, seed: int = 0) -> np.ndarray:
        made = FeatureExtractor(config.features, config.backbone, weights, config.output, copies, seed)
        return made(rows)["face_features"][0]

    plain = features(None)
    three = features(CopiesConfig(3)).reshape(3, -1)
    assert three.shape == (3, len(plain)) and len(np.unique(three.round(5), axis=0)) == 3
    np.testing.assert_array_equal(features(CopiesConfig(3)).reshape(3, -1), three)
    assert not np.allclose(features(CopiesConfig(3), seed=1).reshape(3, -1), three)
    # Views that change nothing are the crop.
    same = ViewsConfig(flip=0, min_scale=1, jitter=0, grey=0, max_sigma=0.1)
    np.testing.assert_allclose(
        features(CopiesConfig(2, same)).reshape(2, -1), np.stack([plain] * 2), rtol=0.05, atol=0.05
    )


def test_an_epoch_takes_the_crop_or_one_of_its_views_of_face_and_body_alike() -> None:
    copies = torch.arange(4.0).repeat_interleave(2).expand(200, -1)
    torch.manual_seed(0)
    found = drawn({"faces": copies, "bodies": copies + 10}, 2)
    assert found["faces"].shape == (200, 2) and set(found["faces"].flatten().tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(found["bodies"], found["faces"] + 10)
    alone = {"faces": copies, "bodies": copies}
    assert drawn(alone, 8) is alone


def test_instances_without_the_only_part_are_rejected_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cut_comic(tmp_path, str(tmp_path / "out"))
    head = HeadConfig("only_face", dimensions=8)
    linear = {"linear.weight": torch.randn(8, 512), "linear.bias": torch.randn(8)}
    storage.write_bytes(f"{config.output}/fine-tune/model.safetensors", save(linear))
    config = replace(config, fine_tune=FineTuneConfig(head=head))
    # `embed` of these tests has a head of its own.
    monkeypatch.setattr(test_embed, "HEAD", head)
    embed(config, plan_embedding(config))
    found = read_embeddings(Store(config.output))
    everybody = [one for part in plan_embedding(config).parts for one in part]
    assert set(found.instances) == {one for one in everybody if one[2] is not None} != set(everybody)
    assert not plan_embedding(config).todo


def test_a_bank_of_pictures_names_as_one_of_crops_does(tmp_path: Path) -> None:
    config = cut_comic(tmp_path, str(tmp_path / "out"))
    embed(config, plan_embedding(config))
    found = read_embeddings(Store(config.output))
    both = next(i for i, one in enumerate(found.instances) if None not in one)
    series, page, face, body = found.instances[both]
    assert face is not None and body is not None
    for kind, index in (("face", face), ("body", body)):
        crop = storage.read_bytes(f"{config.output}/{crop_name(series, page, kind, index)}")  # pyright: ignore[reportArgumentType]
        decode(crop).save(tmp_path / f"{kind}.png")
    (tmp_path / "bank.csv").write_text(
        f"name,instance,face,body\nAnn,,face.png,{tmp_path}/body.png\nBob,{series}_{page}_face_{face},,\n"
    )
    config = replace(config, assign=replace(config.assign, bank=str(tmp_path / "bank.csv")))
    bank, examples = find_bank(config, found)
    assert bank is not None and bank.names == ["Ann", "Bob"] and examples == {found.instances[both]: 1}
    np.testing.assert_allclose(bank.vectors[0], bank.vectors[1], atol=1e-3)
    (tmp_path / "bank.csv").write_text("name,face\nAnn,none.png\n")
    with pytest.raises(UserError, match=r"line 2: face none.png"):
        find_bank(config, found)


def test_a_checkpoint_of_stage_2_is_a_model(tmp_path: Path) -> None:
    network = simclr()
    uri, _ = stage_2(tmp_path / "b.ckpt", network, network, fusion_strategy="sum")
    cut_comic(tmp_path, str(tmp_path / "out"))
    config = app.verbs["embed"].load([f"output={tmp_path / 'out'}", f"model={uri}"])
    assert config.backbone == BackboneConfig("resnet18", 96, 128, projection=True)
    plan = plan_embedding(config)
    assert plan.backbone.weights == uri and len(read_backbone(uri)) > 1000

    assert config.fine_tune.head == HeadConfig("sum", dimensions=8) and plan.weights


def test_mappings_are_given_on_the_command_line() -> None:
    verb = app.verbs["fine-tune"]
    own = ["output=o", "backbone.shared=false", "features.weights={face: a, body: b}"]
    own += ["fine_tune.loss=[{name: triplet, options: {margin: 0.2}}]"]
    config = verb.load([*own, "fine_tune.miner={name: triplet_margin, options: {margin: 0.3}}"])
    assert config.features.weights == {"face": "a", "body": "b"}
    assert config.fine_tune.losses[0].options == {"margin": 0.2}
    assert config.fine_tune.mined is not None and config.fine_tune.mined.options == {"margin": 0.3}
    plain = verb.load(["output=o", "fine_tune.loss=triplet", "features.weights=w.safetensors"])
    assert plain.features.weights == "w.safetensors" and plain.fine_tune.losses[0].name == "triplet"
