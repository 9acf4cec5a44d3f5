"""Comic characters: which drawn people are the same person, by their faces and bodies.

python -m jobs.comic_characters crop comics.yaml pictures=s3://comics/panels boxes=s3://comics/merged_face_body.csv
"""

from collections import Counter
from typing import Annotated

import typer

from actors.crops import BODIES, FACES
from jobs import run as job
from pipelines.comic_characters import LISTS, CropPlan, plan_crops, tasks_of
from pipelines.comic_characters import crop as cut
from pipelines.comics import ComicsConfig
from pipelines.store import Store

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [key=value]...", help="Settings from a file, then single ones."),
]


@app.callback()
def main() -> None:
    pass


@app.command()
def crop(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Cut faces and bodies out of panels or pages. The same command after a kill cuts only what is missing."""
    with job.exit_codes():
        config = job.load(ComicsConfig, settings or [])
        if dry_run:
            plan = plan_crops(config)
            _tell_crops(config, plan)
            return
        with job.recorded("crop", config, config.output, max_rejected) as record:
            plan = plan_crops(config)
            with job.ray_session():
                record |= cut(config, plan)


def _tell_crops(config: ComicsConfig, plan: CropPlan) -> None:
    bad = Counter(plan.boxes.error[plan.boxes.error != ""].tolist())
    pictures = plan.boxes.picture[plan.boxes.picture != ""].nunique()
    facts = [
        f"input: {len(plan.boxes)} boxes in {pictures} pictures; {sum(bad.values())} cannot be cut{job.listed(bad)}",
        f"to do: {plan.todo.sum()} boxes",
    ]
    uri = Store(config.output).uri
    names = [BODIES, FACES, "crops", "rejected", *LISTS.values(), "runs/crop.json"]
    job.tell_plan(config, facts, {}, tasks_of(config), {name: uri(name) for name in names})


if __name__ == "__main__":
    app()
