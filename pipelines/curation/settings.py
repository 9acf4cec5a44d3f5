"""Curation: its settings, the tables that it keeps, and what is checked before any work.

An output holds plan/ (what the input asks for), videos/ (what was fetched), scores/ and thumbnails/ (what was
measured), scenes/ and rejected/ (what was decided), clips/, frames/, shards/ and kept.json (what is kept), captions/
(what a model made of their captions), evaluation/ and evaluation.json (what both are worth), report.html, run.json.
"""

import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.curation.captions import CaptionsConfig
from actors.curation.clips import ClipsConfig
from actors.curation.cut import FramesConfig
from actors.curation.fetch import RETRYABLE as RETRYABLE_FETCH
from actors.curation.fetch import FetchConfig
from actors.curation.latents import LatentsConfig, check_model
from actors.curation.motion import FLOWS, MotionConfig
from actors.curation.raft import check_raft
from actors.media.film import VideoConfig
from actors.media.shots import ShotsConfig
from actors.models.clip import EmbeddingsConfig
from pipelines.curation.duplicates import FARTHEST

RETRYABLE = RETRYABLE_FETCH | {"crashed", "exception", "stalled", "timeout", "export_failed", "caption_failed"}
"""Error codes of rows that may succeed when they are tried again."""


@dataclass(frozen=True)
class VideosConfig:
    """Which videos of the input."""

    start: int = 0
    """Index of the first, in the order of the input."""
    end: int | None = None
    """Index of the last, itself included; null: to the end."""


@dataclass(frozen=True)
class SelectConfig:
    """Which scenes are kept. Changing it measures nothing again."""

    by: Literal["rule", "classifier"] = "rule"
    """rule, or classifier: the best are those that the filter calls most probably good."""
    count: int | None = None
    """Keep this many at most, the best over all videos."""
    fraction: float | None = None
    """Keep this share of the scenes that pass the rules."""
    min_velocity: float = 0.1
    """Scenes whose mean_velocity is below this, in pixels per step, are static."""
    max_rgb_diff: float = 4000
    """Scenes whose max_rgb_diff is above this have a cut inside."""
    dedupe: int | None = None
    """Scenes whose hashes differ in at most so many of 192 bits are near-duplicates, of which the best is kept; null:
    all are. 8 finds copies in another size or codec; 16 also slightly cropped or darkened ones, and parts of a still
    shot."""

    def __post_init__(self) -> None:
        if self.count is not None and self.fraction is not None:
            raise UserError("count and fraction exclude each other")
        if (self.count is not None and self.count < 0) or not 0 <= (self.fraction or 0) <= 1:
            raise UserError(f"count starts at 0, fraction lies in 0..1: {self}")
        if self.dedupe is not None and not 0 <= self.dedupe <= FARTHEST:
            raise UserError(f"dedupe={self.dedupe}: near-duplicates differ in 0 to {FARTHEST} bits")


@dataclass(frozen=True)
class ExportConfig(ClipsConfig):
    """What is written of the scenes that are kept."""

    frames: bool = False
    """Also the sampled frames in the film's own size, as JPEG."""
    webdataset: bool = False
    """Also tar shards of clip, caption and row."""
    shard_clips: int = 500
    """Clips in one shard."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How it is proved that captions and choice are better."""

    seed: int = 0
    """Draws the random scenes, and what interval and p are made of."""
    resamples: int = 9999
    """Rounds of the bootstrap and of the permutation test."""
    recaption: bool = True
    """Ask first for the recaptions that the scenes of both groups do not have, as `recaption` does; it costs."""

    def __post_init__(self) -> None:
        if self.resamples < 99:
            raise UserError(f"resamples starts at 99: {self}")


@dataclass(frozen=True)
class WriteConfig(Stage):
    """How results are gathered into parts."""

    num_cpus: float = 0.1
    """Writing waits for the store, not for a CPU."""
    batch_size: int = 64
    """Rows of a part; rows that are not in a part yet are measured again after a kill."""


