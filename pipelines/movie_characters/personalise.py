"""Personalise diffusion models to characters, each from one image or a few.

imagic               trains the embedding of a prompt, then all of the UNet with that embedding fixed
                     (Kawar et al., "Imagic: Text-Based Real Image Editing with Diffusion Models", 2023); gigabytes each
lora                 trains the embedding, then a low-rank addition to the UNet's attention (Hu et al., "LoRA",
                     2021); megabytes each
textual_inversion    trains a word that stands for the character in the prompt (Gal et al., "An Image is Worth One
                     Word", 2022); kilobytes each

All minimise the squared error of what the network predicts: noise, or the velocity of a flow. StableDiffusionXL,
StableDiffusion3 and Flux are trained by LoRA.

Many identities are rows, spread over a pool of actors: a free actor takes the next one, and one that fails costs no
other. With training.workers above 1, workers of Ray Train train one identity after the other together, each on its
share of the rows of every step. Both run the same loop, and an identity may change from one to the other: each resumes
from its own checkpoint and ends as if it had never stopped, since the draws of a step depend on the seed and its number
alone. With training.shard the network is divided over the workers, for models that do not fit one GPU.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError, check_all
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.diffusion import OneByOne, check_diffusion, check_size
from actors.movie_characters.diffusion_memory import holding
from actors.movie_characters.families import SD
from actors.movie_characters.names import Picture, class_identity, image_identity
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig, Task
from pipelines.core.progress import ProgressFile
from pipelines.core.ray_data import fitted, ray_actors, rows_of, set_context
from pipelines.core.training import train
from pipelines.movie_characters.pictures import find_pictures

log = logging.getLogger(__name__)
REJECTED = pa.schema([("identity", pa.string()), ("code", pa.string()), ("message", pa.string())])


@dataclass(frozen=True)
class Plan:
    """What a run has to train."""

    config: PersonaliseConfig
    """Settings, with the precision in which the output was begun."""
    tasks: list[Task]
    todo: list[Task]
    """Identities whose folder is missing, or was trained with other settings."""


def plan_personalise(config: PersonaliseConfig) -> Plan:
    """Find images and missing identities; raises UserError where the model or an extra is missing."""
    given = config.input
    pictures, family = check_all(
        partial(find_pictures, given if isinstance(given, str) else list(given), "input"),
        partial(check_diffusion, config.pretrained_model_name_or_path, "pretrained_model_name_or_path"),
    )
    check_size(family.multiple, resolution=config.resolution)
    if config.method != "lora" and family is not SD:
        raise UserError(f"method={config.method} is for a {SD.pipeline}, not a {family.pipeline}. Set method=lora.")
    if config.use_8bit_adam:
        from actors.movie_characters.personalise_steps import adam8bit

        adam8bit()
    if config.mixed_precision not in ("auto", config.precision):
        log.warning("mixed_precision=%s needs a GPU: computing in float32", config.mixed_precision)
    groups: dict[str, list[Picture]] = defaultdict(list)
    trained: dict[str, Picture] = {}
    for picture in pictures:
        name = image_identity(picture.name, picture.cls)
        if (other := trained.setdefault(name, picture)) is not picture:
            raise UserError(f"input: {other.name} and {picture.name} would both be trained as {name}; rename one")
        groups[class_identity(picture.cls) if config.together else name].append(picture)
    store = Store(config.output)
    done = {name: (store.read_json(name, DONE) or {}).get("settings_digest") for name in groups}
    tasks = _tasks(config, groups)
    if config.mixed_precision == "auto" and config.precision != "no":
        # So far the default was float32, also on a GPU.
        before = replace(config, mixed_precision="no")
        if any(done[task.name] == task.settings for task in _tasks(before, groups)):
            log.warning("%s was begun in float32 and continues in it; for bf16 choose another output", config.output)
            config, tasks = before, _tasks(before, groups)
    return Plan(config, tasks, [task for task in tasks if done[task.name] != task.settings])


def _tasks(config: PersonaliseConfig, groups: dict[str, list[Picture]]) -> list[Task]:
    settings = json.dumps(config.learns(), sort_keys=True)
    return [
        Task(name, tuple(some), hashlib.sha256(repr((settings, [one.name for one in some])).encode()).hexdigest()[:20])
        for name, some in groups.items()
    ]


def stages_of(config: PersonaliseConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages, by name."""
    about = config.pretrained_model_name_or_path, config.resolution**2, "train", True
    return {"diffusion": holding(_stage(config), *about)}, {}


