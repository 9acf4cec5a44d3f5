"""Memory of `timeline` by faces: films of 2 hours, each with 200 tracks of 288 faces; no picture is read.

All in one process, which so holds what the driver does and one film as a worker does.

python -m tests.benchmarks.tracks OUTPUT FILMS [FILMS ...]
"""

import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core.store import Store
from pipelines.movie_characters.films import each_film
from pipelines.movie_characters.films.face_timeline import FacesOf, Judge
from pipelines.movie_characters.films.timeline import TimelineConfig, face_appearances
from pipelines.movie_characters.films.tracks import Seen, TracksConfig
from pipelines.movie_characters.gallery_settings import FaceSettings
from pipelines.movie_characters.models import FaceModel

SHOTS, FRAMES, FACES = 25, 288, 8
PEOPLE, KNOWN, WIDTH = 2000, 100, 128


def people() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(PEOPLE, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True)
class Shown:
    """What frames show: in each shot eight people who stay where they are."""

    vectors: np.ndarray

    def __call__(self, film: str) -> FacesOf:
        left = 80.0 * np.arange(FACES)
        boxes = np.stack([left, np.full(FACES, 10.0), left + 60, np.full(FACES, 80.0)], 1)

        def of(name: str) -> Seen:
            shot = int(name.rpartition("_")[2][:6]) // FRAMES
            random = np.random.default_rng([int(film), shot])
            return Seen(boxes, self.vectors[random.choice(PEOPLE, FACES, replace=False)], np.full(FACES, 0.99))

        return of


def measure(output: Path, films: int) -> None:
    each_film.FEW_FILMS = films
    store, vectors, names = Store(str(output)), people(), [str(number) for number in range(films)]
    for name in names:
        images = [f"{name}_{number:06d}.jpg" for number in range(SHOTS * FRAMES)]
        shots = [
            {
                "shot": shot,
                "start_s": float(first),
                "end_s": float(first + FRAMES),
                "times": [float(first + second) for second in range(FRAMES)],
                "images": images[first : first + FRAMES],
            }
            for shot, first in enumerate(range(0, SHOTS * FRAMES, FRAMES))
        ]
        about = {"film": name, "uri": f"{name}.mp4", "shots": shots, "error": "", "message": "", "decoder": ""}
        store.write_json(about | {"rate": "25", "begin_s": 0.0}, "shots", f"{name}.json")
    judge = Judge(vectors[:KNOWN], [f"known {number}" for number in range(KNOWN)], 0.8)
    model = FaceModel("faces", FaceSettings("gallery"))
    config = TimelineConfig("films", str(output), model, tracks=TracksConfig(pictures=0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = face_appearances(config, names, Shown(vectors), judge)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{films} films, {len(found.segments)} tracks: {before / 1e3:.0f} MB before, {peak / 1e3:.0f} MB at most")


if __name__ == "__main__":
    where, *counts = sys.argv[1:]
    if len(counts) == 1:
        measure(Path(where), int(counts[0]))
    else:
        # Each in a process of its own: a peak does not fall.
        for count in counts:
            subprocess.run([sys.executable, "-m", "tests.benchmarks.tracks", f"{where}/{count}", count], check=True)
