"""Genres by a vision-language model: what it is shown, what is stored, what a second start and `score` do with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from actors.core.errors import UserError
from actors.core.store import Store
from actors.genres.zero_shot import SCENE, ZeroShotVlm, likely
from actors.models.vlm.asking import TRIES
from actors.models.vlm.local import LocalVlm
from pipelines.core.film_vectors import Films, write_films
from pipelines.genres.embed import REJECTED
from pipelines.genres.score import ScoreConfig, figures, judge, plan_score
from pipelines.genres.zero_shot import ZeroShotConfig, plan_zero_shot, zero_shot
from tests.support.servers import Gemini, blocks, says
from tests.support.tiny_models import captioning_model

GENRES = ["War", "Western", "Music"]
REDS = {"tt0": 0, "tt1": 80, "tt2": 160, "tt3": 240}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four films of three frames, each film of one red, and one without any image."""
    folder = tmp_path_factory.mktemp("films")
    for name, red in REDS.items():
        (folder / name).mkdir()
        for shot in range(3):
            Image.new("RGB", (32, 32), (red, 0, 0)).save(folder / name / f"shot_{shot:04d}_img_0.png")
    (folder / "tt4").mkdir()
    (folder / "tt4" / "notes.txt").write_text("no image")
    return folder


def config(films: Path, output: Path, vlm: ZeroShotVlm, **settings: Any) -> ZeroShotConfig:
    about: dict[str, Any] = {"genres": GENRES, "frames": 2, "size": 32, **settings}
    return ZeroShotConfig(str(films), str(output), vlm=vlm, **about)


def service(gemini: Gemini, **settings: Any) -> ZeroShotVlm:
    return ZeroShotVlm(endpoint=gemini.endpoint, requests_at_once=1, pause_s=0.01, timeout_s=20, **settings)


def read(output: Path) -> tuple[pd.DataFrame, set[tuple[str, str]]]:
    """Probabilities, a row a film and a column a genre, and film and code of what is in rejected/."""
    rows = pd.read_parquet(output / "predictions.parquet")
    rejected = Store(str(output)).read_table("rejected", REJECTED).to_pylist()
    table = rows.pivot(index="id", columns="genre", values="probability")
    return table, {(row["film"], row["code"]) for row in rejected}


def test_refusals_and_names_outside_of_the_vocabulary_are_rows(
    ray_cluster: None, films: Path, tmp_path: Path, gemini: Gemini
):
    settings = config(films, tmp_path, service(gemini), threshold=0.5)
    gemini.otherwise = blocks()
    made = zero_shot(settings, plan_zero_shot(settings))
    assert made["rows"] == {"in": 5, "out": 0, "rejected": {"refused": 4, "no_images": 1}}
    assert made["requests"] == 4 * TRIES and made["tokens"]["in"] == 4 * TRIES * 1000
    assert read(tmp_path)[1] == {*((name, "refused") for name in REDS), ("tt4", "no_images")}
    assert plan_zero_shot(settings).todo == []

    gemini.asked.clear()
    gemini.otherwise = says('{"Music": 0.9, "war": 0.4, "Noir": 1}')
    again = replace(settings, retry=True, scenes=2)
    made = zero_shot(again, plan_zero_shot(again))
    assert made["rows"] == {"in": 5, "out": 4, "rejected": {"no_images": 1}} and made["requests"] == 12
    # Every film was sent once, two of its frames, and each of its scenes, of two shots and one.
    asked = sorted(
        (round(float(frames[0][..., 0].mean()) / 80), "scene" in text, len(frames)) for text, frames in gemini.asked
    )
    assert asked == [(red, *one) for red in range(4) for one in ((False, 2), (True, 1), (True, 2))]
    assert plan_zero_shot(replace(settings, scenes=2)).todo == plan_zero_shot(settings).todo == []
    scenes = pd.read_parquet(tmp_path / "scenes.parquet")
    assert scenes[["id", "scene", "first_shot", "last_shot"]].drop_duplicates().to_numpy().tolist() == [
        [name, *one] for name in REDS for one in (("0000", 0, 1), ("0001", 2, 2))
    ]
    assert scenes.start_s.isna().all() and (scenes.chosen == (scenes.genre == "Music")).all()
    table, rejected = read(tmp_path)
    assert rejected == {*((name, "outside_vocabulary") for name in REDS), ("tt4", "no_images")}
    np.testing.assert_allclose(table.loc[list(REDS), GENRES], [[0.4, 0, 0.9]] * 4)
    rows = pd.read_parquet(tmp_path / "predictions.parquet")
    assert (rows.chosen == (rows.genre == "Music")).all()
    with pytest.raises(UserError, match=r"answers of another scenes\. Use another output"):
        plan_zero_shot(replace(settings, scenes=3))
    with pytest.raises(UserError, match=r"answers of another prompt, genres\. Use another output"):
        plan_zero_shot(replace(settings, genres=["War", "Noir"]))