def _stage(config: PersonaliseConfig) -> OneByOne:
    shared = config.training.workers
    return replace(config.diffusion, workers=shared) if shared > 1 else config.diffusion


def personalise(config: PersonaliseConfig, plan: Plan) -> Counter[str]:
    """Train what is missing; returns how many identities of this run failed, by code. They are in rejected/."""
    set_context()
    config = replace(plan.config, output=storage.absolute(config.output))
    store = Store(config.output)
    bad: list[dict[str, str]] = []
    trained = _apart if config.training.workers == 1 else _together
    for count, (number, code, message) in enumerate(trained(config, plan.todo) if plan.todo else (), 1):
        name = plan.todo[number].name
        if code:
            bad.append({"identity": name, "code": code, "message": message})
        log.info("%d of %d identities: %s %s", count, len(plan.todo), name, code or "trained")
    store.replace_table("rejected", [pa.Table.from_pylist(bad, REJECTED)])
    if config.push_to_hub:
        _push(config, [task.name for task in plan.tasks if task.name not in {row["identity"] for row in bad}])
    return Counter(row["code"] for row in bad)


Ended = tuple[int, str, str]
"""The number of an identity whose training ended, and the code and message of its error, "" for none."""


def _apart(config: PersonaliseConfig, todo: Sequence[Task]) -> Iterator[Ended]:
    """Train identities in a pool of actors, each of which trains identities of its own."""
    import ray

    from actors.movie_characters.personaliser import Personaliser

    stages = fitted(*stages_of(config), config.autoscaling)
    rows = ray.data.from_items([{"number": number} for number in range(len(todo))], override_num_blocks=len(todo))
    arguments = [config, todo]
    rows = rows.map_batches(
        Personaliser, fn_constructor_args=arguments, batch_size=1, **ray_actors(stages["diffusion"], inputs=len(todo))
    )
    for row in rows_of(rows):
        yield row["number"], row["error"], row["message"]


def _together(config: PersonaliseConfig, todo: Sequence[Task]) -> Iterator[Ended]:
    """Train identities one after the other, each by all workers of one trainer of Ray Train."""
    stage = _stage(config)
    result = train(
        partial(_train_all, config, tuple(todo)),
        {"identities": [(task.name, task.settings) for task in todo]},
        seed=config.seed,
        output=config.output,
        workers=stage.workers,
        num_cpus=stage.num_cpus,
        num_gpus=stage.num_gpus,
        total=len(todo),
        unit="identities",
    )
    assert result.return_value is not None
    for number, (code, message) in enumerate(result.return_value):
        yield number, code, message


def _train_all(config: PersonaliseConfig, todo: Sequence[Task]) -> list[tuple[str, str]]:
    """What every worker of the trainer does. An identity that was finished before a worker died is skipped."""
    from ray import train as ray_train
    from ray.train.torch import get_device
    from torch import cuda

    from actors.movie_characters.peers import Peers
    from actors.movie_characters.personaliser import Personaliser

    if (device := get_device()).type == "cuda":
        cuda.set_device(device)
    context = ray_train.get_context()
    peers = Peers(context.get_world_rank(), context.get_world_size(), config.training.shard)
    personaliser, progress = Personaliser(config, todo, peers), ProgressFile(config.output)
    found: list[tuple[str, str]] = []
    for task in todo:
        done = peers.each(_is_done(config.output, task))[0]
        found.append(("", "") if done else personaliser.train(task))
        if peers.rank == 0:
            progress.write(len(found), task.name)
    return found


def _is_done(output: str, task: Task) -> bool:
    """Whether the folder of an identity is complete, and of these settings."""
    return (Store(output).read_json(task.name, DONE) or {}).get("settings_digest") == task.settings


def check_repository(config: PersonaliseConfig) -> None:
    """With push_to_hub create the repository where it is missing; raises UserError where it may not be written."""
    if not config.push_to_hub:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    assert config.hub_model_id is not None
    try:
        HfApi().create_repo(config.hub_model_id, exist_ok=True)
    except (HFValidationError, OSError) as error:
        problem = str(error).partition("\n")[0]
        raise UserError(
            f"hub_model_id={config.hub_model_id} cannot be written ({problem}); check its name, and that HF_TOKEN may "
            "write there"
        ) from error


def _push(config: PersonaliseConfig, names: Sequence[str]) -> None:
    from huggingface_hub import HfApi

    assert config.hub_model_id is not None
    for name in names:
        with storage.local_folder(storage.join(config.output, name)) as folder:
            HfApi().upload_folder(repo_id=config.hub_model_id, folder_path=folder, path_in_repo=name)
