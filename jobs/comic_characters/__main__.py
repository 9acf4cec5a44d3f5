"""Comic characters: which drawn people are the same person, by their faces and bodies.

python -m jobs.comic_characters crop comics.yaml pictures=s3://comics/panels boxes=s3://comics/merged_face_body.csv
"""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from actors.comic_characters.crops import BODIES, FACES
from actors.core.stage import Stage
from actors.core.store import Store
from jobs.core import run as job
from pipelines.comic_characters.crop import LISTS, CropPlan, plan_crops, tasks_of
from pipelines.comic_characters.crop import crop as cut
from pipelines.comic_characters.pairs import PARTS, PretrainPlan, plan_pretraining
from pipelines.comic_characters.pairs import tasks_of as tasks_of_pairs
from pipelines.comic_characters.settings import ComicsConfig
from pipelines.core.training import Trained

if TYPE_CHECKING:
    from pipelines.comic_characters.assign import AssignPlan

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


@app.command()
def pretrain(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Stage 1: train the backbone on pairs of face and body, without labels. The same command after a kill goes on."""
    with job.exit_codes():
        from pipelines.comic_characters.pretrain import pretrain as train

        config = job.load(ComicsConfig, settings or [])
        if dry_run:
            _tell_pretraining(config, plan_pretraining(config))
            return
        with job.recorded("pretrain", config, config.output, max_rejected) as record:
            plan = plan_pretraining(config)
            with job.ray_session():
                found, trained = train(config, plan)
            record |= found
        _tell_training(found["best"], trained)
        print(f"weights: {Store(config.output).uri(config.pretrain.folder, 'model.safetensors')}")


@app.command()
def fine_tune(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Stage 2: train the head on sequences in which it is known who is who. The same command after a kill goes on."""
    with job.exit_codes():
        from pipelines.comic_characters.features import stages_of
        from pipelines.comic_characters.fine_tune import fine_tune as train
        from pipelines.comic_characters.fine_tune import plan_fine_tuning

        config = job.load(ComicsConfig, settings or [])
        uri = Store(config.output).uri
        if dry_run:
            plan = plan_fine_tuning(config)
            counts = f"{len(plan.train)} sequences to train on, {len(plan.valid)} to validate"
            facts = [
                f"input: {counts}; backbone {plan.backbone.weights}",
                f"to do: features of {len(plan.todo)} instances",
            ]
            names = [plan.backbone.folder, config.fine_tune.folder, "rejected/fine-tune", "runs/fine-tune.json"]
            job.tell_plan(config, facts, *stages_of(config), {name: uri(name) for name in names})
            return
        with job.recorded("fine-tune", config, config.output, max_rejected) as record:
            plan = plan_fine_tuning(config)
            with job.ray_session():
                found, trained = train(config, plan)
            record |= found
        _tell_training(found["best"], trained)
        print(f"weights: {uri(config.fine_tune.folder, 'model.safetensors')}")


@app.command()
def embed(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Give each face with its body one vector. The same command after a kill embeds only what is missing."""
    with job.exit_codes():
        from pipelines.comic_characters import embed as instances
        from pipelines.comic_characters import features

        config = job.load(ComicsConfig, settings or [])
        if dry_run:
            plan = instances.plan_embedding(config)
            facts = [
                f"input: {sum(map(len, plan.parts))} instances; backbone {plan.backbone.weights}",
                f"to do: features of {len(plan.features)} instances, vectors of {sum(map(len, plan.todo))}",
            ]
            stages = zip(features.stages_of(config), instances.stages_of(config), strict=True)
            pools, tasks = (first | second for first, second in stages)
            uri = Store(config.output).uri
            names = [plan.backbone.folder, "embeddings", "rejected/embed", "runs/embed.json"]
            job.tell_plan(config, facts, pools, tasks, {name: uri(name) for name in names})
            return
        with job.recorded("embed", config, config.output, max_rejected) as record:
            plan = instances.plan_embedding(config)
            with job.ray_session():
                record |= instances.embed(config, plan)


@app.command()
def score(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Score what `embed` has made, beside what costs less. The same command after a kill trains what is missing."""
    with job.exit_codes():
        from jobs.comic_characters.score_page import between, write_report
        from pipelines.comic_characters import score as comic_scores

        config = job.load(ComicsConfig, settings or [])
        store = Store(config.output)
        others = {
            name: job.load(ComicsConfig, [*(settings or []), *own]) for name, own in config.score.ablations.items()
        }
        variants = {name: comic_scores.variant(config, name, other) for name, other in others.items()}
        if dry_run:
            plan = comic_scores.plan_scores(config)
            todo = ", ".join(f"{name} {len(missing)}" for name, missing in plan.todo.items())
            facts = [
                f"input: {len(plan.instances)} instances of {config.score.split}",
                f"to do: features of instances: {todo}",
                *(f"ablation {name}: {', '.join(own)}" for name, own in config.score.ablations.items()),
                *(f"not compared: {name}: {note}" for name, note in plan.notes.items()),
            ]
            pools = {name: source.stage for name, source in plan.sources.items()}
            names = [f"{config.score.folder}/{name}" for name in ("scores.json", "scores.csv", "report.html")]
            names += [*(source.folder for source in plan.sources.values()), "rejected/score", "runs/score.json"]
            job.tell_plan(config, facts, pools, {}, {name: store.uri(name) for name in names})
            return
        with job.recorded("score", config, config.output, max_rejected) as record:
            plan = comic_scores.plan_scores(config)
            with job.ray_session():
                told, found = comic_scores.score(config, plan, variants)
            record |= told
            page = write_report(Store(store.uri(config.score.folder)), found, config)
        for name, places in found.methods.items():
            print(f"{name}: MAP@R ×100 between series {between(places['between']['map_at_r'])}")
        for name, note in found.notes.items():
            print(f"{name}: not compared: {note}")
        print(f"report: {page}")


@app.command()
def assign(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Say who is the same in each sequence of panels, and who it is where a bank of characters names some."""
    with job.exit_codes():
        from jobs.comic_characters.assign_page import write_assignment
        from pipelines.comic_characters import assign as assignment

        config = job.load(ComicsConfig, settings or [])
        store = Store(config.output)
        if dry_run:
            plan = assignment.plan_assignment(config)
            names = ["clusters.json", "pictures", "report.html"]
            artefacts = {name: store.uri(config.assign.folder, name) for name in names}
            more = ["rejected/assign", "runs/assign.json", *(["threshold.json"] if plan.threshold.taught else [])]
            job.tell_plan(config, _about(plan), {}, {}, artefacts | {name: store.uri(name) for name in more})
            return
        with job.recorded("assign", config, config.output, max_rejected) as record:
            plan = assignment.plan_assignment(config)
            about, found = assignment.assign(config, plan)
            record |= about
            page = write_assignment(config, plan, found)
        for fact in _about(plan):
            print(fact)
        named = f", of which {record['named']} have a name" if plan.bank else ""
        print(f"{record['clusters']} characters in {record['sequences']} sequences{named}")
        if found.agreement:
            print("B-cubed: " + ", ".join(f"{name} {value:.3f}" for name, value in found.agreement._asdict().items()))
        print(f"report: {page}")


def _about(plan: "AssignPlan") -> list[str]:
    count = sum(len(one.instances) for one in plan.sequences)
    bank = [f"bank: {len(plan.bank.names)} characters, {len(plan.bank.vectors)} examples"] if plan.bank else []
    return [
        f"input: {count} instances in {len(plan.sequences)} sequences",
        f"threshold: {plan.threshold.value:.3g}, {plan.threshold.why}",
        *bank,
    ]


def _tell_training(best: dict[str, float], trained: Trained) -> None:
    values = ", ".join(f"{name} {value:.3g}" for name, value in best.items())
    begin = f", continued after epoch {trained.resumed_from}" if trained.resumed_from else ""
    print(f"{len(trained.history)} epochs{begin}; the best: {values}")


def _tell_pretraining(config: ComicsConfig, plan: PretrainPlan) -> None:
    parts = plan.pairs.series_id.map(plan.parts)
    shares = ", ".join(f"{part} {(parts == part).sum()} of {list(plan.parts.values()).count(part)}" for part in PARTS)
    facts = [
        f"input: {len(plan.pairs)} pairs; {plan.alone} faces and bodies without a partner",
        f"pairs, and series that they are of: {shares}",
        f"to do: {len(plan.todo)} pairs to decode; training goes on where it was, if it was",
    ]
    training, uri = config.pretrain.training, Store(config.output).uri
    workers = Stage(training.workers, training.num_cpus, training.num_gpus, training.batch_size)
    names = ["pairs", "rejected/pairs", config.pretrain.folder, "runs/pretrain.json"]
    job.tell_plan(config, facts, {"train": workers}, tasks_of_pairs(config), {name: uri(name) for name in names})


def _tell_crops(config: ComicsConfig, plan: CropPlan) -> None:
    bad = Counter(plan.boxes.error[plan.boxes.error != ""].tolist())
    pictures = plan.boxes.picture[plan.boxes.picture != ""].nunique()
    facts = [
        f"input: {len(plan.boxes)} boxes in {pictures} pictures; {sum(bad.values())} cannot be cut{job.listed(bad)}",
        f"to do: {plan.todo.sum()} boxes",
    ]
    uri = Store(config.output).uri
    names = [BODIES, FACES, "crops", "rejected/crop", *LISTS.values(), "runs/crop.json"]
    job.tell_plan(config, facts, {}, tasks_of(config), {name: uri(name) for name in names})


if __name__ == "__main__":
    app()
