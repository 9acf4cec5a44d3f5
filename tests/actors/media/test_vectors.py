"""Motion vectors of a codec are those of what moves in its film."""

import gc
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from actors.media.film import open_film
from actors.media.vectors import Vectors
from tests.actors.curation.features.test_motion import texture
from tests.support import films

MOVES = 4, 2
"""Pixels a frame that what is filmed goes to the left and up."""


def pan(frames: int = 30, height: int = 240, width: int = 320, moves: tuple[int, int] = MOVES) -> Iterator[np.ndarray]:
    """A window that goes over a texture."""
    across, down = moves
    whole = texture(height + down * frames, width + across * frames)
    for number in range(frames):
        yield whole[down * number :, across * number :][:height, :width]


def kinds_and_vectors(path: Path) -> tuple[list[int], list[Vectors | None]]:
    """Of the pictures of a film: their kinds (1: I, 2: P, 3: B), and their vectors."""
    with av.open(path) as film:
        kinds = [int(frame.pict_type) for frame in film.decode(video=0)]
    return kinds, [picture.vectors() for picture in open_film(str(path), vectors=True).pictures]


def test_frames_predicted_from_the_past_have_vectors_since_the_last_that_is_no_b(tmp_path: Path) -> None:
    kinds, found = kinds_and_vectors(films.written(tmp_path / "pan.mp4", pan()))
    assert {1, 2, 3} <= set(kinds) and [one is None for one in found] == [kind == 3 for kind in kinds]
    last = 0
    for number, (kind, vectors) in enumerate(zip(kinds, found, strict=True)):
        if vectors is None:
            continue
        right, lower, area = vectors.sums.sum((0, 1))
        assert (area == 0) == (kind == 1) and area <= 320 * 240
        if kind == 2:
            assert area > 0.9 * 320 * 240
            assert (right / area, lower / area) == pytest.approx([-side * (number - last) for side in MOVES], rel=0.15)
        last = number


def test_vectors_lie_where_something_moves_and_large_frames_have_large_cells(tmp_path: Path) -> None:
    def half() -> Iterator[np.ndarray]:
        for still, moving in zip(pan(12, 720, 1280, (0, 0)), pan(12, 720, 1280, (8, 0)), strict=True):
            yield np.concatenate([still[:, :640], moving[:, 640:]], 1)

    kinds, found = kinds_and_vectors(films.written(tmp_path / "half.mp4", half()))
    one = next(vectors for kind, vectors in zip(kinds, found, strict=True) if kind == 2 and vectors)
    assert (one.cell, one.sums.shape, one.width, one.height) == (32, (23, 40, 3), 1280, 720)
    speed = np.abs(one.sums[..., 0]) / np.maximum(one.sums[..., 2], 1)
    assert np.median(speed[:, :18]) == 0 and np.median(speed[:, 22:]) >= 8


def test_no_vectors_without_asking_nor_of_a_codec_without(tmp_path: Path) -> None:
    path = films.written(tmp_path / "pan.mp4", pan(12))
    asked = [open_film(str(path)), open_film(str(films.no_motion_vectors(tmp_path / "stills.avi")), vectors=True)]
    for film in asked:
        found = [picture.vectors() for picture in film.pictures]
        assert any(found) and not any(one.sums.any() for one in found if one)


def test_frames_are_let_go_of_at_once(tmp_path: Path) -> None:
    path = films.written(tmp_path / "pan.mp4", pan(60))
    gc.collect()
    gc.disable()
    try:
        alive = []
        for picture in open_film(str(path), vectors=True).pictures:
            picture.vectors()
            # Whatever was made since is young.
            alive.append(sum(isinstance(one, av.VideoFrame) for one in gc.get_objects(generation=0)))
    finally:
        gc.enable()
    assert len(alive) == 60 and 0 < max(alive) < 10
