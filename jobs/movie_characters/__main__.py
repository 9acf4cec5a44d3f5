"""Movie characters: who is on screen, and how well each model knows it.

python -m jobs.movie_characters personalise input_image=s3://faces/ output_dir=s3://characters/may
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import pyarrow as pa
import typer

from actors.core import storage
from actors.core.errors import UserError
from actors.core.store import Store
from actors.models.clip import check_clip
from actors.movie_characters.names import Picture
from jobs.core import run as job
from jobs.movie_characters.pages import compare_page, extract_page, map_page, report_page, timeline_page, topk_page
from pipelines.movie_characters.compare import (
    NONE,
    REJECTED,
    CompareConfig,
    Model,
    Run,
    check_all,
    compare,
    disturb,
    images_of,
    label,
    learns,
    preselecting,
    run_all,
    teaching,
)
from pipelines.movie_characters.extract import ExtractConfig, extract, plan_extraction
from pipelines.movie_characters.fuse import FuseConfig, fuse
from pipelines.movie_characters.identify_gallery import (
    ClipConfig,
    FaceConfig,
    identify,
    method_of,
    plan_identification,
    stages_of,
)
from pipelines.movie_characters.pictures import find_pictures
from pipelines.movie_characters.results import Results, read_results
from pipelines.movie_characters.score import (
    MapConfig,
    ReportConfig,
    ScoreConfig,
    TopkConfig,
    write_map,
    write_report,
    write_topk,
)
from pipelines.movie_characters.timeline import (
    TimelineConfig,
    appearances,
    check_output,
    done_films,
    find_films,
    frame_films,
    frames_of,
    remember,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
score = typer.Typer(no_args_is_help=True, help="How often results are right: tables, pictures and a page.")
app.add_typer(score, name="score")

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [key=value]...", help="Settings from a file, then single ones."),
]


@app.command(name="extract")
def extract_(
    settings: Settings = None,
    csv: Annotated[str | None, typer.Option(help="csv=: the table of intervals.")] = None,
    video: Annotated[str | None, typer.Option(help="video=: the film.")] = None,
    output: Annotated[str | None, typer.Option(help="output=: where frames go.")] = None,
    category: Annotated[str | None, typer.Option(help="category=: the column that names the folder.")] = None,
    show: Annotated[bool, typer.Option("--show", help="show=true: leave a page that shows them.")] = False,
    dry_run: job.DryRun = False,
    max_rejected: job.MaxRejected = None,
) -> None:
    """Every frame of the intervals that a table names: CATEGORY/CATEGORY_frame_NNNN.jpg."""
    with job.exit_codes():
        options = {"csv": csv, "video": video, "output": output, "category": category, "show": show or None}
        given = {name: value for name, value in options.items() if value is not None}
        config = job.load(ExtractConfig, settings or [], given)
        plan = plan_extraction(config)
        store = Store(config.output)
        if dry_run:
            facts = [
                f"input: {len(plan.rows)} rows of {plan.rows.category.nunique()} categories, "
                f"{len(plan.rows) - len(plan.intervals)} of them cannot be read",
                f"there: {len(plan.there)} frames",
            ]
            names = ("CATEGORY/CATEGORY_frame_NNNN.jpg", "rejected", *(["extract.html"] if config.show else []))
            job.tell_plan(config, facts, {}, {"decode": config.decode}, {name: store.uri(name) for name in names})
            return
        with job.recorded("extract", config, config.output, max_rejected) as record:
            done = extract(config, plan)
            rejected = sum(done.rejected.values())
            record["rows"] = {"in": len(done.rows), "out": len(done.rows) - rejected, "rejected": done.rejected}
            record["stages"] = {"extract": {"rows": done.written, "seconds": done.seconds}}
            record["files"], record["damaged"] = done.files, done.damaged
            if config.show:
                record["page"] = extract_page(config, done)
        there = sum(done.files.values())
        print(f"frames: {done.written} written, {there - done.written} were there, {done.damaged} damaged")
        if config.show:
            print(f"page: {record['page']}")


@app.command()
def identify_clip(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Compare images with a gallery, with texts or with what a probe has learnt, by CLIP: CLASS_results.csv."""
    with job.exit_codes():
        config = job.load(ClipConfig, settings or [])
        _check_clip(config)
        _identify("identify-clip", config, dry_run, max_rejected)


@app.command()
def identify_faces(
    settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None
) -> None:
    """Compare the largest face of images with those of a gallery: CLASS_results.csv, as cosines."""
    with job.exit_codes():
        _identify("identify-faces", job.load(FaceConfig, settings or []), dry_run, max_rejected)


