"""A network sees pictures whole and in their shape, gives the same for the same, and says what is wrong."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.core.errors import UserError
from actors.directors.pictures import ViewsConfig, random_view, read_pictures
from actors.media.images import Shape
from actors.models.backbones import (
    Backbone,
    BackboneConfig,
    check_backbone,
    check_loads,
    input_shape,
    load_backbone,
    name,
    timm_names,
)
from tests.support.tiny_models import backbone

SHAPE = Shape(32, mode="longest", fill=116)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return backbone(tmp_path_factory.mktemp("backbone"))


def read(uris: list[str], view: int = 0, **views: Any) -> dict[str, np.ndarray]:
    return read_pictures({"uri": np.array(uris), "view": np.full(len(uris), view)}, SHAPE, ViewsConfig(**views))


def save(path: Path, image: Image.Image) -> str:
    image.save(path)
    return str(path)


def test_all_of_a_wide_picture_is_seen_between_bars(tmp_path: Path):
    picture = Image.new("RGB", (200, 100), (250, 0, 0))
    image = read([save(tmp_path / "wide.png", picture)])["image"][0]
    assert (image[8:24] == (250, 0, 0)).all() and (image[:8] == 116).all() and (image[24:] == 116).all()


@pytest.mark.parametrize(
    ("mode", "suffix", "value"),
    [("L", "png", 128), ("CMYK", "jpg", (127, 127, 127, 0)), ("I;16", "png", 128 * 257), ("RGBA", "png", (128,) * 4)],
)
def test_grey_cmyk_and_16_bit_are_the_same_grey(tmp_path: Path, mode: str, suffix: str, value: Any):
    if mode == "I;16":
        picture = Image.fromarray(np.full((40, 40), value, np.uint16))
    else:
        picture = Image.new(mode, (40, 40), value)
    batch = read([save(tmp_path / f"picture.{suffix}", picture)])
    assert batch["error"].tolist() == [""]
    assert np.abs(batch["image"][0].astype(int) - 128).max() <= 3


def test_a_tiny_picture_is_seen_and_what_is_none_has_a_code(tmp_path: Path):
    tiny = save(tmp_path / "tiny.png", Image.new("RGB", (1, 1), (9, 99, 9)))
    (tmp_path / "text.jpg").write_text("429 Too Many Requests")
    (tmp_path / "empty.jpg").touch()
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(data, "JPEG")
    (tmp_path / "half.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    names = ["text.jpg", "empty.jpg", "half.jpg", "none.jpg"]
    batch = read([tiny, *(str(tmp_path / name) for name in names)])
    assert batch["error"].tolist() == ["", "not_an_image", "empty_file", "broken_image", "not_found"]
    assert (batch["image"][0] == (9, 99, 9)).all() and np.isfinite(batch["style"][0]).all()
    assert not batch["image"][1:].any() and np.isnan(batch["style"][1:]).all()


def test_a_view_is_the_same_whenever_it_is_made_and_another_for_another_number(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    uri = save(tmp_path / "noise.png", Image.fromarray(noise))
    own, first, again, second = (read([uri], view)["image"][0] for view in (0, 1, 1, 2))
    assert (own == noise).all() and (first == again).all()
    assert (first != own).any() and (first != second).any()


def test_views_move_no_further_than_they_may():
    image = np.zeros((64, 64, 3), np.uint8)
    image[28:36, 28:36] = 255
    still = {"rotation": 0.0, "zoom": 0.0, "shear": 0.0, "flip": False}
    for seed in range(20):
        moved = random_view(image, ViewsConfig(shift=0.2, **still), str(seed))
        y, x = (np.average(np.arange(64), weights=moved[..., 0].sum(axis)) for axis in (1, 0))
        assert abs(y - 31.5) <= 0.2 * 64 + 0.1 and abs(x - 31.5) <= 0.2 * 64 + 0.1
    assert (random_view(image, ViewsConfig(shift=0, **still), "0") == image).all()


def test_vectors_do_not_depend_on_their_batch_and_errors_have_none(folder: str):
    model = Backbone(BackboneConfig(model=folder, dtype="float32"))
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    error = np.array(["", "", "broken_image", "", ""])
    together = model({"image": images, "error": error})
    assert together["vector"].shape == (5, 16) and "image" not in together
    assert np.isnan(together["vector"][2]).all()
    for i in (0, 1, 3, 4):
        alone = model({"image": images[i : i + 1], "error": error[i : i + 1]})["vector"][0]
        np.testing.assert_allclose(alone, together["vector"][i], rtol=0.01, atol=1e-3)


def test_torchvisions_resnet_loads_from_a_file_whatever_its_last_layer(tmp_path: Path):
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
    model.fc = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    mean, scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        pixels = (torch.from_numpy(image).float() / 255 - mean) / scale
        expected = model(pixels.permute(0, 3, 1, 2)).numpy()
    for file in ("weights.safetensors", "weights.pth"):
        config = BackboneConfig(model="resnet18", weights=str(tmp_path / file), dtype="float32")
        check_backbone(config)
        assert input_shape(config).size == 224
        found = Backbone(config)({"image": image, "error": np.array([""])})["vector"]
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01)
    other = BackboneConfig(model="resnet34", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match="weights of another model"):
        Backbone(other)


def test_a_folder_has_one_name_wherever_it_lies(folder: str, tmp_path: Path):
    import shutil

    shutil.copytree(folder, tmp_path / "moved")
    assert name(BackboneConfig(model=folder)) == name(BackboneConfig(model=str(tmp_path / "moved")))
    assert name(BackboneConfig(model=folder)) != name(BackboneConfig(model=folder, fit="crop"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet51"}, "near it: .*resnet50"),
        ({"model": "/nowhere"}, "no config.json there"),
        ({"weights": "/nowhere.pth"}, "there is no such file"),
    ],
)
def test_what_cannot_be_had_is_refused_before_the_run(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_backbone(BackboneConfig(**settings))


def test_names_are_those_that_timm_registers() -> None:
    import timm

    assert timm_names() >= set(timm.list_models())
    assert all(timm.is_model(name) for name in timm_names())
    old = timm.models._registry._model_entrypoints.keys() - set(timm.list_models())
    assert old and old <= timm_names()


def test_a_driver_checks_the_weights_of_workers_on_gpus_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved = torch.nn.Module.to

    def refuse(module: torch.nn.Module, *args: Any, **more: Any) -> Any:
        if any(str(one).startswith("cuda") for one in (*args, *more.values())):
            raise AssertionError("the driver touches a GPU")
        return moved(module, *args, **more)

    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    config = BackboneConfig(model=backbone(tmp_path / "model"), num_gpus=1)
    with pytest.raises(AssertionError, match="touches"):
        load_backbone(config)
    check_loads(config)
    (tmp_path / "model/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        check_loads(config)
