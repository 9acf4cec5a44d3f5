"""The npz of films, and its split into parts that resemble each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.core.film_vectors import Films, read_films, split, write_films
from pipelines.genres.process import GENRES
from tests.support.data import real_films

SIZES = [3, 1, 5]


def films() -> Films:
    return Films(
        vectors=np.random.default_rng(0).normal(size=(9, 4)).astype(np.float16),
        offsets=np.cumsum([0, *SIZES]),
        ids=["tt1", "tt2", "tt3"],
        genres=np.array([[1, 0], [1, 1], [0, 1]], np.uint8),
        genre_names=["Drama", "Crime"],
        directors=["Élan", "", "Élan"],
    )


def arrays(**change: np.ndarray) -> dict[str, Any]:
    one = films()
    return {
        "vecs": one.vectors,
        "offsets": one.offsets,
        "ids": np.array(one.ids),
        "genres": one.genres,
        "genre_names": np.array(one.genre_names),
        "director": np.array(one.directors),
        **change,
    }


def test_what_is_written_is_read(tmp_path: Path):
    write_films(films(), str(tmp_path / "films.npz"))
    again, one = read_films(str(tmp_path / "films.npz")), films()
    assert np.array_equal(again.vectors, one.vectors) and again.vectors.dtype == np.float16
    assert np.array_equal(again.offsets, one.offsets) and np.array_equal(again.genres, one.genres)
    assert (again.ids, again.genre_names, again.directors) == (one.ids, one.genre_names, one.directors)


def test_films_to_predict_need_no_labels(tmp_path: Path):
    some = arrays()
    np.savez(tmp_path / "films.npz", vecs=some["vecs"], offsets=some["offsets"], ids=some["ids"])
    one = read_films(str(tmp_path / "films.npz"))
    assert one.genres.shape == (3, 0) and one.directors == ["", "", ""]
    write_films(one, str(tmp_path / "again.npz"))
    assert read_films(str(tmp_path / "again.npz")).genre_names == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"offsets": np.array([0, 3, 9])}, "N \\+ 1"),
        ({"offsets": np.array([0, 3, 4, 8])}, "from 0 to 8, and there are 9"),
        ({"offsets": np.array([0, 4, 4, 9])}, "without a frame: tt2"),
        ({"ids": np.array(["tt1", "tt2", "tt1"])}, "more than one film: tt1"),
        ({"vecs": np.where(np.arange(9)[:, None] == 3, np.nan, np.ones((9, 4)))}, "not finite, in tt2"),
        ({"genres": np.ones((3, 3))}, "do not fit"),
        ({"genres": np.full((3, 2), 2)}, "0 or 1"),
        ({"director": np.array(["a"])}, "do not fit"),
    ],
)
def test_what_does_not_fit_together_is_told(change: dict[str, np.ndarray], problem: str, tmp_path: Path):
    np.savez(tmp_path / "films.npz", **arrays(**change))
    with pytest.raises(ValueError, match=f"films.npz: .*{problem}"):
        read_films(str(tmp_path / "films.npz"))


def test_what_is_no_such_file_is_told(tmp_path: Path):
    uri = str(tmp_path / "films.npz")
    with pytest.raises(ValueError, match="does not exist"):
        read_films(uri)
    Path(uri).write_bytes(b"hello")
    with pytest.raises(ValueError, match="is no npz file") as refused:
        read_films(uri)
    assert "pickle" not in str(refused.value)
    np.savez(uri, ids=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="no npz file of plain arrays"):
        read_films(uri)
    np.savez(uri, images=np.zeros(1))
    with pytest.raises(ValueError, match="no ids, offsets, vecs; it has images"):
        read_films(uri)
    unnamed = arrays()
    del unnamed["genre_names"]
    np.savez(uri, **unnamed)
    with pytest.raises(ValueError, match="one of genres and genre_names"):
        read_films(uri)


def test_films_are_taken_with_all_that_is_theirs():
    one = films()
    two = one.take(np.array([2, 0]))
    assert two.ids == ["tt3", "tt1"] and two.genres.tolist() == [[0, 1], [1, 0]] and two.directors == ["Élan", "Élan"]
    assert np.array_equal(two.frames(0), one.frames(2)) and np.array_equal(two.frames(1), one.frames(0))
    assert len(one.take([])) == 0


def test_padding_stands_on_the_left_and_long_films_are_thinned_evenly():
    one = films()
    frames, mask = one.padded()
    assert frames.shape == (3, 5, 4) and mask.sum(1).tolist() == SIZES and mask[:, -1].all()
    assert np.array_equal(frames[0, 2:], one.frames(0).astype(np.float32)) and not frames[~mask].any()
    frames, mask = one.padded(3)
    assert np.array_equal(frames[2], one.frames(2)[[0, 2, 4]].astype(np.float32)) and mask[1].tolist() == [0, 0, 1]


def many_labels(count: int) -> np.ndarray:
    shares = [0.6, 0.3, 0.3, 0.1, 0.03, 0.0]
    return (np.random.default_rng(3).random((count, len(shares))) < shares).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_parts_keep_the_share_of_films_and_of_every_label(seed: int):
    labels, shares = many_labels(400), [0.7, 0.15, 0.15]
    parts = split(labels, shares, seed)
    assert set(parts) == {0, 1, 2}
    for part, share in enumerate(shares):
        assert (parts == part).sum() == pytest.approx(400 * share, abs=8)
        assert np.abs(labels[parts == part].sum(0) - labels.sum(0) * share).max() <= 2.5


def test_a_rare_label_is_in_every_part_where_chance_would_miss():
    labels = np.zeros((100, 2), np.uint8)
    labels[:5, 0] = labels[::2, 1] = 1
    for seed in range(5):
        parts = split(labels, [1] * 5, seed)
        assert np.bincount(parts[:5], minlength=5).tolist() == [1] * 5


def test_a_split_depends_on_its_seed_alone():
    labels = many_labels(120)
    assert np.array_equal(split(labels, [4, 1], 7), split(labels, [0.8, 0.2], 7))
    assert not np.array_equal(split(labels, [4, 1], 7), split(labels, [4, 1], 8))
    assert np.bincount(split(np.zeros((10, 0)), [1, 1])).tolist() == [5, 5]
    with pytest.raises(ValueError, match="above 0"):
        split(labels, [1, 0])


def test_the_real_films_have_the_genres_and_split_well():
    real = real_films()
    assert tuple(real.genre_names) == GENRES and len(real) == 879
    parts = split(real.genres, [1] * 5)
    counts = np.stack([real.genres[parts == part].sum(0) for part in range(5)])
    assert (counts.max(0) - counts.min(0) <= 2).all()
