"""What comic characters are compared with: colours, and a network of photographs, of crops that are there or not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.comic_characters.baselines import ColourExtractor, PhotographExtractor, colours
from actors.comic_characters.crops import crop_name
from actors.core import storage
from actors.core.stage import Batch
from actors.media.images import picture_bytes
from actors.models.backbones import BackboneConfig, input_shape


def test_colours_are_shares_whose_distances_are_hellingers() -> None:
    red, blue = (Image.new("RGB", (20, 10), rgb) for rgb in ((200, 0, 0), (0, 0, 200)))
    half = Image.new("RGB", (20, 20), (200, 0, 0))
    half.paste(blue, (0, 10))
    first, second, both = map(colours, (red, blue, half))
    assert first.shape == (192,) and first.dtype == np.float32
    assert np.linalg.norm(first) == pytest.approx(1) and first @ second == 0
    assert both @ first == pytest.approx(np.sqrt(0.5)) == pytest.approx(both @ second)
    assert colours(half.resize((7, 7), Image.Resampling.NEAREST)) @ both > 0.99


@pytest.fixture
def instances(tmp_path: Path) -> Batch:
    """A face with its body, a body alone, and a face whose file is not there."""
    random = np.random.default_rng(0)
    for kind, index in (("face", 0), ("body", 1), ("body", 2)):
        picture = Image.fromarray(random.integers(0, 256, (30, 20 + index, 3), np.uint8))
        uri = storage.join(str(tmp_path), crop_name("s", "0_0", "face" if kind == "face" else "body", index))
        storage.write_bytes(uri, picture_bytes(picture, quality=95))
    return {
        "series_id": np.array(["s"] * 3, object),
        "page_id": np.array(["0_0"] * 3, object),
        "face": np.array([0.0, np.nan, 7.0]),
        "body": np.array([1.0, 2.0, np.nan]),
    }


def test_parts_that_are_not_there_have_no_features(instances: Batch, tmp_path: Path) -> None:
    found = ColourExtractor(str(tmp_path))(instances)
    assert found["error"].tolist() == ["", "", "missing_crop"]
    assert [one is None for one in found["face_features"]] == [False, True, True]
    assert [one is None for one in found["body_features"]] == [False, False, True]
    assert found["series_id"] is instances["series_id"]


def test_a_network_sees_crops_as_its_own_transform_shows_them(instances: Batch, tmp_path: Path) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    config = BackboneConfig(model="test_resnet", weights=str(tmp_path / "weights.pth"), dtype="float32")
    extract = PhotographExtractor(config, str(tmp_path))
    found = extract(instances)
    assert found["error"].tolist() == ["", "", "missing_crop"]
    width = model.num_features
    assert found["body_features"][0].shape == found["face_features"][0].shape == (width,)
    # One by one as together.
    alone = extract({name: column[1:2] for name, column in instances.items()})["body_features"][0]
    assert alone == pytest.approx(found["body_features"][1], abs=1e-2) and alone.dtype == np.float32
    assert input_shape(config).size < 224
