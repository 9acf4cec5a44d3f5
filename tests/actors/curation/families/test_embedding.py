"""Scenes as vectors: mirrored copies are the same, what is told apart by colour is, mistakes have a line."""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from actors.core.errors import UserError
from actors.curation.families.embedding import Embedding, EmbeddingConfig
from actors.curation.measuring.family import fingerprint, scorer_class
from actors.media.images import square
from actors.models.backbones import Backbone, BackboneConfig, input_shape
from tests.benchmarks import semantic
from tests.support import colours, tiny_models


def column(values: list[Any]) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Pictures with something to see at the left that is not at the right."""
    drawn = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    drawn[..., : shape[-1] // 2, :] //= 3
    return drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.backbone(tmp_path_factory.mktemp("backbone"))


def test_the_vector_of_a_scene_is_the_mean_of_its_pictures_and_lies_among_texts(clip_folder: str):
    family = Embedding(EmbeddingConfig(model=clip_folder))
    assert family.columns == {"embedding": pa.list_(pa.float16(), 3)}
    scenes = [
        colours.pictures([colours.RED, colours.BLUE, colours.RED]),
        colours.pictures([colours.GREEN], 48, 64),
        colours.pictures([colours.BLUE, colours.BLUE]),
    ]
    found = family({"frames": column(scenes)})
    vectors = np.stack(list(found["embedding"])).astype(float)
    assert np.asarray(found["error"]).tolist() == ["", "", ""]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    cosines = vectors @ np.stack([family.text(words) for words in ("red", "green", "blue")]).T
    np.testing.assert_allclose(cosines, [[2 / 5**0.5, 0, 1 / 5**0.5], [0, 1, 0], [0, 0, 1]], atol=2e-3)


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mirrored_copy_is_the_same_where_that_is_wanted(folder: str, mirrored: bool):
    family = Embedding(EmbeddingConfig(by="backbone", model=folder, mirrored=mirrored))
    scene = noise(3, 40, 60)
    found = family({"frames": column([scene, scene[:, :, ::-1], noise(2, 30, 50, seed=1)])})["embedding"]
    one, other, third = (vector.astype(float) / np.linalg.norm(vector.astype(float)) for vector in found)
    assert bool(one @ other > 0.9999) is mirrored and one @ third < 0.9999


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
@pytest.mark.parametrize("size", [(32, 32), (24, 70), (90, 33), (32, 57)])
def test_many_pictures_are_prepared_as_one_is(folder: str, fit: Any, size: tuple[int, int]):
    import torch

    config = BackboneConfig(model=folder, fit=fit)
    shape, network = input_shape(config), Backbone(config)
    # Smooth: resampling rounds in other ways.
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([rows, columns, rows + columns], 2).astype(np.uint8)
    found = network.prepared(torch.from_numpy(image.transpose(2, 0, 1)[None]))[0].permute(1, 2, 0).numpy()
    how = Image.Resampling[shape.interpolation.upper()]
    expected = square(np.asarray(Image.fromarray(image).resize(shape.scaled(size[1], size[0]), how)), shape)
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1


def test_a_scene_whose_vector_is_not_finite_has_an_error(folder: str, monkeypatch: pytest.MonkeyPatch):
    family = Embedding(EmbeddingConfig(by="backbone", model=folder))
    vectors = family._network.vectors
    monkeypatch.setattr(family._network, "vectors", lambda x: vectors(x) / (x.float().mean((1, 2, 3)) > 1)[:, None])
    found = family({"frames": column([np.zeros((1, 32, 32, 3), np.uint8), noise(1, 32, 32)])})
    assert np.isnan(found["embedding"]).all(axis=1).tolist() == [True, False]
    assert np.asarray(found["error"]).tolist() == ["not_embedded", ""]


def test_what_is_measured_changes_with_the_network_and_its_weights_alone(folder: str, tmp_path: Path):
    assert scorer_class("embedding") is Embedding

    def of(model: str, **settings: Any) -> str:
        return fingerprint("embedding", EmbeddingConfig(by="backbone", model=model, **settings))

    assert of(folder) == of(folder, workers=3, num_gpus=1, batch_size=5)
    other = tiny_models.backbone(tmp_path / "other", seed=1)
    others = [of(other), of(folder, mirrored=False), of(folder, fit="letterbox"), of(folder, crops=1)]
    assert len({of(folder), *others}) == 5


@pytest.mark.slow
def test_copies_are_found_that_no_hash_finds(tmp_path: Path):
    family = Embedding(semantic.lite0(tmp_path / "lite0"))
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")
    pictures = (Image.open(str(resources.files("skimage") / "data" / name)).convert("RGB") for name in names)
    scenes = [np.asarray(picture)[None] for picture in pictures]
    originals = semantic.vectors(family, scenes)
    for change in (semantic.mirrored, semantic.cropped, semantic.graded):
        near = originals @ semantic.vectors(family, [np.ascontiguousarray(change(one)) for one in scenes]).T >= 0.94
        assert (near == np.eye(len(scenes), dtype=bool)).all(), change


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "ViT-B-23"}, "embedding.model=ViT-B-23 .* ViT-B-32"),
        ({"weights": "nowhere"}, "embedding.weights=nowhere .* laion2b_s34b_b79k"),
        ({"by": "backbone", "model": "resnet51"}, "embedding.model=resnet51 .* resnet50"),
        ({"by": "backbone", "model": "resnet50", "weights": "none.pth"}, "embedding.weights=none.pth"),
    ],
)
def test_a_mistake_is_told_by_the_names_of_the_settings(settings: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        Embedding.check(EmbeddingConfig(**settings))


def test_a_backbone_takes_no_text(folder: str):
    with pytest.raises(UserError, match="pictures only"):
        Embedding(EmbeddingConfig(by="backbone", model=folder)).text("a bus")
