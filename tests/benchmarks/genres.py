"""Genres of real films: `python -m tests.benchmarks.genres [DATA] [--seeds 3]`.

DATA is a folder with `movienet_clip_879_films.npz` (CLIP vectors of key frames of 879 films of MovieNet, 21 genres) and
`movienet/movie1K.split.v1.json`; FILMRAY_DATA is the default. Prints average precision ×100 of the closed form, of
logistic regression on the same vectors and of the prior, with 95 % bootstrap intervals over films: in five folds, over
several draws of them, and on the official split.
"""

import argparse
import os
import tempfile

import numpy as np

from actors.core import storage
from pipelines.core.film_vectors import read_films
from pipelines.genres.process import fused
from pipelines.genres.score import Answers, Judged, ScoreConfig, figures, judge, logistic, plan_score, prior
from pipelines.genres.splits import given
from pipelines.genres.train import LearnConfig, learn

DRAWS = 1000
MEANS = ("macro", "weighted")


def shown(title: str, judged: Judged) -> None:
    """Print the averages of each method, and its lead over logistic regression."""
    print(f"{title}, {len(judged.films)} films")
    for name, method in figures(judged, DRAWS)["methods"].items():
        leads = method["lead_on_logistic_regression"]
        cells = [f"{kind} {_between(method['ap'][kind])}" for kind in MEANS]
        cells += [f"{kind} ahead by {_between(leads[kind], '+')}" for kind in MEANS if leads]
        print(f"  {name:32} {'; '.join(cells)}")


def _between(row: dict[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * row[name]:{sign}.1f}" for name in ("ap", "ap_low", "ap_high"))
    return f"{value} [{low}, {high}]"


def official(data: str) -> Judged:
    """What learns from the train and validation films of the official split, on its test films."""
    uri = storage.join(data, "movienet", "movie1K.split.v1.json")
    films, parts, _ = given(fused(read_films(storage.join(data, "movienet_clip_879_films.npz")), []), uri, valid=True)
    rest, test = (films.take(np.flatnonzero(which)) for which in (parts < 2, parts == 2))
    model = learn(rest, None, LearnConfig(), "")
    probabilities = model.probabilities(test)
    answers = {"mean": Answers(probabilities[None], (probabilities >= model.thresholds)[None])}
    rivals = {"logistic regression on the mean": logistic, "always the prior": prior}
    return Judged(test, answers | {name: Answers(rival(rest, test)[None]) for name, rival in rivals.items()}, [])


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default=os.environ.get("FILMRAY_DATA", ""))
    parser.add_argument("--seeds", type=int, default=3)
    given_data = parser.parse_args()
    films = storage.join(given_data.data, "movienet_clip_879_films.npz")
    with tempfile.TemporaryDirectory() as folder:
        config = ScoreConfig(input=films, output=folder, folds=5, seeds=given_data.seeds, draws=DRAWS)
        shown(f"five folds, {given_data.seeds} draws", judge(config, plan_score(config)))
    shown("official split (train and val against test)", official(given_data.data))


if __name__ == "__main__":
    main()
