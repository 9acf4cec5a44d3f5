"""A timeline by faces from stored faces to tables, without films, detectors or networks."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.core.store import Store
from pipelines.movie_characters.films import each_film
from pipelines.movie_characters.films import timeline as film
from pipelines.movie_characters.films.face_timeline import FacesOf, Judge
from pipelines.movie_characters.films.tracks import NOTHING, Seen
from pipelines.movie_characters.gallery_settings import ClipSettings, FaceSettings
from pipelines.movie_characters.models import ClipModel, FaceModel

ANN, BOB, CEE, DAN = np.eye(4, 8, dtype=np.float32)
LEFT, RIGHT = (0, 0, 20, 20), (40, 0, 70, 30)
JUDGE = Judge(np.stack([ANN, BOB]), ["Ann", "Bob"], 0.8, 0.05)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two films of two shots; in each Ann is beside Cee, then Cee is alone with a third."""
    store = Store(str(tmp_path))
    for name in ("f", "g"):
        images = [f"{name}_{number:06d}.jpg" for number in range(4)]
        shots = [
            {"shot": 0, "start_s": 0.0, "end_s": 2.0, "times": [0.0, 1.0], "images": images[:2]},
            {"shot": 1, "start_s": 2.0, "end_s": 4.5, "times": [2.0, 3.0], "images": images[2:]},
        ]
        about = {
            "film": name,
            "uri": f"/films/{name}.mp4",
            "shots": shots,
            "error": "",
            "message": "",
            "decoder": "pyav",
        }
        store.write_json(about | ({"rate": "25", "begin_s": 0.0} if name == "f" else {}), "shots", f"{name}.json")
        (tmp_path / "frames" / name).mkdir(parents=True)
        for image in images:
            Image.new("RGB", (80, 60), "grey").save(tmp_path / "frames" / name / image)
    return store


def faces_of(name: str) -> Seen:
    seen = {
        0: [(LEFT, ANN), (RIGHT, CEE)],
        1: [(LEFT, ANN), (RIGHT, CEE)],
        2: [(RIGHT, CEE), (LEFT, DAN)],
        3: [(RIGHT, CEE)],
    }[int(name[2:8])]
    boxes, vectors = np.array([box for box, _ in seen], float), np.stack([vector for _, vector in seen])
    return Seen(boxes, vectors, np.linspace(0.5, 1, len(seen)))


def stored(film: str) -> FacesOf:
    return faces_of


def config(store: Store, names: str = "") -> film.TimelineConfig:
    return film.TimelineConfig("films", store.root, FaceModel("faces", FaceSettings("gallery")), names=names)


def test_a_frame_votes_for_everybody_and_strangers_are_one_person_over_films(
    store: Store, caplog: pytest.LogCaptureFixture
):
    found = film.face_appearances(config(store), ["f", "g"], stored, JUDGE)
    # Cee is longest on screen, and Dan is seen in one frame.
    assert found.votes.drop(columns=["start_s", "end_s", "score"]).to_numpy().tolist() == [
        [name, shot, character, votes, share]
        for name in "fg"
        for shot, character, votes, share in (
            (0, "Ann", 2, 1.0),
            (0, "unknown_1", 2, 1.0),
            (1, "unknown_1", 2, 1.0),
            (1, "unknown_2", 1, 0.5),
        )
    ]
    assert found.shots.answer.to_list() == ["Ann", "unknown_1"] * 2
    tracks = pq.read_table(store.uri("tracks.parquet")).to_pandas()
    # No track crosses the boundary between the shots.
    assert len(tracks) == 8 and tracks.groupby(["film", "track"]).shot.nunique().max() == 1
    assert tracks[tracks.identity == "Ann"].probability.to_list() == pytest.approx([1 / (1 + np.exp(-4))] * 2)
    last = json.loads(Path(store.uri("timelines", "f.json")).read_text())["tracks"][-1]
    assert (last["start_s"], last["end_s"], last["identity"], len(last["faces"])) == (2, 3, "unknown_2", 1)
    assert last["faces"][0]["box"] == list(LEFT) and last["faces"][0]["confidence"] == 1
    assert tracks.confidences.map(list).to_list()[:2] == [[0.5, 0.5], [1, 1]]
    people = pd.read_csv(store.uri("people.csv"))
    assert people.drop(columns="name").to_numpy().tolist() == [["unknown_1", 4, 2, 9.0], ["unknown_2", 2, 2, 2.0]]
    # A film that an earlier version cut has no rate, and so no timecode; that is told.
    assert Path(store.uri("timelines", "f.edl")).exists() and not Path(store.uri("timelines", "g.edl")).exists()
    assert "g: no .edl" in caplog.text
    assert "Ann, unknown_1" in Path(store.uri("timelines", "g.srt")).read_text()


def test_workers_make_of_many_films_what_the_driver_makes_of_few(
    ray_cluster: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> dict[str, bytes]:
        film.face_appearances(config(store), ["f", "g"], stored, JUDGE)
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    few = made()
    assert not [name for name in few if ".found." in name or ".answered." in name]
    monkeypatch.setattr(each_film, "FEW_FILMS", 1)
    assert made() == few


def pictured(folder: Path) -> set[str]:
    """Of whom there are pictures."""
    return {path.name.rpartition("_")[0] for path in (folder / "people").iterdir()}


def test_names_are_given_afterwards_and_pictures_follow(store: Store, tmp_path: Path):
    film.face_appearances(config(store), ["f"], stored, JUDGE)
    assert {path.name.rpartition("_")[0] for path in (tmp_path / "people").iterdir()} == {
        "Ann",
        "unknown_1",
        "unknown_2",
    }
    (tmp_path / "names.csv").write_text("cluster,name\nunknown_1,Cee\nunknown_2,Ann\n")
    found = film.face_appearances(config(store, str(tmp_path / "names.csv")), ["f", "g"], stored, JUDGE)
    assert set(found.votes.character) == {"Ann", "Cee"}
    assert pictured(tmp_path) == {"Ann", "Cee"}
    # A picture has the face and something about it, as far as the frame goes.
    sizes = {Image.open(path).size for path in (tmp_path / "people").glob("Cee_*")}
    assert sizes == {(58, 48)}
    assert pd.read_csv(store.uri("people.csv")).name.to_list() == ["Cee", "Ann"]
    # Once the gallery explains them, the table still fits, and nobody is left.
    known = Judge(np.stack([ANN, BOB, CEE, DAN]), ["Ann", "Bob", "Cee", "Dan"], 0.8)
    again = film.face_appearances(config(store, str(tmp_path / "names.csv")), ["f"], stored, known)
    assert set(again.votes.character) == {"Ann", "Cee", "Dan"} and pd.read_csv(store.uri("people.csv")).empty
    assert again.people and np.isnan([track.probability for track in again.people.tracks]).all()


def test_films_without_a_face_have_empty_tables(store: Store):
    found = film.face_appearances(config(store), ["f"], lambda film: lambda name: NOTHING, JUDGE)
    assert found.shots.answer.to_list() == ["unknown", "unknown"] and found.segments.empty
    assert pd.read_csv(store.uri("people.csv")).columns.to_list() == ["cluster", "name", "tracks", "films", "seconds"]


def test_settings_that_have_no_meaning_are_refused(store: Store):
    with pytest.raises(ValueError, match="finds people without a name"):
        film.TimelineConfig("films", store.root, ClipModel("clip", ClipSettings("gallery")), names="names.csv")
    with pytest.raises(ValueError, match="judged by their cosine"):
        film.TimelineConfig("films", store.root, FaceModel("faces", FaceSettings("gallery")), lead=True)
