"""Who is in a picture, by diffusion: one row for every picture and identity, resumed by these.

The folder of a mode (`Imagic_pipeline`, `SD_pipeline`, `SD_embeds_cat_avg`) holds

    <class>_results.csv   for each picture of that true class the identities, the likeliest first
    <class>_certainty.csv for each of them the answer, how sure it is, the evaluations of the UNet that it took, and how
                          many identities were asked
    answers/              Parquet: the losses of all pairs that were spent; what resume reads
    rejected/             Parquet: pictures that have no answer, and why

With a preselection only the classes that another model ranks best are asked about, picture by picture. The others stand
behind those in the results, in that model's order and with losses just above the greatest of who was asked: who had no
rows would be nobody that can be answered.
"""

import hashlib
import io
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import ray

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Batch, Stage
from actors.core.store import Store
from actors.movie_characters.diffusion import (
    DiffusionConfig,
    Loss,
    Texts,
    Weighting,
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
)
from actors.movie_characters.identities import Learnt, find_learnt
from actors.movie_characters.names import Picture, group_by_class, identity_class, key, stem
from pipelines.core.progress import Ticker
from pipelines.core.ray_data import fitted, ray_actors, ray_task, set_context
from pipelines.movie_characters.pictures import find_pictures
from pipelines.movie_characters.results import IMAGE, RESULTS, SUFFIX, by_class, read_results, write_csv

log = logging.getLogger(__name__)

