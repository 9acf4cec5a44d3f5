"""Images and texts in one space: as open_clip embeds them one by one, and as a model with known weights must."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from actors.core.stage import Batch
from actors.media.images import Shape, decode
from actors.models.clip import (
    Clip,
    EmbeddingsConfig,
    FrameEmbedder,
    ImageEmbedder,
    TextEmbedder,
    check_clip,
    embed_images,
    embed_texts,
    input_shape,
    load_clip,
    preprocess,
    registry,
)
from tests.support import colours
from tests.support.colours import BLACK, BLUE, GREEN, RED, pictures

HALF = 0.5**0.5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On a busy machine more of them wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exact(clip_folder: str) -> EmbeddingsConfig:
    return EmbeddingsConfig(model=clip_folder, dtype="float32", images_per_call=2)


@pytest.fixture(scope="module")
def clip(exact: EmbeddingsConfig) -> Clip:
    return load_clip(exact)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Three crops of a photograph: uint8 (3, 240, 240, 3)."""
    picture = data.astronaut()
    return np.stack([picture[y : y + 240, y : y + 240] for y in (0, 100, 200)])


def batch(**columns: Any) -> Batch:
    rows = {}
    for name, values in columns.items():
        rows[name] = np.empty(len(values), object)
        rows[name][:] = values
        rows[name].flags.writeable = False
    return rows


def test_colours_and_their_names_point_the_same_way(clip: Clip):
    images = embed_images(clip, pictures([RED, GREEN, BLUE, (128, 0, 128)]), 3)
    np.testing.assert_allclose(images, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [HALF, 0, HALF]], atol=1e-3)
    texts = embed_texts(clip, ["red", "a Green one", "red blue", "dark"], 3)
    np.testing.assert_allclose(texts, [[1, 0, 0], [0, 1, 0], [HALF, 0, HALF], [-(3**-0.5)] * 3], atol=1e-3)
    assert images.dtype == texts.dtype == np.float32


def test_half_precision_stays_close(clip: Clip, clip_folder: str):
    half = load_clip(EmbeddingsConfig(model=clip_folder))
    images = pictures([(200, 30, 90), (17, 250, 3)])
    np.testing.assert_allclose(embed_images(half, images, 2), embed_images(clip, images, 2), atol=0.01)
    np.testing.assert_allclose(
        embed_texts(half, ["red red blue"], 2), embed_texts(clip, ["red red blue"], 2), atol=0.01
    )


def test_a_text_longer_than_the_model_reads_counts_with_its_beginning(clip: Clip):
    long, short = embed_texts(clip, ["red " * 75 + "blue " * 75, "red"], 2)
    np.testing.assert_allclose(long, short, atol=1e-3)


@pytest.mark.parametrize(
    "how",
    [
        {"size": 224},
        {"size": 224, "interpolation": "bilinear"},
        {"size": 224, "resize_mode": "squash"},
        {"size": 224, "resize_mode": "longest", "fill_color": 90},
        {"size": (192, 224)},
    ],
)
@pytest.mark.parametrize("crop", [(240, 240), (180, 240), (240, 150), (100, 100)])
def test_images_are_preprocessed_as_open_clip_does_it_one_by_one(
    clip: Clip, photos: np.ndarray, how: dict[str, Any], crop: tuple[int, int]
):
    transform: Any = image_transform_v2(PreprocessCfg(**how), is_train=False)
    images = photos[:, : crop[0], : crop[1]]
    expected = torch.stack([transform(Image.fromarray(image)) for image in images])
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in (transform.transforms[-1].mean, transform.transforms[-1].std)
    )
    found = preprocess(Clip(None, transform, None, "cpu", torch.float32, mean, std), images)
    assert found.shape == expected.shape
    levels = (found - expected).abs() * std * 255
    assert levels.max() <= 6
    assert levels.mean() < 0.2


@pytest.mark.slow
def test_a_model_of_a_name_and_a_file_embeds_as_open_clip_does(photos: np.ndarray, tmp_path: Path):
    """RN50 has convolutions, batch norms and attention pooling: what a vision transformer has not."""
    torch.manual_seed(0)
    made: Any = open_clip.create_model_and_transforms("RN50")
    plain, _, transform = made
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    config = EmbeddingsConfig(model="RN50", pretrained=str(tmp_path / "weights.safetensors"), dtype="float32")
    check_clip(config)
    found = load_clip(config)
    plain.eval()
    words = ["a woman in an orange suit", "a flag"]
    with torch.inference_mode():
        images = torch.cat([plain.encode_image(transform(Image.fromarray(p))[None], normalize=True) for p in photos])
        texts = plain.encode_text(open_clip.get_tokenizer("RN50")(words), normalize=True)
    # Pixels differ by a level here and there.
    assert (embed_images(found, photos, 8) * images.numpy()).sum(axis=1).min() > 0.9999
    np.testing.assert_allclose(embed_texts(found, words, 8), texts.numpy(), atol=1e-5)


