"""Which model knows characters best, and what red light, darkness, blur and occlusion cost each.

All models see the same images, undisturbed and through each filter. An image without an answer, as one in which no face
is found, is answered wrongly.

accuracy  share of images whose best answer is right; 95 % by the percentile bootstrap over images
p         McNemar's exact test of two models on the same images: of those that only one of them answers rightly, are as
          many the one's as the other's? (McNemar 1947; the binomial distribution)
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
from scipy.stats import binomtest

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.disturbances import FILTERS, disturb_files
from actors.movie_characters.faces import check_faces
from actors.movie_characters.names import Picture, class_of, key, stem
from pipelines.core.ray_data import fitted, ray_task, set_context
from pipelines.movie_characters.fuse import FuseConfig, fuse
from pipelines.movie_characters.identify_gallery import ClipConfig, FaceConfig, identify, plan_identification
from pipelines.movie_characters.metrics import answers, topk_curve
from pipelines.movie_characters.results import Results, by_class, read_results, write_csv

log = logging.getLogger(__name__)

NONE = "none"
"""The images as they are."""
REJECTED = pa.schema([(name, pa.string()) for name in ("image", "uri", "filter", "code", "message")])
"""One row for each image that could not be disturbed."""


@dataclass(frozen=True)
class Model:
    """A model that takes part."""

    by: Literal["clip", "faces", "diffusion", "fusion"]
    """Which verb answers: identify-clip, identify-faces, identify-diffusion, or fuse."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its settings, without images and outputs. Of a fusion: models, a list of names, by, and weights of some of them.
    Of diffusion preselect.model names a model by clip or faces, whose results of the same images then preselect."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `compare`."""

    image_list: str | list[str]
    """Images CLASS_NUMBER to identify: a folder, a .txt that lists one a line, one image, or several of these."""
    output: str
    """Where disturbed images, results, tables and the page go."""
    models: dict[str, Model]
    """By a name of your own, as in models.clip.by=clip models.clip.settings.input_dir=gallery."""
    filters: dict[str, float] = field(
        default_factory=lambda: {NONE: 0.0, "red": 0.8, "dark": 0.8, "blur": 0.2, "occlusion": 0.25}
    )
    """Strength of each filter, 0..1; none is the images as they are."""
    validation: str | list[str] = ""
    """Other images of the same characters. What models answer of them, through the same filters, teaches each fusion
    without weights of its own how much each model counts: one set of weights, for images of whichever filter."""
    k_range: int = 5
    """Top-k curves run from 1 to this."""
    alpha_model: str = ""
    """A diffusion model whose alpha is varied."""
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """Values of its alpha."""
    resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    """Of bootstrap and occlusion."""
    disturb: Stage = field(default_factory=lambda: Stage(workers=0, batch_size=16))
    """Disturbing images."""
    autoscaling: bool = False
    """The cluster grows by what is asked for, so that pools need not fit it now."""

    def __post_init__(self) -> None:
        if other := set(self.filters) - {NONE, *FILTERS}:
            raise UserError(f"filters: there is no {', '.join(sorted(other))}; there are {NONE}, {', '.join(FILTERS)}")
        if not self.filters or not all(0 <= strength <= 1 for strength in self.filters.values()):
            raise UserError(f"filters: strengths lie in 0..1, and one is needed: {self.filters}")
        if not self.models or self.k_range < 1 or self.resamples < 1:
            raise UserError("models: one or more are needed; k_range and resamples start at 1")
        for name, model in self.models.items():
            if model.by == "fusion":
                bad = [one for one in model.settings.get("models", ()) if self.models.get(one, model).by == "fusion"]
                if bad or len(model.settings.get("models", ())) < 2:
                    raise UserError(f"models.{name}.settings.models lists two or more other models that are no fusions")
            by = preselecting(model)
            if by and self.models.get(by, model).by not in ("clip", "faces"):
                raise UserError(
                    f"models.{name}.settings.preselect.model={by}: there is no model by clip or faces named so"
                )
        if self.validation and not any(map(learns, self.models.values())):
            raise UserError("validation: it teaches fusions without weights, and there is none")
        if self.alpha_model and self.models.get(self.alpha_model, Model("clip")).by != "diffusion":
            raise UserError(f"alpha_model={self.alpha_model}: there is no diffusion model of that name")


def preselecting(model: Model) -> str:
    """The name of the model that says which classes this one is asked about; "" where there is none."""
    given = model.settings.get("preselect") if model.by == "diffusion" else None
    return str(given.get("model", "")) if isinstance(given, dict) else ""


def learns(model: Model) -> bool:
    """Whether it is a fusion whose weights validation images may teach."""
    return model.by == "fusion" and not model.settings.get("weights")


def teaching(config: CompareConfig) -> CompareConfig:
    """What is asked about the validation images: the models of all fusions that learn, with who preselects for them."""
    names = {name for model in config.models.values() if learns(model) for name in model.settings["models"]}
    names |= {preselecting(config.models[name]) for name in names}
    return replace(
        config,
        image_list=config.validation,
        output=f"{config.output.rstrip('/')}/validation",
        validation="",
        models={name: model for name, model in config.models.items() if name in names},
        alpha_model="",
    )


@dataclass(frozen=True)
class Run:
    """One model on the images of one filter."""

    model: str
    filter: str
    config: Any
    """Settings of its verb."""
    folder: str
    """Where its results lie."""
    clip_csv: bool
    alpha: float | None = None
    """Of a run that only serves the sweep of alpha."""


def label(config: CompareConfig, name: str) -> str:
    """A filter as it stands in paths: with all that its images depend on."""
    if name == NONE:
        return NONE
    return f"{name}_{config.filters[name]:g}" + (f"_{config.seed}" if name == "occlusion" else "")


