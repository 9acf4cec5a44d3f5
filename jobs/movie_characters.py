"""Movie characters: who is on screen, and how well each model knows it.

python -m jobs.movie_characters score topk input_folder=results/SD_pipeline output_folder=scores k_range=5
"""

from typing import Annotated, Any

import typer

from actors.embeddings import check_clip
from jobs import run as job
from jobs.answers import extract_page, map_page, report_page, topk_page
from pipelines.extraction import ExtractConfig, extract, plan_extraction
from pipelines.gallery import ClipConfig, FaceConfig, identify, method_of, plan_identification, stages_of
from pipelines.identification import Results, read_results
from pipelines.metrics import (
    MapConfig,
    ReportConfig,
    ScoreConfig,
    TopkConfig,
    write_map,
    write_report,
    write_topk,
)
from pipelines.store import Store

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
        try:
            check_clip(config.stage)
        except ValueError as error:
            told = str(error).replace("embeddings.model", "model_name").replace("embeddings.pretrained", "pretrained")
            raise ValueError(told) from error
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
