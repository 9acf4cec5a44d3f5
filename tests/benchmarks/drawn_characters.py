"""Who is this drawn character? `python -m tests.benchmarks.drawn_characters OUTPUT`, with FILMRAY_DATA.

A small Stable Diffusion and a small CLIP learn from PEOPLE characters. Then PERSONS others, who share their layers with
them and with each other, are learnt from LEARNT pictures each and recognised in POSES other poses, as they are and
through filters: by diffusion (every identity at every timestep, and staged), by the embedder, and by both together, to
which TAUGHT more poses teach how much each counts.
It goes on where it was killed.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from jobs.core.session import ray_session, start_logging
from jobs.movie_characters.__main__ import app
from pipelines.movie_characters.metrics import average_precision, topk
from pipelines.movie_characters.results import by_class, read_results
from tests.benchmarks.drawn_embedder import train_embedder
from tests.benchmarks.drawn_model import train_diffusion
from tests.support.drawn import Sheets, identities, picture

T = TypeVar("T")

PEOPLE, OTHERS, PERSONS, LEARNT, POSES, TAUGHT = 300, 16, 20, 4, 20, 5
VAE_EPOCHS, UNET_EPOCHS, EMBEDDER_EPOCHS = 4, 22, 8


def main(output: Path) -> None:
    """Train, learn, ask, and print the table."""
    cast = Sheets()
    persons = identities(cast, PERSONS, seed=0)
    people = identities(cast, PEOPLE, seed=1, other_than=persons)
    others = identities(cast, OTHERS, seed=2, other_than=[*persons, *people])
    with ray_session():
        crowds = cast, people, others, output
        model = timed("Stable Diffusion", lambda: train_diffusion(*crowds, VAE_EPOCHS, UNET_EPOCHS))
        clip = timed("CLIP", lambda: train_embedder(*crowds, EMBEDDER_EPOCHS))
        draw(cast, persons, output)
        timed("personalise", lambda: learn(model, output))
        timed("compare", lambda: ask(model, clip, output))
    found = table(output)
    found.to_csv(output / "table.csv", index=False)
    print(found.to_string(index=False))


def timed(name: str, work: Callable[[], T]) -> T:
    """Do it and print how long it took."""
    began = time.monotonic()
    found = work()
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return found


def draw(cast: Sheets, persons: list[tuple[int, ...]], output: Path) -> None:
    """learnt/, asked/ and validation/, CLASS_NUMBER.png: no pose of a person is in two of them."""
    random, others = np.random.default_rng(7), np.random.default_rng(8)
    for number, person in enumerate(persons):
        poses = random.choice(cast.poses, LEARNT + POSES, replace=False)
        for count, pose in enumerate(poses.tolist()):
            folder = output / ("learnt" if count < LEARNT else "asked")
            save(picture(cast, person, pose, random), folder, number, count)
        rest = np.setdiff1d(np.arange(cast.poses), poses)
        for count, pose in enumerate(others.choice(rest, TAUGHT, replace=False).tolist()):
            save(picture(cast, person, pose, others), output / "validation", number, count)


def save(drawn: np.ndarray, folder: Path, person: int, count: int) -> None:
    """Write a picture."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(drawn).save(folder / f"person{person:02}_{count:03}.png")


def verb(name: str, output: Path, settings: dict[str, object]) -> None:
    """Run a verb of the command line."""
    path = output / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    app([name, str(path)], standalone_mode=False)


def learn(model: Path, output: Path) -> None:
    """An embedding for each person, from no words: its class says nothing."""
    verb(
        "personalise",
        output,
        {
            "input": str(output / "learnt"),
            "output": str(output / "identities"),
            "pretrained_model_name_or_path": str(model),
            "target_text": "",
            "together": True,
            "resolution": 64,
            "center_crop": True,
            "train_batch_size": 16,
            "emb_train_steps": 150,
            "emb_learning_rate": 0.02,
            "max_train_steps": 0,
        },
    )


def ask(model: Path, clip: Path, output: Path) -> None:
    """All models over all pictures, through all filters."""
    diffusion = {
        "imagic_pretrained_path": str(output / "identities"),
        "sd_model_name": str(model),
        "resolution": 64,
        "diffusion": {"dtype": "bfloat16", "evaluations_per_call": 128},
    }
    models = {
        "full": {"by": "diffusion", "settings": {**diffusion, "method": "full"}},
        "staged": {"by": "diffusion", "settings": {**diffusion, "method": "staged"}},
        "embedder": {"by": "clip", "settings": {"gallery": str(output / "learnt"), "model_name": str(clip)}},
        "fusion": {"by": "fusion", "settings": {"models": ["staged", "embedder"]}},
    }
    about = {"input": str(output / "asked"), "output": str(output / "compare")}
    about["validation"] = str(output / "validation")
    verb("compare", output, {**about, "models": models})


def table(output: Path) -> pd.DataFrame:
    """A row a filter and model."""
    accuracy = pd.read_csv(output / "compare" / "accuracy.csv")
    rows = []
    for row in accuracy.itertuples():
        (folder,) = (output / "compare" / "results" / str(row.model)).glob(f"{row.filter}*")
        inner = folder / "SD_pipeline" if row.model in ("full", "staged") else folder
        found = read_results(str(inner), clip_csv=row.model not in ("full", "staged"))
        scores = by_class(found)
        spent = [pd.read_csv(path).evaluations for path in inner.glob("*_certainty.csv")]
        rows.append(
            {
                "filter": row.filter,
                "model": row.model,
                "top 1": f"{row.accuracy:.1%} ({row.low:.0%}–{row.high:.0%})",
                "top 5": f"{topk(found, 5).mean():.1f} %",
                "mAP": f"{average_precision(scores, found.images).mean():.3f}",
                "evaluations": f"{pd.concat(spent).mean():.0f}" if spent else "",
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    start_logging()
    main(Path(sys.argv[1]))
