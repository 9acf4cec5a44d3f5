"""Curation: its settings, the tables that it keeps, and what is checked before any work.

An output holds plan/ (what the input asks for), videos/ (what was fetched), scores/, thumbnails/ and keyframes/ (what
was measured), scenes/ and rejected/ (what was decided), clips/, frames/, shards/ and kept.json (what is kept),
captions/ (what a model made of their captions), evaluation/ and evaluation.json (what both are worth), report.html,
run.json.
"""

import os
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from actors.core import storage
from actors.core.errors import UserError, check_all
from actors.core.stage import Stage
from actors.core.store import Store
from actors.curation.captioning.settings import CaptionsConfig
from actors.curation.cutting.cut import CutConfig
from actors.curation.cutting.scenes import FramesConfig, Windows, WindowsConfig
from actors.curation.exporting.clips import EFFORTS, ClipsConfig
from actors.curation.exporting.layouts import LAYOUTS, SHARDS, Caption
from actors.curation.exporting.presets import load_preset
from actors.curation.features.latents import LatentsConfig, check_model
from actors.curation.features.motion import MotionConfig
from actors.curation.features.raft import check_raft
from actors.curation.selecting.select_settings import SelectConfig
from actors.curation.sources.fetch import RETRYABLE as RETRYABLE_FETCH
from actors.curation.sources.fetch import FetchConfig
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import NETWORKS, ShotsConfig, width_of
from actors.models.clip import EmbeddingsConfig
from pipelines.curation.estimating.estimate_settings import EstimateConfig
from pipelines.curation.measuring.measure_settings import MeasureConfig, check_scores

RETRYABLE = RETRYABLE_FETCH | {
    "crashed",
    "crashed_worker",
    "exception",
    "stalled",
    "timeout",
    "export_failed",
    "caption_failed",
}
"""Error codes of rows that may succeed when they are tried again."""


EARLIER = {
    "windows.length_s": 0.0,
    "windows.overlap_s": 0,
    "windows.named": False,
    "frames.crop_bars": False,
    "frames.deinterlace": False,
    "frames.color_managed": False,
    "shots.trim_transitions": True,
    "shots.check_named": False,
    "shots.weights": None,
    "shots.one_sided": False,
}
"""How outputs of earlier versions were measured."""


@dataclass(frozen=True)
class VideosConfig:
    """Which videos of the input are read."""

    start: int = 0
    """Index of the first video, from 0, in the order of the input. Set it to split a corpus over several runs."""
    end: int | None = None
    """Index of the last video, which is included; null: to the end of the input."""
    changed: Literal["measure", "refuse", "keep"] = "measure"
    """What happens to rows whose film, times or scene has changed in the input since they were measured. measure: they
    no longer count, and what changed is measured again; refuse: the command ends before anything is done; keep: they
    count as they are. Changed captions are always taken over."""


@dataclass(frozen=True)
class ExportConfig(ClipsConfig):
    """What is written of the scenes that are kept."""

    frames: bool = False
    """Also write the sampled frames of each kept scene in the film's own size, as JPEG."""
    layout: str = ""
    """Files for trainers, separated by commas: sidecar, jsonl, metadata_csv, ltx, videox, hf, webdataset."""
    preset: str = ""
    """The model that clips are for: wan, hunyuan, ltx, cogvideox, or a .yaml file like those in
    actors/curation/exporting/model_presets. Its clips and layouts are in a folder of that name; "": layouts are of
    clips/."""
    caption: Caption = "recaption"
    """The text in these files. recaption: the recaption, where there is none the caption; caption; both: one behind
    the other; short, long, tags, structured or free: the caption of that style, where there is none the caption."""
    packed: bool = False
    """Write the clips of a film into one tar (tars/VIDEO.tar) in place of a file each (clips/): for stores with many
    scenes, where each object costs a request. Not with a preset, nor with layouts other than webdataset, which name
    files. The report and `search` show no clips."""
    shard_clips: int = 500
    """Clips in one tar of the layout webdataset; at least 1. Loaders shuffle tars, so use several per worker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.layouts) - {*LAYOUTS, SHARDS}:
            known = ", ".join((*LAYOUTS, SHARDS))
            raise UserError(f"export.layout={self.layout}: there is no {', '.join(sorted(unknown))}, but {known}")
        if self.shard_clips < 1:
            raise UserError(f"export.shard_clips={self.shard_clips}: set at least 1")
        if self.preset in EFFORTS:
            object.__setattr__(self, "x264_preset", self.preset)
            object.__setattr__(self, "preset", "")
        if self.packed and (self.preset or set(self.layouts) - {SHARDS}):
            raise UserError(
                "export.packed=true: a preset, and layouts other than webdataset, name files of single clips. Set "
                "export.packed=false, or export.layout=webdataset and no export.preset."
            )

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts that are written."""
        return tuple(dict.fromkeys(name.strip() for name in self.layout.split(",") if name.strip()))


