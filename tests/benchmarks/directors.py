"""Directors of real films: `python -m tests.benchmarks.directors [DATA] [--seeds 5]`.

DATA is a folder with `movienet_clip_879_films.npz` (CLIP vectors of key frames of MovieNet, about five a film);
FILMRAY_DATA is the default. The directors with at least six films are told apart in eight folds of films, several times
with other folds and weights. Prints top 1 and top 3 of films, of the head and of its rivals, and by how much the head
leads the linear probe (logistic regression), with 95 % bootstrap intervals over films.
"""

import argparse
import os

import numpy as np

from actors.core import storage
from pipelines.core.film_vectors import read_films
from pipelines.directors.frames import Frames, frames_of_films, parts_of
from pipelines.directors.measure import METHODS, measure
from pipelines.directors.metrics import by_film, in_top
from pipelines.directors.settings import DirectorsConfig, HeadTraining

DRAWS = 10_000
FOLDS = 8


def right(frames: Frames, config: DirectorsConfig) -> dict[str, np.ndarray]:
    """By method, for each film of the directors: whether top 1 and top 3 are right, float (F, 2)."""
    measured = measure(frames, parts_of(frames, config, "film", FOLDS), config, None)
    rows = np.concatenate(measured.rows)
    known, films = np.unique(frames.film[rows], return_inverse=True)
    found = {}
    for name in METHODS:
        if name in measured.answers:
            answers = by_film(np.concatenate(measured.answers[name]), films)
            found[name] = np.column_stack([in_top(answers, frames.director[known], k) for k in (1, 3)])
    return found


def interval(values: np.ndarray) -> str:
    """The mean in percent with its 95 % interval: values (F,), one a film."""
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default=os.environ.get("FILMRAY_DATA", ""))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    uri = storage.join(given.data, "movienet_clip_879_films.npz")

    def config(seed: int) -> DirectorsConfig:
        return DirectorsConfig(films=uri, output="none", min_films=6, training=HeadTraining(seed=seed))

    frames = frames_of_films(read_films(uri), config(0))
    runs = [right(frames, config(seed)) for seed in range(given.seeds)]
    means = {name: np.mean([run[name] for run in runs], 0) for name in runs[0]}
    count = int((frames.director >= 0).sum())
    print(f"{count} films of {len(frames.directors)} directors, {FOLDS} folds, {given.seeds} draws")
    for name, values in means.items():
        each = ", ".join(f"{100 * run[name][:, 0].mean():.1f}" for run in runs)
        print(f"  {name:20} top 1 {interval(values[:, 0])}; top 3 {interval(values[:, 1])}; top 1 by draw {each}")
    ahead = means["head"] - means["linear probe"]
    print(f"  head minus linear probe: top 1 {interval(ahead[:, 0])}, top 3 {interval(ahead[:, 1])} points")


if __name__ == "__main__":
    main()
