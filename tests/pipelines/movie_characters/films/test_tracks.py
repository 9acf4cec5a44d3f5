"""Faces that become tracks, tracks that are compared, and those of strangers that become people."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.movie_characters.films import people
from pipelines.movie_characters.films.tracks import (
    Faces,
    TracksConfig,
    best_views,
    compare,
    join,
    overlaps,
    unit,
)

ANN, BOB, CEE = np.eye(3, 8)
EVERY_S = 1.0


def faces(*seen: tuple[int, tuple[float, float, float, float], np.ndarray]) -> Faces:
    frames, boxes, vectors = zip(*seen, strict=True)
    return Faces(np.array(frames), np.array(boxes, float), np.array(vectors, np.float32))


def joined(some: Faces, config: TracksConfig | None = None, frames: int = 20) -> list[int]:
    return join(some, np.arange(frames) * EVERY_S, config or TracksConfig(), 0.9).tolist()


def by_loop(one: np.ndarray, other: np.ndarray) -> float:
    """The overlap of boxes with whole numbers, by counting pixels."""
    shown = np.zeros((2, 40, 40), bool)
    for layer, (left, top, right, bottom) in zip(shown, (one, other), strict=True):
        layer[top:bottom, left:right] = True
    return (shown[0] & shown[1]).sum() / (shown[0] | shown[1]).sum()


def test_overlap_is_that_of_counted_pixels():
    random = np.random.default_rng(0)
    starts = random.integers(0, 20, (12, 2))
    boxes = np.concatenate([starts, starts + random.integers(1, 20, (12, 2))], 1)
    found = overlaps(boxes[:5].astype(float), boxes[5:].astype(float))
    expected = [[by_loop(one, other) for other in boxes[5:]] for one in boxes[:5]]
    assert found == pytest.approx(np.array(expected))


def test_a_face_that_moves_a_little_is_one_track_whatever_it_looks_like():
    some = faces((0, (0, 0, 10, 10), ANN), (1, (2, 0, 12, 10), BOB), (2, (4, 0, 14, 10), CEE))
    assert joined(some) == [0, 0, 0]


def test_two_faces_that_cross_keep_their_boxes_and_two_of_a_frame_are_never_one():
    some = faces(
        *[(0, (0, 0, 10, 10), ANN), (0, (20, 0, 30, 10), ANN)],
        *[(1, (21, 0, 31, 10), ANN), (1, (1, 0, 11, 10), ANN)],
    )
    assert joined(some) == [0, 1, 1, 0]


def test_a_face_elsewhere_is_joined_by_appearance_alone():
    some = faces((0, (0, 0, 10, 10), ANN), (1, (30, 0, 40, 10), ANN), (1, (60, 0, 70, 10), BOB))
    assert joined(some) == [0, 0, 1]


def test_the_box_goes_before_the_appearance():
    """In the second frame one face lies where Ann was, another looks like her."""
    some = faces((0, (0, 0, 10, 10), ANN), (1, (60, 0, 70, 10), ANN), (1, (1, 0, 11, 10), unit(ANN + BOB)))
    assert joined(some) == [0, 1, 0]


def test_a_track_survives_a_gap_up_to_a_length_by_appearance_only():
    some = faces((0, (0, 0, 10, 10), ANN), (2, (0, 0, 10, 10), ANN))
    assert joined(some) == [0, 0]
    assert joined(some, TracksConfig(gap_s=1)) == [0, 1]
    # After a gap another may stand where she stood.
    assert joined(faces((0, (0, 0, 10, 10), ANN), (2, (0, 0, 10, 10), BOB))) == [0, 1]
    # Neighbouring frames always count, however far apart they are.
    assert joined(faces((0, (0, 0, 10, 10), ANN), (1, (0, 0, 10, 10), ANN)), TracksConfig(gap_s=0)) == [0, 0]


def test_the_largest_faces_are_the_best_views():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 5, 5], [1, 1, 10, 10]], float)
    assert best_views(boxes, 3).tolist() == [1, 3, 2]


def test_a_class_is_as_near_as_its_nearest_picture_and_the_margin_is_over_another_class():
    gallery = np.stack([ANN, unit(ANN + BOB), BOB])
    found = compare(np.stack([ANN, unit(2 * BOB + CEE)]), gallery, np.array([0, 0, 1]))
    assert found.nearest.tolist() == [0, 1]
    assert found.cosines == pytest.approx([1, 2 / 5**0.5])
    assert found.margins == pytest.approx([1, 2 / 5**0.5 - 2 / 10**0.5])
    assert np.isnan(compare(ANN[None], gallery[:2], np.array([0, 0])).margins[0])


def strangers(count: int, of_each: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of some people, and who each is."""
    random = np.random.default_rng(1)
    who = np.repeat(np.arange(count), of_each)
    return unit(unit(random.normal(size=(count, 64)))[who] + noise * random.normal(size=(len(who), 64))), who


