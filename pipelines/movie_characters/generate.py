"""Draw personalised characters: an image of each identity for every seed, alpha and guidance scale.

DDIM turns noise into an image, with the condition alpha · target + (1 - alpha) · optimised. Above a guidance scale g of
1 the predicted noise is u + g · (c - u), with that of the empty prompt, u, and that of the condition, c. Images that
exist are not drawn again. A manifest beside the images says whose each is, and what it was made from.
"""

import itertools
import logging
from collections import Counter
from dataclasses import dataclass, replace

import pyarrow as pa

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.movie_characters.bases import check_use
from actors.movie_characters.diffusion import check_diffusion
from actors.movie_characters.diffusion_memory import holding
from actors.movie_characters.drawer import Drawer, Drawing, GenerateConfig, values
from actors.movie_characters.identities import Learnt, find_learnt
from actors.movie_characters.manifest import CLASS, FILE, Rows, read_manifest, write_manifest
from actors.movie_characters.names import class_of
from pipelines.core.progress import Progress, tracked
from pipelines.core.ray_data import fitted, ray_actors, rows_of, set_context

log = logging.getLogger(__name__)

REJECTED = pa.schema([("picture", pa.string()), ("code", pa.string()), ("message", pa.string())])


@dataclass(frozen=True)
class Plan:
    """What a run has to draw."""

    identities: list[Learnt]
    drawings: list[Drawing]
    todo: list[Drawing]
    """Drawings without a file."""
    manifest: Rows
    """Rows of the manifest: of the images that exist, and of all drawings."""


def plan_generate(config: GenerateConfig) -> Plan:
    """Find identities and missing images; raises UserError for what cannot work."""
    learnt = {one.name: one for one in find_learnt(config.imagic_pretrained_path, "imagic_pretrained_path")}
    about = config.sd_model_name, check_diffusion(config.sd_model_name, "sd_model_name"), config.clip_model_name
    check_use(list(learnt.values()), *about, height=config.height, width=config.width)
    given = [config.input] if isinstance(config.input, str) else config.input
    asked = [name.rstrip("/").rsplit("/", 1)[-1] for name in given]
    names = [name if name in learnt else name.rpartition(".")[0] for name in asked] or list(learnt)
    if unknown := sorted({asked[number] for number, name in enumerate(names) if name not in learnt}):
        raise UserError(f"input: {', '.join(unknown)} are not in {config.imagic_pretrained_path}")
    ranges = (config.seed_range, config.alpha_range, config.guidance_scale_range)
    swept = [values(given, "") for given in ranges]
    drawings = [
        Drawing(name, int(seed), alpha, guidance)
        for name in dict.fromkeys(names)
        for seed, alpha, guidance in itertools.product(*swept)
    ]
    files = Counter(drawing.file for drawing in drawings)
    if twice := [file for file, count in files.items() if count > 1]:
        raise UserError(f"two images would be named {twice[0]}: rename an identity")
    there = _images(config)
    todo = [drawing for drawing in drawings if drawing.file not in there]
    manifest = {name: row for name, row in read_manifest(config.output).items() if name in there}
    manifest |= {one.file: _row(config, one) for one in drawings if one.file not in manifest}
    return Plan([learnt[name] for name in dict.fromkeys(names)], drawings, todo, manifest)


def _images(config: GenerateConfig) -> set[str]:
    """Names of the images in the output."""
    return {entry.name for entry in storage.children(config.output)[1] if entry.name.endswith(".png")}


def _row(config: GenerateConfig, drawing: Drawing) -> dict[str, str]:
    """A row of the manifest: of which class a drawing is, and what it is made from."""
    numbers = {"seed": drawing.seed, "alpha": drawing.alpha, "guidance": drawing.guidance}
    return {
        FILE: drawing.file,
        CLASS: class_of(drawing.identity),
        "identity": drawing.identity,
        **{name: f"{number:g}" for name, number in numbers.items()},
        "model": config.sd_model_name,
    }


def stages_of(config: GenerateConfig) -> tuple[dict[str, Stage], dict[str, Stage]]:
    """Actor pools and task stages, by name."""
    about = config.sd_model_name, config.height * config.width, "draw", True
    return {"diffusion": holding(config.diffusion, *about)}, {}


def generate(config: GenerateConfig, plan: Plan) -> Counter[str]:
    """Draw what is missing; returns how many images could not be drawn, by code. They are in rejected/."""
    import ray

    config = replace(config, output=storage.absolute(config.output))
    bad: list[dict[str, str]] = []
    # Before the images, so that one that is read while others are missing is not read by its name.
    write_manifest(config.output, list(plan.manifest.values()))
    if plan.todo:
        set_context()
        stages = fitted(*stages_of(config), config.autoscaling)
        # Neighbours share their identity, and so its LoRA or UNet.
        blocks = min(len(plan.todo), 4 * stages["diffusion"].workers)
        numbers = [{"number": number} for number in range(len(plan.todo))]
        rows = ray.data.from_items(numbers, override_num_blocks=blocks)
        rows = rows.map_batches(
            Drawer,
            fn_constructor_args=[config, plan.identities, plan.todo],
            batch_size=config.diffusion.batch_size,
            **ray_actors(stages["diffusion"], inputs=blocks),
        )
        for row in tracked(rows_of(rows), Progress("generate", len(plan.todo), "images")):
            if row["error"]:
                name = plan.todo[row["number"]].file
                bad.append({"picture": name, "code": row["error"], "message": row["message"]})
    there = _images(config)
    write_manifest(config.output, [row for name, row in plan.manifest.items() if name in there])
    Store(config.output).replace_table("rejected", [pa.Table.from_pylist(bad, REJECTED)])
    return Counter(row["code"] for row in bad)
