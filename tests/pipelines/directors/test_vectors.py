"""Each vector is that of its own picture, and is computed once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.core.stage import Stage
from actors.core.store import Store
from actors.directors.pictures import ViewsConfig, read_pictures
from actors.models.backbones import Backbone, BackboneConfig, input_shape
from pipelines.directors.vectors import PicturesConfig, embed, embed_few, missing, read_pictures_of, wanted
from tests.support.tiny_models import backbone


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PicturesConfig:
    model = BackboneConfig(model=backbone(tmp_path_factory.mktemp("backbone")), num_cpus=0.5, batch_size=3)
    return PicturesConfig(model, ViewsConfig(count=2), Stage(batch_size=2), Stage(num_cpus=0.1, batch_size=4))


def pictures(folder: Path, count: int = 5) -> list[tuple[str, str, int]]:
    folder.mkdir(exist_ok=True)
    found = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
        found.append((path.name, str(path), path.stat().st_size))
    return found


def alone(uri: str, view: int, config: PicturesConfig) -> np.ndarray:
    batch = {"uri": np.array([uri]), "view": np.array([view])}
    return Backbone(config.backbone)(read_pictures(batch, input_shape(config.backbone), config.views))["vector"][0]


def test_vectors_and_views_are_those_of_their_pictures_on_ray(
    ray_cluster: None, tmp_path: Path, config: PicturesConfig
):
    store, found = Store(str(tmp_path / "store")), pictures(tmp_path / "pictures")
    (tmp_path / "pictures/text.png").write_text("no picture")
    found.append(("text.png", str(tmp_path / "pictures/text.png"), 10))
    rows = wanted(found, config.views, {"0.png", "text.png"})
    assert len(rows) == 6 + 4
    embed(store, missing(store, rows, config), config)
    got = read_pictures_of(store, rows, config)
    assert [(path, view) for path, view in zip(got.path, got.view.tolist(), strict=True)] == [
        ("0.png", 0),
        ("0.png", 1),
        ("0.png", 2),
        *((f"{i}.png", 0) for i in range(1, 5)),
    ]
    for path, view, vector in zip(got.path, got.view.tolist(), got.vectors, strict=True):
        expected = alone(str(tmp_path / "pictures" / path), view, config)
        np.testing.assert_allclose(vector, expected, rtol=0.05, atol=0.02)
    assert [row["error"] for row in got.rejected] == ["not_an_image"]
    # What failed is tried again, and nothing else.
    assert {row["path"] for row in missing(store, rows, config)} == {"text.png"}


def test_a_picture_that_was_replaced_or_another_network_is_computed_again(tmp_path: Path, config: PicturesConfig):
    store, found = Store(str(tmp_path / "store")), pictures(tmp_path / "pictures", 2)
    rows = wanted(found, config.views, set())
    embed_few(store, rows, config)
    assert missing(store, rows, config) == []
    replaced = [(found[0][0], found[0][1], found[0][2] + 1), found[1]]
    assert [row["path"] for row in missing(store, wanted(replaced, config.views, set()), config)] == ["0.png"]
    crop = PicturesConfig(BackboneConfig(model=config.backbone.model, fit="crop"))
    assert len(missing(store, rows, crop)) == 2
    with pytest.raises(RuntimeError, match="Rerun the same command"):
        read_pictures_of(store, rows, crop)


def test_vectors_of_two_devices_are_told(tmp_path: Path, config: PicturesConfig, monkeypatch: pytest.MonkeyPatch):
    store, found = Store(str(tmp_path / "store")), pictures(tmp_path / "pictures", 3)
    rows = wanted(found, config.views, set())
    embed_few(store, rows[:1], config)
    assert read_pictures_of(store, rows[:1], config).notes == []
    monkeypatch.setattr(BackboneConfig, "computed", f"cuda {config.backbone.precision}")
    embed_few(store, missing(store, rows, config), config)
    [note] = read_pictures_of(store, rows, config).notes
    assert note.startswith("vectors of 2 pictures were computed on cuda in ") and "of 1 on cpu in " in note
    assert store.uri("features") in note
    # A part of an earlier version.
    part = store.parts("features")[0]
    old = store.read_part("features", part)
    assert old is not None
    store.write_table(old.drop_columns(["computed"]), "features", part)
    assert read_pictures_of(store, rows, config).notes == []


def test_other_views_are_computed_again_and_the_pictures_themselves_are_not(tmp_path: Path, config: PicturesConfig):
    store, found = Store(str(tmp_path / "store")), pictures(tmp_path / "pictures", 1)
    rows = wanted(found, config.views, {"0.png"})
    embed_few(store, rows, config)
    other = PicturesConfig(config.backbone, ViewsConfig(count=2, rotation=5))
    assert [row["view"] for row in missing(store, rows, other)] == [1, 2]