def test_a_model_in_the_worker_gives_likelihoods(ray_cluster: None, films: Path, tmp_path: Path):
    model = captioning_model(tmp_path / "model", ["the", "film", "genre", *GENRES])
    vlm = ZeroShotVlm(by="transformers", model=model, num_cpus=0.5)
    (tmp_path / "annotation").mkdir()
    scenes = [{"id": "tt2_0", "shot": [0, 2], "place_tag": "bar"}, {"id": "tt2_1", "shot": [5, 9]}]
    (tmp_path / "annotation" / "tt2.json").write_text(json.dumps({"scene": scenes}))
    settings = config(films, tmp_path / "out", vlm, scenes=str(tmp_path / "annotation"))
    made = zero_shot(settings, plan_zero_shot(settings))
    table, rejected = read(tmp_path / "out")
    assert rejected == {("tt4", "no_images"), *((name, "no_annotation") for name in REDS if name != "tt2")}
    assert plan_zero_shot(settings).todo == [] and made["rows"]["out"] == 4 and made["requests"] == 0
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
    # Pictures matter, and nothing else does.
    assert len(table.round(6).drop_duplicates()) == 4
    local = LocalVlm(model, gpu=False)
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0] = REDS["tt2"]
    np.testing.assert_allclose(table.loc["tt2", GENRES], likely(local, red, GENRES, 1, {}), atol=1e-5)
    of_scene = pd.read_parquet(tmp_path / "out" / "scenes.parquet")
    assert set(of_scene.scene) == {"tt2_0"} and set(of_scene.place) == {"bar"} and made["scenes"] == 1
    np.testing.assert_allclose(of_scene.probability, likely(local, red, GENRES, 1, {}, SCENE), atol=1e-5)
    assert not np.allclose(of_scene.probability, table.loc["tt2", GENRES], atol=1e-5)


def test_score_compares_predictions_of_other_methods(tmp_path: Path):
    random = np.random.default_rng(0)
    genres = np.eye(2, dtype=np.uint8)[np.arange(40) % 2]
    ids = [f"tt{number}" for number in range(40)]
    vectors = random.normal(size=(40, 4)).astype(np.float16)
    known = Films(vectors, np.arange(41), ids, genres, ["War", "Music"], [""] * 40)
    write_films(known, str(tmp_path / "films.npz"))
    rows = [
        {"id": name, "genre": genre, "probability": 0.9 * label + 0.05, "chosen": bool(label)}
        for name, labels in zip(ids[2:], genres[2:].tolist(), strict=True)
        for genre, label in zip(known.genre_names, labels, strict=True)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "vlm.parquet")
    settings = ScoreConfig(
        str(tmp_path / "films.npz"), str(tmp_path), folds=2, others={"vlm": str(tmp_path / "vlm.parquet")}
    )
    judged = judge(settings, plan_score(settings))
    found = figures(judged, 20)
    assert found["methods"]["vlm"]["ap"]["macro"]["ap"] > 0.95 > found["methods"]["mean"]["ap"]["macro"]["ap"]
    assert any("vlm has no prediction of 2 of 40 films" in note for note in found["notes"])
    assert found["methods"]["vlm"]["lead_on_logistic_regression"]["macro"]["ap"] > 0
    with pytest.raises(UserError, match=r"others\.vlm=.* does not exist"):
        plan_score(replace(settings, others={"vlm": str(tmp_path / "none.parquet")}))