@dataclass(frozen=True)
class EvaluateConfig:
    """How captions and selection are evaluated."""

    seed: int = 0
    """Seed of the draw of random scenes, of the bootstrap and of the permutation test."""
    resamples: int = 9999
    """Rounds of the bootstrap and of the permutation test; at least 99. More give finer p-values."""
    pictures: Literal["keyframes", "sampled"] | None = None
    """Which pictures of a scene are scored. keyframes: its first, middle and last sampled frame; no film is opened for
    scenes that have them in keyframes/. sampled: every second sampled frame, as in the reference system; films are
    opened. Scores of one kind do not count for the other. null: keyframes where all compared scenes have them, else
    sampled."""
    recaption: bool = True
    """Request missing recaptions of both groups first, as `recaption` does (billed); false: compare existing ones."""

    def __post_init__(self) -> None:
        if self.resamples < 99:
            raise UserError(f"evaluate.resamples must be at least 99: {self}")


@dataclass(frozen=True)
class WriteConfig(Stage):
    """How scores are written."""

    num_cpus: float = 0.1
    """CPUs that one writing task holds. Writing waits for the store, so a part of a CPU is enough."""
    batch_size: int = 64
    """Rows in one part of scores/. Fewer lose less work when a run is killed; more make fewer objects in the store."""


def shards(on: bool) -> str:
    """The export.layout of export.webdataset, as that was called before."""
    return SHARDS if on else ""


@dataclass(frozen=True)
class CurationConfig:
    """All settings of curation."""

    ALIASES: ClassVar[dict[str, Any]] = {
        "clip_idx_start": "videos.start",
        "clip_idx_end": "videos.end",
        "export.webdataset": ("export.layout", shards),
    }
    IGNORED: ClassVar[dict[str, str]] = {
        "n_videos_per_batch": "videos are a stream here; write.batch_size sets how many scenes a part of scores/ holds",
        "clips_taken_per_batch": "the best scenes of all videos are kept; set select.count or select.fraction",
        "store_intermediate_json": "scores are always stored, in OUTPUT/scores, so that a run resumes",
    }

    input: str
    """The films: HDVG metadata (.json, .jsonl), a table (.csv, .parquet), a folder or prefix of films, or one film; a
    path, file:// or s3://."""
    output: str
    """Where results are written: a path or s3://bucket/prefix, outside the input."""
    autoscaling: bool = False
    """The cluster grows on demand: actor pools are not reduced to its present size."""
    cpu_films: int | Literal["auto"] = 0
    """Films that CPUs decode at once beside those that GPUs decode, with video.decoder=torchcodec and video.num_gpus
    above 0. auto: as many as there are CPUs left. Their share of all films follows from how fast the longest film is
    decoded both ways, which is measured when the work begins. 0: GPUs decode all films."""
    videos: VideosConfig = field(default_factory=VideosConfig)
    """Which videos of the input are read."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    """Which frames of a scene are sampled."""
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    """How films without metadata are cut into scenes by shot detection."""
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    """How shots are divided that are too long to be one scene."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How videos are downloaded."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """How films are decoded."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """How optical flow is measured."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """Which VAE encodes the frames, for mse and cos_sim."""
    scores: list[str] = field(default_factory=list)
    """Families of scores that are measured beside the features, as [text, quality]; your own as package.module:Class.
    `measure` adds them to a corpus that is finished."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """How families of scores are measured."""
    write: WriteConfig = field(default_factory=WriteConfig)
    """How scores are written."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """Which scenes are kept. Changing it needs no new measurement."""
    filter: str | None = None
    """The filter of select.by=classifier, as `fit-filter` writes it: a path or s3://; null: OUTPUT/filter.json."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """What is written of the scenes that are kept."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Which model captions scenes, what it is asked, how fast and at what price."""
    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    """Which CLIP model `evaluate` scores captions with."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How captions and selection are evaluated."""
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    """What --dry-run measures to estimate what a run will take, and prices."""

    def __post_init__(self) -> None:
        # As in scores=text,quality.
        names = [name.strip() for one in self.scores for name in one.split(",")]
        object.__setattr__(self, "scores", [name for name in names if name])

    @property
    def cutting(self) -> CutConfig:
        """The settings of one decode."""
        frames = {name.removeprefix("frames."): value for name, value in _pictures(self).items()}
        return CutConfig(self.video, replace(self.frames, **frames), _shots(self), self.motion, windows(self))


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
        **_pictures(config),
        **{f"shots.{name}": value for name, value in asdict(_shots(config)).items()},
        "video.decoder": config.video.decoder,
        "motion.flow": config.motion.flow,
        "motion.weights": config.motion.weights if config.motion.flow == "raft" else None,
        "latents.model": config.latents.model,
        "latents.dtype": config.latents.precision,
        **_windows(config),
    }


def _begun_with(config: CurationConfig) -> dict[str, Any] | None:
    """`measured_by` of an output that was begun before; None for a new one."""
    return (Store(config.output).read_json("plan", "settings.json") or {}).get("measured_by")


def _pictures(config: CurationConfig) -> dict[str, bool]:
    """What is done to pictures before they are measured: where the settings leave it open, as the output was begun."""
    before = _begun_with(config)
    told = {f"frames.{name}": getattr(config.frames, name) for name in ("crop_bars", "deinterlace", "color_managed")}
    open_now = {name: before is None or before.get(name, EARLIER[name]) for name in told}
    return {name: open_now[name] if value is None else value for name, value in told.items()}


