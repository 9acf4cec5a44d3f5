"""All faces of a frame: where they are in it, and that each has a vector of its own."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from actors.core.store import Store
from actors.movie_characters.recognition.faces import FacesConfig
from actors.movie_characters.recognition.frame_faces import FrameFaces, write_faces


def test_every_face_has_its_box_in_the_pixels_of_the_frame_and_its_vector(tmp_path: Path):
    face = Image.fromarray(data.astronaut()).crop((150, 20, 310, 220))
    frame = Image.new("RGB", (1600, 400), "grey")
    # The second is as large again, and mirrored.
    frame.paste(face, (100, 100))
    frame.paste(face.resize((320, 400)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (1200, 0))
    frame.save(tmp_path / "two.png")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "none.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names = ("two.png", "none.png", "broken.jpg")
    batch = {
        "uri": np.array([str(tmp_path / name) for name in names]),
        "size": np.array([(tmp_path / name).stat().st_size for name in names]),
        "error": np.array([""] * 3),
        "message": np.array([""] * 3),
    }
    found = FrameFaces(FacesConfig(detector="mtcnn", max_side=800))(batch)
    assert found["error"].tolist() == ["", "", "not_an_image"]
    assert [len(row) for row in found["boxes"]] == [2, 0, 0]
    small, large = sorted(found["boxes"][0])
    assert 100 < small[0] < small[2] < 260 and 100 < small[1] < small[3] < 300
    assert 1200 < large[0] < large[2] < 1520
    assert (large[2] - large[0]) / (small[2] - small[0]) == pytest.approx(2, rel=0.3)
    one, other = found["vectors"][0]
    assert one @ other > 0.9
    store = Store(str(tmp_path / "out"))
    write_faces(found, store, "a model")
    (part,) = (tmp_path / "out" / "faces").glob("*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert [len(row["vectors"]) for row in rows] == [2, 0, 0]
    assert rows[0]["boxes"] == [pytest.approx(box) for box in found["boxes"][0]]
    assert rows[0]["vectors"][0] == pytest.approx(found["vectors"][0][0], abs=1e-3)
