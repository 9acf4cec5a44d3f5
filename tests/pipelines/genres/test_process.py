"""What is known of films becomes rows to learn from; heads answer for films, not for their pieces."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from pipelines.core.film_vectors import Films, read_films, write_films
from pipelines.genres.embed import Embedded, store_films
from pipelines.genres.predict import PredictConfig, plan_predict, predict
from pipelines.genres.process import GENRES, ProcessConfig, cut, fused, process, read_any
from pipelines.genres.score import (
    LOGISTIC,
    PRIOR,
    ZERO_SHOT,
    Judged,
    ScoreConfig,
    figures,
    judge,
    lead,
    plan_score,
    zero_shot,
)
from pipelines.genres.splits import parts_of
from pipelines.genres.train import (
    LearnConfig,
    TrainConfig,
    learn,
    load_model,
    monitored,
    plan_train,
    train,
)
from tests.support import colours
from tests.support.data import real_films

WIDTH = 8


def made(count: int, frames: int = 3, seed: int = 0) -> Films:
    """Films of three genres that show in their frames: the more a genre's own direction, the likelier."""
    random = np.random.default_rng(seed)
    genres = (random.random((count, 3)) < [0.6, 0.4, 0.2]).astype(np.uint8)
    vectors = genres.repeat(frames, 0) @ np.eye(3, WIDTH) + random.normal(size=(count * frames, WIDTH)) * 0.7
    return Films(
        vectors=vectors.astype(np.float16),
        offsets=np.arange(count + 1) * frames,
        ids=[f"tt{i}" for i in range(count)],
        genres=genres,
        genre_names=["Drama", "Comedy", "War"],
        directors=[""] * count,
    )


def trained(config: TrainConfig) -> dict[str, Any]:
    return train(config, plan_train(config))


def scored(config: ScoreConfig) -> Judged:
    return judge(config, plan_score(config))


