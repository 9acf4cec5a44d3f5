"""Films become arrays whose every row is the vector of its own image, in order, whatever else is broken."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.core.stage import Batch, Stage
from actors.core.store import Store
from actors.genres.film_images import ImagesConfig, list_images
from actors.models.clip import EmbeddingsConfig, ImageEmbedder, input_shape
from pipelines.genres.embed import (
    REJECTED,
    EmbedConfig,
    Embedded,
    Source,
    embed,
    embed_films,
    find_films,
    gathered,
    plan_embed,
    read_stored,
    stages_of,
    store_films,
    stored_films,
)
from tests.support import colours, tars

# In the colours' model an image's vector is the direction of its colour.
TONES = [(255, 20 * i, 0) for i in range(12)]


def write(path: Path, colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(colours.pictures([colour], 48, 64)[0]).save(file, kind, quality=95)
    path.write_bytes(file.getvalue())
    return file.getvalue()


def direction(colour: tuple[int, int, int]) -> np.ndarray:
    return np.array(colour) / np.linalg.norm(colour)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films as folders, one without images, one video file; in one folder two images are broken."""
    root = tmp_path_factory.mktemp("films")
    # Written in no order, and so that names sorted as text are in another order than as people count.
    for i in (7, 11, 0, 3, 10, 1, 9, 2, 8, 5, 4, 6):
        write(root / "tt1" / f"shot_{i}_img_0.jpg", TONES[i], "JPEG")
    for i in range(3):
        write(root / "tt2" / "stills" / f"{i}.png", TONES[3 * i])
    whole = write(root / "tt2" / "stills" / "cut.jpg", TONES[0], "JPEG")
    (root / "tt2" / "stills" / "cut.jpg").write_bytes(whole[:-60])
    (root / "tt2" / "stills" / "text.jpg").write_text("no image")
    (root / "tt3").mkdir()
    (root / "tt3" / "readme.txt").write_text("no images here")
    colours.film(root / "tt4.mkv", [*[colours.RED] * 8, *[colours.BLUE] * 8])
    return root


def config(clip_folder: str) -> EmbeddingsConfig:
    return EmbeddingsConfig(model=clip_folder, dtype="float32", num_cpus=0.5, batch_size=5, images_per_call=4)


def test_films_are_folders_and_video_files(folder: Path) -> None:
    found = find_films(str(folder))
    assert [(source.film, source.kind) for source in found] == [
        ("tt1", "folder"),
        ("tt2", "folder"),
        ("tt3", "folder"),
        ("tt4", "video"),
    ]
    assert set(stages_of(found, ImagesConfig())) == {"list", "read", "video"}
    assert set(stages_of(found[:1], ImagesConfig())) == {"list", "read"}
    assert [row["name"] for row in list_images({"film": "tt1", "uri": found[0].uri})] == [
        f"shot_{i}_img_0.jpg" for i in range(12)
    ]


