"""Which character an image shows, by diffusion: one row per image and identity, resumed by these.

The folder of a mode (`Imagic_pipeline`, `SD_pipeline`, `SD_embeds_cat_avg`, `Imagic_pipeline_cat_avg`) holds

    CLASS_results.csv     for each image of that true class the identities, most likely first
    CLASS_certainty.csv   for each of them the answer, its certainty, the evaluations of the network that it took, how
                          many identities were evaluated, and device and precision
    answers/              Parquet: the losses of all evaluated pairs; resume reads these
    rejected/             Parquet: images without an answer, and why

With a preselection only the classes that another model ranks best are evaluated, image by image. The others follow in
the results, in that model's order and with losses just above the greatest evaluated one: an identity without a row
could never be an answer.
"""

import hashlib
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from actors.core import storage
from actors.core.computed import COMPUTED, mixed
from actors.core.errors import UserError, check_all
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.answers import ANSWERS, race_digest, write_answers
from actors.movie_characters.bases import check_use
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    PipelineTexts,
    Texts,
    check_diffusion,
    embed_prompt,
    load_texts,
)
from actors.movie_characters.diffusion_classifier import (
    Answer,
    DiffusionIdentifier,
    Identity,
    QuestionConfig,
    StagesConfig,
    decide,
    looks,
)
from actors.movie_characters.diffusion_memory import holding
from actors.movie_characters.identities import Learnt, find_learnt
from actors.movie_characters.names import Picture, class_of, group_by_class
from actors.movie_characters.noise_losses import Loss, Weighting
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import fitted, ray_actors, ray_task, rows_of, set_context
from pipelines.movie_characters.certainty import CERTAIN, calibrated, in_words
from pipelines.movie_characters.pictures import Identification, find_pictures
from pipelines.movie_characters.preselect import Numbers, PreselectConfig, Preselection
from pipelines.movie_characters.results import IDENTITY, IMAGE, RESULTS, SUFFIX, write_about, write_csv

log = logging.getLogger(__name__)

CERTAINTY = (IMAGE, "answer", "p", "certainty", "p_noise", "margin", "evaluations", "asked", COMPUTED)
_TEXT = dict.fromkeys((IMAGE, IDENTITY, "answer", "certainty", COMPUTED), str)