def in_pieces(films: Films) -> Films:
    """Every film as two pieces."""
    names = [f"{film}_{k}" for film in films.ids for k in range(2)]
    sizes = [part for size in np.diff(films.offsets) for part in (size // 2, size - size // 2)]
    double = np.arange(len(films)).repeat(2)
    return Films(
        vectors=films.vectors,
        offsets=np.cumsum([0, *sizes]),
        ids=names,
        genres=films.genres[double],
        genre_names=films.genre_names,
        directors=[""] * len(names),
        owners=tuple(films.ids[i] for i in double),
    )


# ------------------------------------------------------------------------------------------------------------- process


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Features of seven films, and meta that knows four of them well."""
    meta = tmp_path / "meta"
    meta.mkdir()
    known = {
        "tt1": {"genres": ["War", "Drama"]},
        "tt2": {"genres": ["Film-Noir", "Western"]},
        "tt3": {"genres": []},
        "tt4": {"genres": ["News"]},
        "tt5": {"genres": "Drama"},
    }
    for film, about in known.items():
        (meta / f"{film}.json").write_text(json.dumps(about))
    (meta / "tt6.json").write_text("{")
    sizes = {"tt1": 10, "tt2": 3, "tt3": 1, "tt4": 1, "tt5": 1, "tt6": 1, "tt7": 1, "tt8": 0}
    films = [
        Embedded(film, np.arange(2 * n, dtype=np.float16).reshape(n, 2), [str(i) for i in range(n)], [], [])
        for film, n in sizes.items()
    ]
    made = Store(str(tmp_path / "out"))
    store_films(made, iter(films), len(films))
    return made


def settings(store: Store, **values: Any) -> ProcessConfig:
    return ProcessConfig(meta=str(Path(store.root).parent / "meta"), output=store.root, **values)


def test_films_get_the_genres_that_are_known_and_the_others_say_why_not(store: Store) -> None:
    found = process(settings(store))
    films = read_films(store.uri("films.npz"))
    assert films.ids == ["tt1", "tt2"] and films.genre_names == list(GENRES) and not films.owners
    assert [[GENRES[i] for i in np.flatnonzero(row)] for row in films.genres] == [["Drama", "War"], ["Western"]]
    assert films.frames(0).tolist() == [[2 * i, 2 * i + 1] for i in range(10)]
    assert found.unknown_genres == {"Film-Noir": 1, "News": 1}
    codes = {row["film"]: row["code"] for row in found.rejected}
    assert codes == {
        "tt3": "no_genres",
        "tt4": "no_genres",
        "tt5": "broken_meta",
        "tt6": "broken_meta",
        "tt7": "no_meta",
        "tt8": "no_images",
    }
    assert found.films == 2 + len(codes)


def test_genres_are_a_setting_and_directors_of_meta_are_kept(store: Store) -> None:
    meta = Path(store.root).parent / "meta"
    known = {"genres": ["News"], "director": [{"id": "nm1", "name": "Joel Coen"}, {"id": "nm2", "name": "Ethan Coen"}]}
    (meta / "tt4.json").write_text(json.dumps(known))
    (meta / "tt3.json").write_text(json.dumps({"genres": None, "director": "Agnès Varda"}))
    found = process(settings(store, genres="all"))
    films = read_films(store.uri("films.npz"))
    assert films.genre_names == ["Drama", "Film-Noir", "News", "War", "Western"] and not found.unknown_genres
    assert films.ids == ["tt1", "tt2", "tt4"] and films.directors == ["", "", "Joel Coen; Ethan Coen"]
    assert found.directed == 1 and films.genres[2].tolist() == [0, 0, 1, 0, 0]
    # Without genres a film needs a director, and nothing else.
    found = process(settings(store, genres=[]))
    films = read_films(store.uri("films.npz"))
    assert (films.ids, films.directors) == (["tt3", "tt4"], ["Agnès Varda", "Joel Coen; Ethan Coen"])
    assert films.genre_names == [] and {row["code"] for row in found.rejected} >= {"no_director", "broken_meta"}
    process(settings(store, genres=["War", "News"]))
    assert read_films(store.uri("films.npz")).genre_names == ["War", "News"]
    with pytest.raises(UserError, match="each once"):
        settings(store, genres=["War", "War"])


def test_vectors_of_ones_own_become_films(store: Store, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    np.save(own / "tt1.npy", np.ones((4, 3), np.float64))
    np.save(own / "tt2.npy", np.arange(3))
    np.save(own / "tt9.npy", np.ones((2, 3)))
    found = process(settings(store, input=str(own)))
    films = read_films(store.uri("films.npz"))
    assert films.ids == ["tt1", "tt2"] and films.frames(0).shape == (4, 3) and films.frames(1).tolist() == [[0, 1, 2]]
    assert [(row["film"], row["code"]) for row in found.rejected] == [("tt9", "no_meta")]
    assert read_any(str(own)).ids == ["tt1", "tt2", "tt9"]
    np.save(own / "tt3.npy", np.ones((2, 4)))
    with pytest.raises(UserError, match=r"tt3\.npy has vectors of 4 numbers, the films before it of 3"):
        process(settings(store, input=str(own)))
    np.save(own / "tt3.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"tt3\.npy is no \.npy file of a plain array"):
        read_any(str(own))


def test_a_film_becomes_pieces_of_a_size_that_follow_one_another(store: Store) -> None:
    process(settings(store, patch_size=4, number_patches=2))
    films = read_films(store.uri("films.npz"))
    # Three rows are one piece: there are none for a second.
    assert films.ids == ["tt1_0", "tt1_1", "tt2_0"] and films.owners == ("tt1", "tt1", "tt2")
    assert films.frames(0)[:, 0].tolist() == [0, 2, 6, 8] and films.frames(1)[:, 0].tolist() == [10, 12, 16, 18]
    frames, mask = films.padded(4)
    assert mask[2].tolist() == [False, True, True, True] and not frames[2, 0].any()
    whole = films.whole()
    assert whole.ids == ["tt1", "tt2"] and whole.frames(0)[:, 0].tolist() == [0, 2, 6, 8, 10, 12, 16, 18]


def test_pieces_cover_a_film_evenly() -> None:
    rows = np.arange(100)[:, None]
    assert [piece[:, 0].tolist() for piece in cut(rows, 2, 2)] == [[12, 37], [62, 87]]
    assert [len(piece) for piece in cut(rows, 256, 3)] == [100]


def test_nothing_to_process_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`embed` first"):
        process(ProcessConfig(meta=str(tmp_path), output=str(tmp_path)))


def test_the_output_of_embed_can_be_read_as_films(store: Store) -> None:
    films = read_any(store.root)
    assert films.ids == [f"tt{i}" for i in range(1, 8)] and len(films.frames(0)) == 10 and films.genres.shape == (7, 0)


def test_other_features_stand_beside_every_frame() -> None:
    films, sound = made(3, 2), replace(made(3, 1, seed=1), ids=["tt2", "tt0", "tt1"])
    both = fused(films, [sound]).frames(1).astype(float)
    assert both.shape == (2, 2 * WIDTH)
    np.testing.assert_allclose(np.linalg.norm(both[:, :WIDTH], axis=1), 1, atol=0.01)
    expected = sound.frames(2)[0].astype(float)
    np.testing.assert_allclose(both[:, WIDTH:], [expected / np.linalg.norm(expected)] * 2, atol=0.01)
    with pytest.raises(ValueError, match=r"lack .* tt1 \(1\)"):
        fused(films, [sound.take([0, 1])])


# ------------------------------------------------------------------------------------------------------------- learning


def test_a_film_never_stands_on_two_sides() -> None:
    films = in_pieces(made(60, 4))
    parts = parts_of(films, (8, 1, 1), seed=1)
    assert len(np.unique(parts)) == 3
    by_film = pd.Series(parts).groupby(np.array(films.owners)).nunique()
    assert (by_film == 1).all()


@pytest.mark.parametrize("pieces", [False, True])
def test_train_measures_on_films_not_seen_and_keeps_a_model_of_all(tmp_path: Path, pieces: bool) -> None:
    films = in_pieces(made(400, 4)) if pieces else made(400, 4)
    write_films(films, str(tmp_path / "films.npz"))
    found = trained(TrainConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path)))
    assert found["films"] == {"train": 320, "valid": 40, "test": 40}
    assert found["test_ap"]["macro"] > 0.7
    test = pd.read_parquet(tmp_path / "test.parquet")
    assert test.id.nunique() == 40 and set(test.genre) == set(films.genre_names)

    new = replace(made(200, 4, seed=5), ids=[f"new{i}" for i in range(200)])
    unlabelled = replace(new, genres=np.zeros((200, 0), np.uint8), genre_names=[])
    write_films(unlabelled, str(tmp_path / "new.npz"))
    config = PredictConfig(input=str(tmp_path / "new.npz"), model=str(tmp_path / "model"), output=str(tmp_path))
    count, chosen = predict(config, plan_predict(config))
    rows = pd.read_parquet(tmp_path / "predictions.parquet")
    assert count == 200 and list(rows.columns) == ["id", "genre", "probability", "chosen"] and len(rows) == 600
    # The model has learnt from all films, as the closed form over all of them does.
    everything = learn(films, None, LearnConfig(), "")
    table = rows.pivot(index="id", columns="genre", values="probability").loc[new.ids, new.genre_names].to_numpy()
    np.testing.assert_allclose(table, everything.probabilities(new), atol=1e-5)
    assert chosen.to_dict() == rows[rows.chosen].groupby("genre").size().to_dict()
    agreement = (
        rows.pivot(index="id", columns="genre", values="chosen").loc[new.ids, new.genre_names] == new.genres
    ).mean()
    assert (agreement > 0.75).all()


def test_thresholds_are_kept_and_never_choose_nearly_all(tmp_path: Path) -> None:
    films = made(300)
    # A genre that nothing shows: F1 alone would choose every film.
    blind = replace(films, genres=films.genres.copy())
    blind.genres[:, 2] = np.random.default_rng(2).random(300) < 0.1
    model = learn(blind, None, LearnConfig(), "")
    model.save(Store(str(tmp_path)))
    again = load_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(again.thresholds, model.thresholds)
    np.testing.assert_allclose(again.probabilities(films), model.probabilities(films))
    assert (again.probabilities(blind)[:, 2] >= again.thresholds[2]).mean() < 0.4


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    films = made(100)
    write_films(in_pieces(films), str(tmp_path / "films.npz"))
    lists = {"train": films.ids[:60], "val": films.ids[60:70], "test": [*films.ids[75:], "tt999"], "full": films.ids}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    files: dict[str, Any] = {"input": str(tmp_path / "films.npz"), "split_file": str(tmp_path / "split.json")}
    config = TrainConfig(output=str(tmp_path), **files)
    found = trained(config)
    assert found["films"] == {"train": 60, "valid": 10, "test": 25} and found["left_out"] == 5
    assert set(pd.read_parquet(tmp_path / "test.parquet").id) == set(films.ids[75:])
    # What is answered has learnt from the training films alone.
    alone = learn(in_pieces(films.take(range(70))), None, LearnConfig(), "")
    rows = pd.read_parquet(tmp_path / "test.parquet").probability.to_numpy().reshape(25, 3)
    np.testing.assert_allclose(rows, alone.probabilities(films.take(range(75, 100))), atol=2e-3)
    (tmp_path / "split.json").write_text(json.dumps({"train": films.ids[:60], "test": films.ids[59:]}))
    with pytest.raises(UserError, match="tt59 is in train and in test"):
        plan_train(config)
    (tmp_path / "split.json").write_text(json.dumps({"train": ["tt1"], "test": ["other"]}))
    with pytest.raises(UserError, match=r"no film of the input is in its list test"):
        plan_train(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "lstm", "train_split_proportion": 1.0}, "train_split_proportion=1"),
        ({"head": "attention", "refit": True}, "refit: only"),
        ({"reference": True}, "reference is a form of head=lstm"),
        ({"n_epochs": 0}, "epochs"),
        ({"head": "lstm", "hidden_size": 0}, "hidden_size"),
        ({"train_split_proportion": 0.0}, "train_split_proportion"),
    ],
)
def test_settings_that_cannot_hold_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_other_vectors_than_the_model_learnt_from_are_refused() -> None:
    model = learn(made(50), None, LearnConfig(), "")
    wider = fused(made(5), [made(5)])
    with pytest.raises(ValueError, match="embed by the same model"):
        model.probabilities(wider)
    with pytest.raises(ValueError, match="no genres to learn from"):
        parts_of(replace(made(5), genres=np.zeros((5, 0), np.uint8), genre_names=[]), (1, 1), 0)


@pytest.mark.slow
def test_a_head_that_descends_learns_and_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    films = in_pieces(made(200, 4))
    write_films(films, str(tmp_path / "films.npz"))
    small = {"n_epochs": 12, "hidden_size": 16, "patience": 12, "input": str(tmp_path / "films.npz")}
    config = TrainConfig(head="lstm", output=str(tmp_path), learning_rate=0.01, **small)
    found = trained(config)
    assert found["test_ap"]["macro"] > 0.6 and (tmp_path / "training/curves.png").is_file()
    model = load_model(str(tmp_path / "model"))
    assert model.learn.head == "lstm" and model.probabilities(films).shape == (200, 3)
    # What is done is done: the same command answers the same.
    assert trained(config) == found


# -------------------------------------------------------------------------------------------------------------- scoring


def test_predictions_are_scored_beside_what_costs_less(tmp_path: Path) -> None:
    write_films(made(300), str(tmp_path / "films.npz"))
    trained(TrainConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path)))
    judged = scored(ScoreConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path)))
    assert len(judged.films) == 30 and list(judged.answers) == ["predictions", LOGISTIC, PRIOR]
    found = figures(judged, 50)
    assert found["table"]["macro"]["ap"] > found["methods"][PRIOR]["ap"]["macro"]["ap"] + 0.2
    low, value, high = (found["table"]["Drama"][name] for name in ("ap_low", "ap", "ap_high"))
    assert low < value < high
    assert {"precision", "recall", "f1", "chosen_f1", "support"} <= found["table"]["War"].keys()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_predictions_and_films_must_know_of_each_other(tmp_path: Path) -> None:
    write_films(made(300), str(tmp_path / "films.npz"))
    config = ScoreConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path))
    with pytest.raises(ValueError, match="`train` or `predict` first"):
        scored(config)
    trained(TrainConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path)))
    write_films(made(10), str(tmp_path / "few.npz"))
    with pytest.raises(ValueError, match=r"few.npz has no genres of tt"):
        scored(replace(config, input=str(tmp_path / "few.npz")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="chosen"), "chosen"),
        (lambda rows: pd.concat([rows, rows[:1]]), "of one film and genre"),
        (lambda rows: rows[1:], "of some films and genres"),
        (None, "no Parquet file"),
    ],
)
def test_predictions_that_are_not_whole_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    write_films(made(300), str(tmp_path / "films.npz"))
    trained(TrainConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path)))
    file = tmp_path / "mine.parquet"
    if change is None:
        file.write_text("hello")
    else:
        change(pd.read_parquet(tmp_path / "test.parquet")).to_parquet(file)
    with pytest.raises(UserError, match=rf"mine\.parquet .*{message}"):
        scored(ScoreConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path), predictions=str(file)))


def test_folds_answer_every_film_by_what_has_not_seen_it(tmp_path: Path) -> None:
    films = made(90)
    # One film is told by nothing but itself: whoever has seen it would know.
    films.genres[7, 2], films.genres[:, 2] = 1, 0
    films.genres[7, 2] = 1
    write_films(films, str(tmp_path / "films.npz"))
    config = ScoreConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path), folds=3, seeds=2)
    judged = scored(config)
    assert list(judged.answers) == ["mean", LOGISTIC, PRIOR]
    assert judged.answers["mean"].scores.shape == (2, 90, 3)
    assert (judged.answers[PRIOR].scores[:, 7, 2] == 0).all()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "folds").rglob("*.npz")}
    assert len(stored) == 6
    again = scored(config)
    np.testing.assert_array_equal(again.answers["mean"].scores, judged.answers["mean"].scores)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "folds").rglob("*.npz")} == stored
    # Other settings are other folds.
    scored(replace(config, learn=LearnConfig(ridge=1.0)))
    assert len(list((tmp_path / "folds").rglob("*.npz"))) == 12


def test_prompts_find_what_the_model_knows(clip_folder: str) -> None:
    model = replace(ScoreConfig().embeddings, model=clip_folder, dtype="float32")
    tones = np.array([colours.RED, colours.GREEN, colours.BLUE]) / 255
    films = Films(
        tones.astype(np.float16),
        np.arange(4),
        ["a", "b", "c"],
        np.eye(3, dtype=np.uint8),
        ["Red", "Green", "Blue"],
        [""] * 3,
    )
    assert zero_shot(films, model).argmax(1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="zero_shot needs the model"):
        zero_shot(made(2), model)


def test_real_films_are_told_better_than_by_logistic_regression(tmp_path: Path) -> None:
    films = real_films()
    write_films(films, str(tmp_path / "films.npz"))
    judged = scored(ScoreConfig(input=str(tmp_path / "films.npz"), output=str(tmp_path), folds=5))
    ahead = lead(judged, "mean", 50)
    assert ahead is not None and (ahead.ap[["macro", "weighted"]] > 0.003).all()
    found = figures(judged, 20)["methods"]["mean"]["ap"]
    assert found["macro"]["ap"] > 0.285 and found["weighted"]["ap"] > 0.455
    assert ZERO_SHOT in judged.notes[0]


def test_a_descent_keeps_the_epoch_that_ranks_best_where_validation_is_enough() -> None:
    training = LearnConfig(head="attention").training()
    assert (monitored(training, made(10)).monitor, monitored(training, made(10)).mode) == ("valid_macro_ap", "max")
    assert monitored(training, made(9)) == training and training.monitor == "valid_loss"
    nothing = replace(made(20), genres=np.zeros_like(made(20).genres))
    assert monitored(training, nothing) == training
