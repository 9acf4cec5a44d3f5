"""Vectors of few images, embedded in the process, are those that Ray gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from actors.core.store import Store
from actors.movie_characters.recognition.faces import FacesConfig
from pipelines.movie_characters.gallery_settings import ClipConfig, FaceConfig, model_of, root_of
from pipelines.movie_characters.gallery_vectors import embed_few, embed_many, embedded, faceless
from pipelines.movie_characters.identify_gallery import plan_identification
from tests.support import pictures
from tests.support.colours import GREEN, RED


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
    for image, (vector, computed) in one.items():
        assert vector == pytest.approx(other[image][0], abs=2e-3) and computed == other[image][1]
    assert faceless(Store(root_of(few)), model_of(few)).keys() == faceless(Store(root_of(many)), model_of(many)).keys()


def test_vectors_of_another_detector_have_another_name_and_stored_ones_keep_theirs() -> None:
    names = [
        model_of(FaceConfig(gallery="g", input="i", output="o", faces=FacesConfig(detector=detector)))
        for detector in ("hog", "mtcnn")
    ]
    assert names == ["dlib:1:1024", "dlib:mtcnn:1:1024"]
