"""What is worth a start of Ray, and what a kill leaves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from actors.core.store import Store
from actors.media.images import read_images
from actors.models.clip import ImageEmbedder, input_shape
from actors.movie_characters.names import Picture
from actors.movie_characters.vectors import write_vectors
from pipelines.movie_characters.gallery_settings import ClipConfig, FaceConfig, GalleryEmbeddings, model_of, root_of
from pipelines.movie_characters.gallery_vectors import FEW_FACES, embedded
from pipelines.movie_characters.identify_gallery import identify, needs_ray, plan_identification
from tests.support import pictures
from tests.support.colours import BLUE, GREEN, RED


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

    def embed(config: ClipConfig, some: Sequence[Picture], computed: str = "cpu float32") -> None:
        """What the actors of a run do with a block."""
        columns = {"uri": [one.uri for one in some], "size": [one.size for one in some]}
        columns |= {"error": [""] * len(some), "message": [""] * len(some)}
        batch = {name: np.array(values) for name, values in columns.items()}
        rows = ImageEmbedder(config.stage)(read_images(batch, input_shape(config.stage)))
        write_vectors(rows, Store(root_of(config)), model_of(config), computed)

    def tables(config: ClipConfig) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(config.output).glob("*.csv")}

    whole, killed = config("whole"), config("killed")
    todo = plan_identification(whole).todo
    assert len(todo) == 6
    embed(whole, todo)
    done = identify(whole, plan_identification(whole))
    assert (done.images, done.answered, done.embedded, done.notes) == (3, 3, 0, []) and len(tables(whole)) == 3

    # Two blocks were written, of which the store has torn one, and a third was on its way.
    embed(killed, todo[:2])
    embed(killed, todo[2:4])
    torn = Path(root_of(killed), "vectors", Store(root_of(killed)).parts("vectors")[0])
    torn.write_bytes(torn.read_bytes()[:-4])
    (Path(root_of(killed)) / "vectors" / ".filmray-part-1").write_bytes(b"half")
    rest = plan_identification(killed).todo
    assert len(rest) == 4
    embed(killed, rest, "cuda float32")
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
    assert plan.todo == []
    done = identify(killed, plan)
    told = "vectors of 4 images were computed on cuda in float32, of 2 on cpu in float32"
    assert done.answered == 3 and [note.partition(":")[0] for note in done.notes] == [told]
    assert tables(killed) == tables(whole)
    # None is there twice.
    uris = [uri for part in Store(root_of(killed)).read_parts("vectors") for uri in part["uri"].to_pylist()]
    assert len(uris) == len(set(uris)) == 6
    one, other = (embedded(Store(root_of(c)), model_of(c)) for c in (whole, killed))
    assert all(np.array_equal(one[image][0], other[image][0]) for image in one)


def test_every_face_of_a_group_is_answered_and_a_stranger_is_unknown(tmp_path: Path):
    from PIL import Image
    from skimage import data

    face = Image.fromarray(data.astronaut()).crop((150, 20, 310, 220))
    group = Image.new("RGB", (900, 420), "grey")
    group.paste(face, (40, 100))
    group.paste(face.resize((320, 400)), (480, 10))
    for folder in ("gallery", "images"):
        (tmp_path / folder).mkdir()
    face.resize((320, 400)).save(tmp_path / "gallery" / "Eileen_1.png")
    group.save(tmp_path / "images" / "group_1.png")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "images" / "nobody_1.png")

    def rows(threshold: float | None) -> list[dict[str, Any]]:
        config = FaceConfig(
            input=str(tmp_path / "images"),
            output=str(tmp_path / "out"),
            gallery=str(tmp_path / "gallery"),
            threshold=threshold,
        )
        done = identify(config, plan_identification(config))
        assert (done.images, done.answered, done.rejected) == (2, 1, {"no_face": 1})
        assert plan_identification(config).todo == []
        found = pq.read_table(tmp_path / "out" / "face_answers.parquet").to_pylist()
        told = json.loads((tmp_path / "out" / "face_answers.json").read_text())
        assert [(row["image"], row["face"], row["answer"]) for row in told] == [
            (row["image"], row["face"], row["answer"]) for row in found
        ]
        return found

    large, small = rows(None)
    assert (large["image"], large["face"], large["answer"], large["identity"]) == (
        *("group_1.png", 0, "Eileen", "Eileen_1"),
    )
    assert small["face"] == 1 and small["answer"] == "Eileen" and small["margin"] is None
    assert large["left"] > 480 and small["right"] < 220
    assert large["height"] == pytest.approx(2 * small["height"], rel=0.2)
    # The picture's own answer is that of the largest face.
    table = (tmp_path / "out" / "group_results.csv").read_text().splitlines()
    assert float(table[1].rsplit(",", 1)[1]) == pytest.approx(large["score"], abs=1e-3)
    assert [row["answer"] for row in rows(1.01)] == ["unknown", "unknown"]
