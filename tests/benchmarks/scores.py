"""What families of scores cost, on real film: `python -m tests.benchmarks.scores [FAMILY ...]`.

Prints CPU-milliseconds a scene, and what adding a family to a finished corpus costs beside the family alone on what it
looks at, held in memory, and reading that. Costs are CPU-seconds of this process and its children, which run one after
the other; a ratio is the median of its rounds.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from actors.core.store import Store
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.cutting.videos import cut_videos, write_rows
from actors.curation.measuring.family import FAMILIES, scorer_class
from actors.curation.measuring.scoring import READ, PartScorer
from actors.curation.tables import LATER, PICTURES, URLS
from pipelines.curation.cutting.frames import bare
from pipelines.curation.measuring.measure import tasks_of
from pipelines.curation.measuring.whole_videos import pictures_of
from pipelines.curation.settings import CurationConfig
from tests.support.films import bikes_mp4, demo_mp4

ROUNDS = 3
BY_MODEL = {"clip", "safety", "embedding"}
"""Families whose cost is that of a model of the user's."""


def corpus(folder: Path) -> CurationConfig:
    """An output as a run leaves it, of the sample films."""
    config = CurationConfig(str(folder), str(folder / "out"))
    store, films = Store(config.output), [demo_mp4(), bikes_mp4(), bikes_mp4().with_name("bigbuckbunny.mp4")]
    videos = [{"video_index": i, "video_id": film.stem, "scenes": -1, "url": str(film)} for i, film in enumerate(films)]
    store.write_table(pa.Table.from_pylist(videos, URLS), "plan", "videos", "a.parquet")
    for about in videos:
        task: dict[str, Any] = {**about, "uri": about["url"], "spans": "", "skip": "[]"}
        batches = list(cut_videos({name: _column(value) for name, value in task.items()}, config.cutting))
        names = batches[0]
        write_rows({name: np.concatenate([one[name] for one in batches]) for name in names}, store)
    return config


def _column(value: Any) -> np.ndarray:
    column = np.empty(1, object)
    column[0] = value
    return column


def costs(config: CurationConfig, name: str) -> None:
    """Measure one family."""
    settings = CurationConfig(config.input, config.output, scores=[name])
    (task,) = tasks_of(settings)
    side = FramesConfig().keyframes if scorer_class(name).reads == "keyframes" else 0
    scorer = PartScorer(Store(config.output), task, bare(config, keyframes=side), {})
    items = [{"part": part} for part in Store(config.output).parts("scores")]
    if scorer_class(name).reads == "video":
        items = list(pictures_of(Store(config.output), items))
    batch = {key: np.array([item[key] for item in items], object) for key in items[0]}
    held = [row for item in items for row in _inputs(scorer, config, item)]
    works: dict[str, Callable[[], Any]] = {
        "all": partial(scorer, batch),
        "alone": lambda: scorer._scorer.rows(iter(held)),
        "reading": lambda: [len(list(_inputs(scorer, config, item))) for item in items],
    }
    taken = {key: [] for key in works}
    for _ in range(ROUNDS):
        for key, work in works.items():
            before = _cpu()
            work()
            taken[key].append(_cpu() - before)
    rows = {key: np.array(seconds) for key, seconds in taken.items()}
    ratios = rows["all"] / (rows["alone"] + rows["reading"])
    each = [1000 * median(rows[key]) / len(held) for key in ("alone", "reading")]
    told = f"{median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"
    print(f"| {name} | {len(held)} | {each[0]:.1f} | {each[1]:.1f} | {told} |", flush=True)


def _inputs(scorer: PartScorer, config: CurationConfig, item: dict[str, Any]) -> Iterator[Any]:
    """What the family gets of the scenes of a part."""
    table = Store(config.output).read_part("scores", item["part"], (*READ, PICTURES), (*LATER, PICTURES))
    assert table is not None
    return scorer._inputs(scorer._rows(table, item["part"], 0), item.get("pictures", ""))


def _cpu() -> float:
    here = psutil.Process()
    own = here.cpu_times()
    alive = (child.cpu_times() for child in here.children(recursive=True))
    return own.user + own.system + own.children_user + own.children_system + sum(one.user + one.system for one in alive)


def main() -> None:
    """Print a row for each family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", help="default: all that need no model of the user's")
    names = parser.parse_args().family or sorted(set(FAMILIES) - BY_MODEL)
    with TemporaryDirectory() as folder:
        config = corpus(Path(folder))
        print("| family | scenes | CPU-ms a scene | reading | measure / (family alone + reading), bar 1.2 |")
        print("|---|---|---|---|---|")
        for name in names:
            costs(config, name)


if __name__ == "__main__":
    main()
