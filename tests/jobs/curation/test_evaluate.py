"""`evaluate` as its users run it, over films in known colours: exact means, totals that stay, one scoring of each."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.core.store import Store
from actors.curation.tables import CAPTIONS, EVALUATION
from pipelines.curation.exporting.digests import TOTALS
from tests.support import colours, corpus
from tests.support.colours import BLUE, GREEN, RED
from tests.support.corpus import run_here
from tests.support.servers import Gemini, says

RULES = ["frames.size=32", "select.min_velocity=0", "select.max_rgb_diff=65025"]
HALF = 100 * 0.5**0.5


@pytest.fixture(scope="module")
def settings(clip_folder: str) -> list[str]:
    model = [f"embeddings.model={clip_folder}", "embeddings.dtype=float32", "embeddings.num_cpus=0.5"]
    return [*RULES, *model, "latents.model=tiny", "evaluate.resamples=99", "write.batch_size=1"]


@pytest.fixture(scope="module")
def hdvg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of two spans of two seconds each, with captions of which the first of a film is wrong."""
    folder = tmp_path_factory.mktemp("films")
    videos = {}
    for name, first, second in (("a", RED, GREEN), ("b", BLUE, GREEN)):
        colours.film(folder / f"{name}.mkv", [*(first,) * 8, *(second,) * 8])
        clips = {
            f"{name}.{k}.mp4": {
                "span": [str(2 * k), str(2 * k + 2)],
                "fps": 4.0,
                "scene_split": [{"clip_id": f"{name}.{k}_0", "scene_cut": [0, -1], "caption": caption}],
            }
            for k, caption in enumerate(["dark", "green"])
        }
        videos[name] = {"url": f"{name}.mkv", "clip": clips}
    (folder / "hdvg.json").write_text(json.dumps(videos))
    return folder / "hdvg.json"


def recaption(output: Path) -> None:
    """Captions as `recaption` leaves them: right for a, half right for b."""
    texts = {"a.0_0": "red", "a.1_0": "green", "b.0_0": "blue red", "b.1_0": "green red"}
    answer = {"caption": "", "code": ""}
    rows = [{"video_id": name[0], "scene_id": name, "recaption": text, **answer} for name, text in texts.items()]
    Store(str(output)).write_part("captions", pa.Table.from_pylist(rows, CAPTIONS), list(texts))