def images_of(config: CompareConfig, name: str, pictures: Sequence[Picture]) -> list[str]:
    """Where the images of a filter are."""
    if name == NONE:
        return [one.uri for one in pictures]
    root = Store(storage.absolute(config.output))
    return [root.uri("images", label(config, name), f"{stem(one.name)}.png") for one in pictures]


def disturb(config: CompareConfig, pictures: Sequence[Picture]) -> list[dict[str, str]]:
    """Write the images of all filters that are not there; returns rows of REJECTED."""
    root = Store(storage.absolute(config.output))
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
    for row in rows.iter_rows():
        if row["error"]:
            name = PurePosixPath(row["uri"]).name
            about = {"image": name, "uri": row["uri"], "filter": row["filter"]}
            found.append({**about, "code": row["error"], "message": row["message"]})
    return found


def check_all(runs: Sequence[Run]) -> None:
    """Raise UserError where a model cannot run, before anything else is done."""
    for run in runs:
        if isinstance(run.config, FaceConfig):
            check_faces()
        elif not isinstance(run.config, ClipConfig | FuseConfig):
            from pipelines.movie_characters.identify_diffusion import check_identify

            check_identify(run.config)


def run_all(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Identify by each model, in their order; what several of them share is asked once. Returns weights of fusions."""
    done: set[str] = set()
    weights: dict[str, dict[str, float]] = {}
    for number, run in enumerate(runs, 1):
        if run.folder in done:
            continue
        done.add(run.folder)
        log.info("%d of %d: %s, %s", number, len(runs), run.model, run.filter)
        if isinstance(run.config, ClipConfig | FaceConfig):
            identify(run.config, plan_identification(run.config))
        elif isinstance(run.config, FuseConfig):
            weights[run.model] = fuse(run.config).weights
        else:
            from pipelines.movie_characters.identify_diffusion import identify as ask
            from pipelines.movie_characters.identify_diffusion import plan_identify

            ask(run.config, plan_identify(run.config))
    return weights


# ------------------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True)
class Comparison:
    """What models are worth."""

    accuracy: pd.DataFrame
    """A row a model and filter: model, filter, strength, images, unanswered, accuracy, low, high; in 0..1."""
    mcnemar: pd.DataFrame
    """A row a filter and pair: filter, first, second, only_first, only_second (images that only one has right), p."""
    topk: pd.DataFrame
    """Undisturbed, or through the first filter: a row a model, a column a k, percent."""
    alpha: pd.DataFrame
    """A row a value: alpha, accuracy, low, high."""


def compare(config: CompareConfig, runs: Sequence[Run], pictures: Sequence[Picture]) -> Comparison:
    """Compare results that are there, and write accuracy.csv, mcnemar.csv, topk.csv and alpha.csv."""
    names = [stem(one.name) for one in pictures]
    found = {(run.model, run.filter, run.alpha): read_results(run.folder, run.clip_csv) for run in runs}
    right = {what: rightly(results, names) for what, results in found.items()}
    rows, swept = [], []
    for (model, name, alpha), hits in right.items():
        mean, low, high = accuracy(hits.hit, config.resamples, config.seed)
        if alpha is not None:
            swept.append([alpha, mean, low, high])
        else:
            unanswered = int((~hits.answered).sum())
            rows.append([model, name, config.filters[name], len(names), unanswered, mean, low, high])
    columns = ["model", "filter", "strength", "images", "unanswered", "accuracy", "low", "high"]
    tests = [
        [name, first, second, *mcnemar(right[first, name, None].hit, right[second, name, None].hit)]
        for name in config.filters
        for first, second in itertools.combinations(config.models, 2)
    ]
    first_filter = NONE if NONE in config.filters else next(iter(config.filters))
    curves = {
        model: topk_curve(found[model, first_filter, None], range(1, config.k_range + 1)) for model in config.models
    }
    compared = Comparison(
        pd.DataFrame(rows, columns=columns),
        pd.DataFrame(tests, columns=["filter", "first", "second", "only_first", "only_second", "p"]),
        pd.DataFrame(curves).T.rename_axis("model"),
        pd.DataFrame(swept, columns=["alpha", "accuracy", "low", "high"]).sort_values("alpha"),
    )
    store = Store(config.output)
    for name in ("accuracy", "mcnemar", "alpha"):
        write_csv(store.uri(f"{name}.csv"), getattr(compared, name))
    write_csv(store.uri("topk.csv"), compared.topk.reset_index())
    return compared


def rightly(results: Results, names: Sequence[str]) -> pd.DataFrame:
    """Of images by their names without suffix: hit, whether the best answer is right, and answered."""
    best = answers(by_class(results))
    found = {stem(image): answer for image, answer in best.items()}
    hits = [name in found and key(found[name]) == key(class_of(name)) for name in names]
    return pd.DataFrame({"hit": hits, "answered": [name in found for name in names]}, list(names))


def accuracy(hits: pd.Series, resamples: int, seed: int) -> tuple[float, float, float]:
    """Share of what is right, and its interval."""
    count = len(hits)
    random = np.random.default_rng(seed)
    # The mean of a draw of 0s and 1s is a binomial number.
    drawn = random.binomial(count, hits.mean(), resamples) / count
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(hits.mean()), float(low), float(high)


def mcnemar(first: pd.Series, second: pd.Series) -> tuple[int, int, float]:
    """Images that only the first, or only the second has right, and the two-sided p that they are equally many."""
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return one, other, float(binomtest(one, one + other).pvalue) if one + other else 1.0
