"""A corpus of millions of measured scenes, and what it costs to select from it; nothing is decoded."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa

from actors.core.child import Child
from actors.core.store import Store
from actors.curation.features.perceptual_hash import HASH_BYTES
from actors.curation.selecting.filter import feature_settings, place, save_filter
from actors.curation.tables import BARS, SCORES, VIDEOS
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import FitConfig
from pipelines.curation.settings import CurationConfig, measured_by
from tests.pipelines.curation.outputs import fast_is_good

SCENES_A_VIDEO, SCENES_A_SPAN = 40, 2
CAPTION = (
    "a person in a red coat walks slowly along the shore while two dogs chase each other through the shallow water"
)


def write_corpus(output: str, scenes: int, part_rows: int = 1000) -> None:
    """An output with that many scenes of seeded features, its parts nearly in the order of the input, and a filter."""
    config = CurationConfig(input="corpus.jsonl", output=output)
    store = Store(config.output)
    videos = scenes // SCENES_A_VIDEO
    index = np.arange(videos)
    plan = {"video_index": index, "video_id": [f"v{i:07d}" for i in index], "scenes": [SCENES_A_VIDEO] * videos}
    store.replace_table("plan/videos", [pa.table(plan, schema=VIDEOS)])
    settings = {"measured_by": measured_by(config), "settings": asdict(config)}
    store.write_json(settings, "plan", "settings.json")
    random = np.random.default_rng(0)
    # As many videos at work at once as 64 workers have.
    order = np.argsort(np.arange(scenes) + random.uniform(0, 64 * SCENES_A_VIDEO, scenes))
    for number, start in enumerate(range(0, scenes, part_rows)):
        store.write_table(_rows(order[start : start + part_rows], random), "scores", store.numbered(number))
    labelled = replace(fast_is_good(), measured_by=feature_settings(measured_by(config)))
    save_filter(fit(labelled, FitConfig(output)), place(output, None))


def _rows(numbers: np.ndarray, random: np.random.Generator) -> pa.Table:
    count = len(numbers)
    video, place = numbers // SCENES_A_VIDEO, numbers % SCENES_A_VIDEO
    ids = [f"v{v:07d}" for v in video]
    spans = [f"{name}.{p // SCENES_A_SPAN}" for name, p in zip(ids, place, strict=True)]
    speed = random.lognormal(0.5, 0.8, count)
    failed = random.random(count) < 0.02
    measured = {
        "max_rgb_diff": random.lognormal(6, 1, count),
        "mean_rgb_diff": random.lognormal(5, 1, count),
        "max_velocity": speed * random.uniform(1, 3, count),
        "mean_velocity": speed,
        "mse": random.lognormal(-1, 0.5, count),
        "cos_sim": random.uniform(0.5, 1, count),
    }
    columns = {
        "video_index": video,
        "video_id": ids,
        "uri": [f"s3://films/{name}.mp4" for name in ids],
        "clip_id": [f"{span}.mp4" for span in spans],
        "scene_id": [f"{span}_{p % SCENES_A_SPAN}" for span, p in zip(spans, place, strict=True)],
        "ordinal": place,
        "caption": [CAPTION] * count,
        "start_s": place * 4.0,
        "end_s": place * 4.0 + 4,
        "width": [640] * count,
        "height": [360] * count,
        **{name: np.where(failed, np.nan, values) for name, values in measured.items()},
        "no_frames": np.where(failed, 0, random.integers(2, 70, count)),
        "window": [-1] * count,
        **{name: [0] * count for name in BARS},
        "computed": ["latents: cuda bfloat16"] * count,
        "phash": [random.bytes(HASH_BYTES) for _ in range(count)],
        "step": np.where(failed, "cut", ""),
        "error": np.where(failed, "decode_error", ""),
        "message": np.where(failed, "a frame could not be decoded", ""),
        "written": np.ones(count),
    }
    blank = {pa.string(): "", pa.bool_(): False}
    whole = {field.name: columns.get(field.name, [blank.get(field.type, 0)] * count) for field in SCORES}
    return pa.table({name: pa.array(values, SCORES.field(name).type) for name, values in whole.items()}, schema=SCORES)


def select_in_process(arguments: list[str]) -> Iterator[tuple[float, float, str]]:
    """Run the verb `select` in this process: seconds, peak resident memory in MB, and what it printed."""
    from typer.testing import CliRunner

    from jobs.curation.__main__ import app

    started = perf_counter()
    result = CliRunner().invoke(app, ["select", *arguments])
    if result.exit_code:
        raise RuntimeError(result.output)
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    yield perf_counter() - started, int(peak) / 1024, result.output


def select(output: str, *settings: str) -> tuple[float, float, str]:
    """The same in a fresh process."""
    child = Child()
    try:
        [measured] = child.stream(select_in_process, [output, *settings], stall_s=900, timeout_s=900)
    finally:
        child.kill()
    return measured
