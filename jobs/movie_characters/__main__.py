"""Movie characters: identify who is on screen, and measure how well each model does.

python -m jobs.movie_characters personalise input=s3://faces/ output=s3://characters/may
python -m jobs.movie_characters identify-clip gallery=s3://faces/ input=s3://stills/ output=s3://results/clip
python -m jobs.movie_characters score topk input=s3://results/clip output=s3://scores/clip clip_csv=true
"""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actors.core.store import Store
from jobs.core.counts import decoder_lines, examples, listed
from jobs.core.status import Status
from jobs.core.verbs import Preview, Run, Verb, Verbs, located
from jobs.movie_characters.score import score

if TYPE_CHECKING:
    from actors.movie_characters.drawer import GenerateConfig
    from actors.movie_characters.personalise_settings import PersonaliseConfig
    from pipelines.movie_characters.compare import CompareConfig, ComparePlan
    from pipelines.movie_characters.extract import ExtractConfig
    from pipelines.movie_characters.extract import Plan as ExtractPlan
    from pipelines.movie_characters.films.timeline import TimelineConfig, TimelinePlan
    from pipelines.movie_characters.fuse import FuseConfig
    from pipelines.movie_characters.gallery_settings import ClipConfig, FaceConfig
    from pipelines.movie_characters.generate import Plan as GeneratePlan
    from pipelines.movie_characters.identify_diffusion import IdentifyConfig
    from pipelines.movie_characters.identify_diffusion import Outcome as IdentifyOutcome
    from pipelines.movie_characters.identify_diffusion import Plan as IdentifyPlan
    from pipelines.movie_characters.identify_gallery import Plan as GalleryPlan
    from pipelines.movie_characters.personalise import Plan as PersonalisePlan
    from pipelines.movie_characters.results import Results

app = Verbs(__doc__)
app.verb(Status)
app.add_typer(score, name="score")


def _rows(count: int, rejected: "Counter[str] | dict[str, int]") -> dict[str, Any]:
    return {"in": count, "out": count - sum(rejected.values()), "rejected": dict(rejected)}


@app.verb
class Extract(Verb):
    """Write every frame of the intervals of a table: CATEGORY/CATEGORY_frame_NNNN.jpg. Rerun to resume."""

    def settings(self) -> "type[ExtractConfig]":
        from pipelines.movie_characters.extract import ExtractConfig

        return ExtractConfig

    def plan(self, config: "ExtractConfig") -> "ExtractPlan":
        from pipelines.movie_characters.extract import plan_extraction

        return plan_extraction(config)

    def preview(self, config: "ExtractConfig", plan: "ExtractPlan") -> Preview:
        facts = [
            f"input: {len(plan.rows)} rows of {plan.rows.category.nunique()} categories, "
            f"{len(plan.rows) - len(plan.intervals)} of them cannot be read",
            f"existing: {len(plan.there)} frames",
        ]
        names = ("CATEGORY/CATEGORY_frame_NNNN.jpg", "rejected", *(["extract.html"] if config.show else []))
        return Preview(facts, located(config.output, *names), tasks={"decode": config.decode})

    def work(self, config: "ExtractConfig", plan: "ExtractPlan", run: Run) -> None:
        from jobs.movie_characters.pages import extract_page
        from pipelines.movie_characters.extract import extract

        done = extract(config, plan)
        run.record["rows"] = _rows(len(done.rows), done.rejected)
        run.record["stages"] = {"extract": {"rows": done.written, "seconds": done.seconds}}
        run.record |= {"files": done.files, "damaged": done.damaged, "decoder": done.decoder}
        existed = sum(done.files.values()) - done.written
        run.say(f"frames: {done.written} written, {existed} existed, {done.damaged} damaged")
        if config.show:
            run.record["page"] = extract_page(config, done)
            run.say(f"page: {run.record['page']}")