@dataclass(frozen=True)
class DiffusionSettings:
    """How images are identified by diffusion."""

    ALIASES: ClassVar[dict[str, Any]] = {"num_gpus": "diffusion.num_gpus"}

    imagic_pretrained_path: str
    """The folder of the identities CLASS_NUMBER/, the output of `personalise`: a path or s3://."""
    sd_model_name: str = "CompVis/stable-diffusion-v1-4"
    """The model that the identities were trained on: a name on the Hugging Face Hub, or a folder. Where
    `personalise` recorded which one it was, another is refused."""
    clip_model_name: str | None = None
    """A text encoder in place of a StableDiffusion's own. It embeds the prompts of identities without a stored
    embedding."""
    category_class: bool = False
    """Identify classes instead of identities: by the mean of the embeddings of a class's identities or, with
    imagic_pipe, by the mean of the losses of its identities, each with its own UNet."""
    imagic_pipe: bool = False
    """Evaluate each identity with its own UNet or LoRA; false evaluates all with the base model."""
    alpha: float = 0.0
    """In 0..1. The condition is alpha · embedding of the prompt + (1 - alpha) · trained embedding."""
    seed: int = 0
    """Seed of the noise, which is the same for all images and identities."""
    height: int | None = None
    """Height in pixels to which images are scaled and cropped in the middle, a multiple of 8; null: resolution."""
    width: int | None = None
    """Width in pixels to which images are scaled and cropped in the middle, a multiple of 8; null: resolution."""
    resolution: int = 512
    """Height and width in pixels where these are not given."""
    num_inference_steps: int = 50
    """Number of evenly spaced timesteps, from which those of the evaluations are taken; 1..1000."""
    method: Literal["staged", "full"] = "staged"
    """staged: identities are eliminated early, at about an eighth of the cost; full: every identity at every timestep,
    with one noise, as the reference system does."""
    stages: StagesConfig = field(default_factory=StagesConfig)
    """When identities are eliminated, for method=staged."""
    preselect: PreselectConfig = field(default_factory=PreselectConfig)
    """Evaluate only the classes that another model ranks best for an image."""
    loss: Loss = "l2"
    """Loss of the predicted noise or velocity: squared difference, absolute difference, or Huber's with a delta
    of 1."""
    weighting: Weighting = "uniform"
    """Weights of timesteps in the mean loss: equal, exp(-7 t) with t in 0..1, or snr, the ratio of signal to noise."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Workers and precision of the model."""
    write: Stage = field(default_factory=lambda: Stage(num_cpus=0.1, batch_size=64))
    """Tasks that write losses; batch_size is the images of one part, the most that a kill can cost."""
    autoscaling: bool = False
    """The cluster grows on demand, so worker pools need not fit its present size."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha} is outside 0..1")
        self.question()

    @property
    def mode(self) -> str:
        """Name of the folder of the results."""
        if self.imagic_pipe:
            return "Imagic_pipeline_cat_avg" if self.category_class else "Imagic_pipeline"
        return "SD_embeds_cat_avg" if self.category_class else "SD_pipeline"

    def question(self) -> QuestionConfig:
        """The part of the settings that losses depend on."""
        return QuestionConfig(
            method=self.method,
            stages=self.stages,
            loss=self.loss,
            weighting=self.weighting,
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            height=self.height or self.resolution,
            width=self.width or self.resolution,
        )


@dataclass(frozen=True)
class IdentifyConfig(DiffusionSettings, Identification):
    """Settings of `identify-diffusion`."""

    ALIASES: ClassVar[dict[str, Any]] = {
        **DiffusionSettings.ALIASES,
        "image_list": "input",
        "csv_folder": "output",
    }


@dataclass(frozen=True)
class Plan:
    """What a run has to evaluate."""

    pictures: list[Picture]
    identities: list[Identity]
    digests: list[str]
    """Digest per identity of all that its losses depend on, except which other identities take part."""
    preselection: Preselection | None
    chosen: dict[str, Numbers]
    """By picture: the identities that are evaluated."""
    missing: dict[str, Numbers]
    """By picture without an answer: the identities that are left to evaluate."""

    @property
    def pairs(self) -> int:
        """Pairs of a picture and an identity that are left to evaluate."""
        return sum(map(len, self.missing.values()))

    def cost(self, numbers: Iterable[int]) -> int:
        """Evaluations of the network for these identities at one pair of timestep and noise."""
        return sum(len(self.identities[number].parts) for number in numbers)


def check_identify(config: DiffusionSettings) -> list[Learnt]:
    """Find the identities; raises UserError where model or extra is missing, or the mode needs what they lack."""
    learnt, family = check_all(
        partial(find_learnt, config.imagic_pretrained_path, "imagic_pretrained_path"),
        partial(check_diffusion, config.sd_model_name, "sd_model_name"),
    )
    question = config.question()
    about = config.sd_model_name, family, config.clip_model_name
    check_use(learnt, *about, height=question.height, width=question.width)
    if config.imagic_pipe and (bare := [one.name for one in learnt if not (one.lora or one.unet)]):
        raise UserError(
            f"imagic_pipe: {len(bare)} identities have neither a LoRA nor a UNet, such as {bare[0]}: they were trained "
            "by textual inversion. Set imagic_pipe=false."
        )
    for one in learnt:
        one.check(config.alpha)
    return learnt


def plan_identify(config: IdentifyConfig) -> Plan:
    """Find pictures, identities and what is missing; raises UserError for what cannot work."""
    find = partial(find_pictures, config.input, "input", labelled=False)
    pictures, learnt = check_all(find, partial(check_identify, config))
    identities, weights = conditions(config, learnt)
    digests = _digests(config, identities, weights)
    classes = list(classes_of(config, identities).values())
    preselection = Preselection(config.preselect, classes) if config.preselect.folder else None
    chosen: dict[str, Numbers] = {picture.name: range(len(identities)) for picture in pictures}
    if preselection:
        chosen = {name: preselection.best(name) for name in chosen}
    answered = _answered(config, identities, digests, chosen)
    missing: dict[str, Numbers] = {}
    for name, asked in chosen.items():
        lacks = tuple(number for number in asked if number not in answered[name])
        if lacks:
            # Which identities are eliminated depends on all that take part.
            missing[name] = lacks if config.method == "full" else asked
    return Plan(pictures, identities, digests, preselection, chosen, missing)


def conditions(config: DiffusionSettings, learnt: list[Learnt]) -> tuple[list[Identity], list[str]]:
    """The identities as the mode has them, and for each a digest of its own weights, "" where it has none."""
    texts: list[Texts | PipelineTexts] = []

    def embed(prompt: str) -> np.ndarray:
        if not texts:
            texts.append(load_texts(config.sd_model_name, config.clip_model_name))
        return embed_prompt(texts[0], prompt)[0].numpy()

    single = [_identity(one, one.blend(config.alpha, embed), config.imagic_pipe) for one in learnt]
    weights = [one.weights if config.imagic_pipe else "" for one in learnt]
    if not config.category_class:
        return single, weights
    made = {one.name: (one, own) for one, own in zip(single, weights, strict=True)}
    means, digests = [], []
    for of, names in sorted(group_by_class(list(made)).items()):
        means.append(_mean(of, [made[name][0] for name in names], config.imagic_pipe))
        digests.append("\0".join(made[name][1] for name in names) if config.imagic_pipe else "")
    return means, digests


def classes_of(config: DiffusionSettings, identities: Sequence[Identity]) -> dict[str, str]:
    """The class of each identity by its name, as of images; itself where identities stand for classes."""
    return {one.name: one.name if config.category_class else class_of(one.name) for one in identities}


def _identity(learnt: Learnt, condition: np.ndarray, own_unet: bool) -> Identity:
    if not own_unet:
        return Identity(learnt.name, condition, base=learnt.base)
    return Identity(learnt.name, condition, "" if learnt.unet else learnt.lora, learnt.unet, learnt.base)


def _mean(of: str, members: list[Identity], by_loss: bool) -> Identity:
    """A class as one identity: the mean embedding of its members or, by_loss, the mean of their losses."""
    condition = np.stack([one.condition for one in members]).mean(0)
    return Identity(of, condition, base=members[0].base, members=tuple(members) if by_loss else ())


def _digests(config: DiffusionSettings, identities: list[Identity], weights: list[str]) -> list[str]:
    asked = {
        "model": config.sd_model_name,
        "question": asdict(replace(config.question(), stages=config.stages)),
        "dtype": config.diffusion.dtype,
        "gpu": config.diffusion.num_gpus > 0,
        **({"compile": True} if config.diffusion.compile else {}),
    }
    base = json.dumps(asked, sort_keys=True)
    return [
        hashlib.sha256(
            b"".join(part.condition.tobytes() for part in one.parts) + f"{one.name}\0{own}\0{base}".encode()
        ).hexdigest()
        for one, own in zip(identities, weights, strict=True)
    ]


def _store(config: IdentifyConfig) -> Store:
    return Store(storage.join(storage.absolute(config.output), config.mode))


def _answered(
    config: IdentifyConfig, identities: Sequence[Identity], digests: Sequence[str], chosen: dict[str, Numbers]
) -> dict[str, dict[int, np.ndarray]]:
    """Stored losses of the identities that are evaluated, by picture and number of the identity."""
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    numbers = {one.name: number for number, one in enumerate(identities)}
    races = {some: race_digest(digests, some) for some in set(chosen.values())} if config.method == "staged" else {}
    for part in _store(config).read_parts("answers", ANSWERS.names):
        losses = part["losses"].combine_chunks()
        for row, (image, identity, question) in enumerate(
            zip(*(part[name].to_pylist() for name in ANSWERS.names[:3]), strict=True)
        ):
            number, asked = numbers.get(identity), chosen.get(image, ())
            if number is not None and number in asked and question == races.get(asked, digests[number]):
                found[image][number] = losses[row].values.to_numpy()
    return found


def stages_of(config: DiffusionSettings) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages, by name."""
    about = config.sd_model_name, config.question().height * config.question().width
    return {"diffusion": holding(config.diffusion, *about)}, {"write": config.write}


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    answered: int
    """Pictures with an answer."""
    rejected: Counter[str]
    """Pictures without an answer, by code."""
    evaluations: int
    """Evaluations of the network for all answers."""
    of_full: int
    """Evaluations that every identity at every one of the evenly spaced timesteps takes."""
    certain: int
    """Answers with a p of at most 0.05, judged by the other images."""
    judged: int
    """Answers whose certainty can be stated."""
    preselected: int = 0
    """Pictures for which the preselection left identities out."""
    saved: int = 0
    """Least number of evaluations of the network that the preselection saved: those that no identity can do without."""
    notes: list[str] = field(default_factory=list)
    """Which losses are not comparable, in sentences."""