@dataclass(frozen=True)
class CurationConfig:
    """All settings of curation."""

    ALIASES: ClassVar[dict[str, str]] = {"clip_idx_start": "videos.start", "clip_idx_end": "videos.end"}
    IGNORED: ClassVar[dict[str, str]] = {
        "n_videos_per_batch": "videos are a stream here; write.batch_size sets how many scenes a part of scores/ holds",
        "clips_taken_per_batch": "the best scenes of all videos are kept; set select.count or select.fraction",
        "store_intermediate_json": "scores are always stored, in OUTPUT/scores, so that a run resumes",
    }

    input: str
    """HDVG metadata (.json, .jsonl), a table (.csv, .parquet), a folder or prefix of films, or one film."""
    output: str
    """Where results go: a path or s3://bucket/prefix."""
    autoscaling: bool = False
    """The cluster grows by what is asked for: pools stay as asked, whatever it has now."""
    videos: VideosConfig = field(default_factory=VideosConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    filter: str | None = None
    """The filter of select.by=classifier, as `fit-filter` wrote it; null: OUTPUT/filter.json."""
    export: ExportConfig = field(default_factory=ExportConfig)
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True)
class RetryConfig(CurationConfig):
    """Settings of `retry`: those of `run`, and what is tried again."""

    codes: str | None = None
    """Error codes to try again, separated by commas, as `failed` lists them; null: all that may succeed later."""

    def again(self) -> frozenset[str]:
        """The error codes to try again."""
        return frozenset(self.codes.split(",")) if self.codes else RETRYABLE

    def run(self) -> CurationConfig:
        """The settings of `run`."""
        return CurationConfig(**{one.name: getattr(self, one.name) for one in fields(CurationConfig)})


def measured_by(config: CurationConfig) -> dict[str, Any]:
    """The settings that change what a row of scores/ says; one output holds scores of one kind only."""
    return {
        "frames.interval_ms": config.frames.interval_ms,
        "frames.size": config.frames.size,
        **{f"shots.{name}": value for name, value in asdict(config.shots).items()},
        "video.decoder": config.video.decoder,
        "motion.flow": config.motion.flow,
        "motion.weights": config.motion.weights if config.motion.flow == "raft" else None,
        "latents.model": config.latents.model,
        "latents.dtype": config.latents.dtype,
    }


def check(config: CurationConfig) -> None:
    """Raise UserError, before any work, for settings that cannot work together or files that are not there."""
    if f"{_place(config.output)}/".startswith(f"{_place(config.input)}/"):
        raise UserError(
            f"output {config.output} lies inside input {config.input}: its clips would be films of the next run"
        )
    if config.motion.flow in FLOWS and config.motion.num_gpus > 0:
        raise UserError(f"motion.flow={config.motion.flow} runs on CPUs: with motion.num_gpus use motion.flow=raft")
    if config.video.decoder == "pyav" and config.video.num_gpus > 0:
        raise UserError("video.decoder=pyav runs on CPUs: with video.num_gpus use video.decoder=torchcodec")
    for name, stage in (("latents", config.latents), ("motion", config.motion)):
        if stage.workers < 1:
            raise UserError(f"{name}.workers={stage.workers}: what loads a model has at least one worker")
    check_model(config.latents.model)
    if config.motion.flow == "raft":
        if config.frames.size % 8 or config.frames.size < 128:
            raise UserError(f"frames.size={config.frames.size}: motion.flow=raft needs a multiple of 8 from 128")
        check_raft(config.motion.weights)
    made = Store(config.output).read_json("plan", "settings.json") or {}
    before, now = made.get("measured_by"), measured_by(config)
    if before is not None and before != now:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        changed = ", ".join(f"{name}={before.get(name)} there, {now.get(name)} here" for name in names)
        raise UserError(
            f"{config.output} holds scores made with other settings ({changed}): use them, or another output"
        )


def _place(uri: str) -> str:
    """A path in one form, however it was written."""
    return uri.rstrip("/") if uri.startswith("s3://") else os.path.realpath(storage.join(uri))