class _Gallery(Verb):
    """A verb that compares images with a gallery."""

    def plan(self, config: "ClipConfig | FaceConfig") -> "GalleryPlan":
        from pipelines.movie_characters.identify_gallery import plan_identification

        return plan_identification(config)

    def preview(self, config: "ClipConfig | FaceConfig", plan: "GalleryPlan") -> Preview:
        from pipelines.movie_characters.gallery_settings import root_of
        from pipelines.movie_characters.gallery_vectors import stages_of
        from pipelines.movie_characters.identify_gallery import method_of

        facts = [
            f"input: {len(plan.images)} images to identify",
            f"gallery: {len(plan.gallery)} images of {len(plan.classes)} classes",
            f"to do: {len(plan.todo)} images to be embedded by {method_of(config)}",
        ]
        places = located(root_of(config), "vectors") | located(config.output, "CLASS_results.csv", "rejected", "runs")
        return Preview(facts, places, *stages_of(config))

    def work(self, config: "ClipConfig | FaceConfig", plan: "GalleryPlan", run: Run) -> None:
        from pipelines.movie_characters.identify_gallery import identify, needs_ray

        if needs_ray(config, plan):
            run.ray()
        done = identify(config, plan)
        run.record["rows"] = {"in": done.images, "out": done.answered, "rejected": done.rejected}
        run.record["notes"] = done.notes
        run.record["gallery"] = {"images": len(plan.gallery), "rejected": done.lost}
        if plan.todo:
            run.record["stages"] = {"embed": {"rows": done.embedded, "seconds": done.seconds}}
        if done.lost:
            run.say(f"gallery images without a vector{listed(done.lost)}")
        run.say(f"results: {config.output}")


@app.verb
class IdentifyClip(_Gallery):
    """Identify images by CLIP, with a gallery, texts or a trained probe: CLASS_results.csv. Rerun to resume."""

    def settings(self) -> "type[ClipConfig]":
        from pipelines.movie_characters.gallery_settings import ClipConfig

        return ClipConfig


@app.verb
class IdentifyFaces(_Gallery):
    """Identify all faces of images, with a gallery: face_answers, CLASS_results.csv (largest face). Rerun to resume."""

    def settings(self) -> "type[FaceConfig]":
        from pipelines.movie_characters.gallery_settings import FaceConfig

        return FaceConfig


@app.verb
class Personalise(Verb):
    """Personalise a diffusion model to characters: one folder per identity. Rerun to resume."""

    def settings(self) -> "type[PersonaliseConfig]":
        from actors.movie_characters.personalise_settings import PersonaliseConfig

        return PersonaliseConfig

    def plan(self, config: "PersonaliseConfig") -> "PersonalisePlan":
        from pipelines.movie_characters.personalise import plan_personalise

        return plan_personalise(config)

    def check(self, config: "PersonaliseConfig", plan: "PersonalisePlan | None") -> None:
        from pipelines.movie_characters.personalise import check_repository

        check_repository(config)

    def preview(self, config: "PersonaliseConfig", plan: "PersonalisePlan") -> Preview:
        from actors.movie_characters.personalise_settings import DONE
        from pipelines.movie_characters.personalise import stages_of

        pictures = sum(len(task.pictures) for task in plan.tasks)
        facts = [f"input: {len(plan.tasks)} identities of {pictures} images", f"to do: {len(plan.todo)}"]
        store = Store(config.output)
        places = {"identities": store.uri("CLASS_N", DONE)}
        places |= located(config.output, "checkpoints", "rejected", "runs/personalise.json")
        return Preview(facts, places, *stages_of(config))

    def work(self, config: "PersonaliseConfig", plan: "PersonalisePlan", run: Run) -> None:
        from pipelines.movie_characters.personalise import personalise

        if plan.todo:
            run.ray()
        failed = personalise(config, plan)
        run.record["rows"] = _rows(len(plan.tasks), failed)
        run.record["learnt"] = len(plan.todo) - failed.total()
        run.say(f"{run.record['learnt']} identities trained; all: {config.output}")


