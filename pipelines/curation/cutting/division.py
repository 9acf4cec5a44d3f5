"""Which films GPUs decode and which CPUs decode beside them: in proportion to what each can do."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ray

from actors.core.store import Store
from actors.curation.cutting.rates import measured
from actors.media.torch_decoding import NVDEC, ON_CPU

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from actors.core.stage import Stage
    from pipelines.curation.settings import CurationConfig

log = logging.getLogger(__name__)

ON_CPUS = "video_cpu"
"""The stage that decodes on CPUs what GPUs do not."""


@dataclass(frozen=True)
class Division:
    """How many films are decoded at once, and what share of all of them GPUs decode."""

    gpus: int
    cpus: int
    share: float


def divided(config: CurationConfig, stages: dict[str, Stage], pools: Collection[str]) -> Division | None:
    """How films are divided among the stages video and ON_CPUS, which fit the cluster; None: GPUs decode all.

    The longest film of the plan is decoded both ways for a moment. Where it cannot be, as when it is to be downloaded,
    a GPU's film counts as one of a CPU.
    """
    room = at_once(config.cpu_films, stages, pools, ray.cluster_resources())
    if room is None:
        log.warning("cpu_films=%s: no CPU is left beside the GPUs' films: GPUs decode all films", config.cpu_films)
        return None
    speeds = _speeds(config)
    ratio = speeds[NVDEC] / speeds[ON_CPU] if speeds else 1.0
    gpus, cpus = room
    division = Division(gpus, cpus, gpus * ratio / (gpus * ratio + cpus))
    how = "not measured: the longest film is remote, or not one for NVDEC"
    if speeds:
        how = f"measured: {speeds[NVDEC]:.0f} and {speeds[ON_CPU]:.0f} frames/s for a film alone"
    share = f"{100 * division.share:.0f} % of films by NVDEC"
    log.info("decoding: %d films by NVDEC and %d on CPUs at once, %s (%s)", gpus, cpus, share, how)
    return division


def at_once(
    wanted: int | Literal["auto"], stages: dict[str, Stage], pools: Collection[str], there: Mapping[str, float]
) -> tuple[int, int] | None:
    """How many films GPUs and CPUs decode at once; None where no CPU is left beside the GPUs' films.

    wanted: on CPUs. there: what the cluster has, by Ray's names.
    """
    video = stages["video"]
    others = [
        (stage, stage.workers if name in pools else 1)
        for name, stage in stages.items()
        if name not in ("video", ON_CPUS)
    ]
    left_gpus = there.get("GPU", 0) - sum(stage.num_gpus * workers for stage, workers in others)
    left_cpus = there.get("CPU", 0) - sum(stage.num_cpus * workers for stage, workers in others)
    each = max(video.num_cpus, 0.01)
    gpus = min(video.workers or math.inf, left_gpus / video.num_gpus + 1e-9, left_cpus / each + 1e-9)
    gpus = max(1, int(gpus))
    cpus = int((left_cpus - gpus * each) / each + 1e-9)
    cpus = cpus if wanted == "auto" else min(cpus, wanted)
    return (gpus, cpus) if cpus > 0 else None


def _speeds(config: CurationConfig) -> dict[str, float]:
    store, video = Store(config.output), config.video
    url = store.read_whole(store.listed("plan/todo")[0])["url"][0].as_py()
    if not url.startswith(("/", "file://", "s3://")):
        return {}
    task = ray.remote(num_cpus=video.num_cpus, num_gpus=video.num_gpus, max_retries=0)(measured)
    return ray.get(task.remote(url, video))
