"""Personalise Stable Diffusion to characters, each from one image or a few.

imagic               trains the embedding of a prompt, then all of the UNet with that embedding fixed
                     (Kawar et al., "Imagic: Text-Based Real Image Editing with Diffusion Models", 2023); gigabytes each
lora                 trains the embedding, then a low-rank addition to the UNet's attention (Hu et al., "LoRA",
                     2021); megabytes each
textual_inversion    trains a word that stands for the character in the prompt (Gal et al., "An Image is Worth One
                     Word", 2022); kilobytes each

All minimise the squared error of the noise that the UNet predicts at uniformly drawn timesteps. Identities are rows,
spread over a pool of actors. Workers of Ray Train would step, fail and restart together, but identities are
independent: a free actor takes the next one, and one that fails costs no other. Each resumes from its own checkpoint
and ends as if it had never stopped: the draws of a step depend on the seed and its number alone.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.diffusion import (
    check_diffusion,
)
from actors.movie_characters.names import Picture, class_identity, image_identity
from actors.movie_characters.personalise_settings import DONE, PersonaliseConfig, Task
from pipelines.core.ray_data import fitted, ray_actors, rows_of, set_context
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
    pictures = find_pictures(given if isinstance(given, str) else list(given), "input")
    check_diffusion(config.pretrained_model_name_or_path, "pretrained_model_name_or_path")
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
    return {"diffusion": config.diffusion}, {}


def personalise(config: PersonaliseConfig, plan: Plan) -> Counter[str]:
    """Train what is missing; returns how many identities of this run failed, by code. They are in rejected/."""
    import ray

    from actors.movie_characters.personaliser import Personaliser

    if config.push_to_hub:
        _check_hub(config)
    set_context()
    config = replace(plan.config, output=storage.absolute(config.output))
    store = Store(config.output)
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
        for count, row in enumerate(rows_of(rows), 1):
            name = plan.todo[row["number"]].name
            if row["error"]:
                bad.append({"identity": name, "code": row["error"], "message": row["message"]})
            log.info("%d of %d identities: %s %s", count, len(plan.todo), name, row["error"] or "trained")
    store.replace_table("rejected", [pa.Table.from_pylist(bad, REJECTED)])
    if config.push_to_hub:
        _push(config, [task.name for task in plan.tasks if task.name not in {row["identity"] for row in bad}])
    return Counter(row["code"] for row in bad)


def _check_hub(config: PersonaliseConfig) -> None:
    """Create the repository where it is missing; raises UserError where it may not be written."""
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