def _shots(config: CurationConfig) -> ShotsConfig:
    """How shots are found: what is not set is as the output was begun."""
    before = _begun_with(config)
    told = before or {}
    detector = config.shots.detector or told.get("shots.detector", "gradual")
    width = config.shots.width or told.get("shots.width", width_of(detector))
    name, one_sided = "shots.one_sided", config.shots.one_sided
    if one_sided is None:
        one_sided = before is None or before.get(name, EARLIER[name])
    return replace(config.shots, detector=detector, width=width, one_sided=one_sided)


def _windows(config: CurationConfig) -> dict[str, Any]:
    """How shots are divided: what the settings leave open is as the output was begun, since thresholds may change."""
    before = _begun_with(config)
    length, overlap = config.windows.length_s, config.windows.overlap_s
    if length is None:
        longest = config.frames.max * config.frames.interval_ms / 1000
        length = longest if before is None else before.get("windows.length_s", 0.0)
    rest = (before or {}).get("windows.rest", config.frames.min)
    about = {"windows.length_s": length, "windows.overlap_s": overlap if length else 0, "windows.rest": rest}
    return about | {"windows.named": config.windows.named}


def windows(config: CurationConfig) -> Windows:
    """How shots are divided, in sampled frames."""
    settings = _windows(config)
    # A tenth of a second of 100 ms is 1 frame, whatever binary fractions make of it.
    samples, overlap = (
        int(settings[f"windows.{name}"] * 1000 / config.frames.interval_ms + 1e-6) for name in ("length_s", "overlap_s")
    )
    return Windows(samples, min(overlap, max(0, samples - 1)), int(settings["windows.rest"]), config.windows.named)


def check(config: CurationConfig) -> None:
    """Raise UserError, before any work, for settings that cannot work together or files that are not there."""
    from pipelines.curation.sources.input import check_there

    if f"{_place(config.output)}/".startswith(f"{_place(config.input)}/"):
        raise UserError(
            f"output {config.output} lies inside input {config.input}: its clips would be films of the next run. "
            "Set an output outside."
        )
    if config.motion.flow != "raft" and config.motion.num_gpus > 0:
        raise UserError(f"motion.flow={config.motion.flow} runs on CPUs: with motion.num_gpus use motion.flow=raft")
    config.video.check_gpus(_shots(config).detector in NETWORKS)
    if config.cpu_films and (not config.video.by_nvdec or (config.cpu_films != "auto" and config.cpu_films < 0)):
        raise UserError(
            f"cpu_films={config.cpu_films}: films beside those that GPUs decode, 0 or more, with "
            "video.decoder=torchcodec and video.num_gpus above 0"
        )
    made = Store(config.output).read_json("plan", "settings.json") or {}
    length, every = config.windows.length_s, config.frames.interval_ms
    if length and not made and not config.frames.min <= length * 1000 / every + 1e-6 < config.frames.max + 1:
        raise UserError(
            f"windows.length_s={length:g}: scenes of frames.min={config.frames.min} to frames.max={config.frames.max} "
            f"frames every {every} ms are measured, {config.frames.min * every / 1000:g} to "
            f"{config.frames.max * every / 1000:g} s"
        )
    for name, stage in (("latents", config.latents), ("motion", config.motion)):
        if stage.workers < 1:
            raise UserError(f"{name}.workers={stage.workers}: set at least 1 worker for a stage that loads a model")
    before, now = made.get("measured_by"), measured_by(config)
    if before is not None and (before := {**EARLIER, "windows.rest": now["windows.rest"], **before}) != now:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        changed = ", ".join(f"{name}={before.get(name)} there, {now.get(name)} here" for name in names)
        raise UserError(
            f"{config.output} holds scores made with other settings ({changed}). Use these settings, or another output."
        )
    check_all(
        partial(check_there, config.input),
        partial(_check_files, config),
        partial(check_scores, config.scores, config.measure),
        partial(_check_raft, config),
        partial(check_model, config.latents.model),
    )


def _check_files(config: CurationConfig) -> None:
    """Raise UserError where a file that settings name, or a library that they need, is not there."""
    if config.export.preset:
        load_preset(config.export.preset)
    if config.fetch.cookies and not storage.exists(config.fetch.cookies):
        raise UserError(f"fetch.cookies={config.fetch.cookies}: there is no such file")
    if config.video.decoder == "torchcodec" and find_spec("torchcodec") is None:
        raise UserError("video.decoder=torchcodec needs the extra `torchcodec`: pip install 'filmray[torchcodec]'")


def _check_raft(config: CurationConfig) -> None:
    if config.motion.flow != "raft":
        return
    if config.frames.size % 8 or config.frames.size < 128:
        raise UserError(f"frames.size={config.frames.size}: motion.flow=raft needs a multiple of 8 from 128")
    check_raft(config.motion.weights)


def _place(uri: str) -> str:
    """A path in one form, however it was written."""
    return uri.rstrip("/") if uri.startswith("s3://") else os.path.realpath(storage.join(uri))
