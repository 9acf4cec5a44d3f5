"""The verbs of `score`: how accurate results are. Their records are runs/score-VERB.json."""

from typing import TYPE_CHECKING, Any

from actors.core.store import Store
from jobs.core.counts import SHOWN
from jobs.core.verbs import Preview, Run, Verb, Verbs

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.movie_characters.cast import CastConfig, CastPlan
    from pipelines.movie_characters.results import Results
    from pipelines.movie_characters.score import MapConfig, ReportConfig, ScoreConfig, TopkConfig

score = Verbs("Measure how accurate results are: tables, figures and a page.")


class _Score(Verb):
    """A verb that reads results and writes tables about them."""

    def rejections(self, config: Any) -> None:
        return None

    def plan(self, config: "ScoreConfig") -> "Results":
        from pipelines.movie_characters.results import labelled, read_results

        return labelled(read_results(config.input, config.clip_csv, config.pred_column), config.input)

    def preview(self, config: "ScoreConfig", plan: "Results") -> Preview:
        facts = [
            f"results: {len(plan.images)} images of {plan.images.nunique()} classes, "
            f"{plan.rows.identity.nunique()} identities of {plan.rows.cls.nunique()} classes",
            f"without an answer, and so wrong: {len(plan.unanswered)} images",
            f"left out: {plan.doubles} repeated rows, {plan.broken} without a finite loss",
        ]
        names = [*self.tables(config), *(self.figures if config.plot else ())]
        return Preview(facts, {name: Store(config.output).uri(name) for name in names})

    figures: tuple[str, ...] = ()
    """Figures and the page."""

    def tables(self, config: Any) -> list[str]:
        """Names of the tables."""
        raise NotImplementedError

    def open(self, config: "ScoreConfig", plan: "Results", store: Store) -> dict[str, Any]:
        images, silent, lost = len(plan.images), len(plan.unanswered), len(plan.lost)
        codes = {"no_finite_loss": lost, "no_answer": silent - lost}
        return {
            "command": f"score-{self.name}",
            "rows": {
                "in": images,
                "out": images - silent,
                "rejected": {code: count for code, count in codes.items() if count},
            },
            "rejected": [name for name, _ in plan.unanswered],
            "left_out": {"rows that came again": plan.doubles, "rows without a finite loss": plan.broken},
        }

    def close(self, record: dict[str, Any], store: Store) -> None:
        store.write_json(record, "runs", f"{record['command']}.json")


@score.verb
class Topk(_Score):
    """Percentage of a class's images for which it is among the k best: top_K_accuracy_results.csv."""

    figures = ("topk.png", "topk.html")

    def settings(self) -> "type[TopkConfig]":
        from pipelines.movie_characters.score import TopkConfig

        return TopkConfig

    def tables(self, config: "TopkConfig") -> list[str]:
        middle = "_avg" if config.avg else ""
        return [f"top_{k}{middle}_accuracy_results.csv" for k in config.ks]

    def work(self, config: "TopkConfig", plan: "Results", run: Run) -> None:
        from jobs.movie_characters.pages import topk_page
        from pipelines.movie_characters.score import write_topk

        tables = write_topk(config, plan)
        run.record["topk"] = {k: float(table.iloc[-1]) for k, table in tables.items()}
        for k, table in tables.items():
            run.say(f"top-{k}: {table.iloc[-1]:.2f} % {_interval(table.iloc[:-1] / 100, plan)}, mean over classes")
        run.say(_counted(plan))
        if config.plot:
            _page(run, topk_page(config, plan, tables))