def _identify(verb: str, config: ClipConfig | FaceConfig, dry_run: bool, max_rejected: int | None) -> None:
    plan = plan_identification(config)
    if dry_run:
        facts = [
            f"input: {len(plan.images)} images to identify",
            f"gallery: {len(plan.gallery)} images of {len(plan.classes)} classes",
            f"to do: {len(plan.todo)} images to be embedded by {method_of(config)}",
        ]
        store = Store(config.output_dir)
        places = {name: store.uri(name) for name in ("CLASS_results.csv", "rejected", "runs")}
        job.tell_plan(config, facts, *stages_of(config), {"vectors": Store(config.root).uri("vectors"), **places})
        return
    with job.recorded(verb, config, config.output_dir, max_rejected) as record, job.ray_session():
        done = identify(config, plan)
        record["rows"] = {"in": done.images, "out": done.answered, "rejected": done.rejected}
        record["gallery"] = {"images": len(plan.gallery), "rejected": done.lost}
        if plan.todo:
            record["stages"] = {"embed": {"rows": done.embedded, "seconds": done.seconds}}
    if done.lost:
        print(f"left out of the gallery{job.listed(done.lost)}")
    print(f"results: {config.output_dir}")


@app.command()
def personalise(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Learn characters from pictures, for diffusion; the same command after a kill learns only what is missing."""
    with job.exit_codes():
        from actors.movie_characters.personaliser import DONE, PersonaliseConfig
        from pipelines.movie_characters.personalise import personalise as learn
        from pipelines.movie_characters.personalise import plan_personalise, stages_of

        config = job.load(PersonaliseConfig, settings or [])
        plan = plan_personalise(config)
        if dry_run:
            pictures = sum(len(task.pictures) for task in plan.tasks)
            facts = [f"input: {len(plan.tasks)} identities of {pictures} pictures", f"to do: {len(plan.todo)}"]
            store = Store(config.output_dir)
            places = {"identities": store.uri("CLASS_N", DONE), "checkpoints": store.uri("checkpoints")}
            places |= {name: store.uri(name) for name in ("rejected", "runs/personalise.json")}
            job.tell_plan(config, facts, *stages_of(config), places)
            return
        with job.recorded("personalise", config, config.output_dir, max_rejected) as record:
            with job.ray_session():
                failed = learn(config, plan)
            count = len(plan.tasks)
            record["rows"] = {"in": count, "out": count - failed.total(), "rejected": dict(failed)}
            record["learnt"] = len(plan.todo) - failed.total()
        print(f"{record['learnt']} learnt now; identities: {config.output_dir}")


@app.command()
def identify_diffusion(
    settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None
) -> None:
    """Whose condition predicts the noise in a picture best: <class>_results.csv, with the losses."""
    with job.exit_codes():
        from pipelines.movie_characters.identify_diffusion import IdentifyConfig, identify, plan_identify, stages_of

        config = job.load(IdentifyConfig, settings or [])
        plan = plan_identify(config)
        store = Store(config.csv_folder)
        if dry_run:
            facts = [
                f"input: {len(plan.pictures)} pictures, {len(plan.identities)} identities",
                f"to do: {len(plan.missing)} pictures, {plan.pairs} pairs of a picture and an identity",
                f"evaluations of the UNet: at most {plan.pairs * config.question().pairs}",
            ]
            if config.preselect.folder:
                few = sum(len(asked) < len(plan.identities) for asked in plan.chosen.values())
                facts.append(f"preselected: {few} pictures, of {config.preselect.best} classes each")
            names = ("CLASS_results.csv", "CLASS_certainty.csv", "answers", "rejected")
            places = {name: store.uri(config.mode, name) for name in names}
            places["runs/identify-diffusion.json"] = store.uri("runs/identify-diffusion.json")
            job.tell_plan(config, facts, *stages_of(config), places)
            return
        with job.recorded("identify-diffusion", config, config.csv_folder, max_rejected) as record:
            with job.ray_session():
                outcome = identify(config, plan)
            record["rows"] = {
                "in": len(plan.pictures),
                "out": outcome.answered,
                "rejected": dict(outcome.rejected),
            }
            record |= {name: value for name, value in asdict(outcome).items() if name not in ("answered", "rejected")}
        if outcome.answered:
            spent = outcome.evaluations / outcome.answered
            share = outcome.evaluations / outcome.of_full
            print(f"{spent:.0f} evaluations of the UNet a picture, {share:.0%} of all; {outcome.certain} with p ≤ .05")
        if config.preselect.folder:
            print(f"{outcome.preselected} pictures preselected, which saved {outcome.saved} evaluations or more")
        print(f"results: {store.uri(config.mode)}")


@app.command()
def generate(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Draw characters that were learnt, for ranges of seed, alpha and guidance; what is there is not drawn again."""
    with job.exit_codes():
        from actors.movie_characters.drawer import GenerateConfig
        from pipelines.movie_characters.generate import generate as draw
        from pipelines.movie_characters.generate import plan_generate, stages_of

        config = job.load(GenerateConfig, settings or [])
        plan = plan_generate(config)
        store = Store(config.output_folder)
        if dry_run:
            facts = [f"input: {len(plan.identities)} identities", f"to do: {len(plan.todo)} of {len(plan.drawings)}"]
            places = {"pictures": store.uri(plan.drawings[0].file)}
            places |= {name: store.uri(name) for name in ("rejected", "runs/generate.json")}
            job.tell_plan(config, facts, *stages_of(config), places)
            return
        with job.recorded("generate", config, config.output_folder, max_rejected) as record:
            with job.ray_session():
                failed = draw(config, plan)
            count = len(plan.drawings)
            record["rows"] = {"in": count, "out": count - failed.total(), "rejected": dict(failed)}
            record["drawn"] = len(plan.todo) - failed.total()
        print(f"{record['drawn']} drawn now; pictures: {config.output_folder}")


@app.command(name="fuse")
def fuse_(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """One answer from those of several models: CLASS_results.csv, the higher the better."""
    with job.exit_codes():
        config = job.load(FuseConfig, settings or [])
        if dry_run:
            facts = []
            for name, source in config.models.items():
                found = read_results(source.folder, source.clip_csv)
                facts.append(f"{name}: {len(found.images)} images, {found.rows.identity.nunique()} identities")
            job.tell_plan(config, facts, {}, {}, {"results": Store(config.output_folder).uri("CLASS_results.csv")})
            return
        with job.recorded("fuse", config, config.output_folder, max_rejected) as record:
            done = fuse(config)
            lacking = done.images - done.answered
            rejected = {"not_answered_by_all": lacking} if lacking else {}
            record["rows"] = {"in": done.images, "out": done.answered, "rejected": rejected}
            record["weights"] = done.weights
        print("weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in done.weights.items()))
        print(f"results: {config.output_folder} ({done.classes} classes; read them with clip_csv=true)")


@app.command(name="compare")
def compare_(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Models over the same images, undisturbed and through filters: accuracies, intervals, tests, pictures, a page."""
    with job.exit_codes():
        config = job.load(CompareConfig, settings or [])
        pictures = find_pictures(config.image_list, "image_list")
        teachers = find_pictures(config.validation, "validation") if config.validation else []
        if both := {one.uri for one in pictures} & {one.uri for one in teachers}:
            raise job.SettingsError(f"validation: {min(both)} is in image_list too; other images teach")
        lessons = _runs(teaching(config), teachers) if teachers else []
        runs = _runs(config, pictures, lessons)
        store = Store(config.output)
        if dry_run:
            strengths = ", ".join(f"{name} {strength:g}" for name, strength in config.filters.items())
            facts = [
                f"input: {len(pictures)} images" + (f", {len(teachers)} for validation" if teachers else ""),
                f"filters: {strengths}",
                f"to do: {len(lessons) + len(runs)} identifications",
            ]
            names = (
                "images",
                "results",
                "vectors",
                "rejected",
                "accuracy.csv",
                "mcnemar.csv",
                "topk.csv",
                "compare.html",
                *(["validation"] if teachers else []),
            )
            job.tell_plan(config, facts, {}, {"disturb": config.disturb}, {name: store.uri(name) for name in names})
            return
        check_all([*lessons, *runs])
        with job.recorded("compare", config, config.output, max_rejected) as record, job.ray_session():
            lost = disturb(config, pictures) + (disturb(teaching(config), teachers) if teachers else [])
            store.replace_table("rejected", [pa.Table.from_pylist(lost, REJECTED)] if lost else [])
            record["weights"] = run_all([*lessons, *runs])
            compared = compare(config, runs, pictures)
            # A broken image is one, however many filters have met it.
            codes = Counter({row["uri"]: row["code"] for row in lost}.values())
            count = len(pictures) + len(teachers)
            record["rows"] = {"in": count, "out": count - codes.total(), "rejected": dict(codes)}
            record["page"] = compare_page(config, compared)
        for name, weights in record["weights"].items():
            print(f"weights of {name}: " + ", ".join(f"{one} {weight:.3g}" for one, weight in weights.items()))
        for row in compared.accuracy.itertuples():
            print(f"{row.model}, {row.filter}: {row.accuracy:.1%} [{row.low:.1%}, {row.high:.1%}]")
        print(f"page: {record['page']}")


def _runs(config: CompareConfig, pictures: list[Picture], lessons: Sequence[Run] = ()) -> list[Run]:
    """What `compare` runs, settings checked; fusions last, which learn from lessons, the runs of validation images."""
    store = Store(storage.absolute(config.output))
    made: dict[tuple[str, str], Run] = {}
    swept: list[Run] = []
    turns = ("clip", "faces", "diffusion", "fusion")
    models = sorted(config.models.items(), key=lambda item: turns.index(item[1].by))
    for (name, model), filter_ in itertools.product(models, config.filters):
        folder = store.uri("results", name, label(config, filter_))
        images = images_of(config, filter_, pictures)
        if model.by == "fusion":
            given = {one: made[one, filter_] for one in model.settings["models"]}
            sources = {one: {"folder": run.folder, "clip_csv": run.clip_csv} for one, run in given.items()}
            tree = {**model.settings, "models": sources, "output_folder": folder}
            for one, weight in tree.pop("weights", {}).items():
                if one not in sources:
                    raise job.SettingsError(f"models.{name}.settings.weights: {one} is none of its models")
                sources[one]["weight"] = weight
            if lessons and learns(model):
                for one, source in sources.items():
                    source["validation"] = [lesson.folder for lesson in lessons if lesson.model == one]
            run = Run(name, filter_, _checked(FuseConfig, f"models.{name}", tree), folder, True)
        else:
            if by := preselecting(model):
                given = {"folder": made[by, filter_].folder, "clip_csv": made[by, filter_].clip_csv}
                chosen = {**model.settings["preselect"], **given}
                chosen.pop("model")
                model = replace(model, settings={**model.settings, "preselect": chosen})
            run = _run(f"models.{name}", model, images, folder, store.uri("vectors", name))
            run = replace(run, model=name, filter=filter_)
        if name == config.alpha_model and filter_ == NONE:
            for alpha in config.alphas:
                if alpha == run.config.alpha:
                    swept.append(replace(run, alpha=alpha))
                    continue
                other = replace(model, settings={**model.settings, "alpha": alpha})
                where = store.uri("results", name, f"alpha_{alpha:g}")
                swept.append(
                    replace(_run(f"models.{name}", other, images, where), model=name, filter=NONE, alpha=alpha)
                )
        made[name, filter_] = run
    return [*made.values(), *swept]


def _run(setting: str, model: Model, images: list[str], folder: str, vectors: str = "") -> Run:
    """One identification of images into a folder, its settings checked; setting: where the model's are."""
    if model.by == "diffusion":
        from pipelines.movie_characters.identify_diffusion import IdentifyConfig

        tree = {**model.settings, "image_list": images, "csv_folder": folder}
        config = _checked(IdentifyConfig, setting, tree)
        return Run("", "", config, Store(folder).uri(config.mode), False)
    tree = {"vectors": vectors, **model.settings, "image_list": images, "output_dir": folder}
    if model.by == "faces":
        return Run("", "", _checked(FaceConfig, setting, tree), folder, True)
    config = _checked(ClipConfig, setting, tree)
    _check_clip(config)
    return Run("", "", config, folder, True)


def _checked(kind: type[Any], setting: str, tree: dict[str, Any]) -> Any:
    try:
        return job.load(kind, [], tree)
    except job.SettingsError as error:
        raise job.SettingsError(f"{setting}.settings: {error}") from error


@app.command()
def timeline(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """From films to who is on screen when: shots, frames, answers, votes; a table and a picture of each film."""
    with job.exit_codes():
        config = job.load(TimelineConfig, settings or [])
        films = find_films(config.input)
        check_output(config)
        store = Store(storage.absolute(config.output))
        todo = {name: uri for name, uri in films.items() if name not in done_films(store)}
        run = _run("model", config.model, [], store.uri("results"), config.output)
        if dry_run:
            facts = [f"input: {len(films)} films", f"to do: {len(todo)} films to be cut into shots"]
            names = ("frames", "shots", "results", "rejected", "shots.csv", "appearances.csv", "timeline.html")
            job.tell_plan(config, facts, {}, {"video": config.video}, {name: store.uri(name) for name in names})
            return
        check_all([run])
        with job.recorded("timeline", config, config.output, max_rejected) as record, job.ray_session():
            remember(config)
            if todo:
                frame_films(config, todo)
            frames, results = frames_of(store, list(films)), None
            if frames:
                run = replace(run, config=replace(run.config, image_list=frames))
                run_all([run])
                results = read_results(run.folder, run.clip_csv)
            found = appearances(config, list(films), results, not run.clip_csv if config.lead is None else config.lead)
            codes = Counter(about["error"] for about in found.films.values() if about["error"])
            record["rows"] = {"in": len(films), "out": len(films) - codes.total(), "rejected": dict(codes)}
            record["films"] = {name: about for name, about in found.films.items() if about["error"]}
            record["shots"], record["frames"] = len(found.shots), len(frames)
            record["page"] = timeline_page(config, found)
        print(f"{len(found.shots)} shots, {len(frames)} frames; page: {record['page']}")


def _check_clip(config: ClipConfig) -> None:
    try:
        check_clip(config.stage)
    except ValueError as error:
        told = str(error).replace("embeddings.model", "model_name").replace("embeddings.pretrained", "pretrained")
        raise UserError(told) from error


@score.command()
def topk(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """In how many percent of its images a class is among the k best: top_K_accuracy_results.csv."""
    with job.exit_codes():
        config = job.load(TopkConfig, settings or [])
        results = read_results(config.input_folder, config.clip_csv)
        middle = "_avg" if config.avg else ""
        names = [f"top_{k}{middle}_accuracy_results.csv" for k in config.ks]
        if dry_run:
            _tell_score(config, results, [*names, "topk.png", "topk.html"])
            return
        with job.recorded("score-topk", config, config.output_folder, max_rejected) as record:
            tables = write_topk(config, results)
            record |= _counted(results)
            record["topk"] = {k: float(table.iloc[-1]) for k, table in tables.items()}
            record["page"] = topk_page(config, results, tables)
        for k, table in tables.items():
            print(f"top-{k}: {table.iloc[-1]:.2f} %")
        print(f"page: {record['page']}")


@score.command(name="map")
def map_(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Average precision of each class and their mean: average_precision_results.csv."""
    with job.exit_codes():
        config = job.load(MapConfig, settings or [])
        results = read_results(config.input_folder, config.clip_csv)
        if dry_run:
            _tell_score(config, results, ["average_precision_results.csv", "average_precision.png", "map.html"])
            return
        with job.recorded("score-map", config, config.output_folder, max_rejected) as record:
            values = write_map(config, results)
            record |= _counted(results) | {"map": float(values.iloc[-1])}
            record["page"] = map_page(config, results, values)
        print(f"mAP: {values.iloc[-1]:.4f}")
        print(f"page: {record['page']}")


@score.command()
def report(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Precision, recall, F1, confusion matrix, and how well the unknown are told."""
    with job.exit_codes():
        config = job.load(ReportConfig, settings or [])
        results = read_results(config.input_folder, config.clip_csv)
        if dry_run:
            _tell_score(config, results, ["classes.csv", "confusion.csv", "answers.csv", "report.json", "report.html"])
            return
        with job.recorded("score-report", config, config.output_folder, max_rejected) as record:
            found = write_report(config, results)
            record |= _counted(results) | {"accuracy": found.accuracy, "threshold": found.threshold}
            record["page"] = report_page(config, results, found)
        print(f"answered right: {100 * found.accuracy:.2f} %; f1 {found.classes.f1['macro']:.3f}, mean over classes")
        if found.unknown:
            print(f"unknown: AUROC {found.unknown.auroc:.3f}, equal error rate {found.unknown.eer:.3f}")
        if found.threshold is not None:
            print(f"unknown below a confidence of {found.threshold:.6g}")
        print(f"page: {record['page']}")


def _counted(results: Results) -> dict[str, Any]:
    """What a record says of results."""
    images, lost = len(results.images), len(results.lost)
    return {
        "rows": {"in": images + lost, "out": images, "rejected": {"no_finite_loss": lost} if lost else {}},
        "rejected": list(results.lost),
        "left_out": {"rows that came again": results.doubles, "rows without a finite loss": results.broken},
    }


def _tell_score(config: ScoreConfig, results: Results, names: list[str]) -> None:
    facts = [
        f"results: {len(results.images)} images of {results.images.nunique()} classes, "
        f"{results.rows.identity.nunique()} identities of {results.rows.cls.nunique()} classes",
        f"left out: {results.doubles} rows that came again, {results.broken} without a finite loss",
    ]
    store = Store(config.output_folder)
    job.tell_plan(config, facts, {}, {}, {name: store.uri(name) for name in names})


if __name__ == "__main__":
    app()
