"""Scenes of a film get genres of their own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.core.film_vectors import Films, write_films
from pipelines.genres.embed import Embedded, store_films
from pipelines.genres.predict import PredictConfig, plan_predict, predict
from pipelines.genres.train import TrainConfig, plan_train, train

EYE = np.eye(3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model of three genres, one a direction; a film whose two scenes have one each, of shots of 1 to 3 frames."""
    random = np.random.default_rng(0)
    genres = np.eye(3, dtype=np.uint8)[np.arange(90) % 3]
    films = Films(
        vectors=(genres @ EYE + random.normal(size=(90, 3)) * 0.1).astype(np.float16),
        offsets=np.arange(91),
        ids=[f"tt{i}" for i in range(90)],
        genres=genres,
        genre_names=["Drama", "Comedy", "War"],
        directors=[""] * 90,
    )
    write_films(films, str(tmp_path / "films.npz"))
    config = TrainConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path))
    train(config, plan_train(config))
    names = ["shot_0000_img_0.jpg", "shot_0000_img_1.jpg", "shot_0001_img_0.jpg", "shot_0002_img_0.jpg"]
    rows = EYE[[0, 0, 0, 2]].astype(np.float16)
    embedded = [
        Embedded("a", rows, names, [], []),
        Embedded("b", rows, [name.removesuffix(".jpg") for name in names], [0.0, 1.0, 2.0, 3.5], []),
        Embedded("c", rows[[0, 1, 3, 3]], ["1.png", "2.png", "3.png", "4.png"], [], []),
        Embedded("d", np.zeros((0, 0), np.float16), [], [], []),
    ]
    store_films(Store(str(tmp_path / "embedded")), iter(embedded), 4)
    return tmp_path


def predicted(root: Path, scenes: str | int) -> tuple[pd.DataFrame, dict[str, int]]:
    config = PredictConfig(str(root / "embedded"), str(root / "model"), str(root), scenes=scenes)
    plan = plan_predict(config)
    predict(config, plan)
    assert plan.scenes
    return pd.read_parquet(root / "scenes.parquet"), plan.scenes.without


def test_scenes_of_an_annotation_are_classified_each_for_itself(root: Path) -> None:
    scenes = [
        {"id": "a_0", "shot": [0, 2], "place_tag": "bar"},
        {"id": "a_1", "shot": [2, 5], "place_tag": None},
        {"id": "a_2", "shot": [5, 9]},
    ]
    (root / "annotation").mkdir()
    (root / "annotation" / "a.json").write_text(json.dumps({"scene": scenes}))
    (root / "annotation" / "c.json").write_text(json.dumps({"scene": scenes}))
    rows, without = predicted(root, str(root / "annotation"))
    assert without == {"no_annotation": 1, "no_shots": 1, "no_images": 1}
    # The third scene has no key frame.
    likeliest = rows.loc[rows.groupby("scene").probability.idxmax()]
    assert list(zip(likeliest.scene, likeliest.genre, likeliest.first_shot, likeliest.last_shot, strict=True)) == [
        ("a_0", "Drama", 0, 1),
        ("a_1", "War", 2, 2),
    ]
    assert rows.place.iloc[0] == "bar" and rows.start_s.isna().all() and len(rows) == 6


def test_so_many_shots_can_be_a_scene(root: Path) -> None:
    rows, without = predicted(root, 2)
    assert without == {"no_images": 1}
    likeliest = rows.loc[rows.groupby(["id", "scene"]).probability.idxmax()].set_index(["id", "scene"])
    assert likeliest.genre.to_dict() == {
        ("a", "0000"): "Drama",
        ("a", "0001"): "War",
        ("b", "0000"): "Drama",
        ("b", "0001"): "War",
        # Files whose names say no shot: each is one.
        ("c", "0000"): "Drama",
        ("c", "0001"): "War",
    }
    assert likeliest.start_s["b", "0001"] == 3.5 and likeliest.last_shot["c", "0001"] == 3


def test_scenes_that_cannot_be_had_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"no film of .* has scenes \(.*no_annotation"):
        predicted(root, str(root / "nowhere"))
    config = PredictConfig(str(root / "films.npz"), str(root / "model"), str(root), scenes=3)
    with pytest.raises(UserError, match="no output of `embed`"):
        plan_predict(config)
    with pytest.raises(UserError, match="from 1"):
        PredictConfig("x", scenes=-1)
