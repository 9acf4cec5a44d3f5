"""Directors: classify whose film a screenshot is from.

python -m jobs.directors sample input=films/ output=screenshots/ screenshots.per_film=30
python -m jobs.directors train input=screenshots/ output=model/
python -m jobs.directors guess model/ --image frame.jpg
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.core import storage
from jobs.core.counts import examples
from jobs.core.settings import load
from jobs.core.status import Status
from jobs.core.verbs import Preview, Run, Verb, Verbs, located

if TYPE_CHECKING:
    from pipelines.directors.frames import Frames
    from pipelines.directors.guess import GuessPlan
    from pipelines.directors.sample import SampleConfig, SamplePlan, Screenshot
    from pipelines.directors.settings import DirectorsConfig, ExploreConfig, GuessConfig
    from pipelines.directors.train import TrainPlan

app = Verbs(__doc__)
app.verb(Status)


def _parent(uri: str) -> str:
    return storage.absolute(uri).rpartition("/")[0] or "/"


@app.verb
class Sample(Verb):
    """Take screenshots of films, by director. Rerun to resume."""

    def settings(self) -> "type[SampleConfig]":
        from pipelines.directors.sample import SampleConfig

        return SampleConfig

    def plan(self, config: "SampleConfig") -> "SamplePlan":
        from pipelines.directors.sample import plan_sample

        return plan_sample(config)

    def preview(self, config: "SampleConfig", plan: "SamplePlan") -> Preview:
        done = len(plan.films) - plan.bad - len(plan.todo)
        facts = [
            f"input: {len(plan.films)} films of {plan.directors} directors",
            f"to do: {len(plan.todo)} films; {done} done, {plan.bad} rejected by name",
        ]
        places = located(config.output, "manifest.csv", "screenshots", "rejected", "runs/sample.json")
        return Preview(facts, places, {}, plan.tasks(config))

    def work(self, config: "SampleConfig", plan: "SamplePlan", run: Run) -> None:
        from pipelines.directors.sample import sample

        if plan.todo:
            run.ray()
        run.record |= sample(config, plan)
        run.say(f"{run.record['screenshots']} screenshots: {run.store.uri('manifest.csv')}")


@app.verb
class Explore(Verb):
    """Count screenshots and films by director, on a page with a contact sheet."""

    positional = ("input",)

    def settings(self) -> "type[ExploreConfig]":
        from pipelines.directors.settings import ExploreConfig

        return ExploreConfig

    def rejections(self, config: "ExploreConfig") -> None:
        return None

    def root(self, config: "ExploreConfig") -> str:
        return config.output or storage.join(config.input, "explore")

    def plan(self, config: "ExploreConfig") -> "list[Screenshot]":
        from pipelines.directors.sample import read_screenshots

        return read_screenshots(config.input, config.film_separator)

    def preview(self, config: "ExploreConfig", plan: "list[Screenshot]") -> Preview:
        facts = [f"input: {len(plan)} screenshots of {len({shot.director for shot in plan})} directors"]
        names = ("screenshots.png", "films.png", "contact.png", "report.html", "runs/explore.json")
        return Preview(facts, located(self.root(config), *names))

    def work(self, config: "ExploreConfig", plan: "list[Screenshot]", run: Run) -> None:
        from jobs.directors.pages import write_exploration

        run.record["rows"] = write_exploration(run.store, plan, config)
        for line in examples([f"{shot.path}: not_found" for shot in plan if shot.size < 0]):
            run.say(line)
        run.say(f"page: {run.store.uri('report.html')}")


@app.verb
class Train(Verb):
    """Train a head on screenshots (input=) or vectors (films=), and report its accuracy on held-out films.

    Rerun to resume. --plot shows the training curves in the report; --plot PATH also writes them to that path.
    """

    def settings(self) -> "type[DirectorsConfig]":
        from pipelines.directors.settings import DirectorsConfig

        return DirectorsConfig

    def outputs(self, config: "DirectorsConfig") -> list[str]:
        return [config.output, *([_parent(config.plot)] if isinstance(config.plot, str) else [])]

    def plan(self, config: "DirectorsConfig") -> "TrainPlan":
        from pipelines.directors.train import plan_train

        return plan_train(config)

    def preview(self, config: "DirectorsConfig", plan: "TrainPlan") -> Preview:
        from pipelines.directors.train import plot_uri
        from pipelines.directors.vectors import stages_of

        names = ("model.json", "model.safetensors", "report.json", "report.html", "curves.csv", "runs/train.json")
        places = located(config.output, *names)
        if isinstance(config.plot, str):
            places["plot"] = plot_uri(config.plot)
        if plan.frames is not None:
            return Preview([_counts(plan.frames)], places)
        shots = plan.shots
        films = len({(s.director, s.film) for s in shots}) if plan.films_known else "unknown"
        facts = [
            f"input: {len(shots)} screenshots of {films} films by {len({s.director for s in shots})} directors",
            f"to do: {len(plan.todo)} of {len(plan.rows)} vectors",
        ]
        return Preview(facts, located(config.input, "features") | places, *stages_of(config.pictures))

    def work(self, config: "DirectorsConfig", plan: "TrainPlan", run: Run) -> None:
        from jobs.directors.pages import figure_lines, write_report
        from pipelines.directors.train import UNKNOWN_FILMS, settled, train

        run.ray()
        trained = train(config, plan)
        run.record |= {"rows": trained.rows, "notes": trained.notes}
        if not config.films:
            run.stage("embed", len(plan.todo), trained.seconds["embed"])
        run.stage("train", len(trained.frames.film), trained.seconds["train"])
        page = write_report(settled(config, plan), trained)
        for line in (_counts(trained.frames), *figure_lines(trained.report), f"report: {page}"):
            run.say(line)
        if not plan.films_known:
            run.say(UNKNOWN_FILMS)


def _counts(frames: "Frames") -> str:
    known, unknown = (frames.director >= 0).sum(), (frames.director < 0).sum()
    what = "films" if frames.films_known else "pictures of unknown films"
    return (
        f"{known} {what} of {len(frames.directors)} directors to train on, {unknown} of unknown directors; "
        f"{len(frames.film)} vectors"
    )


@app.verb
class Guess(Verb):
    """Classify a picture by director; each picture of a folder, and all of them as one film; or films (--film).

    python -m jobs.directors guess model/ --image frame.jpg --save answer.jpg
    """

    positional = ("model",)

    def rejections(self, config: "GuessConfig") -> None:
        return None

    def settings(self) -> "type[GuessConfig]":
        from pipelines.directors.settings import GuessConfig

        return GuessConfig

    def load(self, arguments: Sequence[str]) -> "GuessConfig":
        from pipelines.directors.guess import network

        # Pictures are embedded as the model's were, unless settings say otherwise.
        model = super().load(arguments).model
        return load(self.settings(), arguments, {"pictures": network(model)}, self.positional)

    def root(self, config: "GuessConfig") -> str:
        return config.model

    def outputs(self, config: "GuessConfig") -> list[str]:
        return [config.model, *([_parent(config.save)] if config.save else [])]

    def plan(self, config: "GuessConfig") -> "GuessPlan":
        from pipelines.directors.guess import plan_guess

        return plan_guess(config)

    def preview(self, config: "GuessConfig", plan: "GuessPlan") -> Preview:
        from pipelines.directors.vectors import stages_of

        videos = len(plan.films.todo) if plan.films else 0
        films = f" of {len(plan.films.names())} films" if plan.films else ""
        facts = [
            f"input: {len(plan.found)} pictures{films}; model: {len(plan.model.directors)} directors",
            f"to do: {len(plan.todo)} vectors" + (f", screenshots of {videos} video files" if videos else ""),
        ]
        places = located(config.model, "features", "runs/guess.json") | ({"save": config.save} if config.save else {})
        return Preview(facts, places, *stages_of(config.pictures))

    def work(self, config: "GuessConfig", plan: "GuessPlan", run: Run) -> None:
        from jobs.directors.pages import in_words, save_answers
        from pipelines.directors.guess import guess

        if plan.needs_ray:
            run.ray()
        done = guess(config, plan)
        run.stage("embed", len(plan.todo), done.seconds)
        if plan.films:
            silent = Counter({"no_pictures": len(plan.films.names()) - len(done.films)})
            run.record["rows"] = {"in": len(plan.films.names()), "out": len(done.films), "rejected": dict(+silent)}
        else:
            run.record["rows"] = {"in": len(plan.found), "out": len(done.each), "rejected": done.codes}
        run.record["notes"] = done.notes
        for line in examples([f"{row['path']}: {row['error']}: {row['message']}" for row in done.rejected]):
            run.say(line)
        for film, answer in done.films.items():
            run.say(f"{film}: {in_words(answer)}")
        if done.films:
            run.record["films"] = {film: {"name": one.name, "top": one.top} for film, one in done.films.items()}
        for path, answer in done.each.items():
            run.say(f"{path.rpartition('/')[2]}: {in_words(answer)}")
        if done.whole is None:
            return
        run.record["answer"] = {"name": done.whole.name, "top": done.whole.top}
        if len(done.each) > 1:
            run.say(f"all {len(done.each)} as one film: {in_words(done.whole)}")
        if config.save:
            save_answers(config.save, plan.found, done.each)
            run.say(f"saved: {config.save}")


if __name__ == "__main__":
    app()