def test_clusters_are_people_over_all_films():
    vectors, who = strangers(6, 5, 0.03)
    films = np.tile(np.arange(5), 6)
    found = people.cluster_tracks(vectors, films, np.tile([0.0, 1.0], (30, 1)), 0.8)
    assert found.tolist() == who.tolist()
    assert people.cluster_tracks(vectors[:0], films[:0], np.zeros((0, 2)), 0.8).tolist() == []


def test_tracks_that_overlap_in_time_are_never_one_person():
    vectors = np.stack([ANN, ANN, ANN, ANN])
    spans = np.array([[0, 2], [1, 3], [3, 4], [1, 3]], float)
    # The first two overlap; the fourth is of another film.
    found = people.cluster_tracks(vectors, np.array([0, 0, 0, 1]), spans, 0.9)
    assert found[0] != found[1]
    # A track that ends where the next begins may be the same.
    assert len(set(people.cluster_tracks(vectors[:2], np.zeros(2, int), np.array([[0, 1], [1, 2]], float), 0.9))) == 1


def test_groups_one_by_one_give_the_clusters_of_all_at_once():
    """Against average linkage by scikit-learn over the whole matrix."""
    from sklearn.cluster import AgglomerativeClustering

    vectors, _ = strangers(30, 6, 0.1)
    alike = 0.5
    found = people.cluster_tracks(vectors, np.arange(180), np.tile([0.0, 1.0], (180, 1)), alike)
    options: Any = {"n_clusters": None, "metric": "cosine", "linkage": "average", "distance_threshold": 1 - alike}
    whole = AgglomerativeClustering(**options)
    expected = whole.fit_predict(vectors)
    assert 2 < len(set(expected)) < 180
    same = expected[:, None] == expected[None]
    assert (same == (found[:, None] == found[None])).all()


def test_more_tracks_than_fit_are_clustered_more_strictly_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(people, "MOST", 8)
    vectors, who = strangers(4, 5, 0.02)
    near = unit(vectors + 1.5 * unit(np.ones(64)))
    found = people.cluster_tracks(near, np.arange(20), np.tile([0.0, 1.0], (20, 1)), 0.5)
    assert found.tolist() == who.tolist()
    assert "too many to be clustered at once" in caplog.text


def test_too_many_tracks_of_one_picture_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cosine tells the faces of one title sequence apart."""
    monkeypatch.setattr(people, "MOST", 8)
    same = np.tile([[0.6, 0.8]], (20, 1))
    found = people.cluster_tracks(same, np.arange(20), np.tile([0.0, 1.0], (20, 1)), 0.9)
    assert sorted(np.bincount(found)) == [6, 7, 7]


def test_a_cluster_keeps_its_number_when_others_come():
    first = people.number_clusters(np.array([0, 0, 1]), ["a", "b", "c"], np.array([1.0, 1, 5]), {})
    assert first == ["unknown_2", "unknown_2", "unknown_1"]
    before = dict(zip("abc", first, strict=True))
    # A longer one comes, and another order of clusters.
    again = people.number_clusters(np.array([0, 1, 2, 2]), ["d", "c", "a", "b"], np.array([9.0, 5, 1, 1]), before)
    assert again == ["unknown_3", "unknown_1", "unknown_2", "unknown_2"]
    # One that falls apart leaves its number with the larger part.
    parts = people.number_clusters(np.array([0, 1, 1]), ["x", "y", "z"], np.ones(3), dict.fromkeys("xyz", "unknown_7"))
    assert parts == ["unknown_8", "unknown_7", "unknown_7"]


def test_a_table_of_names_is_read_and_mistakes_are_told(tmp_path: Path):
    table = tmp_path / "names.csv"
    table.write_text("cluster,name,seconds\nunknown_1,Ann Lee,3\nunknown_2,,1\nunknown_3, Ann Lee ,1\n")
    names = people.read_names(str(table))
    assert names == {"unknown_1": "Ann Lee", "unknown_3": "Ann Lee"}
    with pytest.raises(ValueError, match="names unknown_3, and there is no such cluster"):
        people.check_names("names.csv", names, ["unknown_1", "unknown_2"])
    with pytest.raises(ValueError, match="there is no such file"):
        people.read_names(str(tmp_path / "none.csv"))
    for rows, match in (
        ("Ann,Bob", "line 2: 'Ann' is no cluster"),
        ("unknown_1,Ann\nunknown_1,Bob", "line 3: unknown_1 is named Ann and Bob"),
        ("unknown_1,unknown_2", "cannot be a name"),
    ):
        table.write_text(f"cluster,name\n{rows}\n")
        with pytest.raises(ValueError, match=match):
            people.read_names(str(table))