def test_other_files_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("tt1/1.jpg", "tt1/2.gif", "tt1/notes.txt", "tt2/1.jpg", "tt3/readme.txt", "tt4.mkv", "list.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = find_films(str(tmp_path))
    assert [source.film for source in sources] == ["tt1", "tt2", "tt3", "tt4"]
    assert "1 files beside the films are left out, such as list.csv: a film is a folder" in caplog.text
    caplog.clear()
    found = [[row["name"] for row in list_images({"film": one.film, "uri": one.uri})] for one in sources[:3]]
    assert found == [["1.jpg", "2.gif"], ["1.jpg"], [""]]
    assert [record.getMessage().partition(": names")[0] for record in caplog.records] == [
        f"{tmp_path / 'tt1'}: 1 files beside the images are left out, such as notes.txt"
    ]


def test_an_input_without_films_and_one_with_two_of_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither folders of images nor video files or tars"):
        find_films(str(tmp_path))
    for name in ("a.mp4", "a.mkv"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"have the name a\. "):
        find_films(str(tmp_path))


def test_every_row_is_the_vector_of_its_own_image(
    ray_cluster: None, folder: Path, clip_folder: str, tmp_path: Path
) -> None:
    model, sources = config(clip_folder), find_films(str(folder))
    small = Stage(num_cpus=0.25, batch_size=4, workers=0)
    images = ImagesConfig(read=small, video=replace(ImagesConfig().video, num_cpus=0.25))
    stages = {"embed": model, **stages_of(sources, images)}
    store = Store(str(tmp_path))
    store_films(store, embed_films(sources, ImageEmbedder, input_shape(model), images, stages), len(sources))

    assert stored_films(store) == {"tt1", "tt2", "tt3", "tt4"}
    (first, one), (second, two), (third, three), (fourth, four) = read_stored(store, ["tt1", "tt2", "tt3", "tt4"])
    assert first.dtype == np.float16 and one["images"] == [f"shot_{i}_img_0.jpg" for i in range(12)]
    np.testing.assert_allclose(first, [direction(tone) for tone in TONES], atol=0.01)
    np.testing.assert_allclose(second, [direction(TONES[i]) for i in (0, 3, 6)], atol=0.002)
    assert two["images"] == ["stills/0.png", "stills/1.png", "stills/2.png"]
    assert two["rejected"] == {"broken_image": 1, "not_an_image": 1}
    assert third.shape == (0, 0) and three["rejected"] == {"no_images": 1}
    np.testing.assert_allclose(fourth, [direction(colours.RED), direction(colours.BLUE)], atol=0.01)
    assert four["images"] == ["shot_0000_img_0", "shot_0001_img_0"]
    assert four["start_s"] == pytest.approx([0, 2], abs=0.01) and not four["rejected"]
    assert four["decoder"] == "pyav" and "decoder" not in one
    rejected = store.read_table("rejected", REJECTED).to_pandas()
    assert sorted(zip(rejected.film, rejected.name, rejected.code, strict=True)) == [
        ("tt2", "stills/cut.jpg", "broken_image"),
        ("tt2", "stills/text.jpg", "not_an_image"),
        ("tt3", "", "no_images"),
    ]


def test_a_tar_gives_the_vectors_of_its_folder(
    ray_cluster: None, folder: Path, clip_folder: str, tmp_path: Path
) -> None:
    # Unsorted, as tar writes a folder.
    names = [f"shot_{i}_img_0.jpg" for i in (7, 11, 0, 3, 10, 1, 9, 2, 8, 5, 4, 6)]
    whole = tars.pack(folder / "tt1", tmp_path / "in" / "tt1.tar", names)
    tars.pack(folder / "tt2", tmp_path / "in" / "tt2.tar")
    tars.pack(folder / "tt3", tmp_path / "in" / "tt3.tar")
    (tmp_path / "in" / "tt5.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    model, sources = config(clip_folder), find_films(str(tmp_path / "in"))
    images = ImagesConfig(read=Stage(num_cpus=0.25, batch_size=4, workers=0))
    stages = {"embed": model, **stages_of(sources, images)}
    assert "list" not in stages
    store = Store(str(tmp_path / "out"))
    store_films(store, embed_films(sources, ImageEmbedder, input_shape(model), images, stages), len(sources))
    names = ["tt1", "tt2", "tt3", "tt5"]
    (first, one), (second, two), (_, three), (part, cut) = read_stored(store, names)
    assert one["images"] == [f"shot_{i}_img_0.jpg" for i in range(12)] and one["start_s"] == []
    np.testing.assert_allclose(first, [direction(tone) for tone in TONES], atol=0.01)
    np.testing.assert_allclose(second, [direction(TONES[i]) for i in (0, 3, 6)], atol=0.002)
    assert two["rejected"] == {"broken_image": 1, "not_an_image": 1} and three["rejected"] == {"no_images": 1}
    # What came before the break is there, and it is said that more is missing.
    assert 0 < len(part) < 12 and cut["rejected"]["broken_archive"] == 1


def test_vectors_of_two_devices_are_told(folder: Path, clip_folder: str, tmp_path: Path) -> None:
    made = EmbedConfig(str(folder), str(tmp_path), config(clip_folder))
    store = Store(str(tmp_path))

    def film(name: str, images: int) -> Embedded:
        return Embedded(name, np.zeros((images, 3), np.float16), [str(i) for i in range(images)], [], [])

    store_films(store, iter([film("tt1", 12), film("tt3", 0)]), 2, "cpu float32")
    store_films(store, iter([film("tt2", 3), film("tt4", 2)]), 2)
    assert embed(made, plan_embed(made)).notes == []
    store_films(store, iter([film("tt2", 3)]), 1, "cuda float32")
    [note] = embed(made, plan_embed(made)).notes
    assert note.startswith("vectors of 12 images were computed on cpu in float32, of 3 on cuda in float32: ")


def test_films_are_put_together_from_batches_in_any_order() -> None:
    random = np.random.default_rng(0)
    sizes = {"a": 5, "b": 1, "c": 7}
    rows = [(film, i, size) for film, size in sizes.items() for i in range(size)]

    def batches() -> Iterator[Batch]:
        for part in np.array_split(random.permutation(len(rows)), 4):
            some = [rows[i] for i in part]
            yield {
                "film": np.array([film for film, _, _ in some]),
                "number": np.array([number for _, number, _ in some]),
                "images": np.array([size for _, _, size in some]),
                "name": np.array([f"{number}.jpg" for _, number, _ in some]),
                "uri": np.array(["" for _ in some]),
                "start_s": np.zeros(len(some)),
                "error": np.array(["broken_image" if (film, i) == ("c", 2) else "" for film, i, _ in some]),
                "message": np.array(["" for _ in some]),
                "vector": np.array([[i, ord(film)] for film, i, _ in some], np.float16),
            }

    found = {film.film: film for film in gathered(batches())}
    assert {name: len(film.names) for name, film in found.items()} == {"a": 5, "b": 1, "c": 6}
    assert found["c"].vectors.tolist() == [[i, ord("c")] for i in (0, 1, 3, 4, 5, 6)]
    with pytest.raises(RuntimeError, match="are missing: run the same command again"):
        list(gathered({name: column[:1] for name, column in batch.items()} for batch in batches()))


def test_sources_say_where_films_lie(folder: Path) -> None:
    assert find_films(f"{folder}/")[3] == Source("tt4", str(folder / "tt4.mkv"), "video")
