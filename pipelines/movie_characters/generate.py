"""Draw what was learnt: a picture of each identity for every seed, alpha and guidance scale.

The noise becomes a picture by DDIM, with the condition alpha · target + (1 - alpha) · optimised; where the guidance
scale g is above 1, with u + g · (c - u), of the empty prompt's noise u and the condition's c. Pictures that are there
already are not drawn again.
"""

import itertools
import logging
from collections import Counter
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
from actors.movie_characters.drawer import Drawer, Drawing, GenerateConfig, values
from actors.movie_characters.identities import Learnt, find_learnt
from pipelines.core.progress import Ticker
from pipelines.core.ray_data import fitted, ray_actors, set_context

log = logging.getLogger(__name__)

REJECTED = pa.schema([("picture", pa.string()), ("code", pa.string()), ("message", pa.string())])


@dataclass(frozen=True)
class Plan:
    """What a run draws."""

    identities: list[Learnt]
    drawings: list[Drawing]
    todo: list[Drawing]
    """Those that are not there."""


def plan_generate(config: GenerateConfig) -> Plan:
    """Find identities and what is missing; raises UserError for what cannot work."""
    check_diffusion(config.sd_model_name, "sd_model_name")
    learnt = {one.name: one for one in find_learnt(config.imagic_pretrained_path, "imagic_pretrained_path")}
    given = [config.input_files] if isinstance(config.input_files, str) else config.input_files
    asked = [name.rstrip("/").rsplit("/", 1)[-1] for name in given]
    names = [name if name in learnt else name.rpartition(".")[0] for name in asked] or list(learnt)
    if unknown := sorted({asked[number] for number, name in enumerate(names) if name not in learnt}):
        raise UserError(f"input_files: {', '.join(unknown)} are not in {config.imagic_pretrained_path}")
    ranges = (config.seed_range, config.alpha_range, config.guidance_scale_range)
    swept = [values(given, "") for given in ranges]
    drawings = [
        Drawing(name, int(seed), alpha, guidance)
        for name in dict.fromkeys(names)
        for seed, alpha, guidance in itertools.product(*swept)
    ]
    files = Counter(drawing.file for drawing in drawings)
    if twice := [file for file, count in files.items() if count > 1]:
        raise UserError(f"two pictures would be named {twice[0]}: rename an identity")
    there = {entry.name for entry in storage.listing(config.output_folder, (".png",))}
    todo = [drawing for drawing in drawings if drawing.file not in there]
    return Plan([learnt[name] for name in dict.fromkeys(names)], drawings, todo)


def stages_of(config: GenerateConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """The actor pools and the tasks of the run, by name."""
    return {"diffusion": config.diffusion}, {}


def generate(config: GenerateConfig, plan: Plan) -> Counter[str]:
    """Draw what is missing; returns how many pictures could not be drawn, by code. They are in rejected/."""
    config = replace(config, output_folder=storage.absolute(config.output_folder))
    bad: list[dict[str, str]] = []
    if plan.todo:
        set_context()
        stages = fitted(*stages_of(config), config.autoscaling)
        rows = ray.data.from_items(
            [{"number": number} for number in range(len(plan.todo))],
            # Neighbours share their identity, and so its LoRA or UNet.
            override_num_blocks=min(len(plan.todo), 4 * stages["diffusion"].workers),
        )
        rows = rows.map_batches(
            Drawer,
            fn_constructor_args=[config, plan.identities, plan.todo],
            batch_size=config.diffusion.batch_size,
            **ray_actors(stages["diffusion"]),
        )
        ticker = Ticker()
        for count, row in enumerate(rows.iter_rows(), 1):
            if row["error"]:
                name = plan.todo[row["number"]].file
                bad.append({"picture": name, "code": row["error"], "message": row["message"]})
            if ticker.due():
                log.info("%d of %d pictures drawn", count, len(plan.todo))
    Store(config.output_folder).replace_table("rejected", [pa.Table.from_pylist(bad, REJECTED)])
    return Counter(row["code"] for row in bad)
