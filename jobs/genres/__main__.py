"""Genres: several for each film, from its key frames.

python -m jobs.genres embed input=s3://movienet/keyframes/ output=s3://runs/genres
python -m jobs.genres process meta=s3://movienet/meta/ output=s3://runs/genres
python -m jobs.genres train input=s3://runs/genres/films.npz output=s3://runs/genres
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.core.stage import Stage
from actors.core.store import Store
from jobs.core.counts import decoder_lines, examples, listed
from jobs.core.status import Status
from jobs.core.verbs import Preview, Run, Verb, Verbs, located

if TYPE_CHECKING:
    from pipelines.core.film_vectors import Films
    from pipelines.genres.embed import EmbedConfig, EmbedPlan
    from pipelines.genres.predict import PredictConfig, PredictPlan
    from pipelines.genres.process import ProcessConfig
    from pipelines.genres.score import ScoreConfig
    from pipelines.genres.texts import TextsConfig, TextsPlan
    from pipelines.genres.train import TrainConfig, TrainPlan
    from pipelines.genres.zero_shot import ZeroShotConfig, ZeroShotPlan

app = Verbs(__doc__)
app.verb(Status)


@app.verb
class Embed(Verb):
    """Embed key frames with CLIP: one float16 array per film. Rerun to resume."""

    def settings(self) -> "type[EmbedConfig]":
        from pipelines.genres.embed import EmbedConfig

        return EmbedConfig

    def plan(self, config: "EmbedConfig") -> "EmbedPlan":
        from pipelines.genres.embed import plan_embed

        return plan_embed(config)

    def preview(self, config: "EmbedConfig", plan: "EmbedPlan") -> Preview:
        kinds = Counter(source.kind for source in plan.sources)
        facts = [
            f"input: {kinds['folder']} folders of images, {kinds['video']} video files, {kinds['tar']} tars",
            f"to do: {len(plan.todo)} films",
        ]
        return Preview(facts, located(config.output, "features", "rejected", "runs/embed.json"), *plan.stages(config))

    def work(self, config: "EmbedConfig", plan: "EmbedPlan", run: Run) -> None:
        from pipelines.genres.embed import embed

        if plan.todo:
            run.ray()
        done = embed(config, plan)
        count = done.embedded + sum(done.rejected.values())
        run.record["rows"] = {"in": count, "out": done.embedded, "rejected": done.rejected}
        run.stage("embed", done.new, done.seconds)
        run.record["films"] = {"in": len(plan.sources), "embedded_now": len(plan.todo), "decoders": done.decoders}
        run.record["notes"] = done.notes
        for line in decoder_lines(done.decoders, config.images.video.by_nvdec):
            run.say(line)


@app.verb
class Texts(Verb):
    """Embed subtitles or plots of films, as further features (`extra=`) of `train`. Rerun to resume."""

    def settings(self) -> "type[TextsConfig]":
        from pipelines.genres.texts import TextsConfig

        return TextsConfig

    def plan(self, config: "TextsConfig") -> "TextsPlan":
        from pipelines.genres.texts import plan_texts

        return plan_texts(config)

    def preview(self, config: "TextsConfig", plan: "TextsPlan") -> Preview:
        facts = [f"input: {len(plan.films)} texts", f"to do: {len(plan.todo)}"]
        return Preview(facts, located(config.output, "features", "rejected", "runs/texts.json"), *plan.stages(config))

    def work(self, config: "TextsConfig", plan: "TextsPlan", run: Run) -> None:
        from pipelines.genres.texts import embed_texts

        if plan.todo:
            run.ray()
        run.record |= embed_texts(config, plan)
        run.say(f"{run.record['passages']} passages: {run.store.uri('features')}")


@app.verb
class Process(Verb):
    """Write films' vectors with genres and directors as one .npz file, the input of `train` and `directors train`."""

    def rejections(self, config: "ProcessConfig") -> None:
        return None

    def settings(self) -> "type[ProcessConfig]":
        from pipelines.genres.process import ProcessConfig

        return ProcessConfig

    def plan(self, config: "ProcessConfig") -> list[str]:
        from pipelines.genres.process import plan_process

        return plan_process(config)

    def preview(self, config: "ProcessConfig", plan: list[str]) -> Preview:
        place = config.input or Store(config.output).uri("features")
        facts = [f"input: {len(plan)} films in {place}"]
        return Preview(facts, located(config.output, "films.npz", "runs/process.json"))

    def work(self, config: "ProcessConfig", plan: list[str], run: Run) -> None:
        from pipelines.genres.process import process

        made = process(config)
        codes = Counter(row["code"] for row in made.rejected)
        run.record["rows"] = {"in": made.films, "out": made.films - codes.total(), "rejected": dict(codes)}
        run.record |= {"rejected": made.rejected, "unknown_genres": made.unknown_genres, "pieces": made.pieces}
        for line in examples([f"{row['film']}: {row['code']}: {row['message']}" for row in made.rejected]):
            run.say(line)
        if made.unknown_genres:
            run.say(f"not among the {made.genres} genres, ignored{listed(made.unknown_genres)}")
        run.say(f"{made.pieces} rows, {made.directed} films with directors: {run.store.uri('films.npz')}")


