"""Who is on screen in a real clip of four shots, by faces; how sure a cosine of dlib's vectors is, and its clusters.

python -m tests.benchmarks.timeline OUTPUT
"""

import sys
from pathlib import Path
from time import process_time

import numpy as np
import ray
from PIL import Image

from actors.movie_characters.recognition.faces import FaceEmbedder, FacesConfig
from pipelines.comic_characters.clusters import bcubed
from pipelines.core.metrics import wilson
from pipelines.movie_characters.films.people import cluster_tracks
from pipelines.movie_characters.films.timeline import TimelineConfig, plan_timeline, run_timeline
from pipelines.movie_characters.gallery_settings import FaceSettings
from pipelines.movie_characters.models import FaceModel
from tests.support.data import FOLDER

FACES = FOLDER / "faces"
CLIP = FACES / "short_hamilton_clip.mp4"
SHOWN = ((0.84, 1.51, "Lin"), (1.51, 3.58, "Alex"), (3.58, 7.88, "Lin"), (7.88, 10.02, "unknown"))
"""Start and end of each shot, and who is in its middle; Alex from the side, and at the end an audience."""
THERE = {0.84: {"Lin", "Alex"}, 1.51: {"Alex"}, 3.58: {"Lin"}, 7.88: set[str]()}
"""Who of the gallery is in a shot, by its start; in the first Alex is small, at a piano."""
PICTURES = {"Lin_1.png": "lin-manuel-miranda.png", "Alex_1.png": "alex-lacamoire.png"}


def gallery_of(folder: Path) -> Path:
    """A gallery of the two pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in PICTURES.items():
        (folder / name).write_bytes((FACES / file).read_bytes())
    return folder


def timeline(output: Path, every_s: float) -> None:
    settings = FaceSettings(str(gallery_of(output / "gallery")), faces=FacesConfig(detector="mtcnn"))
    made = str(output / f"{every_s:g}")
    config = TimelineConfig(str(CLIP), made, FaceModel("faces", settings), every_s=every_s)
    before = process_time()
    found, frames = run_timeline(config, plan_timeline(config))
    spent = process_time() - before
    right = 0
    print(f"every_s={every_s:g}: {len(found.shots)} shots found")
    assert found.people
    for start, end, expected in SHOWN:
        own = [one for one in found.people.tracks if any(start <= time < end for time in one.times)]
        named = {one.identity for one in own if not one.cluster}
        # Whoever is meant is named, and nobody who is not there.
        good = bool(own) and named <= THERE[start] and (expected in named or expected == "unknown")
        right += good
        told = ", ".join(f"{one.identity} (nearest {one.nearest} {one.cosine:.3f})" for one in own)
        print(f"  {start:.2f} to {end:.2f} s, {expected}: {told or 'no face'}{'' if good else '  WRONG'}")
    low, high = wilson(right / len(SHOWN), len(SHOWN))
    print(f"  right: {right} of {len(SHOWN)} [{low:.0%}, {high:.0%}]; {spent:.1f} CPU-s in the driver, {frames} frames")


def calibration() -> None:
    """Cosines of all pairs of ORL, and the logistic regression of which threshold and scale are rounded."""
    from sklearn.linear_model import LogisticRegression

    embedder = FaceEmbedder(FacesConfig(detector="mtcnn"))
    vectors, people = [], []
    for file in sorted((FACES / "orl").glob("*/*.pgm")):
        faces = embedder.faces(np.ascontiguousarray(Image.open(file).convert("RGB")))
        if faces:
            vectors.append(max(faces, key=lambda one: one.area).vector)
            people.append(file.parent.name)
    cosines = np.stack(vectors) @ np.stack(vectors).T
    pairs = np.triu_indices(len(people), 1)
    same, values = (np.array(people)[:, None] == np.array(people))[pairs], cosines[pairs]
    model = LogisticRegression(C=1e6, class_weight="balanced").fit(100 * (values[:, None] - 0.92), same)
    slope = 100 * model.coef_[0, 0]
    centre = 0.92 - model.intercept_[0] / slope
    for name, some in (("one person", values[same]), ("two people", values[~same])):
        told = ", ".join(f"{one:.3f}" for one in np.percentile(some, [0, 1, 50, 99, 100]))
        print(f"dlib, {len(some)} pairs of {name}: least, 1 %, median, 99 %, greatest cosine: {told}")
    print(f"logistic regression: a half at {centre:.3f}, e-fold odds by {1 / slope:.4f}")
    for least in (0.92, centre):
        print(f"  from {least:.3f} on: {np.mean(values[same] >= least):.1%} of one person, "
              f"{np.mean(values[~same] >= least):.2%} of two")  # fmt: skip
    for least in (0.92, 0.93, 0.94):
        clusters = cluster_tracks(
            np.stack(vectors).astype(np.float32), np.arange(len(people)), np.tile([0.0, 1.0], (len(people), 1)), least
        )
        found = bcubed(np.array(people), clusters)
        print(f"clusters of all pictures from {least:.2f} on: {clusters.max() + 1} of {len(set(people))} people, "
              f"B-cubed precision {found.precision:.3f}, recall {found.recall:.3f}")  # fmt: skip


def main() -> None:
    output = Path(sys.argv[1])
    ray.init(include_dashboard=False, log_to_driver=False)
    for every_s in (0.25, 0.5, 1.0):
        timeline(output, every_s)
    calibration()


if __name__ == "__main__":
    main()
