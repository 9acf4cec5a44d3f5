"""Heads, metric losses on what is known, and how it is seen that they learn."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from actors.comic_characters.crops import crop_name
from actors.comic_characters.instances import FEATURES, KEY, write_features
from actors.comic_characters.network import FeatureExtractor, Head, load_networks, make_backbone
from actors.comic_characters.network_settings import ONE_PART, BackboneConfig, FeaturesConfig, HeadConfig
from actors.core import storage
from actors.core.stage import Batch
from actors.core.store import Store
from actors.media.images import picture_bytes
from pipelines.comic_characters.features import Features, read_features, without_features
from pipelines.comic_characters.learning.fine_tune import flat, masked, query_mrr, sequence_rows
from pipelines.comic_characters.learning.metric_losses import LOSSES, MINERS, metric_loss
from pipelines.comic_characters.learning.pretrain import make_model
from pipelines.comic_characters.sequences import Sequence
from pipelines.comic_characters.settings import FineTuneConfig
from tests.actors.comic_characters.test_weights import HEADS

WIDTH = 8


def inputs(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([[True, True], [True, False], [False, True]]).repeat(rows // 3, 1)
    return drawn[0], drawn[1], there


def head(**settings: Any) -> Head:
    torch.manual_seed(1)
    return Head(HeadConfig(dimensions=4, **settings), WIDTH)


@pytest.mark.parametrize(("fusion", "padding"), HEADS)
def test_a_vector_has_length_one_and_what_is_not_there_never_matters(fusion: str, padding: str) -> None:
    model = head(fusion=fusion, padding=padding)
    faces, bodies, there = inputs()
    if fusion in ONE_PART:
        there[:, ["only_face", "only_body"].index(fusion)] = True
    found = model(faces, bodies, there)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    noise = [torch.where(there[:, [part]], rows, 100.0) for part, rows in enumerate((faces, bodies))]
    torch.testing.assert_close(model(*noise, there), found)
    alone = torch.cat([model(faces[i : i + 1], bodies[i : i + 1], there[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, found)


def test_the_fusions_are_what_they_are_called() -> None:
    faces, bodies, _ = inputs()
    both = torch.ones(6, 2, dtype=torch.bool)
    expected = {"sum": faces + bodies, "mean": (faces + bodies) / 2, "weighted": (faces + bodies) / 2}
    for fusion, fused in expected.items():
        model = head(fusion=fusion)
        torch.testing.assert_close(model(faces, bodies, both), normalize(model.linear(fused)))
    model = head(fusion="cat")
    torch.testing.assert_close(model(faces, bodies, both), normalize(model.linear(torch.cat([faces, bodies], 1))))
    model = head(fusion="mean")
    only = torch.tensor([[False, True]] * 6)
    torch.testing.assert_close(model(faces, bodies, only), normalize(model.linear(bodies)))
    for fusion, fused in (("favor_face", faces), ("favor_body", bodies), ("only_face", faces), ("only_body", bodies)):
        model = head(fusion=fusion)
        torch.testing.assert_close(model(faces, bodies, both), normalize(model.linear(fused)))
    for fusion in ("favor_face", "favor_body"):
        model = head(fusion=fusion)
        torch.testing.assert_close(model(faces, bodies, only), normalize(model.linear(bodies)))
        torch.testing.assert_close(model(faces, bodies, ~only), normalize(model.linear(faces)))
    # Attention to a single part is that part.
    for fusion in ("self_attention", "face_to_body"):
        model = head(fusion=fusion)
        assert not torch.allclose(model(faces, bodies, both), model(faces, -bodies, both))


def test_each_dimension_has_weights_of_its_own() -> None:
    faces, bodies, _ = inputs()
    both = torch.ones(6, 2, dtype=torch.bool)
    model = head(fusion="weighted_dimensions")
    torch.testing.assert_close(model(faces, bodies, both), normalize(model.linear((faces + bodies) / 2)))
    with torch.no_grad():
        # Of the first half the face counts alone, of the other the body.
        model.weights[0] = torch.tensor([100.0] * 4 + [-100.0] * 4)
    halves = torch.cat([faces[:, :4], bodies[:, 4:]], 1)
    torch.testing.assert_close(model(faces, bodies, both), normalize(model.linear(halves)))
    model = head(fusion="weighted_dimensions")
    model(faces, bodies, both)[:, 0].sum().backward()
    assert model.weights.grad is not None and len(model.weights.grad.unique()) > 2


@pytest.mark.parametrize("kind", ["face", "body"])
def test_a_head_of_one_part_learns_from_it_alone(kind: str) -> None:
    faces, bodies, _ = (one.requires_grad_() if one.is_floating_point() else one for one in inputs())
    head(fusion=f"only_{kind}")(faces, bodies, torch.ones(6, 2, dtype=torch.bool))[:, 0].sum().backward()
    used, unused = (faces, bodies) if kind == "face" else (bodies, faces)
    assert used.grad is not None and used.grad.any()
    assert unused.grad is None or not unused.grad.any()


@pytest.mark.parametrize("fusion", [fusion for fusion, padding in HEADS if padding == "learned"])
def test_learned_padding_learns_where_something_is_missing(fusion: str) -> None:
    model = head(fusion=fusion, padding="learned")
    faces, bodies, there = inputs()
    assert model.padding is not None and any(one is model.padding for one in model.parameters())
    model(faces, bodies, there)[:, 0].sum().backward()
    assert model.padding.grad is not None and (model.padding.grad.abs().sum(1) > 0).all()
    model.padding.grad = None
    model(faces, bodies, torch.ones_like(there))[:, 0].sum().backward()
    assert model.padding.grad is None or not model.padding.grad.any()


def labelled() -> tuple[Tensor, dict[str, Tensor]]:
    """Three sequences of two characters with two instances each: two of one series, one of another."""
    vectors = normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(3)))
    return vectors, {
        "character": torch.arange(6).repeat_interleave(2),
        "sequence": torch.arange(3).repeat_interleave(4),
        "series": torch.tensor([0, 1]).repeat_interleave(torch.tensor([8, 4])),
        "uncertain": torch.zeros(12, dtype=torch.bool),
    }


CASES = [
    *((loss, "none") for loss in LOSSES),
    *(("triplet", miner) for miner in MINERS),
    ("contrastive", "pair_margin"),
]


@pytest.mark.parametrize(("loss", "miner"), CASES)
def test_what_may_be_the_same_is_no_negative_unless_asked_for(loss: Any, miner: Any) -> None:
    """Two sequences of one series: turning one against the other changes only distances of which nothing is known."""
    vectors, rows = labelled()
    vectors, rows = vectors[:8], {name: column[:8] for name, column in rows.items()}
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(4)))
    turned = torch.cat([vectors[:4], vectors[4:] @ turn])
    config = FineTuneConfig(loss=loss, miner=miner)
    torch.testing.assert_close(metric_loss(config, vectors, rows), metric_loss(config, turned, rows))
    asked = replace(config, uncertain=True)
    assert not torch.allclose(metric_loss(asked, vectors, rows), metric_loss(asked, turned, rows))
    # Of different series it is known, without asking.
    apart = {**rows, "series": rows["sequence"]}
    assert not torch.allclose(metric_loss(config, vectors, apart), metric_loss(config, turned, apart))


@pytest.mark.parametrize(("loss", "miner"), CASES)
def test_a_loss_is_float32_under_autocast(loss: Any, miner: Any) -> None:
    vectors, rows = labelled()
    config = FineTuneConfig(loss=loss, miner=miner)
    with torch.autocast("cpu", torch.bfloat16):
        value = metric_loss(config, vectors, rows)
        found = Head(HeadConfig(), 512)(torch.ones(3, 512), torch.ones(3, 512), torch.ones(3, 2, dtype=torch.bool))
    assert torch.equal(value, metric_loss(config, vectors, rows))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_falls_along_its_gradient(loss: Any) -> None:
    drawn, rows = labelled()
    vectors = drawn.clone().requires_grad_()
    value = metric_loss(FineTuneConfig(loss=loss), vectors, rows)
    value.backward()
    assert vectors.grad is not None and vectors.grad.abs().sum() > 0
    with torch.no_grad():
        lower = metric_loss(FineTuneConfig(loss=loss), vectors - 1e-3 * normalize(vectors.grad), rows)
    assert lower < value


def test_one_who_may_be_another_is_no_negative() -> None:
    vectors, rows = labelled()
    vectors, rows = vectors[:4], {name: column[:4] for name, column in rows.items()}
    rows["uncertain"] = torch.tensor([False, False, True, True])
    apart = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    alike = apart[[0, 0, 0, 0]]
    for name in ("contrastive", "triplet"):
        assert metric_loss(FineTuneConfig(loss=name), alike, rows) == metric_loss(
            FineTuneConfig(loss=name), apart, rows
        )


def test_mean_reciprocal_rank_by_hand() -> None:
    angles = np.radians([0, 10, 5, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    same = np.zeros((4, 4), bool)
    same[0, 1] = same[1, 0] = True
    differ = ~same & ~np.eye(4, dtype=bool)
    # The first is nearer to the third than to the second, and so is the second; the others have nobody.
    assert query_mrr(vectors, same, differ) == pytest.approx(0.5)
    differ[:, 2] = differ[2] = False
    assert query_mrr(vectors, same, differ) == 1
    assert query_mrr(np.ones((4, 1)), same, differ) == 0.5, "what is as far stands before"
    assert math.isnan(query_mrr(vectors, same, np.zeros_like(same)))


def test_masking_hides_one_part_of_so_many_that_have_both() -> None:
    both = torch.ones(4000, 2, dtype=torch.bool)
    torch.manual_seed(0)
    hidden = ~masked(both, 0.3)
    assert hidden.any(1).float().mean().item() == pytest.approx(0.3, abs=0.03) and not hidden.all(1).any()
    assert hidden[:, 0].sum().item() == pytest.approx(600, abs=90)
    one = torch.tensor([[True, False]] * 50)
    assert torch.equal(masked(one, 1.0), one)


def test_sequences_become_rows_of_one_shape_without_what_failed() -> None:
    names = [("s", "0_0", 0, 1), ("s", "0_1", None, 0), ("s", "0_2", 3, None)]
    known = {
        names[0]: Features(np.full(2, 1, np.float32), np.full(2, 2, np.float32)),
        names[1]: Features(None, None, "missing_crop", "gone"),
        names[2]: Features(np.full(2, 3, np.float32), None),
    }
    one = Sequence("q", "s", list(names), ["a", "b", "a"], [False, False, True])
    rows = sequence_rows([one, replace(one, name="r")], known, 2, 5)
    batch = flat({name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]})
    assert batch["character"].tolist() == [batch["character"][0].item()] * 4
    assert batch["sequence"].tolist() == [0, 0, 1, 1]
    assert batch["there"].tolist() == [[True, True], [True, False]] * 2
    assert batch["uncertain"].tolist() == [False, True] * 2
    assert batch["faces"][:, 0].tolist() == [1, 3, 1, 3] and batch["bodies"][:, 0].tolist() == [2, 0, 2, 0]


BACKBONE = BackboneConfig("resnet10", face_size=32, body_size=48)


def test_frozen_means_frozen_and_each_instance_is_seen_as_it_is_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = str(tmp_path / "model.safetensors")
    pretrained = make_model("resnet10", 16).train()
    pretrained(torch.randn(4, 3, 32, 32))
    storage.write_bytes(weights, save({name: tensor.contiguous() for name, tensor in pretrained.state_dict().items()}))
    random = np.random.default_rng(0)
    for kind in ("face", "body"):
        picture = Image.fromarray(random.integers(0, 256, (50, 40, 3), np.uint8))
        storage.write_bytes(str(tmp_path / crop_name("s", "0_0", kind, 1)), picture_bytes(picture, quality=95))
    storage.write_bytes(str(tmp_path / crop_name("s", "0_0", "face", 2)), b"torn")
    extractor = FeatureExtractor(FeaturesConfig(), BACKBONE, weights, str(tmp_path))
    before = {name: tensor.clone() for name, tensor in extractor.networks["face"].state_dict().items()}
    instances = [("s", "0_0", 1, 1), ("s", "0_0", 1, None), ("s", "0_0", 2, None), ("s", "9_9", None, 1)]
    columns = [np.array(column, object) for column in zip(*instances, strict=True)]
    batch: Batch = dict(zip(KEY, columns, strict=True))
    batch |= {name: batch[name].astype(float) for name in ("face", "body")}
    found = extractor(batch)
    assert found["error"].tolist() == ["", "", "broken_crop", "missing_crop"]
    np.testing.assert_allclose(found["face_features"][0], found["face_features"][1], rtol=1e-4)
    assert found["body_features"][1] is None and found["face_features"][0].shape == (512,)
    after = extractor.networks["face"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(after["bn1.running_mean"], pretrained.state_dict()["backbone.bn1.running_mean"])
    assert not any(parameter.requires_grad for parameter in extractor.networks["face"].parameters())
    store = Store(str(tmp_path))
    write_features(found, store, "features/x", "cpu float32")
    assert without_features(store, "features/x", instances) == instances[2:]
    read = read_features(store, "features/x", instances)
    assert read[instances[2]].error == "broken_crop" and read[instances[1]].body is None
    np.testing.assert_array_equal(read[instances[0]].body, found["body_features"][0])
    store.write_table(pa.Table.from_pylist([], FEATURES), "features/x", "part-empty.parquet")
    assert len(read_features(store, "features/x", instances[:1])) == 1


def test_weights_of_another_network_are_refused() -> None:
    weights = save({name: tensor.contiguous() for name, tensor in make_backbone("resnet10").state_dict().items()})
    assert not load_networks(BACKBONE, weights)["body"].training
    with pytest.raises(ValueError, match="not those of a resnet18"):
        load_networks(replace(BACKBONE, name="resnet18"), weights)
    with pytest.raises(ValueError, match="no safetensors"):
        load_networks(BACKBONE, b"weights")


@pytest.mark.parametrize("wrong", [{"mask": 2.0}, {"loss": "n_pairs", "miner": "pair_margin"}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mask|miner"):
        FineTuneConfig(**wrong)