@app.verb
class Train(Verb):
    """Train a genre classifier and report its average precision on held-out films. Rerun to resume."""

    def settings(self) -> "type[TrainConfig]":
        from pipelines.genres.train import TrainConfig

        return TrainConfig

    def plan(self, config: "TrainConfig") -> "TrainPlan":
        from pipelines.genres.train import plan_train

        return plan_train(config)

    def preview(self, config: "TrainConfig", plan: "TrainPlan") -> Preview:
        films = plan.films.whole()
        workers = Stage(config.workers, 1.0, config.num_gpus, config.batch_size)
        names = ("model/model.safetensors", "model/config.json", "test.parquet", "runs/train.json")
        artefacts = located(config.output, *names, *(() if config.solved else ("training",)))
        facts = [f"input: {len(films)} films with {len(films.genre_names)} genres"]
        if plan.left_out:
            facts.append(f"left out: {plan.left_out} films that are not in {config.split_file}")
        return Preview(facts, artefacts, {} if config.solved else {"train": workers})

    def work(self, config: "TrainConfig", plan: "TrainPlan", run: Run) -> None:
        from pipelines.genres.train import train

        if not config.solved:
            run.ray()
        run.record |= train(config, plan)
        counts = ", ".join(f"{count} {part}" for part, count in run.record["films"].items())
        run.say(f"films: {counts}" + (f"; {plan.left_out} are in no part of the split" if plan.left_out else ""))
        if run.record["test_ap"]:
            run.say(_precision(run.record))
        elif "note" in run.record:
            run.say(f"average precision is not measured: {run.record['note']}")
        run.say(f"model: {run.store.uri('model')}")


@app.verb
class Predict(Verb):
    """Predict the genres of films, with probabilities."""

    def settings(self) -> "type[PredictConfig]":
        from pipelines.genres.predict import PredictConfig

        return PredictConfig

    def plan(self, config: "PredictConfig") -> "PredictPlan":
        from pipelines.genres.predict import plan_predict

        return plan_predict(config)

    def preview(self, config: "PredictConfig", plan: "PredictPlan") -> Preview:
        facts = [
            f"input: {len(plan.films.whole())} films",
            f"model: {plan.about['learn']['head']}, {len(plan.about['thresholds'])} genres",
        ]
        names = ["predictions.parquet", "runs/predict.json"]
        if plan.scenes:
            facts.append(f"scenes: {len(plan.scenes.parts)}; films without{listed(plan.scenes.without) or ': none'}")
            names.append("scenes.parquet")
        return Preview(facts, located(config.output, *names))

    def work(self, config: "PredictConfig", plan: "PredictPlan", run: Run) -> None:
        from pipelines.genres.predict import predict

        count, chosen = predict(config, plan)
        run.record["films"] = count
        counts = {str(name): int(films) for name, films in chosen.sort_values(ascending=False).items()}
        run.say(f"{count} films{listed(counts)}")
        run.say(f"predictions: {run.store.uri('predictions.parquet')}")
        if plan.scenes:
            run.record |= {"scenes": len(plan.scenes.parts), "films_without_scenes": plan.scenes.without}
            run.say(f"{len(plan.scenes.parts)} scenes: {run.store.uri('scenes.parquet')}")
            if plan.scenes.without:
                run.say(f"films without scenes{listed(plan.scenes.without)}")


