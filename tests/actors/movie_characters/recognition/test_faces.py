"""Faces of photographs: the same one is near, whatever was done to the picture, and what has none says so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from actors.core.stage import Batch
from actors.movie_characters.recognition.faces import FaceEmbedder, FacesConfig


@pytest.fixture(scope="module")
def embedder() -> FaceEmbedder:
    return FaceEmbedder(FacesConfig())


def batch(*uris: object, error: str = "") -> Batch:
    return {
        "uri": np.array([str(uri) for uri in uris]),
        "error": np.array([error] * len(uris)),
        "message": np.array([""] * len(uris)),
    }


def test_a_face_is_near_itself_in_another_picture(embedder: FaceEmbedder, tmp_path: Path):
    picture = Image.fromarray(data.astronaut())
    picture.save(tmp_path / "a.png")
    picture.crop((100, 20, 400, 320)).resize((420, 420)).convert("L").save(tmp_path / "b.jpg", quality=70)
    # The same person again, larger than what is looked at.
    picture.resize((2048, 2048)).save(tmp_path / "c.jpg")
    found = embedder(batch(tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "c.jpg"))
    assert found["error"].tolist() == ["", "", ""]
    vectors = found["vector"].astype(float)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-3)
    # The model's own measure of the same person is a distance below 0.6 for vectors of length about 1.4.
    assert (vectors @ vectors[0]).min() > 0.9


def test_both_detectors_give_vectors_of_the_same_face_that_are_near(embedder: FaceEmbedder, tmp_path: Path):
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    by_hog = FaceEmbedder(FacesConfig(detector="hog"))
    one, other = (found(batch(tmp_path / "a.png"))["vector"][0].astype(float) for found in (embedder, by_hog))
    assert one @ other > 0.9
    assert not np.array_equal(one, other)


def test_what_has_no_face_or_cannot_be_read_says_so(embedder: FaceEmbedder, tmp_path: Path):
    Image.fromarray(data.coffee()[:200, :200]).save(tmp_path / "cup.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    found = embedder(batch(tmp_path / "cup.png", tmp_path / "broken.jpg", tmp_path / "none.jpg"))
    assert found["error"].tolist() == ["no_face", "not_an_image", "not_found"]
    assert np.isnan(found["vector"]).all()


def test_rows_with_an_error_are_left_as_they_are(embedder: FaceEmbedder):
    assert embedder(batch("nowhere.jpg", error="not_found"))["error"].tolist() == ["not_found"]
