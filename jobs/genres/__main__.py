"""Genres: from key frames to the genres of films.

python -m jobs.genres embed input=s3://movienet/keyframes/ output=s3://runs/genres
python -m jobs.genres process meta=s3://movienet/meta/ output=s3://runs/genres
python -m jobs.genres train films=s3://runs/genres/films.npz output=s3://runs/genres
"""

import time
from collections import Counter
from contextlib import ExitStack
from typing import Annotated

import typer

from actors.core import storage
from actors.core.errors import UserError
from actors.core.stage import Stage
from actors.core.store import Store
from actors.models.clip import ImageEmbedder, check_clip, input_shape
from jobs.core import run as job
from jobs.genres.page import write_report
from pipelines.core.ray_data import fitted
from pipelines.genres import process as genres
from pipelines.genres import train as genre_heads
from pipelines.genres.embed import embed_films, find_films, read_about, stages_of, store_films, stored_films
from pipelines.genres.process import EmbedConfig, ProcessConfig, read_any
from pipelines.genres.score import LOGISTIC, ScoreConfig, figures, judge
from pipelines.genres.train import PredictConfig, TrainConfig, load_model

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.yaml] [key=value]...", help="Settings from a file, then single ones."),
]


@app.command()
def embed(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Embed key frames by CLIP: a float16 array for each film. The same command after a kill does what is missing."""
    with job.exit_codes():
        config = job.load(EmbedConfig, settings or [])
        check_clip(config.embeddings)
        store = Store(config.output)
        sources = find_films(config.input)
        _check_model(store, config)
        done = stored_films(store)
        todo = [source for source in sources if source.film not in done]
        pools: dict[str, Stage] = {"embed": config.embeddings}
        tasks = stages_of(todo, config.images)
        if dry_run:
            videos = sum(source.video for source in sources)
            facts = [
                f"input: {len(sources) - videos} folders of images, {videos} video files",
                f"to do: {len(todo)} films",
            ]
            artefacts = {name: store.uri(name) for name in ("features", "rejected", "runs/embed.json")}
            job.tell_plan(config, facts, pools, tasks, artefacts)
            return
        with job.recorded("embed", config, config.output, max_rejected) as record:
            store.write_json({"model": config.embeddings.name()}, "embedding.json")
            started = time.monotonic()
            if todo:
                with job.ray_session():
                    stages = fitted(pools, tasks, config.autoscaling)
                    shape = input_shape(config.embeddings)
                    films = embed_films(todo, ImageEmbedder, shape, config.images, stages)
                    store_films(store, films, len(todo))
            seconds = time.monotonic() - started
            names = [source.film for source in sources]
            images = dict(zip(names, read_about(store, names), strict=True))
            out = sum(len(about["images"]) for about in images.values())
            new = sum(len(about["images"]) for name, about in images.items() if name not in done)
            rejected: Counter[str] = Counter()
            for about in images.values():
                rejected.update(about["rejected"])
            record["rows"] = {"in": out + rejected.total(), "out": out, "rejected": dict(rejected)}
            record["stages"] = {"embed": {"rows": new, "seconds": round(seconds, 1)}}
            record["films"] = {"in": len(sources), "embedded_now": len(todo)}


def _check_model(store: Store, config: EmbedConfig) -> None:
    """Vectors of two models lie in two spaces."""
    made = store.read_json("embedding.json")
    if made and made["model"] != config.embeddings.name():
        raise UserError(f"{config.output} holds vectors of {made['model']}: use another output")


@app.command()
def process(settings: Settings = None, dry_run: job.DryRun = False, max_rejected: job.MaxRejected = None) -> None:
    """Put the films that were embedded into one .npz with their genres, from which `train` learns."""
    with job.exit_codes():
        config = job.load(ProcessConfig, settings or [])
        store = Store(config.output)
        if dry_run:
            facts = [f"input: {len(stored_films(store))} films in {store.uri('features')}"]
            artefacts = {name: store.uri(name) for name in ("films.npz", "runs/process.json")}
            job.tell_plan(config, facts, {}, {}, artefacts)
            return
        with job.recorded("process", config, config.output, max_rejected) as record:
            made = genres.process(config)
            codes = Counter(row["code"] for row in made.rejected)
            record["rows"] = {"in": made.films, "out": made.films - codes.total(), "rejected": dict(codes)}
            record |= {"rejected": made.rejected, "unknown_genres": made.unknown_genres, "pieces": made.pieces}
        if made.unknown_genres:
            print(f"genres that are not among the 21, and count as not there{job.listed(made.unknown_genres)}")
        print(f"{made.pieces} rows: {store.uri('films.npz')}")


@app.command()
def train(settings: Settings = None, dry_run: job.DryRun = False) -> None:
    """Learn genres from films, and say what that is worth on films not seen. The same command after a kill goes on."""
    with job.exit_codes():
        config = job.load(TrainConfig, settings or [])
        store = Store(config.output)
        if dry_run:
            films = read_any(config.films).whole()
            facts = [f"input: {len(films)} films with {len(films.genre_names)} genres"]
            workers = Stage(config.workers, 1.0, 1.0 if config.use_gpu else 0.0, config.batch_size)
            names = ("model/model.safetensors", "model/config.json", "test.parquet", "runs/train.json")
            artefacts = {name: store.uri(name) for name in (*names, *(() if config.solved else ("training",)))}
            job.tell_plan(config, facts, {} if config.solved else {"train": workers}, {}, artefacts)
            return
        with job.recorded("train", config, config.output) as record, ExitStack() as session:
            if not config.solved:
                session.enter_context(job.ray_session())
            record |= genre_heads.train(config)
        counts = ", ".join(f"{count} {part}" for part, count in record["films"].items())
        print(f"films: {counts}")
        if found := record["test_ap"]:
            print(f"average precision on the test films: {_percents(found)}; `score` says more")
        print(f"model: {store.uri('model')}")


@app.command()
def predict(settings: Settings = None, dry_run: job.DryRun = False) -> None:
    """Tell the genres of films by a model, with their probabilities."""
    with job.exit_codes():
        config = job.load(PredictConfig, settings or [])
        store = Store(config.output)
        if dry_run:
            model = load_model(config.model)
            facts = [
                f"input: {len(read_any(config.films).whole())} films",
                f"model: {model.learn.head}, {len(model.genre_names)} genres",
            ]
            artefacts = {name: store.uri(name) for name in ("predictions.parquet", "runs/predict.json")}
            job.tell_plan(config, facts, {}, {}, artefacts)
            return
        with job.recorded("predict", config, config.output) as record:
            count, chosen = genre_heads.predict(config)
            record["films"] = count
        told = {str(name): int(films) for name, films in chosen.sort_values(ascending=False).items()}
        print(f"{count} films{job.listed(told)}")
        print(f"predictions: {store.uri('predictions.parquet')}")


@app.command()
def score(settings: Settings = None, dry_run: job.DryRun = False) -> None:
    """Say what predictions, or heads in cross-validation, are worth: table, curves, calibration, and a page."""
    with job.exit_codes():
        config = job.load(ScoreConfig, settings or [])
        store = Store(config.output)
        predicted = config.predictions or store.uri("test.parquet")
        if config.zero_shot:
            check_clip(config.embeddings)
        if dry_run:
            what = f"{config.folds} folds of {', '.join(config.heads)}" if config.folds else predicted
            facts = [f"input: {len(read_any(config.films).whole())} films", f"to score: {what}"]
            artefacts = {name: store.uri(name) for name in ("score.json", "report.html", "runs/score.json")}
            job.tell_plan(config, facts, {}, {}, artefacts)
            return
        with job.recorded("score", config, config.output) as record, ExitStack() as session:
            if not config.folds and not storage.exists(predicted):
                raise UserError(f"there is no {predicted}: `train` or `predict` first, or folds=5")
            if config.folds and any(name != "mean" for name in config.heads):
                session.enter_context(job.ray_session())
            judged = judge(config)
            found = figures(judged, config.draws)
            store.write_json(found, "score.json")
            page = write_report(store, judged, found, config)
            record["films"] = len(judged.films)
        for name, method in found["methods"].items():
            values = {kind: row["ap"] for kind, row in method["ap"].items()}
            print(f"{name}: average precision {_percents(values)}")
        if leading := found["methods"][judged.best]["lead_on_logistic_regression"]:
            told = "; ".join(
                f"{name} {100 * row['ap']:+.1f} [{100 * row['ap_low']:+.1f}, {100 * row['ap_high']:+.1f}]"
                for name, row in leading.items()
            )
            print(f"{judged.best} against {LOGISTIC}, with 95 % intervals over films: {told}")
        for note in judged.notes:
            print(note)
        print(f"report: {page}")


def _percents(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items())


if __name__ == "__main__":
    app()
