"""Nearest neighbours and the probe, against what can be reckoned; what a kill leaves, without Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from actors.core.store import Store
from actors.media.images import read_images
from actors.models.clip import ImageEmbedder, input_shape
from actors.movie_characters.names import Picture
from actors.movie_characters.vectors import write_vectors
from pipelines.movie_characters import gallery_methods
from pipelines.movie_characters.gallery_methods import SMALL, nearest, probe
from pipelines.movie_characters.identify_gallery import (
    FEW_FACES,
    ClipConfig,
    FaceConfig,
    GalleryEmbeddings,
    embed_few,
    embed_many,
    embedded,
    faceless,
    identify,
    model_of,
    needs_ray,
    plan_identification,
    root_of,
)
from tests.support import pictures
from tests.support.colours import BLUE, GREEN, RED


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [500, SMALL + 500])
def test_the_nearest_are_those_of_the_highest_cosine(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gallery_methods, "ROWS", 3)
    images, gallery = unit(7, 16, 0), unit(size, 16, 1)
    numbers, cosines = nearest(images, gallery, 20)
    expected = images @ gallery.T
    assert numbers.tolist() == np.argsort(-expected, axis=1)[:, :20].tolist()
    assert cosines == pytest.approx(np.take_along_axis(expected, numbers, 1), abs=1e-5)


def test_of_no_image_none_is_near():
    numbers, cosines = nearest(unit(0, 16, 0), unit(5, 16, 1), 3)
    assert numbers.shape == cosines.shape == (0, 3)


def test_a_probe_tells_classes_that_no_single_image_tells():
    # Each class is one axis, drowned by what all have in common.
    random = np.random.default_rng(0)
    truth = [f"c{i % 3}" for i in range(90)]
    vectors = random.standard_normal((90, 8)) * [1, 1, 1, 1, 1, 0.1, 0.1, 0.1]
    vectors[:, 5:] += 0.5 * np.eye(3)[[i % 3 for i in range(90)]]
    answer = probe(vectors[:60], truth[:60], c=100)
    numbers, scores = answer(vectors[60:])
    found = [f"c{n}" for n in np.take_along_axis(numbers, scores.argmax(1)[:, None], 1)[:, 0]]
    assert np.mean([a == b for a, b in zip(found, truth[60:], strict=True)]) > 0.95
    assert np.exp(scores).sum(1) == pytest.approx(1)


def test_a_probe_needs_two_classes():
    with pytest.raises(ValueError, match="two classes"):
        probe(unit(3, 4, 0), ["a", "a", "a"], c=1)


@pytest.mark.parametrize("kind", [ClipConfig, FaceConfig])
def test_few_images_have_the_vectors_and_the_rejections_that_ray_gives(
    kind: type[ClipConfig | FaceConfig], tmp_path: Path, clip_folder: str, ray_cluster: None
):
    gallery = pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN})
    Image.fromarray(data.astronaut()[:256, :384]).save(tmp_path / "gallery" / "Eileen_1.png")
    (tmp_path / "gallery" / "Green_8.jpg").write_bytes(b"no image")
    more: dict[str, Any] = {"model_name": clip_folder} if kind is ClipConfig else {}
    few, many = (kind(input=gallery, gallery=gallery, output=str(tmp_path / name), **more) for name in ("few", "many"))
    todo = plan_identification(few).todo
    rows = [
        {uri: (code, message) for batch in found for uri, code, message in zip(*map(np.ndarray.tolist, batch.values()))}  # noqa: B905
        for found in (embed_few(few, todo), embed_many(many, todo))
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    codes = {Path(uri).name: code for uri, (code, _) in rows[0].items() if code}
    faces = {"Red_1.png": "no_face", "Green_1.png": "no_face"} if kind is FaceConfig else {}
    assert codes == {"Green_8.jpg": "not_an_image", **faces}
    one, other = (embedded(Store(root_of(config)), model_of(config)) for config in (few, many))
    assert one.keys() == other.keys() and len(one) == (1 if faces else 3)
    for image, vector in one.items():
        assert vector == pytest.approx(other[image], abs=2e-3)
    assert faceless(Store(root_of(few)), model_of(few)).keys() == faceless(Store(root_of(many)), model_of(many)).keys()


def test_ray_is_worth_its_start_for_many_images_and_for_gpus(tmp_path: Path, clip_folder: str):
    colours = {f"A_{number}": RED for number in range(FEW_FACES)}
    where: dict[str, Any] = {"gallery": pictures.write(tmp_path / "gallery", colours), "output": str(tmp_path / "out")}

    def needs(config: ClipConfig | FaceConfig) -> bool:
        return needs_ray(config, plan_identification(config))

    one = pictures.write(tmp_path / "one", {"B_1": GREEN})
    # The gallery has as many faces as are few.
    assert not needs(FaceConfig(input=where["gallery"], **where))
    assert needs(FaceConfig(input=one, **where))
    assert not needs(ClipConfig(input=one, model_name=clip_folder, **where))
    assert not needs(ClipConfig(input=one, model_name=clip_folder, method="prompts", **where))
    gpu = GalleryEmbeddings(num_gpus=1)
    on_gpu = ClipConfig(input=one, model_name=clip_folder, embeddings=gpu, autoscaling=True, **where)
    assert needs(on_gpu)


def test_a_kill_between_two_files_embeds_and_tells_nothing_twice(
    tmp_path: Path, clip_folder: str, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    gallery = pictures.write(tmp_path / "gallery", {"Red_1": RED, "Green_1": GREEN, "Green_2": (255, 255, 0)})
    images = pictures.write(tmp_path / "images", {f"{name}_7": c for name, c in zip("ABC", (RED, GREEN, BLUE))})  # noqa: B905

    def config(output: str) -> ClipConfig:
        exact = GalleryEmbeddings(dtype="float32")
        return ClipConfig(
            input=images, output=str(tmp_path / output), gallery=gallery, model_name=clip_folder, embeddings=exact
        )

    def embed(config: ClipConfig, some: Sequence[Picture]) -> None:
        """What the actors of a run do with a block."""
        columns = {"uri": [one.uri for one in some], "size": [one.size for one in some]}
        columns |= {"error": [""] * len(some), "message": [""] * len(some)}
        batch = {name: np.array(values) for name, values in columns.items()}
        rows = ImageEmbedder(config.stage)(read_images(batch, input_shape(config.stage)))
        write_vectors(rows, Store(root_of(config)), model_of(config))

    def tables(config: ClipConfig) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(config.output).glob("*.csv")}

    whole, killed = config("whole"), config("killed")
    todo = plan_identification(whole).todo
    assert len(todo) == 6
    embed(whole, todo)
    done = identify(whole, plan_identification(whole))
    assert (done.images, done.answered, done.embedded) == (3, 3, 0) and len(tables(whole)) == 3

    # Two blocks were written, of which the store has torn one, and a third was on its way.
    embed(killed, todo[:2])
    embed(killed, todo[2:4])
    torn = Path(root_of(killed), "vectors", Store(root_of(killed)).parts("vectors")[0])
    torn.write_bytes(torn.read_bytes()[:-4])
    (Path(root_of(killed)) / "vectors" / ".filmray-part-1").write_bytes(b"half")
    rest = plan_identification(killed).todo
    assert len(rest) == 4
    embed(killed, rest)
    write, written = Path.write_bytes, []

    def dying(uri: str, data: bytes) -> None:
        if uri.endswith("B_results.csv"):
            raise Killed
        write(Path(uri), data)
        written.append(uri)

    monkeypatch.setattr("actors.core.storage.write_bytes", dying)
    with pytest.raises(Killed):
        identify(killed, plan_identification(killed))
    monkeypatch.undo()
    assert [uri for uri in written if uri.endswith(".csv")] == [f"{killed.output}/A_results.csv"]
    plan = plan_identification(killed)
    assert plan.todo == [] and identify(killed, plan).answered == 3
    assert tables(killed) == tables(whole)
    # None is there twice.
    uris = [uri for part in Store(root_of(killed)).read_parts("vectors") for uri in part["uri"].to_pylist()]
    assert len(uris) == len(set(uris)) == 6
    one, other = (embedded(Store(root_of(c)), model_of(c)) for c in (whole, killed))
    assert all(np.array_equal(one[image], other[image]) for image in one)
