"""Pretraining of comic characters on Ray against a plain loop, and crops per second.

python -m tests.benchmarks.pretraining

The same network, views and loss on the same pairs, by the verb and in one process without Ray, twice in turn, on one
thread each; the medians of epochs with their validation, without the first ones and all that starts.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from actors.comic_characters.pairs import read_pairs
from actors.core.checkpoints import Tensors
from actors.core.store import Store
from jobs.core.settings import load
from pipelines.comic_characters.learning.pairs import plan_pretraining
from pipelines.comic_characters.learning.pretrain import evaluate, loss, make_model
from pipelines.comic_characters.settings import ComicsConfig
from tests.benchmarks.drawn_comics import Comics, draw, learn
from tests.support.drawn import Sketches

COMICS = Comics({"train": 20, "validation": 1, "test": 1}, people=4, panels=12)
EPOCHS = 5
SETTINGS = [
    "backbone={name: resnet10, face_size: 48, body_size: 64}",
    f"pretrain.training={{epochs: {EPOCHS}, batch_size: 64, checkpoint_s: 1000}}",
]


def pairs_of(config: ComicsConfig) -> dict[str, Tensors]:
    """The pairs that the verb trains on and validates by, in memory."""
    store, sizes = Store(config.output), config.backbone.sizes()
    parts = plan_pretraining(config).parts
    found = {}
    for part in ("train", "valid"):
        series = {name for name, where in parts.items() if where == part}
        batches = list(read_pairs({"part": np.array(store.parts("pairs"))}, store, series, sizes))
        found[part] = {kind: torch.from_numpy(np.concatenate([one[kind] for one in batches])) for kind in sizes}
    return found


def plain(config: ComicsConfig) -> list[float]:
    """Seconds of each epoch of a plain loop."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings, rows = config.pretrain, pairs_of(config)
    model = make_model(config.backbone.name, settings.dimensions)
    optimizer = torch.optim.AdamW(model.parameters(), settings.training.learning_rate)
    size, count = settings.training.batch_size, len(rows["train"]["face"])
    seconds = []
    for _ in range(EPOCHS):
        started = time.monotonic()
        model.train()
        for part in torch.randperm(count).split(size)[: count // size]:
            optimizer.zero_grad()
            loss(settings, model, {kind: column[part] for kind, column in rows["train"].items()}).backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            evaluate(settings, model, [rows["valid"]])
        seconds.append(time.monotonic() - started)
    return seconds


def on_ray(settings: list[str], config: ComicsConfig, folder: str) -> list[float]:
    """Seconds of each epoch of the verb."""
    learn([*settings, f"pretrain.folder={folder}"], ["pretrain"])
    lines = (Path(config.output) / folder / "curves.csv").read_text().splitlines()
    column = lines[0].split(",").index("seconds")
    return [float(line.split(",")[column]) for line in lines[1:]]


def main() -> None:
    """Measure and tell."""
    with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
        settings = [*draw(Path(folder), COMICS, Sketches()), *SETTINGS]
        config = load(ComicsConfig, settings)
        learn(settings, ["crop"])
        ours, alone = [], []
        for turn in range(2):
            ours += on_ray(settings, config, f"pretrain {turn}")[1:]
            alone += plain(config)[1:]
        records = Path(config.output) / "runs"
        pairs = json.loads((records / "pretrain.json").read_text())["pairs"]["train"]
        crops = json.loads((records / "crop.json").read_text())["stages"]["crop"]
    size = config.pretrain.training.batch_size
    images = 2 * (pairs // size) * size
    first, second = images / median(ours), images / median(alone)
    print(f"pretraining: {first:.0f} images/s on Ray, {second:.0f} in a plain loop: {first / second:.0%}")
    rate = crops["rows"] / crops["seconds"]
    print(f"crops: {crops['rows']} in {crops['seconds']} s, {rate:.0f}/s with the start of Ray Data")


if __name__ == "__main__":
    main()
