"""Characters of comics learnt and told, from drawings to scores: `python -m tests.benchmarks.drawn_comics [FOLDER]`.

`python -m tests.benchmarks.drawn_comics photographs [FOLDER]` scores only the rivals that need no training: a network
trained on ImageNet, colours, random vectors.

Comics of the cast of FILMRAY_DATA are drawn, in which identities share layers, panels have two to four of them in a
light of their own, and faces or bodies are missing at random. The verbs are run one after the other: crop, pretrain
without labels, fine-tune on those series that have some, embed, assign, score on series whose identities no stage has
seen.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core.store import Store
from jobs.comic_characters.__main__ import app
from jobs.core.session import ray_session
from pipelines.comic_characters.features import extract_by, read_features
from pipelines.comic_characters.learning.retrieval import labelled
from pipelines.comic_characters.score import OURS, find_rivals, scores_of
from pipelines.comic_characters.score_methods import Method, fused, unit
from pipelines.comic_characters.sequences import read_sequences
from tests.benchmarks.semantic import lite0
from tests.support.comics import split_sequences, write_comic
from tests.support.drawn import Cast, Sheets


@dataclass(frozen=True)
class Comics:
    """How many are drawn."""

    series: dict[str, int]
    """By split."""
    people: int
    """Of each series."""
    panels: int
    """Of each series, in sequences of four."""
    unlabelled: int = 0
    """Series that are only pretrained on."""


LARGE = Comics({"train": 60, "validation": 10, "test": 30}, people=6, panels=12, unlabelled=60)
SMALL = Comics({"train": 6, "validation": 2, "test": 5}, people=4, panels=8)
VERBS = ("crop", "pretrain", "fine-tune", "embed", "assign", "score")
SETTINGS = [
    "backbone={name: resnet10, face_size: 32, body_size: 32}",
    "pretrain.training={epochs: 80, batch_size: 64, checkpoint_s: 60}",
    "pretrain.views={min_scale: 0.4, max_sigma: 0.8, hue: 0.05, grey: 0.1, light: 0.5}",
    "score={rerank: {}, ablations: {cat: [fine_tune.head.fusion=cat], triplet: [fine_tune.loss=triplet]}}",
]


def draw(folder: Path, comics: Comics, cast: Cast, seed: int = 0) -> list[str]:
    """Draw comics; returns the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(comics.series.values()) + comics.unlabelled
    write_comic(folder, count, comics.panels, comics.people, cast, seed, varied=True)
    split_sequences(folder, comics.series)
    return [
        f"input={folder / 'panels'}",
        f"boxes={folder / 'merged_face_body.csv'}",
        f"labels={folder}",
        f"output={folder / 'out'}",
    ]


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long something takes."""
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


def learn(settings: list[str], verbs: Sequence[str] = VERBS) -> dict[str, float]:
    """Run verbs one after the other; returns how many seconds each took."""
    seconds: dict[str, float] = {}
    with ray_session():
        for verb in verbs:
            with timed(verb, seconds):
                app([verb, *settings], standalone_mode=False)
    return seconds


def photographs(folder: Path) -> None:
    """Score what needs no training on the test split, and print a line each."""
    own = draw(folder, LARGE, Sheets())
    learn(own, ["crop"])
    own.append(f"score.photographs.model={lite0(folder / 'lite0').model}")
    config = app.verbs["score"].load(own)
    sequences = read_sequences(f"{folder}/test_sequences.json")
    instances = list(dict.fromkeys(one for sequence in sequences for one in sequence.instances))
    # Without stage 1, whose features are not compared here.
    sources, _ = find_rivals(config)
    methods = {}
    with ray_session():
        for name, source in sources.items():
            extract_by(config, source, instances)
            features = read_features(Store(config.output), source.folder, instances)
            methods[name] = fused([features[one] for one in instances], ("face", "body"), config.score.seed)
    random = np.random.default_rng(config.score.seed).normal(size=(len(instances), 256)).astype(np.float32)
    methods[OURS] = methods["random"] = Method(unit(random), len(instances))
    rows = {one: row for row, one in enumerate(instances)}
    found = scores_of(config, labelled(sequences, set(instances)), rows, methods, {})
    for name in ("random", *sources):
        print(f"| {name} |", *map(_cell, (found.methods[name][place][score] for place, score in CELLS)), sep=" ")


CELLS = (
    *(("between", score) for score in ("map_at_r", "cmc_1", "cmc_10")),
    *(("within", score) for score in ("map_at_r", "ami", "bcubed_f1")),
)


def _cell(value: dict[str, float]) -> str:
    low, high = (100 * value[name] for name in ("low", "high"))
    return f"{100 * value['value']:.1f} [{low:.1f}, {high:.1f}] |"


if __name__ == "__main__":
    asked = sys.argv[1:]
    alone = asked[:1] == ["photographs"]
    there = Path((asked[alone:] or ["output/drawn_comics"])[0])
    if alone:
        photographs(there)
    else:
        took = learn([*draw(there, LARGE, Sheets()), *SETTINGS, *asked[1:]])
        print(", ".join(f"{verb} {seconds:.0f} s" for verb, seconds in took.items()))