@app.verb
class ZeroShot(Verb):
    """Predict the genres of films by a vision-language model that is shown key frames. Rerun to resume."""

    def settings(self) -> "type[ZeroShotConfig]":
        from pipelines.genres.zero_shot import ZeroShotConfig

        return ZeroShotConfig

    def plan(self, config: "ZeroShotConfig") -> "ZeroShotPlan":
        from pipelines.genres.zero_shot import plan_zero_shot

        return plan_zero_shot(config)

    def preview(self, config: "ZeroShotConfig", plan: "ZeroShotPlan") -> Preview:
        facts = [
            f"input: {len(plan.sources)} films, {len(config.genres)} genres",
            f"to do: {len(plan.todo)} films with {config.vlm.model}",
        ]
        if config.vlm.service:
            tokens, usd = plan.cost(config)
            facts.append(f"about {tokens} input tokens, ${usd:.2f}, and three times that at most with retries")
        names = ["answers", "predictions.parquet", "rejected", "runs/zero-shot.json"]
        if config.scenes:
            facts.append(f"scenes: {config.scenes}; each takes a request as a film does, not counted here")
            names.append("scenes.parquet")
        return Preview(facts, located(config.output, *names), *plan.stages(config))

    def work(self, config: "ZeroShotConfig", plan: "ZeroShotPlan", run: Run) -> None:
        from pipelines.genres.zero_shot import zero_shot

        if plan.todo:
            run.ray()
        run.record |= zero_shot(config, plan)
        tokens = run.record["tokens"]
        if config.vlm.service:
            cost = f"{tokens['in']} + {tokens['out']} tokens, ${tokens['usd']:.2f}"
            run.say(f"{run.record['requests']} requests, {cost}")
        if run.record["problems"]:
            run.say(f"problems{listed(run.record['problems'])}: {run.store.uri('rejected')}")
        run.say(f"predictions: {run.store.uri('predictions.parquet')}")
        if config.scenes:
            run.say(f"{run.record['scenes']} scenes: {run.store.uri('scenes.parquet')}")


@app.verb
class Score(Verb):
    """Evaluate predictions, or classifiers by cross-validation: average precision, calibration, curves, a page."""

    def settings(self) -> "type[ScoreConfig]":
        from pipelines.genres.score import ScoreConfig

        return ScoreConfig

    def plan(self, config: "ScoreConfig") -> "Films":
        from pipelines.genres.score import plan_score

        return plan_score(config)

    def preview(self, config: "ScoreConfig", plan: "Films") -> Preview:
        from pipelines.genres.score import predicted

        what = f"{config.folds} folds of {', '.join(config.heads)}" if config.folds else predicted(config)
        facts = [f"input: {len(plan.whole())} films", f"to score: {what}"]
        return Preview(facts, located(config.output, "score.json", "report.html", "runs/score.json"))

    def work(self, config: "ScoreConfig", plan: "Films", run: Run) -> None:
        from jobs.genres.page import write_report
        from pipelines.genres.score import LOGISTIC, figures, judge

        if config.folds and any(name != "mean" for name in config.heads):
            run.ray()
        judged = judge(config, plan)
        found = figures(judged, config.draws)
        run.store.write_json(found, "score.json")
        page = write_report(run.store, judged, found, config)
        run.record["films"] = len(judged.films)
        for name, method in found["methods"].items():
            if method["ap"]:
                run.say(f"{name}: average precision {_intervals(method['ap'])}, {found['films']} films")
        if leading := found["methods"][judged.best]["lead_on_logistic_regression"]:
            leads = "; ".join(
                f"{name} {100 * row['ap']:+.1f} [{100 * row['ap_low']:+.1f}, {100 * row['ap_high']:+.1f}]"
                for name, row in leading.items()
            )
            run.say(f"{judged.best} against {LOGISTIC}, with 95 % intervals over films: {leads}")
        for note in found["notes"]:
            run.say(note)
        run.say(f"report: {page}")


def _precision(record: Mapping[str, Any]) -> str:
    """Average precision on the test films with its intervals."""
    films = record["films"]["test"]
    values = ", ".join(
        f"{name} {100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        for (name, value), (low, high) in zip(record["test_ap"].items(), record["test_ap_95"].values(), strict=True)
    )
    return f"average precision on {films} test films with {record['genres']} genres: {values}; see `score` for details"


def _intervals(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Average precisions in percent with their intervals."""
    return ", ".join(
        f"{name} {100 * row['ap']:.1f} [{100 * row['ap_low']:.1f}, {100 * row['ap_high']:.1f}]"
        for name, row in rows.items()
    )


if __name__ == "__main__":
    app()