ANSWERS = pa.schema(
    [
        ("image", pa.string()),
        ("identity", pa.string()),
        ("question", pa.string()),
        ("losses", pa.list_(pa.float32())),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""Losses of the pairs, in their order, that an identity was given; question: digest of all that they depend on. A
picture that cannot be read has one row without an identity, with the code."""
CERTAINTY = (IMAGE, "answer", "p", "margin", "evaluations", "asked")


@dataclass(frozen=True)
class PreselectConfig:
    """Another model says of each picture which classes are asked about."""

    folder: str = ""
    """Its results, a folder or s3:// with a CLASS_results.csv for every true class; none: all are asked about."""
    clip_csv: bool = True
    """They are of CLIP, faces or a fusion, the higher the better; else losses of a diffusion model."""
    best: int = 10
    """How many classes are asked about, each with all of its identities."""

    def __post_init__(self) -> None:
        if self.best < 2:
            raise UserError(f"best={self.best}: it starts at 2, since of one class there is nothing to ask")


@dataclass(frozen=True)
class IdentifyConfig:
    """Settings of `identify-diffusion`."""

    imagic_pretrained_path: str
    """The folder of the identities, <class>_<n>/, as `personalise` made it: a path or s3://."""
    csv_folder: str
    """Where the folder of the mode goes: a path or s3://."""
    image_list: str | tuple[str, ...]
    """The pictures, <class>_<n>.jpg: a folder, a .txt that lists one a line, a picture, or several of these."""
    sd_model_name: str = "CompVis/stable-diffusion-v1-4"
    """The Stable Diffusion that the identities were learnt with, by hub name or folder."""
    clip_model_name: str | None = None
    """A text encoder in place of the model's own. It embeds the prompts of identities that lack their target."""
    category_class: bool = False
    """Ask about classes: the embedding is the mean of those of a class's identities."""
    imagic_pipe: bool = False
    """Each identity with its own UNet or LoRA, not with the base UNet."""
    alpha: float = 0.0
    """Condition = alpha · target + (1 - alpha) · optimised."""
    seed: int = 0
    """Of the noise, which is the same for all pictures and identities."""
    height: int | None = None
    """Of the picture as it is cut out of the middle, a multiple of 8; none: resolution."""
    width: int | None = None
    """The same."""
    resolution: int = 512
    """Height and width where they are not given."""
    num_inference_steps: int = 50
    """How many evenly spaced timesteps there are."""
    method: Literal["staged", "full"] = "staged"
    """staged: identities leave as soon as they cannot win; full: every identity at every timestep, with one noise."""
    stages: StagesConfig = field(default_factory=StagesConfig)
    """When identities leave, of staged."""
    preselect: PreselectConfig = field(default_factory=PreselectConfig)
    """Who is asked about at all, by another model's results."""
    loss: Loss = "l2"
    """Of the noise that is found."""
    weighting: Weighting = "uniform"
    """Of timesteps: all alike, exp(-7 t) with t in 0..1, or snr, the ratio of signal to noise."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Workers and precision."""
    write: Stage = field(default_factory=lambda: Stage(num_cpus=0.1, batch_size=64))
    """Writing: batch_size is the pictures of a part, which is what a kill may cost."""
    autoscaling: bool = False
    """The cluster grows by what is asked for, so that pools need not fit it now."""

    def __post_init__(self) -> None:
        if self.category_class and self.imagic_pipe:
            raise UserError(
                "category_class with imagic_pipe: an average of embeddings has no UNet of its own; leave one of them"
            )
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha}: it lies in 0..1")
        self.question()

    @property
    def mode(self) -> str:
        """Name of the folder of the results."""
        if self.imagic_pipe:
            return "Imagic_pipeline"
        return "SD_embeds_cat_avg" if self.category_class else "SD_pipeline"

    def question(self) -> QuestionConfig:
        """What an actor is told."""
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


Numbers = range | tuple[int, ...]
"""Of identities, in their order."""


@dataclass(frozen=True)
class Plan:
    """What a run asks."""

    pictures: list[Picture]
    identities: list[Identity]
    digests: list[str]
    """Of each identity that of all that its losses depend on, but for who else takes part."""
    preselection: "Preselection | None"
    chosen: dict[str, Numbers]
    """Of each picture, by name: the identities that are asked about."""
    missing: dict[str, Numbers]
    """Of each picture that has to be asked about, by name: the identities that it lacks."""

    @property
    def pairs(self) -> int:
        """Pairs of a picture and an identity that are to be asked."""
        return sum(map(len, self.missing.values()))


def check_identify(config: IdentifyConfig) -> list[Learnt]:
    """Find the identities; raises UserError where there are none, or the model or an extra is missing."""
    check_diffusion(config.sd_model_name, "sd_model_name")
    return find_learnt(config.imagic_pretrained_path, "imagic_pretrained_path")


def plan_identify(config: IdentifyConfig) -> Plan:
    """Find pictures, identities and what is missing; raises UserError for what cannot work."""
    learnt = check_identify(config)
    given = config.image_list
    pictures = find_pictures(given if isinstance(given, str) else list(given), "image_list")
    identities, weights = conditions(config, learnt)
    digests = _digests(config, identities, weights)
    preselection = Preselection(config.preselect, identities) if config.preselect.folder else None
    chosen: dict[str, Numbers] = {picture.name: range(len(identities)) for picture in pictures}
    if preselection:
        chosen = {name: preselection.best(name) for name in chosen}
    answered = _answered(config, identities, digests, chosen)
    missing: dict[str, Numbers] = {}
    for name, asked in chosen.items():
        lacks = tuple(number for number in asked if number not in answered[name])
        if lacks:
            # In a race all take part.
            missing[name] = lacks if config.method == "full" else asked
    return Plan(pictures, identities, digests, preselection, chosen, missing)


class Preselection:
    """What another model says of pictures, by name and whatever their suffix."""

    def __init__(self, config: PreselectConfig, identities: Sequence[Identity]) -> None:
        """Read its results; raises UserError where there are none."""
        scores = by_class(read_results(config.folder, config.clip_csv))
        classes = {key(cls): column for column, cls in enumerate(scores.columns)}
        self._column = np.array([classes.get(key(identity_class(one.name)), -1) for one in identities])
        # The last column is that of classes that it does not know.
        self._scores = np.column_stack([scores.to_numpy(float), np.full(len(scores), np.nan)])
        self._row = {stem(image): row for row, image in enumerate(scores.index)}
        self._row |= {image: row for row, image in enumerate(scores.index)}
        self._count = config.best

    def scores(self, picture: str) -> np.ndarray | None:
        """Of the class of each identity, float64 (K,), NaN where nothing is said of it.

        None where something is said of fewer than two classes: then nobody can be left out.
        """
        row = self._row.get(picture, self._row.get(stem(picture)))
        if row is None:
            return None
        found = self._scores[row, self._column]
        return found if len(np.unique(self._column[np.isfinite(found)])) > 1 else None

    def best(self, picture: str) -> Numbers:
        """The identities of the best classes, or all of them."""
        scores = self.scores(picture)
        if scores is None:
            return range(len(self._column))
        order = np.argsort(-scores, kind="stable")
        known = order[np.isfinite(scores[order])]
        classes = list(dict.fromkeys(self._column[known].tolist()))[: self._count]
        return tuple(np.flatnonzero(np.isin(self._column, classes)).tolist())


def conditions(config: IdentifyConfig, learnt: list[Learnt]) -> tuple[list[Identity], list[str]]:
    """The identities as the mode has them, and what of their weights tells them from others.

    Raises ValueError where a mode needs what they lack.
    """
    texts: list[Texts] = []

    def embed(prompt: str) -> np.ndarray:
        if not texts:
            texts.append(load_texts(config.sd_model_name, config.clip_model_name))
        return embed_prompt(texts[0], prompt)[0].numpy()

    blends = {one.name: one.blend(config.alpha, embed) for one in learnt}
    if config.category_class:
        groups = group_by_class(list(blends))
        return [
            Identity(of, np.stack([blends[name] for name in names]).mean(0)) for of, names in sorted(groups.items())
        ], [""] * len(groups)
    if not config.imagic_pipe:
        return [Identity(one.name, blends[one.name]) for one in learnt], [""] * len(learnt)
    bare = [one.name for one in learnt if not (one.lora or one.unet)]
    if bare:
        raise UserError(
            f"imagic_pipe: {len(bare)} identities have neither a LoRA nor a UNet, such as {bare[0]}: they were learnt "
            "by textual inversion, which asks with imagic_pipe=false"
        )
    made = [Identity(one.name, blends[one.name], "" if one.unet else one.lora, one.unet) for one in learnt]
    return made, [one.weights for one in learnt]


def _digests(config: IdentifyConfig, identities: list[Identity], weights: list[str]) -> list[str]:
    asked = {
        "model": config.sd_model_name,
        "question": asdict(replace(config.question(), stages=config.stages)),
        "dtype": config.diffusion.dtype,
        "gpu": config.diffusion.num_gpus > 0,
        **({"compile": True} if config.diffusion.compile else {}),
    }
    base = json.dumps(asked, sort_keys=True)
    return [
        hashlib.sha256(one.condition.tobytes() + f"{one.name}\0{own}\0{base}".encode()).hexdigest()
        for one, own in zip(identities, weights, strict=True)
    ]


def _race(digests: Sequence[str], numbers: Sequence[int]) -> str:
    """Digest of a staged question: who leaves when depends on all that take part."""
    return hashlib.sha256("".join(digests[number] for number in numbers).encode()).hexdigest()


def _store(config: IdentifyConfig) -> Store:
    return Store(storage.join(storage.absolute(config.csv_folder), config.mode))


def _answered(
    config: IdentifyConfig, identities: Sequence[Identity], digests: Sequence[str], chosen: dict[str, Numbers]
) -> dict[str, dict[int, np.ndarray]]:
    """Losses that answers/ has of those who are asked about, by picture and number of the identity."""
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    numbers = {one.name: number for number, one in enumerate(identities)}
    races = {some: _race(digests, some) for some in set(chosen.values())} if config.method == "staged" else {}
    for part in _store(config).read_parts("answers", ANSWERS.names):
        losses = part["losses"].combine_chunks()
        for row, (image, identity, question) in enumerate(
            zip(*(part[name].to_pylist() for name in ANSWERS.names[:3]), strict=True)
        ):
            number, asked = numbers.get(identity), chosen.get(image, ())
            if number is not None and number in asked and question == races.get(asked, digests[number]):
                found[image][number] = losses[row].values.to_numpy()
    return found


def stages_of(config: IdentifyConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks of the run, by name."""
    return {"diffusion": config.diffusion}, {"write": config.write}


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    answered: int
    """Pictures."""
    rejected: Counter[str]
    """Those without an answer, by code."""
    evaluations: int
    """Of the UNet, for all answers."""
    of_full: int
    """How many every identity at every one of the evenly spaced timesteps takes."""
    certain: int
    """Answers with a p of at most .05."""
    preselected: int = 0
    """Pictures of which the preselection has left somebody out."""
    saved: int = 0
    """Evaluations of the UNet for who was left out: those that everyone gets who is asked, so that it is the least."""


def identify(config: IdentifyConfig, plan: Plan) -> Outcome:
    """Ask what is missing, and write the tables."""
    store = _store(config)
    bad = list(_ask(config, plan)) if plan.missing else []
    store.replace_table("rejected", [pa.Table.from_pylist(bad, ANSWERS).drop_columns(["identity", "losses"])])
    answered = _answered(config, plan.identities, plan.digests, plan.chosen)
    # One that can no longer be read may have answers of some identities.
    sound = [name for name, asked in plan.chosen.items() if len(answered[name]) == len(asked)]
    answers = {name: _decided(answered[name], name, plan) for name in sound}
    _write_tables(store, answers, plan)
    steps = config.num_inference_steps * len(plan.identities)
    left_out = [len(plan.identities) - len(plan.chosen[name]) for name in answers]
    each = config.num_inference_steps if config.method == "full" else config.stages.samples[0]
    return Outcome(
        len(answers),
        Counter(row["error"] for row in bad),
        sum(answer.evaluations for answer in answers.values()),
        steps * len(answers),
        sum(answer.p <= 0.05 for answer in answers.values()),
        sum(count > 0 for count in left_out),
        sum(left_out) * each,
    )


def _ask(config: IdentifyConfig, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield a row of ANSWERS for each picture without an answer."""
    set_context()
    stages = fitted(*stages_of(config), config.autoscaling)
    stage: Any = stages["diffusion"]
    where = {picture.name: picture.uri for picture in plan.pictures}
    todo = [{"name": name, "image": where[name], "missing": list(lacks)} for name, lacks in plan.missing.items()]
    rows = ray.data.from_items(todo, override_num_blocks=-(-len(todo) // stage.batch_size))
    about = [config.sd_model_name, stage, config.question(), plan.identities]
    rows = rows.map_batches(
        DiffusionIdentifier, fn_constructor_args=about, batch_size=stage.batch_size, **ray_actors(stage)
    )
    names, staged = [one.name for one in plan.identities], config.method == "staged"
    write: Any = partial(write_answers, root=_store(config).root, identities=names, digests=plan.digests, staged=staged)
    rows = rows.map_batches(write, batch_size=config.write.batch_size, **ray_task(stages["write"]))
    done, ticker = 0, Ticker()
    for row in rows.iter_rows():
        done += row["pictures"]
        if ticker.due():
            log.info("%d of %d pictures asked about", done, len(todo))
        yield from json.loads(row["bad"])


def write_answers(batch: Batch, root: str, identities: list[str], digests: list[str], staged: bool) -> Batch:
    """Write the answers of pictures as a part of answers/; returns how many they were, and which failed, as JSON."""
    rows: list[dict[str, Any]] = []
    for image, missing, losses, error, message in zip(
        *(batch[name] for name in ("name", "missing", "losses", "error", "message")), strict=True
    ):
        about = {"image": str(image), "error": str(error), "message": str(message)}
        race = _race(digests, missing) if staged else ""
        if error:
            rows.append({**about, "identity": "", "question": race, "losses": []})
            continue
        for number in missing:
            spent = losses[number][np.isfinite(losses[number])]
            question = race or digests[number]
            rows.append({**about, "identity": identities[number], "question": question, "losses": spent.tolist()})
    table = pa.Table.from_pylist(rows, ANSWERS)
    Store(root).write_part(
        "answers", table, ["\0".join((row["image"], row["identity"], row["question"])) for row in rows]
    )
    bad = json.dumps([row for row in rows if row["error"]])
    return {"pictures": np.array([len(batch["name"])]), "bad": np.array([bad], object)}


def _decided(found: dict[int, np.ndarray], picture: str, plan: Plan) -> Answer:
    """The answer about a picture, whose losses are of all identities: also of those who were not asked."""
    asked = list(plan.chosen[picture])
    spent = np.full((len(asked), max(map(len, found.values()))), np.nan)
    for row, number in enumerate(asked):
        spent[row, : len(found[number])] = found[number]
    answer = decide(spent)
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


def _write_tables(store: Store, answers: dict[str, Answer], plan: Plan) -> None:
    """Write the tables of each class; what they hold of other pictures stays."""
    identities = [one.name for one in plan.identities]
    for cls, names in group_by_class(list(answers)).items():
        own = [(name, answers[name]) for name in sorted(names)]
        fits = [
            (name, identities[number], float(answer.losses[number]))
            for name, answer in own
            for number in answer.losses.argsort(kind="stable")
        ]
        sure = [
            (name, identities[one.best], one.p, one.margin, one.evaluations, len(plan.chosen[name]))
            for name, one in own
        ]
        for rows, columns, suffix in ((fits, RESULTS, SUFFIX), (sure, CERTAINTY, "_certainty.csv")):
            table, uri = pd.DataFrame(rows, columns=list(columns)), store.uri(f"{cls}{suffix}")
            if storage.exists(uri):
                before = pd.read_csv(io.BytesIO(storage.read_bytes(uri)), dtype={IMAGE: str})
                table = pd.concat([before[~before[IMAGE].isin(names)], table])
            write_csv(uri, table.sort_values(IMAGE, kind="stable"))