@app.verb
class IdentifyDiffusion(Verb):
    """Identify images by which identity predicts their noise best: CLASS_results.csv, losses. Rerun to resume."""

    def rejections(self, config: "IdentifyConfig") -> str:
        return f"{config.mode}/rejected"

    def settings(self) -> "type[IdentifyConfig]":
        from pipelines.movie_characters.identify_diffusion import IdentifyConfig

        return IdentifyConfig

    def plan(self, config: "IdentifyConfig") -> "IdentifyPlan":
        from pipelines.movie_characters.identify_diffusion import plan_identify

        return plan_identify(config)

    def preview(self, config: "IdentifyConfig", plan: "IdentifyPlan") -> Preview:
        from pipelines.movie_characters.identify_diffusion import stages_of

        most = sum(map(plan.cost, plan.missing.values())) * config.question().pairs
        facts = [
            f"input: {len(plan.pictures)} images, {len(plan.identities)} identities",
            f"to do: {len(plan.missing)} images, {plan.pairs} pairs of an image and an identity",
            f"evaluations of the network: at most {most}",
        ]
        if config.preselect.folder:
            few = sum(len(some) < len(plan.identities) for some in plan.chosen.values())
            facts.append(f"preselected: {few} images, of {config.preselect.best} classes each")
        names = ("CLASS_results.csv", "CLASS_certainty.csv", "answers", "rejected")
        places = {name: Store(config.output).uri(config.mode, name) for name in names}
        return Preview(facts, places | located(config.output, "runs/identify-diffusion.json"), *stages_of(config))

    def work(self, config: "IdentifyConfig", plan: "IdentifyPlan", run: Run) -> None:
        from pipelines.movie_characters.identify_diffusion import identify
        from pipelines.movie_characters.results import note_classes

        if plan.missing:
            run.ray()
        found = identify(config, plan)
        note_classes(run.store.uri(config.mode), {one.name: one.cls for one in plan.pictures})
        run.record["rows"] = {"in": len(plan.pictures), "out": found.answered, "rejected": dict(found.rejected)}
        run.record |= {name: one for name, one in asdict(found).items() if name not in ("answered", "rejected")}
        if found.answered:
            each, share = found.evaluations / found.answered, found.evaluations / found.of_full
            run.say(f"{each:.0f} evaluations of the network per image, {share:.0%} of all")
            run.say(_certainty(found))
        if config.preselect.folder:
            run.say(f"{found.preselected} images preselected, which saved at least {found.saved} evaluations")
        run.say(f"results: {run.store.uri(config.mode)}")


@app.verb
class Generate(Verb):
    """Draw personalised characters, for ranges of seed, alpha and guidance. Rerun to resume."""

    def settings(self) -> "type[GenerateConfig]":
        from actors.movie_characters.drawer import GenerateConfig

        return GenerateConfig

    def plan(self, config: "GenerateConfig") -> "GeneratePlan":
        from pipelines.movie_characters.generate import plan_generate

        return plan_generate(config)

    def preview(self, config: "GenerateConfig", plan: "GeneratePlan") -> Preview:
        from pipelines.movie_characters.generate import stages_of

        facts = [f"input: {len(plan.identities)} identities", f"to do: {len(plan.todo)} of {len(plan.drawings)} images"]
        places = {"images": Store(config.output).uri(plan.drawings[0].file)}
        return Preview(facts, places | located(config.output, "rejected", "runs/generate.json"), *stages_of(config))

    def work(self, config: "GenerateConfig", plan: "GeneratePlan", run: Run) -> None:
        from pipelines.movie_characters.generate import generate

        if plan.todo:
            run.ray()
        failed = generate(config, plan)
        run.record["rows"] = _rows(len(plan.drawings), failed)
        run.record["drawn"] = len(plan.todo) - failed.total()
        run.say(f"{run.record['drawn']} images drawn; all: {config.output}")


@app.verb
class Fuse(Verb):
    """Fuse the answers of several models: CLASS_results.csv, higher is better."""

    def rejections(self, config: "FuseConfig") -> None:
        return None

    def settings(self) -> "type[FuseConfig]":
        from pipelines.movie_characters.fuse import FuseConfig

        return FuseConfig

    def plan(self, config: "FuseConfig") -> "dict[str, Results]":
        from pipelines.movie_characters.fuse import read_models

        return read_models(config)

    def preview(self, config: "FuseConfig", plan: "dict[str, Results]") -> Preview:
        facts = []
        for name, found in plan.items():
            facts.append(f"{name}: {len(found.images)} images, {found.rows.identity.nunique()} identities")
        return Preview(facts, {"results": Store(config.output).uri("CLASS_results.csv")})

    def work(self, config: "FuseConfig", plan: "dict[str, Results]", run: Run) -> None:
        from pipelines.movie_characters.fuse import fuse

        done = fuse(config, plan)
        lacking = done.images - done.answered
        run.record["rows"] = _rows(done.images, {"no_answer": lacking} if lacking else {})
        for line in examples([f"{name}: no_answer" for name in done.unanswered]):
            run.say(line)
        run.record["weights"] = done.weights
        run.say(f"weights: {_numbers(done.weights)}")
        if done.silent:
            run.say(f"images without an answer of a model, fused from the others{listed(done.silent)}")
        run.say(f"results: {config.output} ({done.classes} classes)")


