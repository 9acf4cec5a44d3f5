"""Directors: whose film is it, from screenshots.

python -m jobs.directors sample input=films/ output=screenshots/ screenshots.per_film=30
python -m jobs.directors train data=screenshots/ output=model/
python -m jobs.directors guess model/ --image frame.jpg
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer

from actors.core import storage
from actors.core.store import Store
from jobs.core import run as job
from pipelines.directors.sample import MANIFEST, SampleConfig, plan_sample, read_screenshots

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [key=value]...", help="Settings from a file, then single ones."),
]


@app.command()
def sample(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Take screenshots of films, by director. The same command after a kill takes only what is missing."""
    with job.exit_codes():
        config = job.load(SampleConfig, settings or [])
        plan = plan_sample(config)
        store = Store(config.output)
        if dry_run:
            bad = sum(bool(film["error"]) for film in plan.films)
            directors = len({film["director"] for film in plan.films if not film["error"]})
            done = len(plan.films) - bad - len(plan.todo)
            facts = [
                f"{len(plan.films)} films of {directors} directors: {len(plan.todo)} to do, {done} done, "
                f"{bad} that cannot be taken"
            ]
            places = {name: store.uri(name) for name in (MANIFEST, "screenshots", "rejected", "runs/sample.json")}
            job.tell_plan(config, facts, {}, {"screenshots": config.screenshots}, places)
            return
        from pipelines.directors.sample import sample

        with job.recorded("sample", config, config.output, max_rejected) as record, job.ray_session():
            record |= sample(config, plan)
            print(f"{record['screenshots']} screenshots: {store.uri(MANIFEST)}")


