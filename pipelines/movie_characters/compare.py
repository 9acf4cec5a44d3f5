"""Which model identifies characters best, and how much accuracy red light, darkness, blur and occlusion cost each.

All models see the same images, as they are and through each filter. An image without an answer, such as one without a
detected face, counts as wrong.

accuracy  share of images whose best answer is right, with its 95 % interval (Wilson 1927)
p         McNemar's exact test of two models on the same images: of the images that only one of them has right, does
          each model have half? (McNemar 1947; the binomial distribution)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.disturbances import FILTERS, disturb_files
from actors.movie_characters.manifest import CLASS, FILE, write_manifest
from actors.movie_characters.names import Picture, key, stem
from pipelines.core.metrics import wilson
from pipelines.core.ray_data import fitted, ray_task, rows_of, set_context
from pipelines.movie_characters.fuse import FuseConfig, Source
from pipelines.movie_characters.metrics import answers, topk_curve
from pipelines.movie_characters.models import (
    ClipModel,
    DiffusionModel,
    FaceModel,
    FusionModel,
    Model,
    ModelRun,
    Single,
    check_all,
    run_all,
    run_of,
)
from pipelines.movie_characters.pictures import find_pictures
from pipelines.movie_characters.results import NO_ANSWER, Results, by_class, read_results, write_csv

if TYPE_CHECKING:
    import pandas as pd

NONE = "none"
"""The images as they are."""
REJECTED = pa.schema([(name, pa.string()) for name in ("image", "uri", "filter", "code", "message")])
"""One row per image and filter that could not be written."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `compare`."""

    ALIASES: ClassVar[dict[str, Any]] = {"image_list": "input"}
    IGNORED: ClassVar[dict[str, str]] = {"resamples": "intervals of shares are Wilson's, which need no bootstrap"}

    input: str | list[str]
    """Images to identify, named CLASS_NUMBER: a folder, a .txt file that lists one a line, one image, or several of
    these; paths or s3://."""
    output: str
    """Where filtered images, results, tables and the page are written: a path or s3://."""
    models: dict[str, Model]
    """The models to compare, by a name of your own. Each has `by` (clip, faces, diffusion or fusion) and `settings`,
    those of its verb: models.clip.by=clip models.clip.settings.gallery=gallery."""
    filters: dict[str, float] = field(
        default_factory=lambda: {NONE: 0.0, "red": 0.8, "dark": 0.8, "blur": 0.2, "occlusion": 0.25}
    )
    """Filters through which models see the images, with their strengths in 0..1; none is the images as they are."""
    validation: str | list[str] = ""
    """Other images of the same characters, as in `input`. All models see them through all filters; from their answers
    each fusion without weights trains one set of weights."""
    k_range: int = 5
    """Top-k curves run from 1 to this k."""
    alpha_model: str = ""
    """Name of a diffusion model whose alpha is varied on the images as they are; empty: none."""
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """Values of alpha for alpha_model, in 0..1."""
    seed: int = 0
    """Seed of the place of occlusions."""
    disturb: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=16))
    """Tasks that filter images."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        if other := set(self.filters) - {NONE, *FILTERS}:
            raise UserError(f"filters: there is no {', '.join(sorted(other))}; there are {NONE}, {', '.join(FILTERS)}")
        if not self.filters or not all(0 <= strength <= 1 for strength in self.filters.values()):
            raise UserError(f"filters: one is needed, and strengths lie in 0..1: {self.filters}")
        if not self.models or self.k_range < 1:
            raise UserError("models: one or more are needed; k_range starts at 1")
        for name, model in self.models.items():
            self._check(name, model)
        if self.validation and not any(map(learns, self.models.values())):
            raise UserError("validation trains the weights of fusions without weights, and there is none")
        if self.alpha_model and not isinstance(self.models.get(self.alpha_model), DiffusionModel):
            raise UserError(f"alpha_model={self.alpha_model}: no diffusion model has that name")

    def _check(self, name: str, model: Single | FusionModel) -> None:
        if isinstance(model, FusionModel):
            some = [self.models.get(one) for one in model.settings.models]
            if len(some) < 2 or any(one is None or isinstance(one, FusionModel) for one in some):
                wrong = [one for one, it in zip(model.settings.models, some, strict=True) if it is None]
                found = f": there is no model {', '.join(wrong)}" if wrong else ""
                raise UserError(
                    f"models.{name}.settings.models lists two or more other models that are no fusions{found}"
                )
            if other := set(model.settings.weights) - set(model.settings.models):
                raise UserError(f"models.{name}.settings.weights: {min(other)} is none of its models")
        by = preselecting(model)
        if by and not isinstance(self.models.get(by), ClipModel | FaceModel):
            raise UserError(f"models.{name}.settings.preselect.model={by}: no model by clip or faces has that name")


def preselecting(model: Single | FusionModel) -> str:
    """The name of the model that preselects for this one; "" where there is none."""
    return model.settings.preselect.model if isinstance(model, DiffusionModel) else ""


def learns(model: Single | FusionModel) -> bool:
    """Whether it is a fusion whose weights can be trained on validation images."""
    return isinstance(model, FusionModel) and not model.settings.weights


def teaching(config: CompareConfig) -> CompareConfig:
    """The comparison of validation images: the models of all fusions that are trained, and their preselectors."""
    fusions = [model.settings for model in config.models.values() if isinstance(model, FusionModel) and learns(model)]
    names = {name for settings in fusions for name in settings.models}
    names |= {preselecting(config.models[name]) for name in names}
    return replace(
        config,
        input=config.validation,
        output=f"{config.output.rstrip('/')}/validation",
        validation="",
        models={name: model for name, model in config.models.items() if name in names},
        alpha_model="",
    )


def label(config: CompareConfig, name: str) -> str:
    """A filter in paths: with all that its images depend on."""
    if name == NONE:
        return NONE
    return f"{name}_{config.filters[name]:g}" + (f"_{config.seed}" if name == "occlusion" else "")


def images_of(config: CompareConfig, name: str, pictures: Sequence[Picture]) -> list[str]:
    """Where the images of a filter are."""
    if name == NONE:
        return [one.uri for one in pictures]
    root = Store(storage.absolute(config.output))
    return [root.uri("images", label(config, name), f"{stem(one.name)}.png") for one in pictures]


def check_filtered_names(pictures: Sequence[Picture], setting: str) -> None:
    """Raise UserError where two images would be one once they are filtered: files are named STEM.png."""
    known: dict[str, Picture] = {}
    for one in pictures:
        if (other := known.setdefault(stem(one.name), one)) is not one:
            raise UserError(
                f"{setting}: {other.name} and {one.name} would both be filtered into {stem(one.name)}.png. Rename one."
            )


def disturb(config: CompareConfig, pictures: Sequence[Picture]) -> list[dict[str, str]]:
    """Write the missing images of all filters; returns rows of REJECTED."""
    import ray

    root = Store(storage.absolute(config.output))
    labels = [{FILE: f"{stem(one.name)}.png", CLASS: one.label} for one in pictures if one.label]
    for name in config.filters if labels else ():
        if name != NONE:
            write_manifest(root.uri("images", label(config, name)), labels)
    there = {entry.name for entry in storage.listing(root.uri("images"), (".png",))}
    todo: Any = []
    for name, strength in config.filters.items():
        about = {"filter": name, "strength": float(strength), "seed": config.seed}
        for one, target in zip(pictures, images_of(config, name, pictures), strict=True):
            if name != NONE and f"{label(config, name)}/{stem(one.name)}.png" not in there:
                todo.append({"uri": one.uri, "target": target, **about})
    if not todo:
        return []
    set_context()
    stage = fitted({}, {"disturb": config.disturb}, config.autoscaling)["disturb"]
    rows = ray.data.from_items(todo, override_num_blocks=-(-len(todo) // stage.batch_size))
    apply: Any = disturb_files
    rows = rows.map_batches(apply, batch_size=stage.batch_size, **ray_task(stage))
    found = []
    for row in rows_of(rows):
        if row["error"]:
            name = PurePosixPath(row["uri"]).name
            about = {"image": name, "uri": row["uri"], "filter": row["filter"]}
            found.append({**about, "code": row["error"], "message": row["message"]})
    return found


@dataclass(frozen=True)
class ComparePlan:
    """What a comparison has to do."""

    pictures: list[Picture]
    validation: list[Picture]
    lessons: list[ModelRun]
    """Runs on validation images, from which fusions are trained."""
    runs: list[ModelRun]
    """Runs on the images, fusions after their models."""


def plan_compare(config: CompareConfig) -> ComparePlan:
    """Find the images and check the settings of all models; raises UserError for what cannot work."""
    pictures = find_pictures(config.input, "input")
    others = find_pictures(config.validation, "validation") if config.validation else []
    for setting, some in (("input", pictures), ("validation", others)):
        check_filtered_names(some, setting)
    if both := {one.uri for one in pictures} & {one.uri for one in others}:
        raise UserError(f"validation: {min(both)} is in input too. Use other images for validation.")
    lessons = _runs(teaching(config), others, []) if others else []
    runs = _runs(config, pictures, lessons)
    check_all([*lessons, *runs])
    return ComparePlan(pictures, others, lessons, runs)


def _runs(config: CompareConfig, pictures: list[Picture], lessons: Sequence[ModelRun]) -> list[ModelRun]:
    """All runs of a comparison, fusions last; lessons: runs on validation images."""
    store = Store(storage.absolute(config.output))
    made: dict[tuple[str, str], ModelRun] = {}
    swept: list[ModelRun] = []
    for (name, model), filter_ in itertools.product(sorted(config.models.items(), key=_turn), config.filters):
        folder = store.uri("results", name, label(config, filter_))
        images = images_of(config, filter_, pictures)
        try:
            if isinstance(model, FusionModel):
                run = _fusion(model, name, {one: made[one, filter_] for one in model.settings.models}, folder, lessons)
            else:
                if by := preselecting(model):
                    model = _preselected(model, made[by, filter_])
                run = run_of(model, images, folder, store.uri("vectors", name))
            run = replace(run, model=name, filter=filter_)
            if name == config.alpha_model and filter_ == NONE:
                swept = [_with_alpha(model, run, alpha, images, store) for alpha in config.alphas]
        except UserError as error:
            raise UserError(f"models.{name}.settings: {error}") from error
        made[name, filter_] = run
    return [*made.values(), *swept]


def _turn(model: tuple[str, Single | FusionModel]) -> int:
    """Models that others depend on come first."""
    return ("clip", "faces", "diffusion", "fusion").index(model[1].by)


def _fusion(
    model: FusionModel, name: str, given: dict[str, ModelRun], folder: str, lessons: Sequence[ModelRun]
) -> ModelRun:
    settings, sources = model.settings, {}
    for one, run in given.items():
        taught = [lesson.folder for lesson in lessons if lesson.model == one] if learns(model) else []
        sources[one] = Source(run.folder, run.clip_csv, settings.weights.get(one, 1.0), taught or "")
    return ModelRun(name, "", FuseConfig(sources, folder, settings.by, settings.avg), folder, True)


def _preselected(model: Single, by: ModelRun) -> DiffusionModel:
    assert isinstance(model, DiffusionModel)
    chosen = replace(model.settings.preselect, folder=by.folder, clip_csv=by.clip_csv)
    return replace(model, settings=replace(model.settings, preselect=chosen))


def _with_alpha(model: Single | FusionModel, run: ModelRun, alpha: float, images: list[str], store: Store) -> ModelRun:
    """The run with another alpha, in a folder of its own; the run itself where it has this alpha."""
    assert isinstance(model, DiffusionModel)
    if alpha == model.settings.alpha:
        return replace(run, alpha=alpha)
    other = replace(model, settings=replace(model.settings, alpha=alpha))
    swept = run_of(other, images, store.uri("results", run.model, f"alpha_{alpha:g}"))
    return replace(swept, model=run.model, filter=NONE, alpha=alpha)


@dataclass(frozen=True)
class Compared:
    """What a comparison did and found."""

    comparison: Comparison
    weights: dict[str, dict[str, float]]
    """Weights of the models of each fusion."""
    images: int
    """Images, those for validation included."""
    rejected: dict[str, int]
    """Images that could not be read, by code."""


def run_compare(config: CompareConfig, plan: ComparePlan) -> Compared:
    """Filter the images, run all models, and write the tables and rejected/; Ray is running."""
    lost = disturb(config, plan.pictures)
    lost += disturb(teaching(config), plan.validation) if plan.validation else []
    store = Store(config.output)
    store.replace_table("rejected", [pa.Table.from_pylist(lost, REJECTED)] if lost else [])
    weights = run_all([*plan.lessons, *plan.runs])
    # A broken image counts once, whatever the number of filters.
    codes = Counter({row["uri"]: row["code"] for row in lost}.values())
    count = len(plan.pictures) + len(plan.validation)
    return Compared(compare(config, plan.runs, plan.pictures), weights, count, dict(codes))


# ------------------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Comparison:
    """The accuracy of models."""

    accuracy: pd.DataFrame
    """A row per model and filter: model, filter, strength, images, unanswered, accuracy, low, high; in 0..1."""
    mcnemar: pd.DataFrame
    """A row per filter and pair: filter, first, second, only_first, only_second (images that only one has right), p."""
    topk: pd.DataFrame
    """Images as they are, or through the first filter: model, k, accuracy, low, high; in 0..1. The accuracy is the
    unweighted mean over true classes."""
    alpha: pd.DataFrame
    """A row per value: alpha, accuracy, low, high."""


def compare(config: CompareConfig, runs: Sequence[ModelRun], pictures: Sequence[Picture]) -> Comparison:
    """Compare existing results, and write accuracy.csv, mcnemar.csv, topk.csv and alpha.csv."""
    import pandas as pd

    truth = {stem(one.name): one.cls for one in pictures}
    found = {(run.model, run.filter, run.alpha): read_results(run.folder, run.clip_csv) for run in runs}
    right = {what: rightly(results, truth) for what, results in found.items()}
    rows, swept = [], []
    for (model, name, alpha), hits in right.items():
        mean = float(hits.hit.mean())
        low, high = wilson(mean, len(hits))
        if alpha is not None:
            swept.append([alpha, mean, low, high])
        else:
            unanswered = int((~hits.answered).sum())
            rows.append([model, name, config.filters[name], len(truth), unanswered, mean, low, high])
    columns = ["model", "filter", "strength", "images", "unanswered", "accuracy", "low", "high"]
    tests = [
        [name, first, second, *mcnemar(right[first, name, None].hit, right[second, name, None].hit)]
        for name in config.filters
        for first, second in itertools.combinations(config.models, 2)
    ]
    first_filter = NONE if NONE in config.filters else next(iter(config.filters))
    ks = range(1, config.k_range + 1)
    curves = {model: topk_curve(found[model, first_filter, None], ks) for model in config.models}
    compared = Comparison(
        pd.DataFrame(rows, columns=columns),
        pd.DataFrame(tests, columns=["filter", "first", "second", "only_first", "only_second", "p"]),
        pd.concat(curves, names=["model"]).reset_index("model").reset_index(drop=True),
        pd.DataFrame(swept, columns=["alpha", "accuracy", "low", "high"]).sort_values("alpha"),
    )
    store = Store(config.output)
    for name in ("accuracy", "mcnemar", "topk", "alpha"):
        write_csv(store.uri(f"{name}.csv"), getattr(compared, name))
    return compared


def rightly(results: Results, truth: Mapping[str, str]) -> pd.DataFrame:
    """By image name without suffix: hit (whether the best answer is right) and answered.

    truth: classes by such names.
    """
    import pandas as pd

    best = answers(by_class(results))
    found = {stem(image): answer for image, answer in best[best != NO_ANSWER].items()}
    hits = [name in found and key(found[name]) == key(cls) for name, cls in truth.items()]
    return pd.DataFrame({"hit": hits, "answered": [name in found for name in truth]}, list(truth))


def mcnemar(first: pd.Series, second: pd.Series) -> tuple[int, int, float]:
    """Images that only the first, or only the second has right, and the two-sided p that they are equally many."""
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return one, other, float(binomtest(one, one + other).pvalue) if one + other else 1.0
