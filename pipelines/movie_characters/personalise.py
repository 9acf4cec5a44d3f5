"""Learn characters: what Stable Diffusion has to be told so that it draws them, each from one picture or a few.

imagic               the embedding of a prompt moves to the picture, then all of the UNet with that embedding fixed
                     (Kawar et al., "Imagic: Text-Based Real Image Editing with Diffusion Models", 2023); gigabytes each
lora                 the same, but of the UNet only a low-rank addition to its attention (Hu et al., "LoRA", 2021);
                     megabytes each
textual_inversion    only a word that stands for the character in the prompt (Gal et al., "An Image is Worth One Word",
                     2022); kilobytes each

Both steps minimise the squared error of the noise that the UNet finds at timesteps drawn uniformly. Identities are
rows, spread over a pool of actors and not over the workers of Ray Train, which would step, fail and be started again
together, while identities have nothing to tell each other: whoever is free takes the next, and one that fails costs no
other. Each goes on by itself from its own checkpoint, and ends as if it had never stopped: what a step draws depends on
the seed and its number alone.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.diffusion import (
    check_diffusion,
)
from actors.movie_characters.names import group_by_class, stem
from actors.movie_characters.personaliser import DONE, PersonaliseConfig, Personaliser, Task, adam8bit
from pipelines.core.ray_data import fitted, ray_actors, set_context
from pipelines.movie_characters.pictures import find_pictures

log = logging.getLogger(__name__)
REJECTED = pa.schema([("identity", pa.string()), ("code", pa.string()), ("message", pa.string())])


@dataclass(frozen=True)
class Plan:
    """What a run has to learn."""

    tasks: list[Task]
    todo: list[Task]
    """Those whose folder does not hold them yet, learnt with these settings."""


def plan_personalise(config: PersonaliseConfig) -> Plan:
    """Find the pictures and what is missing; raises UserError where the model or an extra is missing."""
    check_diffusion(config.pretrained_model_name_or_path, "pretrained_model_name_or_path")
    if config.use_8bit_adam:
        adam8bit()
    given = config.input_image
    pictures = find_pictures(given if isinstance(given, str) else list(given), "input_image")
    if config.together:
        named = {stem(picture.name): picture for picture in pictures}
        groups = {f"{of}_0": [named[name] for name in names] for of, names in group_by_class(list(named)).items()}
    else:
        groups = {}
        for picture in pictures:
            name = stem(picture.name)
            if name in groups:
                raise UserError(f"input_image: two pictures are named {name}, with other endings")
            groups[name] = [picture]
    settings = json.dumps(config.learns(), sort_keys=True)
    tasks = [
        Task(name, tuple(some), hashlib.sha256(repr((settings, [one.name for one in some])).encode()).hexdigest()[:20])
        for name, some in groups.items()
    ]
    store = Store(config.output_dir)
    done = [(store.read_json(task.name, DONE) or {}).get("settings_digest") == task.settings for task in tasks]
    return Plan(tasks, [task for task, there in zip(tasks, done, strict=True) if not there])


def stages_of(config: PersonaliseConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks of the run, by name."""
    return {"diffusion": config.diffusion}, {}


def personalise(config: PersonaliseConfig, plan: Plan) -> Counter[str]:
    """Learn what is missing; returns how many identities of this run failed, by code. They are in rejected/."""
    if config.push_to_hub:
        _check_hub(config)
    set_context()
    config = replace(config, output_dir=storage.absolute(config.output_dir))
    store = Store(config.output_dir)
    bad: list[dict[str, str]] = []
    if plan.todo:
        stages = fitted(*stages_of(config), config.autoscaling)
        rows = ray.data.from_items(
            [{"number": number} for number in range(len(plan.todo))], override_num_blocks=len(plan.todo)
        )
        rows = rows.map_batches(
            Personaliser,
            fn_constructor_args=[config, plan.todo],
            batch_size=1,
            **ray_actors(stages["diffusion"]),
        )
        for count, row in enumerate(rows.iter_rows(), 1):
            name = plan.todo[row["number"]].name
            if row["error"]:
                bad.append({"identity": name, "code": row["error"], "message": row["message"]})
            log.info("%d of %d identities: %s %s", count, len(plan.todo), name, row["error"] or "learnt")
    store.replace_table("rejected", [pa.Table.from_pylist(bad, REJECTED)])
    if config.push_to_hub:
        _push(config, [task.name for task in plan.tasks if task.name not in {row["identity"] for row in bad}])
    return Counter(row["code"] for row in bad)


def _check_hub(config: PersonaliseConfig) -> None:
    """Make the repository where it is missing; raises UserError where it may not be written, first of all."""
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
        with storage.local_folder(storage.join(config.output_dir, name)) as folder:
            HfApi().upload_folder(repo_id=config.hub_model_id, folder_path=folder, path_in_repo=name)