@app.verb
class Compare(Verb):
    """Compare models on the same images, as they are and through filters: accuracies, tests, a page."""

    def settings(self) -> "type[CompareConfig]":
        from pipelines.movie_characters.compare import CompareConfig

        return CompareConfig

    def plan(self, config: "CompareConfig") -> "ComparePlan":
        from pipelines.movie_characters.compare import plan_compare

        return plan_compare(config)

    def preview(self, config: "CompareConfig", plan: "ComparePlan") -> Preview:
        more = f", {len(plan.validation)} for validation" if plan.validation else ""
        facts = [
            f"input: {len(plan.pictures)} images{more}",
            "filters: " + ", ".join(f"{name} {strength:g}" for name, strength in config.filters.items()),
            f"to do: {len(plan.lessons) + len(plan.runs)} identifications",
        ]
        names = ["images", "results", "vectors", "rejected", "accuracy.csv", "mcnemar.csv", "topk.csv", "compare.html"]
        names += ["validation"] if plan.validation else []
        return Preview(facts, located(config.output, *names), tasks={"disturb": config.disturb})

    def work(self, config: "CompareConfig", plan: "ComparePlan", run: Run) -> None:
        from jobs.movie_characters.pages import compare_page
        from pipelines.movie_characters.compare import run_compare

        run.ray()
        done = run_compare(config, plan)
        run.record["weights"] = done.weights
        run.record["rows"] = _rows(done.images, done.rejected)
        run.record["page"] = compare_page(config, done.comparison)
        for name, weights in done.weights.items():
            run.say(f"weights of {name}: {_numbers(weights)}")
        for row in done.comparison.accuracy.itertuples():
            run.say(f"{row.model}, {row.filter}: {row.accuracy:.1%} [{row.low:.1%}, {row.high:.1%}]")
        run.say(f"page: {run.record['page']}")


@app.verb
class Timeline(Verb):
    """Find which characters films show when: shots, answers, votes, a table and a page. Rerun to resume."""

    def rejections(self, config: "TimelineConfig") -> None:
        return None

    def settings(self) -> "type[TimelineConfig]":
        from pipelines.movie_characters.films.timeline import TimelineConfig

        return TimelineConfig

    def plan(self, config: "TimelineConfig") -> "TimelinePlan":
        from pipelines.movie_characters.films.timeline import plan_timeline

        return plan_timeline(config)

    def preview(self, config: "TimelineConfig", plan: "TimelinePlan") -> Preview:
        facts = [f"input: {len(plan.films)} films", f"to do: {len(plan.todo)} films to be cut into shots"]
        names = ["frames", "shots", "shots.csv", "appearances.csv", "segments.csv", "timelines", "timeline.html"]
        if config.model.by == "faces":
            names += ("faces", "tracks.parquet", "people.csv", "people", "people.html")
        return Preview(
            facts, located(config.output, *names, "timelines", "timeline.html"), tasks={"video": config.video}
        )

    def work(self, config: "TimelineConfig", plan: "TimelinePlan", run: Run) -> None:
        from jobs.movie_characters.pages import timeline_page
        from pipelines.movie_characters.films.timeline import run_timeline

        run.ray()
        found, frames = run_timeline(config, plan)
        broken = {name: about for name, about in found.films.items() if about["error"]}
        run.record["rows"] = _rows(len(plan.films), Counter(about["error"] for about in broken.values()))
        for line in examples([f"{name}: {about['error']}: {about['message']}" for name, about in broken.items()]):
            run.say(line)
        decoders = Counter(about["decoder"] for about in found.films.values() if about["decoder"])
        for line in decoder_lines(decoders, config.video.by_nvdec):
            run.say(line)
        run.record |= {"films": broken, "decoders": decoders, "shots": len(found.shots), "frames": frames}
        run.record["page"] = timeline_page(config, found)
        run.say(f"{len(found.shots)} shots, {frames} frames; page: {run.record['page']}")
        if found.people is not None:
            from jobs.movie_characters.people_page import people_page

            tracks, strangers = len(found.people.index), found.people.clusters
            run.record |= {"tracks": tracks, "unknown_people": strangers}
            page = people_page(run.store, found.people, plan.films)
            run.say(f"{tracks} tracks, {strangers} people without a name; page: {page}")


def _certainty(found: "IdentifyOutcome") -> str:
    from pipelines.movie_characters.certainty import CERTAIN, MIN_IDENTITIES, MIN_IMAGES

    if not found.judged:
        return f"no certainty stated: it takes {MIN_IMAGES} images, and {MIN_IDENTITIES} identities for each"
    return (
        f"{found.certain} of {found.judged} answers certain (p ≤ {CERTAIN}); a network without knowledge of the "
        f"characters has about {CERTAIN * found.judged:.0f} at most"
    )


def _numbers(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


if __name__ == "__main__":
    app()