@app.command()
def explore(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Show how many screenshots and films there are of each director, and some of them: a page and its pictures."""
    with job.exit_codes():
        from jobs.directors.pages import ExploreConfig, write_exploration

        config = job.load(ExploreConfig, settings or [])
        shots = read_screenshots(config.data)
        store = Store(config.output or storage.join(config.data, "explore"))
        if dry_run:
            facts = [f"{len(shots)} screenshots of {len({shot.director for shot in shots})} directors"]
            names = ("screenshots.png", "films.png", "contact.png", "report.html", "runs/explore.json")
            job.tell_plan(config, facts, {}, {}, {name: store.uri(name) for name in names})
            return
        with job.recorded("explore", config, store.root, max_rejected) as record:
            record["rows"] = write_exploration(store, shots, config)
            print(f"page: {store.uri('report.html')}")


@app.command()
def train(
    settings: Settings = None,
    plot: Annotated[bool, typer.Option("--plot", help="Show the training curves in the report.")] = False,
    dry_run: job.DryRun = False,
    max_rejected: job.MaxRejected = None,
) -> None:
    """Train a head on screenshots (data=) or vectors of films (films=) and say how well it works on films not seen."""
    with job.exit_codes():
        from actors.models.backbones import check_backbone
        from jobs.directors.pages import reject
        from pipelines.core.film_vectors import read_films
        from pipelines.directors.frames import frames_of_films, frames_of_pictures
        from pipelines.directors.settings import DirectorsConfig
        from pipelines.directors.vectors import embed, missing, read_pictures_of, stages_of, wanted

        config = job.load(DirectorsConfig, settings or [])
        store = Store(config.output)
        names = ("model.json", "model.safetensors", "report.json", "report.html", "curves.csv", "runs/train.json")
        places = {name: store.uri(name) for name in names}
        if config.films:
            films = read_films(config.films)
            frames = frames_of_films(films, config)
            if dry_run:
                job.tell_plan(config, [_told(frames)], {}, {}, places)
                return
            with job.recorded("train", config, config.output, max_rejected) as record, job.ray_session():
                nobody = sum(not director for director in films.directors)
                rejected = {"no_director": nobody} if nobody else {}
                record["rows"] = {"in": len(films), "out": len(films) - nobody, "rejected": rejected}
                _train(frames, config, record, plot, {"films": config.films})
            return
        check_backbone(config.pictures.backbone)
        shots = read_screenshots(config.data)
        cache = Store(config.data)
        rows = wanted([(s.path, s.uri, s.size) for s in shots], config.pictures.views, {s.path for s in shots})
        todo = missing(cache, rows, config.pictures)
        if dry_run:
            facts = [
                f"{len(shots)} screenshots of {len({(s.director, s.film) for s in shots})} films by "
                f"{len({s.director for s in shots})} directors; {len(rows) - len(todo)} of {len(rows)} vectors there"
            ]
            job.tell_plan(config, facts, *stages_of(config.pictures), {"features": cache.uri("features"), **places})
            return
        with job.recorded("train", config, config.output, max_rejected) as record, job.ray_session():
            with _timed(record, "embed", len(todo)):
                if todo:
                    embed(cache, todo, config.pictures)
            pictures = read_pictures_of(cache, rows, config.pictures)
            reject(store, pictures.rejected)
            codes = dict(Counter(row["error"] for row in pictures.rejected))
            record["rows"] = {"in": len(shots), "out": len(shots) - len(pictures.rejected), "rejected": codes}
            frames = frames_of_pictures(shots, pictures, config)
            _train(
                frames, config, record, plot, {"screenshots": config.data, "network": config.pictures.backbone.model}
            )


@contextmanager
def _timed(record: dict[str, Any], stage: str, rows: int) -> Iterator[None]:
    """Tell in the record how long a stage took for so many rows."""
    started = time.monotonic()
    yield
    record.setdefault("stages", {})[stage] = {"rows": rows, "seconds": round(time.monotonic() - started, 1)}


def _told(frames: Any) -> str:
    learned, strange = (frames.director >= 0).sum(), (frames.director < 0).sum()
    return (
        f"{learned} films of {len(frames.directors)} directors are learned, {strange} films of others are strangers; "
        f"{len(frames.film)} vectors"
    )


def _train(frames: Any, config: Any, record: dict[str, Any], plot: bool, facts: dict[str, str]) -> None:
    from jobs.directors.pages import tell_figures, write_report
    from pipelines.directors.train import train

    print(_told(frames))
    with _timed(record, "train", len(frames.film)):
        report = train(frames, config)
    write_report(Store(config.output), config, frames, report, plot, facts)
    tell_figures(report)
    print(f"report: {storage.join(config.output, 'report.html')}")


@app.command()
def guess(
    model: Annotated[str, typer.Argument(help="The output of `train`: a path or s3://bucket/prefix.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    image: Annotated[str, typer.Option(help="A picture, or a folder or prefix of pictures of one film.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Tell so many of the likeliest directors.")] = 3,
    save: Annotated[
        str | None, typer.Option(help="Write each picture with its answer into this folder; or, of one, to this file.")
    ] = None,
    dry_run: job.DryRun = False,
    max_rejected: job.MaxRejected = None,
) -> None:
    """Say who directed a picture, and a folder of pictures as one film. Settings are of backbone, read and write."""
    with job.exit_codes():
        from actors.models.backbones import check_backbone
        from jobs.directors.pages import GuessConfig, find_images, save_answers, tell_guess
        from pipelines.directors.guess import check_space, guess, network, read_model
        from pipelines.directors.vectors import (
            FEW,
            PicturesConfig,
            embed,
            embed_few,
            missing,
            read_pictures_of,
            stages_of,
            wanted,
        )

        known = read_model(model)
        pictures = job.load(PicturesConfig, settings or [], network(known))
        check_backbone(pictures.backbone)
        check_space(known, pictures.backbone)
        config = GuessConfig(model, image, top, save, pictures)
        found = find_images(image)
        store = Store(model)
        rows = wanted([(entry.uri, entry.uri, entry.size) for entry in found], pictures.views, set())
        todo = missing(store, rows, pictures)
        if dry_run:
            facts = [
                f"{len(found)} pictures, {len(rows) - len(todo)} of them with vectors; {len(known.directors)} directors"
            ]
            places = {"features": store.uri("features"), "record": store.uri("runs/guess.json")}
            job.tell_plan(config, facts, *stages_of(pictures), places | ({"pictures": save} if save else {}))
            return
        with job.recorded("guess", config, model, max_rejected) as record, ExitStack() as session:
            with _timed(record, "embed", len(todo)):
                if len(todo) > FEW:
                    session.enter_context(job.ray_session())
                    embed(store, todo, pictures)
                elif todo:
                    embed_few(store, todo, pictures)
            got = read_pictures_of(store, rows, pictures)
            codes = dict(Counter(row["error"] for row in got.rejected))
            record["rows"] = {"in": len(found), "out": len(got.path), "rejected": codes}
            for row in got.rejected:
                print(f"{row['path']}: {row['error']}: {row['message']}")
            if got.path:
                each, whole = guess(known, got.vectors, top)
                record["answer"] = {"name": whole.name, "top": whole.top}
                tell_guess(got.path, each, whole)
                if save:
                    save_answers(save, found, dict(zip(got.path, each, strict=True)))


if __name__ == "__main__":
    app()
