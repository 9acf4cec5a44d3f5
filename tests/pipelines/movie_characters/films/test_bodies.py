"""Bodies: whose a body is, and that a face which turns away keeps its identity by the body."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.core.errors import UserError
from actors.core.store import Store
from actors.movie_characters.recognition.bodies import BodiesConfig, FrameBodies, check_bodies
from actors.movie_characters.recognition.faces import FacesConfig
from actors.movie_characters.recognition.frame_faces import write_faces
from pipelines.movie_characters.films import timeline
from pipelines.movie_characters.films.bodies import bodies_by_film, embed_bodies, owners
from pipelines.movie_characters.films.face_timeline import Judge
from pipelines.movie_characters.films.film_faces import faces_by_film, searched
from pipelines.movie_characters.films.tracks import NOTHING, Seen
from pipelines.movie_characters.gallery_settings import ClipSettings, FaceConfig, FaceSettings, model_of
from pipelines.movie_characters.models import ClipModel, FaceModel
from tests.support import face_networks
from tests.support.face_networks import Colours

ANN, BOB, CEE = np.eye(3, 8, dtype=np.float32)
RED, BLUE, GREEN = np.eye(3, 4, dtype=np.float32)
JUDGE = Judge(np.stack([ANN, BOB]), ["Ann", "Bob"], 0.8)
BODIES = BodiesConfig(model="model.onnx", alike=0.9)


def test_a_body_is_that_of_the_face_in_its_upper_part_and_of_one_alone() -> None:
    bodies = np.array([(0, 0, 30, 100), (20, 0, 50, 100), (100, 0, 130, 100)], float)
    faces = np.array([(22, 5, 28, 15), (30, 5, 40, 15), (110, 80, 120, 90)], float)
    # The first lies in two bodies, one of which is the second's; the third is at somebody's feet.
    assert owners(faces, bodies) == [0, 1, -1]
    # A close-up, of which the picture shows hardly more than the face.
    assert owners(np.array([(10.0, 0, 20, 12)]), np.array([(0.0, 0, 30, 11)])) == [0]
    assert owners(faces[:0], bodies) == [] and owners(faces, bodies[:0]) == [-1, -1, -1]


def seen(*some: tuple[tuple[int, int, int, int], np.ndarray]) -> Seen:
    if not some:
        return NOTHING
    boxes, vectors = zip(*some, strict=True)
    return Seen(np.array(boxes, float), np.stack(vectors), np.ones(len(some)))


HEAD, BODY, HEAD_2, BODY_2 = (10, 0, 20, 10), (0, 0, 30, 60), (50, 0, 60, 10), (40, 0, 70, 60)
# Ann in red beside Bob in blue; Ann's back beside Bob; a stranger in green, then Ann's profile, whom no face tells.
FACES = {0: [(HEAD, ANN), (HEAD_2, BOB)], 1: [(HEAD_2, BOB)], 2: [(HEAD, CEE)], 3: []}
SHOWN = {
    0: [(BODY, RED), (BODY_2, BLUE)],
    1: [(BODY, RED), (BODY_2, BLUE)],
    2: [(BODY, RED)],
    3: [(BODY, GREEN), (BODY_2, BLUE)],
}


def film_of(root: Path) -> Store:
    """A film of three shots with a frame a second: 0 and 1, 2, 3."""
    store = Store(str(root))
    shots = [
        {"shot": number, "start_s": times[0], "end_s": times[-1] + 1, "times": times, "images": images}
        for number, (times, images) in enumerate(
            [([0.0, 1.0], ["f_000000.jpg", "f_000001.jpg"]), ([2.0], ["f_000002.jpg"]), ([3.0], ["f_000003.jpg"])]
        )
    ]
    about = {"film": "f", "uri": "/films/f.mp4", "shots": shots, "error": "", "message": "", "decoder": "pyav"}
    store.write_json(about | {"rate": "25", "begin_s": 0.0}, "shots", "f.json")
    (root / "frames" / "f").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (80, 60), "grey").save(root / "frames" / "f" / f"f_{number:06d}.jpg")
    return store


def config(store: Store, **more: Any) -> timeline.TimelineConfig:
    return timeline.TimelineConfig("films", store.root, FaceModel("faces", FaceSettings("gallery")), **more)


def test_who_turns_away_keeps_the_identity_of_the_body(tmp_path: Path) -> None:
    store = film_of(tmp_path)

    def faces_of(film: str) -> Any:
        return lambda name: seen(*FACES[int(name[2:8])])

    def bodies_of(film: str) -> Any:
        return lambda name: seen(*SHOWN[int(name[2:8])])

    without = timeline.face_appearances(config(store), ["f"], faces_of, JUDGE)
    assert without.votes[["shot", "character", "votes"]].to_numpy().tolist() == [
        *([0, "Bob", 2], [0, "Ann", 1]),
        [1, "unknown_1", 1],
    ]
    found = timeline.face_appearances(config(store, bodies=BODIES), ["f"], faces_of, JUDGE, bodies_of)
    assert found.votes[["shot", "character", "votes"]].to_numpy().tolist() == [
        *([0, "Ann", 2], [0, "Bob", 2]),
        # By her body, since the face is not explained.
        [1, "Ann", 1],
        # Nobody else was seen in green, who is left out.
        [2, "Bob", 1],
    ]
    rows = pq.read_table(store.uri("tracks.parquet")).to_pylist()
    assert [(row["track"], row["shot"], row["identity"], row["by"]) for row in rows] == [
        *((0, 0, "Ann", "face"), (1, 0, "Bob", "face"), (2, 1, "Ann", "body")),
        *((3, 0, "Ann", "body"), (4, 2, "Bob", "body")),
    ]
    assert rows[3]["images"] == ["f_000001.jpg"] and rows[3]["boxes"] == [list(BODY)]
    # Pictures that may become gallery show faces.
    assert {path.name.split("_")[0] for path in (tmp_path / "people").iterdir()} == {"Ann", "Bob"}
    assert len(list((tmp_path / "people").iterdir())) == 3


def test_nobody_is_twice_in_a_frame(tmp_path: Path) -> None:
    """Bob's twin in blue is behind him in the same frame."""
    store = film_of(tmp_path)
    shown = {0: [(BODY, BLUE), (BODY_2, BLUE)]}
    found = timeline.face_appearances(
        config(store, bodies=BODIES),
        ["f"],
        lambda film: lambda name: seen((HEAD_2, BOB)) if name.endswith("0.jpg") else NOTHING,
        JUDGE,
        lambda film: lambda name: seen(*shown.get(int(name[2:8]), ())),
    )
    assert found.people is not None and [track.identity for track in found.people.tracks] == ["Bob"]