@pytest.fixture(scope="module")
def output(ray_cluster: None, hdvg: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that keeps all four scenes, with captions."""
    folder = tmp_path_factory.mktemp("output") / "out"
    run_here("run", f"input={hdvg}", f"output={folder}", *settings)
    recaption(folder)
    return folder


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def test_a_dry_run_tells_the_groups_and_writes_nothing(output: Path):
    before = sorted(output.rglob("*"))
    told = run_here("evaluate", output, "--dry-run").stdout
    assert "4 kept and 4 random scenes, 4 in both groups" in told
    assert "4 scenes to be scored, 5 texts" in told
    assert "embeddings: 1 actors of 0.5 CPUs" in told
    assert f"{output}/evaluation" in told
    assert sorted(output.rglob("*")) == before


def test_the_verb_gives_the_means_that_colours_have(output: Path):
    # Of four scenes four are kept, and the same four are drawn.
    told = run_here("evaluate", output).stdout
    assert len(told.splitlines()) <= 10
    pairs, recaptions, captions = read(output, "evaluation.json")["comparisons"]
    assert pairs["means"] == pytest.approx([(100 + 100 + HALF + HALF) / 4, 50], abs=0.2)
    assert recaptions["means"] == pytest.approx([(200 + 2 * HALF) / 4] * 2, abs=0.2)
    assert captions["means"] == pytest.approx([50, 50], abs=0.2)
    assert recaptions["difference"] == 0 and recaptions["p"] == 1
    assert "85.4 - 50.0 = +35.36 [" in told
    totals = [read(output, "kept.json")[name] for name in TOTALS]
    assert totals == pytest.approx([50, 85.36, 85.36, 85.36], abs=0.2)


def test_what_is_scored_is_not_scored_again_and_totals_stay_with_their_scenes(output: Path):
    first = run_here("evaluate", output).stdout
    assert "0 scored now" in first
    totals = {name: read(output, "kept.json")[name] for name in TOTALS}
    assert None not in totals.values()
    run_here("export", output)
    assert read(output, "kept.json").items() >= totals.items()
    run_here("select", output, "select.count=2")
    run_here("export", output, "select.count=2")
    assert [read(output, "kept.json")[name] for name in TOTALS] == [None] * 4
    # Both groups are among what was scored.
    assert "0 scored now" in run_here("evaluate", output).stdout
    assert None not in [read(output, "kept.json")[name] for name in TOTALS]


@pytest.mark.slow
def test_films_without_captions_have_nothing_to_compare(
    ray_cluster: None, hdvg: Path, settings: list[str], tmp_path: Path
):
    run_here("run", f"input={hdvg.parent}", f"output={tmp_path}", *settings, "shots.detector=none")
    assert "evaluate.recaption=false" in run_here("evaluate", tmp_path, code=2).output
    record = read(tmp_path, "run.json")
    for more in ([], ["--dry-run"]):
        told = run_here("evaluate", tmp_path, "evaluate.recaption=false", *more, code=2).output
        assert "nothing to compare: of 2 scenes" in told and "recaption=true" in told
    assert read(tmp_path, "run.json") == record and not (tmp_path / "evaluation").exists()


@pytest.mark.slow
def test_both_groups_are_recaptioned_before_they_are_compared(
    ray_cluster: None, hdvg: Path, settings: list[str], gemini: Gemini, tmp_path: Path
):
    run_here("run", f"input={hdvg}", f"output={tmp_path}", *settings, "select.count=2")
    service = [f"captions.endpoint={gemini.endpoint}", "captions.pause_s=0.01", "evaluate.seed=1"]
    gemini.otherwise = says("the green of a field")
    planned = run_here("evaluate", tmp_path, *service, "--dry-run").stdout
    assert "scenes to caption with" in planned and gemini.asked == []
    told = run_here("evaluate", tmp_path, *service).stdout
    assert len(told.splitlines()) <= 10
    found = Store(str(tmp_path)).read_table("evaluation", EVALUATION).to_pandas()
    assert len(gemini.asked) == len(found) > 2
    assert (found.recaption == "the green of a field").all()
    record = read(tmp_path, "run.json")
    assert record["captions"]["captioned"] == len(found)
    assert record["evaluation"]["comparisons"] == read(tmp_path, "evaluation.json")["comparisons"]
    assert all(scene["recaption"] == "the green of a field" for scene in read(tmp_path, "kept.json")["scenes"])
    assert 'id="evaluation"' in (tmp_path / "report.html").read_text()
    # What was paid for is not asked again.
    run_here("evaluate", tmp_path, *service)
    assert len(gemini.asked) == len(found)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("embeddings.model=ViT-X", "embeddings.model=ViT-X"),
        ("embeddings.images_per_call=-1", "images_per_call at 0"),
        ("evaluate.resamples=1", "resamples must be at least 99"),
    ],
)
def test_what_cannot_work_stops_before_any_work(output: Path, setting: str, message: str):
    assert message in run_here("evaluate", output, setting, code=2).output


def test_a_dry_run_needs_no_network(output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = ("embeddings.model=ViT-g-14", "embeddings.pretrained=laion2b_s12b_b42k")
    assert "scenes to be scored" in run_here("evaluate", output, *model, "--dry-run").stdout
    assert "embeddings.model=ViT-g-14: the Hugging Face Hub does not answer" in caplog.text
    assert "cannot be downloaded" in run_here("evaluate", output, *model, code=2).output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_evaluation_goes_on_to_the_same_rows(
    hdvg: Path, output: Path, settings: list[str], ray_cluster: None, tmp_path: Path
):
    run_here("run", f"input={hdvg}", f"output={tmp_path / 'out'}", *settings)
    recaption(tmp_path / "out")
    with corpus.job(tmp_path / "log.txt", "evaluate", tmp_path / "out", "embeddings.batch_size=1") as job:
        job.wait_until(lambda: len(corpus.names(tmp_path / "out", "evaluation")) >= 1)
        job.kill()
    assert not (tmp_path / "out" / "evaluation.json").exists()
    told = run_here("evaluate", tmp_path / "out").stdout
    assert "4 scored now" not in told
    run_here("select", output, "select.count=null")
    run_here("evaluate", output)
    tables = [
        Store(str(folder)).read_table("evaluation", EVALUATION).sort_by("scene_id")
        for folder in (tmp_path / "out", output)
    ]
    assert tables[0].equals(tables[1])
    results = [read(folder, "evaluation.json") for folder in (tmp_path / "out", output)]
    assert results[0]["comparisons"] == results[1]["comparisons"]