def identify(config: IdentifyConfig, plan: Plan) -> Outcome:
    """Evaluate what is missing, and write the tables."""
    store = _store(config)
    bad = list(_evaluate(config, plan)) if plan.missing else []
    store.replace_table("rejected", [pa.Table.from_pylist(bad, ANSWERS).drop_columns(["identity", "losses"])])
    answered = _answered(config, plan.identities, plan.digests, plan.chosen)
    # One that can no longer be read may have answers of some identities.
    sound = [name for name, asked in plan.chosen.items() if len(answered[name]) == len(asked)]
    looked = len(looks(config.stages)) if config.method == "staged" else 1
    answers = {name: _decided(answered[name], name, plan, looked) for name in sound}
    p = _calibrated(answered, answers, plan)
    computed = _write_tables(store, answers, p, plan, config.diffusion.computed)
    silent = [picture.name for picture in plan.pictures if picture.name not in answers]
    classes = classes_of(config, plan.identities)
    write_about(store.root, f"diffusion, {config.mode}", False, answers, silent, classes)
    every = plan.cost(range(len(plan.identities)))
    left_out = [every - plan.cost(plan.chosen[name]) for name in answers]
    each = config.num_inference_steps if config.method == "full" else config.stages.samples[0]
    return Outcome(
        len(answers),
        Counter(row["error"] for row in bad),
        sum(answer.evaluations for answer in answers.values()),
        config.num_inference_steps * every * len(answers),
        sum(one <= CERTAIN for one in p.values()),
        sum(np.isfinite(one) for one in p.values()),
        sum(count > 0 for count in left_out),
        sum(left_out) * each,
        mixed(computed, "losses", "images", "To evaluate all on one device, identify all images again there."),
    )