def test_bodies_below_faces_are_embedded_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    store = film_of(tmp_path)
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, :40], picture[:, 40:] = (255, 0, 0), (0, 0, 255)
    for path in (tmp_path / "frames" / "f").iterdir():
        Image.fromarray(picture).save(path, quality=95)
    faces = FaceConfig(gallery="g", input=[], output=store.root)
    uris = timeline.frames_of(store, ["f"])
    sizes = np.array([Path(uri).stat().st_size for uri in uris])
    none = np.array([""] * 4)
    boxes, vectors, sure = (np.empty(4, object) for _ in range(3))
    for row in range(4):
        # The last frame has one face, and the others have two.
        boxes[row], vectors[row], sure[row] = (
            [HEAD, HEAD_2][row // 3 :],
            [ANN, BOB][row // 3 :],
            [0.95, 0.99][row // 3 :],
        )
    batch = {"uri": np.array(uris), "size": sizes, "error": none, "message": none}
    write_faces({**batch, "boxes": boxes, "vectors": vectors, "confidences": sure}, store, model_of(faces))
    path = face_networks.save(Colours(), tmp_path / "colours.onnx", (3, 256, 128))
    how = BodiesConfig(model=str(path), alike=0.9)
    check_bodies(how)
    embed_bodies(faces, how, ["f"], store)
    found = bodies_by_film(faces, how, store)("f")("f_000002.jpg")
    assert found.boxes.tolist() == [[0, 0, 30, 50], [40, 0, 70, 50]]
    assert found.vectors[0] @ found.vectors[1] < 0.5
    assert bodies_by_film(faces, how, store)("f")("f_000003.jpg").boxes.tolist() == [[40, 0, 70, 50]]
    monkeypatch.setattr(FrameBodies, "__init__", None)
    embed_bodies(faces, how, ["f"], store)


def test_bodies_need_a_threshold_and_faces() -> None:
    with pytest.raises(UserError, match=r"bodies\.alike: set the least cosine"):
        BodiesConfig(model="model.onnx")
    with pytest.raises(UserError, match=r"bodies\.detector is set"):
        BodiesConfig(detector="people.onnx")
    with pytest.raises(UserError, match=r"only model\.by=faces uses bodies"):
        timeline.TimelineConfig("f", "o", ClipModel("clip", ClipSettings("gallery")), bodies=BODIES)
    with pytest.raises(UserError, match=r"bodies\.model=model\.onnx: there is no such file"):
        check_bodies(BODIES)


def test_confidence_is_judged_after_faces_are_stored_and_those_of_earlier_versions_are_searched_again(
    tmp_path: Path,
) -> None:
    store = film_of(tmp_path)
    usual, strict = (
        FaceConfig(gallery="g", input=[], output=store.root, faces=FacesConfig(min_confidence=least))
        for least in (None, 0.97)
    )
    assert model_of(usual) == model_of(strict)
    uris, blank = timeline.frames_of(store, ["f"])[:2], np.array([""])
    for number, sure in enumerate(([0.95, 0.99], None)):
        boxes, vectors, confidences = (np.empty(1, object) for _ in range(3))
        boxes[0], vectors[0], confidences[0] = [HEAD, HEAD_2], [ANN, BOB], sure or [0.0, 0.0]
        batch = {"uri": np.array(uris[number : number + 1]), "size": np.array([7]), "error": blank, "message": blank}
        write_faces({**batch, "boxes": boxes, "vectors": vectors, "confidences": confidences}, store, model_of(usual))
    # As an earlier version has written the second.
    for file in (tmp_path / "faces").iterdir():
        table = pq.read_table(file)
        if table["uri"][0].as_py() == uris[1]:
            pq.write_table(table.drop_columns(["confidences"]), file)
    assert searched(usual) == {(uri, 7) for uri in uris} and searched(strict) == {(uris[0], 7)}
    of_usual, of_strict = (faces_by_film(some, store)("f") for some in (usual, strict))
    names = [Path(uri).name for uri in uris]
    assert [len(of_usual(name).boxes) for name in names] == [2, 2]
    assert [of_strict(name).boxes.tolist() for name in names] == [[list(HEAD_2)], []]
    assert np.isnan(of_usual(names[1]).confidences).all()