@score.verb
class Map(_Score):
    """Average precision of each class, and their mean: average_precision_results.csv."""

    figures = ("average_precision.png", "map.html")

    def settings(self) -> "type[MapConfig]":
        from pipelines.movie_characters.score import MapConfig

        return MapConfig

    def tables(self, config: "MapConfig") -> list[str]:
        return ["average_precision_results.csv"]

    def work(self, config: "MapConfig", plan: "Results", run: Run) -> None:
        from jobs.movie_characters.pages import map_page
        from pipelines.movie_characters.score import write_map

        found = write_map(config, plan)
        if found.interval:
            mean, (low, high) = float(found.values.iloc[-1]), found.interval
            run.record |= {"map": mean, "map_95": [low, high]}
            run.say(f"mAP: {mean:.4f} [{low:.3f}, {high:.3f}], mean over {len(found.values) - 1} classes")
        if found.note:
            run.say(found.note)
        run.say(_counted(plan))
        if config.plot:
            _page(run, map_page(config, plan, found))


@score.verb
class Report(_Score):
    """Precision, recall, F1, confusion matrix, and how well unknown characters are detected."""

    figures = ("confusion.png", "report.html")

    def settings(self) -> "type[ReportConfig]":
        from pipelines.movie_characters.score import ReportConfig

        return ReportConfig

    def tables(self, config: "ReportConfig") -> list[str]:
        return ["classes.csv", "confusion.csv", "answers.csv", "report.json"]

    def work(self, config: "ReportConfig", plan: "Results", run: Run) -> None:
        from jobs.movie_characters.pages import report_page
        from pipelines.movie_characters.score import write_report

        found = write_report(config, plan)
        run.record |= {"accuracy": found.accuracy, "threshold": found.threshold}
        low, high = found.interval
        run.say(
            f"right answers: {100 * found.accuracy:.2f} % [{100 * low:.1f}, {100 * high:.1f}]; "
            f"f1 {found.classes.f1['macro']:.3f}, mean over classes"
        )
        run.say(_counted(plan))
        if found.unknown:
            about = f"of {found.unknown.known} images of known and {found.unknown.unknown} of unknown classes"
            run.say(f"unknown: AUROC {found.unknown.auroc:.3f}, equal error rate {found.unknown.eer:.3f}, {about}")
        if found.note:
            run.say(found.note)
        if found.threshold is not None:
            run.say(f"unknown below a confidence of {found.threshold:.6g}")
        if config.plot:
            _page(run, report_page(config, plan, found))


@score.verb
class Cast(Verb):
    """Accuracy of `identify-faces` over the people that MovieNet's annotations mark: cast.json, cast.parquet."""

    def rejections(self, config: "CastConfig") -> None:
        return None

    def settings(self) -> "type[CastConfig]":
        from pipelines.movie_characters.cast import CastConfig

        return CastConfig

    def plan(self, config: "CastConfig") -> "CastPlan":
        from pipelines.movie_characters.cast import plan_cast

        return plan_cast(config)

    def preview(self, config: "CastConfig", plan: "CastPlan") -> Preview:
        people = sum(len(some) for _, _, some in plan.frames)
        facts = [
            f"input: {people} annotated people in {len(plan.frames)} key frames, {len(plan.people)} in the gallery"
        ]
        return Preview(facts, {name: Store(config.output).uri(name) for name in ("cast.json", "cast.parquet")})

    def work(self, config: "CastConfig", plan: "CastPlan", run: Run) -> None:
        from pipelines.movie_characters.cast import score_cast

        found = score_cast(config, plan)
        run.record["cast"] = found
        told = {
            "known": "people of the gallery",
            "known_with_a_face": "those with a face",
            "strangers": "others: unknown",
        }
        for name, about in told.items():
            if (row := found[name])["boxes"]:
                values = f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
                run.say(f"{about}: {values} right of {row['boxes']} annotated boxes")
        for name in found["broken_images"][:SHOWN]:
            run.say(f"left out: {name}")


def _interval(shares: "pd.Series", results: "Results") -> str:
    from pipelines.movie_characters.metrics import mean_interval

    low, high = mean_interval(shares, results.images)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _counted(results: "Results") -> str:
    """How many images figures are of."""
    names = [name for name, _ in results.unanswered]
    if not names:
        return f"{len(results.images)} images"
    some = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
    return f"{len(results.images)} images, {len(names)} of them without an answer, counted as wrong: {some}"


def _page(run: Run, uri: str) -> None:
    run.record["page"] = uri
    run.say(f"page: {uri}")