def test_frames_of_scenes_are_embedded_together_and_come_back_apart(exact: EmbeddingsConfig):
    scenes = [
        pictures([RED, GREEN, BLUE]),
        np.zeros((0, 32, 32, 3), np.uint8),
        pictures([GREEN], 48, 64),
        pictures([BLUE, RED, BLUE, RED, BLACK]),
    ]
    rows = batch(scene_id=["a", "b", "c", "d"], frames=scenes)
    found = FrameEmbedder(exact, every=2)(rows)
    assert set(found) == {"scene_id", "embeddings"}
    assert found["scene_id"] is rows["scene_id"]
    expected = [[RED, BLUE], [], [GREEN], [BLUE, BLUE, BLACK]]
    for vectors, wanted in zip(found["embeddings"], expected, strict=True):
        assert len(vectors) == len(wanted)
        for vector, colour in zip(vectors, wanted, strict=True):
            np.testing.assert_allclose(vector, np.array(colour) / 255, atol=1e-3)
    nothing = FrameEmbedder(exact)(batch(frames=[scenes[1]]))
    assert [len(vectors) for vectors in nothing["embeddings"]] == [0]


def test_texts_come_back_in_order(exact: EmbeddingsConfig):
    found = TextEmbedder(exact)(batch(text=["blue", "red", "blue"]))
    np.testing.assert_allclose(found["embedding"], [[0, 0, 1], [1, 0, 0], [0, 0, 1]], atol=1e-3)


def test_embeddings_of_other_models_have_another_name(clip_folder: str):
    configs = [
        EmbeddingsConfig(),
        EmbeddingsConfig(pretrained="laion2b_s34b_b88k"),
        EmbeddingsConfig(model="ViT-B-32"),
        EmbeddingsConfig(dtype="bfloat16"),
        EmbeddingsConfig(model=clip_folder),
    ]
    assert len({config.name() for config in configs}) == 5
    # A folder has its own weights.
    assert EmbeddingsConfig(model=clip_folder, pretrained=None).name() == configs[-1].name()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "ViT-B-33"}, "ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "mine"}, "openai"),
        ({"model": "ViT-B-32", "pretrained": None}, "openai"),
        ({"model": "/nowhere/clip"}, "open_clip_config.json"),
        ({"model": "hf-hub:no name/clip"}, "cannot be downloaded"),
    ],
)
def test_what_cannot_be_had_is_told_before_the_work(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_clip(EmbeddingsConfig(**settings))


def test_a_folder_without_weights_is_refused_and_never_a_model_of_chance(clip_folder: str, tmp_path: Path):
    config = EmbeddingsConfig(model=str(tmp_path / "bare"))
    shutil.copytree(clip_folder, config.model)
    check_clip(config)
    (tmp_path / "bare" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        check_clip(config)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_clip(config)


def test_weights_of_another_model_are_refused(clip_folder: str, tmp_path: Path):
    folder = tmp_path / "other"
    shutil.copytree(clip_folder, folder)
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["vision_cfg"]["layers"] = 2
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_clip(EmbeddingsConfig(model=str(folder)))


def test_the_models_own_preprocessing_counts(tmp_path: Path):
    """Red less its mean is black, and black less it is the opposite of red."""
    config = EmbeddingsConfig(model=colours.clip(tmp_path / "clip", mean=[1, 0, 0]), dtype="float32")
    found = embed_images(load_clip(config), pictures([RED, BLACK]), 2)
    np.testing.assert_allclose(found, [[0, 0, 0], [-1, 0, 0]], atol=1e-3)


@pytest.mark.parametrize(
    "how", [{}, {"resize_mode": "squash", "interpolation": "bilinear"}, {"resize_mode": "longest"}]
)
def test_images_are_decoded_to_what_the_model_takes(photos: np.ndarray, tmp_path: Path, how: dict[str, Any]):
    config = EmbeddingsConfig(model=colours.clip(tmp_path / "clip", **how), dtype="float32")
    clip = load_clip(config)
    shape = input_shape(config)
    for photo in (photos[0][:, :150], photos[1][:100], photos[2]):
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "PNG")
        found = preprocess(clip, decode(file.getvalue(), shape)[None])
        expected = clip.transform(Image.fromarray(photo))[None]
        assert found.shape == expected.shape and (found - expected).abs().mean() < 0.02


def test_named_models_tell_what_they_take():
    assert input_shape(EmbeddingsConfig(model="ViT-B-32-quickgelu", pretrained="openai")) == Shape(224)
    siglip = input_shape(EmbeddingsConfig(model="ViT-B-16-SigLIP-384", pretrained="webli"))
    assert (siglip.size, siglip.mode) == (384, "squash")


def test_rows_with_an_error_have_no_vector(exact: EmbeddingsConfig):
    embedder = ImageEmbedder(exact)
    rows = {"image": pictures([RED, BLACK, BLUE]), "error": np.array(["", "broken_image", ""])}
    found = embedder(rows)
    assert found["vector"].dtype == np.float16 and "image" not in found
    np.testing.assert_allclose(found["vector"], [[1, 0, 0], [np.nan] * 3, [0, 0, 1]], atol=1e-3)
    none = embedder({"image": rows["image"][:1], "error": np.array(["no_images"])})
    assert none["vector"].shape == (1, 3) and np.isnan(none["vector"]).all()


def test_names_are_checked_by_what_open_clip_knows_without_importing_torch() -> None:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    names, weights = registry()
    assert sorted(names) == sorted(open_clip.list_models())
    for name in names:
        assert weights.list_pretrained_tags_by_model(name) == list_pretrained_tags_by_model(name)
        for tag in weights.list_pretrained_tags_by_model(name):
            assert weights.get_pretrained_cfg(name, tag) == get_pretrained_cfg(name, tag)
    program = (
        "import sys; from actors.models.clip import EmbeddingsConfig, check_clip\n"
        "try: check_clip(EmbeddingsConfig(model='ViT-B-33'))\n"
        "except ValueError as error: print(error, 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "near it: ViT-B-32" in told and told.strip().endswith("False")