def _evaluate(config: IdentifyConfig, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield a row of ANSWERS for each picture without an answer."""
    import ray

    set_context()
    stages = fitted(*stages_of(config), config.autoscaling)
    stage: Any = stages["diffusion"]
    where = {picture.name: picture.uri for picture in plan.pictures}
    todo = [{"name": name, "image": where[name], "missing": list(lacks)} for name, lacks in plan.missing.items()]
    # Few images are spread over all workers.
    size = min(stage.rows_per_call, -(-len(todo) // stage.workers))
    blocks = -(-len(todo) // size)
    rows = ray.data.from_items(todo, override_num_blocks=blocks)
    about = [config.sd_model_name, stage, config.question(), plan.identities]
    actors = ray_actors(stage, inputs=blocks)
    rows = rows.map_batches(DiffusionIdentifier, fn_constructor_args=about, batch_size=size, **actors)
    names, staged = [one.name for one in plan.identities], config.method == "staged"
    write: Any = partial(write_answers, root=_store(config).root, identities=names, digests=plan.digests, staged=staged)
    rows = rows.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))
    progress = Progress("identify", len(todo), "images")
    for row in tracked(rows_of(rows), progress, lambda row: row["pictures"]):
        yield from json.loads(row["bad"])


def _calibrated(answered: dict[str, dict[int, np.ndarray]], answers: dict[str, Answer], plan: Plan) -> dict[str, float]:
    """The p of each answer, judged by the other images; NaN where none can be stated.

    Over the pairs that all identities had in all images: what is typical of an identity depends on the timesteps, so
    that it is not the same over the few pairs of one that was eliminated and the many of another.
    """
    shared = min((len(row) for name in answers for row in answered[name].values()), default=0)
    losses = np.full((len(answers), len(plan.identities)), np.nan)
    for row, name in enumerate(answers):
        for number, found in answered[name].items():
            losses[row, number] = found[:shared].astype(np.float64).mean()
    p = calibrated(losses, [answer.best for answer in answers.values()])
    return dict(zip(answers, p.tolist(), strict=True))


def _decided(found: dict[int, np.ndarray], picture: str, plan: Plan, looked: int) -> Answer:
    """The answer for a picture, with losses of all identities: also of those that the preselection left out."""
    asked = list(plan.chosen[picture])
    spent = np.full((len(asked), max(map(len, found.values()))), np.nan)
    for row, number in enumerate(asked):
        spent[row, : len(found[number])] = found[number]
    cost = sum(len(row) * plan.cost([number]) for number, row in found.items())
    answer = replace(decide(spent, looked), evaluations=cost)
    scores = plan.preselection.scores(picture) if plan.preselection else None
    if scores is None:
        return answer
    losses = np.empty(len(scores))
    losses[asked] = answer.losses
    order = np.argsort(-scores, kind="stable")
    others = order[~np.isin(order, asked)]
    # Far enough from each other to be read from a text in their order.
    losses[others] = answer.losses.max() * (1 + 1e-9 * np.arange(1, len(others) + 1))
    return replace(answer, losses=losses, best=asked[answer.best])


def _write_tables(
    store: Store, answers: dict[str, Answer], p: dict[str, float], plan: Plan, computed: str
) -> Counter[str]:
    """Write the tables of each class; rows of other pictures stay. Returns images by what they were computed on."""
    import pandas as pd

    counts: Counter[str] = Counter()
    identities = [one.name for one in plan.identities]
    for cls, names in group_by_class(list(answers)).items():
        own = [(name, answers[name]) for name in sorted(names)]
        fits = [
            (name, identities[number], float(answer.losses[number]))
            for name, answer in own
            for number in answer.losses.argsort(kind="stable")
        ]
        words = in_words(np.array([p[name] for name, _ in own]))
        sure = [
            (
                name,
                identities[one.best],
                p[name],
                said,
                one.p_noise,
                one.margin,
                one.evaluations,
                len(plan.chosen[name]),
                computed,
            )
            for (name, one), said in zip(own, words, strict=True)
        ]
        for rows, columns, suffix in ((fits, RESULTS, SUFFIX), (sure, CERTAINTY, "_certainty.csv")):
            table, uri = pd.DataFrame(rows, columns=list(columns)), store.uri(f"{cls}{suffix}")
            if storage.exists(uri):
                data = io.BytesIO(storage.read_bytes(uri))
                # Characters may be named 007 or None.
                before = pd.read_csv(data, dtype=_TEXT, keep_default_na=False, na_values=[""])
                if columns is CERTAINTY and "certainty" not in before:
                    # Of an earlier version, whose p was over the noise of one image.
                    before["p"] = np.nan
                table = pd.concat([before[~before[IMAGE].isin(names)], table])[list(columns)]
            write_csv(uri, table.sort_values(IMAGE, kind="stable"))
            if columns is CERTAINTY:
                counts.update(table[COMPUTED].dropna())
    return counts
