"""Comic characters: which drawn people are the same character, by their faces and bodies.

python -m jobs.comic_characters detect input=s3://comics/pages detect.weights=faces_and_bodies.onnx output=s3://comics/out
python -m jobs.comic_characters crop input=s3://comics/panels boxes=s3://comics/merged_face_body.csv output=s3://comics/out
python -m jobs.comic_characters pretrain output=s3://comics/out pretrain.training.num_gpus=1
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.core.stage import Stage
from actors.core.store import Store
from jobs.core.counts import listed
from jobs.core.settings import SettingsError, load, merge, read_yaml
from jobs.core.status import Status
from jobs.core.verbs import Preview, Run, Verb, Verbs, located

if TYPE_CHECKING:
    from pipelines.comic_characters.assign import AssignPlan
    from pipelines.comic_characters.crop import CropPlan
    from pipelines.comic_characters.detect import DetectPlan
    from pipelines.comic_characters.embed import EmbedPlan
    from pipelines.comic_characters.learning.fine_tune import FineTunePlan
    from pipelines.comic_characters.learning.pairs import PretrainPlan
    from pipelines.comic_characters.score import ScorePlan
    from pipelines.comic_characters.settings import ComicsConfig
    from pipelines.core.training import Trained

EXPERIMENTS = Path(__file__).parent / "experiments"
"""Settings files that ship with the project, by name."""

app = Verbs(__doc__)
app.verb(Status)


class ComicsVerb(Verb):
    """A verb of comic characters: all share one tree of settings, and named experiments."""

    def rejections(self, config: "ComicsConfig") -> str:
        return f"rejected/{self.name}"

    def settings(self) -> "type[ComicsConfig]":
        from pipelines.comic_characters.settings import ComicsConfig

        return ComicsConfig

    def load(self, arguments: Sequence[str]) -> "ComicsConfig":
        from pipelines.comic_characters.model import settings_of_model

        config = super().load(arguments)
        base = read_experiment(config.experiment) if config.experiment else {}
        if config.model:
            merge(base, settings_of_model(config.model))
        return load(self.settings(), arguments, base) if base else config


def read_experiment(name: str) -> dict[str, Any]:
    """The settings of a named experiment; raises SettingsError where there is none of this name."""
    there = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    if name not in there:
        raise SettingsError(f"experiment={name} does not exist. There are: {', '.join(there)}.")
    return read_yaml(str(EXPERIMENTS / f"{name}.yaml"))


class OnPages(ComicsVerb):
    """A verb that looks at pages."""

    panels_only = False

    def plan(self, config: "ComicsConfig") -> "DetectPlan":
        from pipelines.comic_characters.detect import plan_detection

        return plan_detection(config, self.panels_only)

    def preview(self, config: "ComicsConfig", plan: "DetectPlan") -> Preview:
        from pipelines.comic_characters.crop import BOXES
        from pipelines.comic_characters.detect import COCO, PANELS, stages_of

        detector = [f"detector: {config.detect.weights}, of {', '.join(plan.weights.names)}"] if plan.weights else []
        series = len({page["series_id"] for page in plan.pages})
        facts = [f"input: {len(plan.pages)} pages of {series} series", *detector, f"to do: {len(plan.todo)} pages"]
        names = (plan.folder, PANELS, *((BOXES, COCO) if plan.weights else ()))
        places = located(config.output, *names, f"rejected/{plan.folder}", f"runs/{self.name}.json")
        return Preview(facts, places, *stages_of(config, self.panels_only))

    def work(self, config: "ComicsConfig", plan: "DetectPlan", run: Run) -> None:
        from pipelines.comic_characters.detect import PANELS, detect

        if plan.todo:
            run.ray()
        run.record |= detect(config, plan)
        found = run.record["found"]
        run.say(
            ", ".join(
                f"{count} {kind}" for kind, count in zip(("panels", "faces", "bodies"), found.values(), strict=True)
            )
        )
        run.say(f"panels: {run.store.uri(PANELS)}")


@app.verb
class Panels(OnPages):
    """Find the panels of pages, in reading order, by gutters and frames. Rerun to resume."""

    panels_only = True


@app.verb
class Detect(OnPages):
    """Detect faces and bodies on pages by a detector that you give; `crop` uses the boxes. Rerun to resume."""

    def rejections(self, config: "ComicsConfig") -> str:
        return "rejected/detections"


@app.verb
class Convert(ComicsVerb):
    """Write boxes of Manga109 XML, COCO JSON, CoMix JSON or a CSV as a CSV and as COCO JSON. Needs no Ray."""

    def plan(self, config: "ComicsConfig") -> None:
        from pipelines.comic_characters.detect import check_boxes

        check_boxes(config)

    def preview(self, config: "ComicsConfig", plan: None) -> Preview:
        from pipelines.comic_characters.crop import BOXES
        from pipelines.comic_characters.detect import COCO, PANELS

        names = (BOXES, PANELS, COCO, "rejected/convert", "runs/convert.json")
        return Preview([f"input: {config.boxes}"], located(config.output, *names))

    def work(self, config: "ComicsConfig", plan: None, run: Run) -> None:
        from pipelines.comic_characters.detect import convert

        run.record |= convert(config)


@app.verb
class Crop(ComicsVerb):
    """Cut faces and bodies out of panels or pages. Rerun to resume."""

    def plan(self, config: "ComicsConfig") -> "CropPlan":
        from pipelines.comic_characters.crop import plan_crops

        return plan_crops(config)

    def preview(self, config: "ComicsConfig", plan: "CropPlan") -> Preview:
        from actors.comic_characters.crops import BODIES, FACES
        from pipelines.comic_characters.crop import LISTS, tasks_of

        bad = Counter(plan.boxes.error[plan.boxes.error != ""].tolist())
        pictures = plan.boxes.picture[plan.boxes.picture != ""].nunique()
        facts = [
            f"input: {len(plan.boxes)} boxes in {pictures} pictures; {sum(bad.values())} cannot be cut{listed(bad)}",
            f"to do: {plan.todo.sum()} boxes",
        ]
        names = (BODIES, FACES, "crops", "rejected/crop", *LISTS.values(), "runs/crop.json")
        return Preview(facts, located(config.output, *names), {}, tasks_of(config))

    def work(self, config: "ComicsConfig", plan: "CropPlan", run: Run) -> None:
        from pipelines.comic_characters.crop import crop

        if plan.todo.any():
            run.ray()
        run.record |= crop(config, plan)


@app.verb
class Pretrain(ComicsVerb):
    """Stage 1: train the backbone on pairs of a face and its body, without labels. Rerun to resume."""

    def rejections(self, config: "ComicsConfig") -> str:
        return "rejected/pairs"

    def settings(self) -> "type[ComicsConfig]":
        from pipelines.comic_characters.settings import PretrainSettings

        return PretrainSettings

    def plan(self, config: "ComicsConfig") -> "PretrainPlan":
        from pipelines.comic_characters.learning.pairs import plan_pretraining

        return plan_pretraining(config)

    def preview(self, config: "ComicsConfig", plan: "PretrainPlan") -> Preview:
        from pipelines.comic_characters.learning.pairs import PARTS, tasks_of

        parts = plan.pairs.series_id.map(plan.parts)
        counts = ", ".join(
            f"{part} {(parts == part).sum()} of {list(plan.parts.values()).count(part)}" for part in PARTS
        )
        facts = [
            f"input: {len(plan.pairs)} pairs; {plan.alone} faces and bodies without a partner",
            f"pairs, and their number of series: {counts}",
            f"to do: {len(plan.todo)} pairs to decode, then training, which resumes",
        ]
        training = config.pretrain.training
        workers = Stage(training.workers, training.num_cpus, training.num_gpus, training.batch_size)
        names = ("pairs", "rejected/pairs", config.pretrain.folder, "runs/pretrain.json")
        return Preview(facts, located(config.output, *names), {"train": workers}, tasks_of(config))

    def work(self, config: "ComicsConfig", plan: "PretrainPlan", run: Run) -> None:
        from pipelines.comic_characters.learning.pretrain import pretrain

        run.ray()
        found, trained = pretrain(config, plan)
        run.record |= found
        _tell_training(run, trained, config.pretrain.folder)


@app.verb
class FineTune(ComicsVerb):
    """Stage 2: train the head on labelled sequences. Rerun to resume."""

    def settings(self) -> "type[ComicsConfig]":
        from pipelines.comic_characters.settings import FineTuneSettings

        return FineTuneSettings

    def plan(self, config: "ComicsConfig") -> "FineTunePlan":
        from pipelines.comic_characters.learning.fine_tune import plan_fine_tuning

        return plan_fine_tuning(config)

    def preview(self, config: "ComicsConfig", plan: "FineTunePlan") -> Preview:
        from pipelines.comic_characters.features import name_of, stages_of

        views = f", and of views of {len(plan.views)}" if config.fine_tune.augment else ""
        counts = f"{len(plan.train)} sequences to train on, {len(plan.valid)} to validate"
        facts = [
            f"input: {counts}; backbone {name_of(plan.backbone.weights)}",
            f"to do: features of {len(plan.todo)} instances{views}, then training, which resumes",
        ]
        names = (plan.backbone.folder, config.fine_tune.folder, "model", "rejected/fine-tune", "runs/fine-tune.json")
        return Preview(facts, located(config.output, *names), *stages_of(config))

    def work(self, config: "ComicsConfig", plan: "FineTunePlan", run: Run) -> None:
        from pipelines.comic_characters.learning.fine_tune import fine_tune
        from pipelines.comic_characters.model import keep_model

        run.ray()
        found, trained = fine_tune(config, plan)
        run.record |= found
        _tell_training(run, trained, config.fine_tune.folder)
        run.say(f"model: {keep_model(config, plan.backbone.weights)}")


def _tell_training(run: Run, trained: "Trained", folder: str) -> None:
    values = ", ".join(f"{name} {value:.3g}" for name, value in run.record["best"].items())
    begin = f", resumed after epoch {trained.resumed_from}" if trained.resumed_from else ""
    run.say(f"{len(trained.history)} epochs{begin}; the best: {values}")
    run.say(f"weights: {run.store.uri(folder, 'model.safetensors')}")


@app.verb
class Embed(ComicsVerb):
    """Compute one vector for each face with its body. Rerun to resume."""

    def plan(self, config: "ComicsConfig") -> "EmbedPlan":
        from pipelines.comic_characters.embed import plan_embedding

        return plan_embedding(config)

    def preview(self, config: "ComicsConfig", plan: "EmbedPlan") -> Preview:
        from pipelines.comic_characters import embed, features
        from pipelines.comic_characters.features import name_of

        facts = [
            f"input: {sum(map(len, plan.parts))} instances; backbone {name_of(plan.backbone.weights)}",
            f"to do: features of {len(plan.features)} instances, vectors of {sum(map(len, plan.todo))}",
        ]
        stages = zip(features.stages_of(config), embed.stages_of(config), strict=True)
        pools, tasks = (first | second for first, second in stages)
        names = (plan.backbone.folder, "embeddings", "rejected/embed", "runs/embed.json")
        return Preview(facts, located(config.output, *names), pools, tasks)

    def work(self, config: "ComicsConfig", plan: "EmbedPlan", run: Run) -> None:
        from pipelines.comic_characters.embed import embed

        if plan.todo or plan.features:
            run.ray()
        run.record |= embed(config, plan)


@app.verb
class Score(ComicsVerb):
    """Score the vectors of `embed` in retrieval and clustering, beside baselines and ablations. Rerun to resume."""

    def plan(self, config: "ComicsConfig") -> "ScorePlan":
        from pipelines.comic_characters.score import plan_scores

        tree = asdict(config)
        others = {name: load(self.settings(), own, tree) for name, own in config.score.ablations.items()}
        return plan_scores(config, others)

    def preview(self, config: "ComicsConfig", plan: "ScorePlan") -> Preview:
        todo = ", ".join(f"{name} {len(missing)}" for name, missing in plan.todo.items())
        facts = [
            f"input: {len(plan.instances)} instances of {config.score.split}",
            f"to do: features of instances: {todo}",
            *(f"ablation {name}: {', '.join(own)}" for name, own in config.score.ablations.items()),
            *(f"not compared: {name}: {note}" for name, note in plan.notes.items()),
        ]
        names = [f"{config.score.folder}/{name}" for name in ("scores.json", "scores.csv", "report.html")]
        names += [*(source.folder for source in plan.sources.values()), "rejected/score", "runs/score.json"]
        pools = {name: source.stage for name, source in plan.sources.items()}
        return Preview(facts, located(config.output, *names), pools)

    def work(self, config: "ComicsConfig", plan: "ScorePlan", run: Run) -> None:
        from jobs.comic_characters.score_page import between, write_report
        from pipelines.comic_characters.score import score

        run.ray()
        told, found = score(config, plan)
        run.record |= told
        page = write_report(Store(run.store.uri(config.score.folder)), found, config)
        facts = found.facts
        for name, places in found.methods.items():
            run.say(f"{name}: MAP@R ×100 between series {between(places['between']['map_at_r'])}")
        run.say(f"of {facts['characters between series']} characters from {facts['series']} series")
        for few in found.few:
            run.say(few)
        for name, note in found.notes.items():
            run.say(f"{name}: not compared: {note}")
        run.say(f"report: {page}")


@app.verb
class Assign(ComicsVerb):
    """Cluster the instances of each sequence of panels into characters, with names from a bank. Needs no Ray."""

    def plan(self, config: "ComicsConfig") -> "AssignPlan":
        from pipelines.comic_characters.assign import plan_assignment

        return plan_assignment(config)

    def preview(self, config: "ComicsConfig", plan: "AssignPlan") -> Preview:
        names = ("clusters.json", "pictures", "report.html")
        places = {name: Store(config.output).uri(config.assign.folder, name) for name in names}
        more = ("rejected/assign", "runs/assign.json", *(("threshold.json",) if plan.threshold.taught else ()))
        return Preview(_about(plan), places | located(config.output, *more))

    def work(self, config: "ComicsConfig", plan: "AssignPlan", run: Run) -> None:
        from jobs.comic_characters.assign_page import write_assignment
        from pipelines.comic_characters.assign import assign

        about, found = assign(config, plan)
        run.record |= about
        page = write_assignment(config, plan, found)
        for fact in _about(plan):
            run.say(fact)
        named = f", {about['named']} of them named" if plan.bank else ""
        run.say(f"{about['clusters']} characters in {about['sequences']} sequences{named}")
        if found.agreement:
            run.say("B-cubed: " + ", ".join(f"{name} {value:.3f}" for name, value in found.agreement._asdict().items()))
        run.say(f"report: {page}")


def _about(plan: "AssignPlan") -> list[str]:
    count = sum(len(one.instances) for one in plan.sequences)
    bank = [f"bank: {len(plan.bank.names)} characters, {len(plan.bank.vectors)} examples"] if plan.bank else []
    return [
        f"input: {count} instances in {len(plan.sequences)} sequences",
        f"threshold: {plan.threshold.value:.3g}, {plan.threshold.why}",
        *bank,
    ]


if __name__ == "__main__":
    app()
