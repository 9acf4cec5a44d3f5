"""The job end to end on small films, in the suite's Ray cluster."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from actors.core.errors import UserError
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from jobs.core import verbs
from jobs.curation.__main__ import app
from jobs.curation.verb import caption
from pipelines.curation.selecting.labels import write_labels
from pipelines.curation.settings import measured_by
from tests.pipelines.curation import outputs
from tests.pipelines.curation.outputs import config, fast_is_good, write_plan, write_scores
from tests.support import films
from tests.support.corpus import ROOT
from tests.support.servers import FileHost, Reply

SHOTS = (48, 36, 30)
Run = Callable[..., Result]


def table(output: Path, name: str) -> pd.DataFrame:
    return pq.read_table(output / name).to_pandas()


@pytest.fixture(scope="module")
def run() -> Run:
    def call(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sound films with known cuts, one of them an HDVG source too, and one that is no film."""
    folder = tmp_path_factory.mktemp("corpus")
    films.film(folder / "a.mp4", shots=SHOTS, audio="aac")
    films.film(folder / "b.mkv", shots=(40, 60))
    films.text_file(folder / "c.mp4")
    return folder


@pytest.fixture(scope="module")
def hdvg(corpus: Path) -> Path:
    """Metadata over a.mp4: two spans, three scenes that can be cut, one that cannot, one that is too short."""
    scenes = [("0_0", [0, 24]), ("0_1", [24, -1]), ("1_0", [0, -1]), ("1_1", [9, 3]), ("1_2", [0, 12])]
    clips = {
        f"a.{k}.mp4": {
            "span": span,
            "fps": 24.0,
            "scene_split": [
                {"clip_id": f"a.{name}", "scene_cut": cut, "caption": f"scene {name}, <b>bold</b>"}
                for name, cut in scenes
                if name.startswith(k)
            ],
        }
        for k, span in (("0", ["00:00:00.000", "00:00:02.000"]), ("1", ["00:00:02.000", "00:00:03.500"]))
    }
    path = corpus.parent / "hdvg.json"
    path.write_text(json.dumps({"a": {"url": str(corpus / "a.mp4"), "clip": clips}}))
    return path


@pytest.fixture(scope="module")
def output(
    ray_cluster: None, corpus: Path, vae_folder: str, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of a run over the folder."""
    folder = tmp_path_factory.mktemp("output") / "films"
    settings = ["select.max_rgb_diff=60000", "select.min_velocity=0", f"latents.model={vae_folder}"]
    result = run("run", f"input={corpus}", f"output={folder}", "frames.size=64", *settings)
    assert len(result.stdout.splitlines()) <= 10
    return folder


def test_a_mistake_leaves_the_record_as_it_was(output: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    before = json.loads((output / "run.json").read_text())
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    assert "filter.json does not exist" in run("select", output, "select.by=classifier", code=2).output
    assert "set GEMINI_API_KEY" in run("recaption", output, code=2).output
    assert json.loads((output / "run.json").read_text()) == before
    assert "done" in run("status", output).output


def test_a_missing_key_is_told_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    started: list[object] = []
    monkeypatch.setattr(verbs.Run, "ray", started.append)
    with pytest.raises(UserError, match="set GEMINI_API_KEY"):
        caption(config(tmp_path), [], verbs.Run(Store(str(tmp_path)), {}))
    assert not started


def test_status_shows_the_progress_of_a_run_that_has_not_ended(output: Path, run: Run, tmp_path: Path):
    running = tmp_path / "out"
    shutil.copytree(output, running)
    (running / "run.json").unlink()
    about = {"done": 3, "total": 5, "unit": "scenes", "rate": 0.5, "remaining_s": 4.0, "note": "", "time": time.time()}
    Store(str(running)).write_json({"score": about}, "runs", "run.progress.json")
    told = run("status", running).output
    assert "run score: 3 of 5 scenes, 0.5/s, 4 s left" in told
    assert "Still running or interrupted. Rerun the same command to resume." in told


def test_a_folder_of_films_gives_scenes_clips_and_a_report(output: Path):
    scenes = table(output, "scenes")
    shots = {"a.mp4": SHOTS, "b.mkv": (40, 60)}
    assert list(scenes.scene_id) == [f"{film}.{k}_0" for film, lengths in shots.items() for k in range(len(lengths))]
    for film, lengths in shots.items():
        edges = [sum(lengths[:k]) / 24 for k in range(len(lengths) + 1)]
        mine = scenes[scenes.video_id == film]
        assert mine.start_s.to_list() == pytest.approx(edges[:-1], abs=0.002)
        assert mine.end_s.to_list() == pytest.approx(edges[1:], abs=0.002)
    assert scenes[list(FEATURES)].notna().all(axis=None)
    assert scenes.kept.all()
    rejected = table(output, "rejected")
    why = rejected[["video_id", "scene_id", "step", "code"]]
    assert why.to_numpy().tolist() == [["c.mp4", "", "cut", "not_a_video"]]
    kept = json.loads((output / "kept.json").read_text())
    assert kept["length"] == len(kept["scenes"]) == len(scenes)
    clips = [output / scene["video_path"] for scene in kept["scenes"]]
    assert sorted(clips) == sorted((output / "clips").rglob("*.mp4")), "no folder is named like a film"
    assert all(clip.stat().st_size > 0 for clip in clips)
    assert (output / kept["scenes"][0]["video_path"]).is_file()
    page = (output / "report.html").read_text()
    assert all(scene_id in page for scene_id in scenes.scene_id)


def test_a_second_run_with_nothing_to_do_starts_no_ray(
    output: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    again = shutil.copytree(output, tmp_path / "again")
    started: list[object] = []
    monkeypatch.setattr(verbs.Run, "ray", lambda self: started.append(self))
    assert "0 written" in run("run", again).stdout
    assert not started
    clips = json.loads((again / "kept.json").read_text())["scenes"]
    (again / clips[0]["video_path"]).unlink()
    run("run", again)
    assert started, "a clip that is missing is work"


def test_the_run_record_adds_up(output: Path):
    record = json.loads((output / "run.json").read_text())
    rows = record["rows"]
    assert rows["in"] == rows["kept"] + sum(rows["dropped"].values()) + sum(rows["failed"].values()) == 5
    assert record["lost_videos"] == {"not_a_video": 1}
    assert record["films"]["decoded"] == record["films"]["source"] == sum(SHOTS) + 100
    assert record["films"]["worst_ratio"] <= 1.1
    assert record["settings"]["frames"]["size"] == 64
    assert record["versions"]["ray"]


def test_fetch_downloads_and_records_what_could_not_be_had(
    ray_cluster: None, corpus: Path, host: FileHost, run: Run, tmp_path: Path
):
    urls = [host.put("/a.mp4", Reply((corpus / "a.mp4").read_bytes())), host.put("/b.mp4", Reply(b"no", 404))]
    rows = [f"{name},{url},0,1" for name, url in zip("ab", urls, strict=True)]
    (tmp_path / "films.csv").write_text("\n".join(["video_id,url,start,end", *rows]))
    settings = [f"input={tmp_path / 'films.csv'}", f"output={tmp_path / 'out'}", "latents.model=tiny"]
    told = run("fetch", *settings).output
    assert "2 rows = 1 done + 1 rejected" in told and "fetch_gone 1" in told
    assert (tmp_path / "out" / "videos" / "a.mp4").read_bytes() == (corpus / "a.mp4").read_bytes()
    record = json.loads((tmp_path / "out" / "runs" / "fetch.json").read_text())
    assert record["rows"] == {"in": 2, "out": 1, "rejected": {"fetch_gone": 1}}
    assert not (tmp_path / "out" / "run.json").exists()
    run("fetch", tmp_path / "out", "--max-rejected", 0, code=3)


def test_other_thresholds_decide_anew_and_measure_nothing(output: Path, run: Run):
    before = {path: path.stat().st_mtime_ns for path in (output / "scores").iterdir()}
    told = run("select", output, "frames.min=6", "select.count=2").stdout
    gone = len(list((output / "clips").glob("*/*.mp4"))) - 2
    assert (
        f"NOTE: 0 kept scenes have no clip yet, {gone} clips are of scenes that are not kept: renew them with" in told
    )
    assert f"export {output}" in told
    assert "NOTE: frames.min=6 select.count=2 holds for this selection alone" in told
    scenes = table(output, "scenes")
    assert scenes.kept.sum() == 2
    assert set(scenes.reason[~scenes.kept]) <= {"too_short", "not_selected"}
    assert "too_short" in set(scenes.reason)
    run("export", output, "frames.min=6", "select.count=2", "export.frames=true", "export.webdataset=true")
    assert "NOTE" not in run("status", output).stdout
    kept = scenes[scenes.kept]
    clips = {path.stem for path in (output / "clips").glob("*/*.mp4")}
    assert clips == set(kept.scene_id)
    for scene in kept.to_dict("records"):
        assert len(list((output / "frames" / scene["video_id"] / scene["scene_id"]).iterdir())) == scene["no_frames"]
    with tarfile.open(next((output / "shards").iterdir())) as shard:
        assert len([name for name in shard.getnames() if name.endswith(".mp4")]) == 2
    assert {path: path.stat().st_mtime_ns for path in (output / "scores").iterdir()} == before


def test_status_and_failed_tell_what_is_there(output: Path, run: Run):
    assert "3 of 3 videos done; 5 scenes, 0 failed; 1 videos failed" in run("status", output).output
    assert "not_a_video" in run("failed", output).output
    rows = run("failed", output, "--rows").stdout.splitlines()
    assert rows[0].split("\t")[:4] == ["video_id", "scene_id", "step", "error"]
    assert rows[1].split("\t")[:4] == ["c.mp4", "", "cut", "not_a_video"]


def test_hdvg_metadata_is_cut_by_its_own_frames(ray_cluster: None, hdvg: Path, corpus: Path, run: Run, tmp_path: Path):
    settings = [f"input={hdvg}", f"output={tmp_path}", "latents.model=tiny", "frames.size=64"]
    rules = ["select.max_rgb_diff=60000", "select.min_velocity=0"]
    run("run", *settings, *rules, "--max-rejected", 0, code=3)
    scenes = table(tmp_path, "scenes").set_index("scene_id")
    assert list(scenes.index) == ["a.0_0", "a.0_1", "a.1_0", "a.1_1", "a.1_2"]
    assert scenes.start_s[["a.0_0", "a.0_1", "a.1_0"]].to_list() == pytest.approx([0, 1, 2], abs=0.002)
    assert scenes.end_s[["a.0_0", "a.0_1", "a.1_0"]].to_list() == pytest.approx([1, 2, 3.5], abs=0.002)
    assert scenes.error["a.1_1"] == "bad_scene_cut"
    assert scenes.reason["a.1_2"] == "too_short"
    # One of each span stays.
    assert sorted(scenes.clip_id[scenes.kept]) == ["a.0.mp4", "a.1.mp4"]
    assert sorted(scenes.reason[["a.0_0", "a.0_1"]]) == ["", "same_span"]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "rejected"
    assert record["rows"]["in"] == 5
    kept = json.loads((tmp_path / "kept.json").read_text())["scenes"]
    assert {scene["scene_id"]: scene["scene_cut"] for scene in kept}["a.1_0"] == [0, -1]
    # A page does not run what a caption says.
    assert "<b>bold</b>" not in (tmp_path / "report.html").read_text()


def test_a_dry_run_tells_the_plan_and_writes_nothing(corpus: Path, run: Run, tmp_path: Path):
    settings = [f"input={corpus}", f"output={tmp_path / 'out'}", "latents.model=tiny"]
    told = run("run", *settings, "--dry-run").output
    assert "interval_ms: 250" in told
    assert "3 videos, 0 named scenes, 3 films" in told
    assert f"{tmp_path / 'out'}/scenes" in told
    assert not (tmp_path / "out").exists()


def test_a_verb_without_an_estimate_says_so(output: Path, run: Run):
    for verb in ("select", "fetch", "measure"):
        told = run(verb, output, "estimate.films=2", "scores=[quality]", "--dry-run", code=2).output
        assert f"`{verb}` has no estimate" in told


@pytest.mark.slow
def test_the_estimate_from_all_films_is_what_their_run_makes(
    output: Path, corpus: Path, vae_folder: str, run: Run, tmp_path: Path
):
    settings = ["select.max_rgb_diff=60000", "select.min_velocity=0", f"latents.model={vae_folder}", "frames.size=64"]
    estimate = ["estimate.films=8", "estimate.cpu_hour=3600", "estimate.put_1000=1000", "--dry-run"]
    told = run("run", f"input={corpus}", f"output={tmp_path / 'out'}", *settings, *estimate).stdout
    assert not (tmp_path / "out").exists()
    assert "estimate from 3 of 3 films" in told and "\nscenes: 5\n" in told
    assert "seconds of film: 8.92, by the containers of 2 films" in told
    assert "films of the sample that failed: c.mp4 not_a_video" in told
    tables = ["scores", "thumbnails", "keyframes", "clips"]
    files = [path for name in tables for path in (output / name).rglob("*") if path.is_file()]
    (puts,) = re.findall(r"requests: ([0-9.]+) PUT", told)
    # A part that is not full is a file, too.
    parts = len(table(output, "scores")) / 64
    gigabytes, count = re.findall(r"storage in GB: ([0-9.e-]+), in ([0-9.]+) files", told)[0]
    assert float(count) == pytest.approx(5 + 3 * parts, rel=0.01) and float(count) <= len(files)
    assert float(gigabytes) * 1e9 == pytest.approx(sum(path.stat().st_size for path in files), rel=0.2)
    number = "([0-9.e-]+)"
    (hours,) = re.findall(f"CPU-hours: {number}, {number} for the start, and {number} for the head", told)
    (price,) = re.findall(f"price: {number} ", told)
    assert float(price) == pytest.approx(3600 * sum(map(float, hours)) + float(puts), rel=0.02)


def test_the_settings_file_of_the_reference_is_understood(
    corpus: Path, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", "jobs")
    keys = {"n_videos_per_batch": 10, "clip_idx_start": 1, "clip_idx_end": 2}
    keys |= {"store_intermediate_json": True, "clips_taken_per_batch": 5}
    (tmp_path / "config.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()))
    settings = [f"input={corpus}", f"output={tmp_path / 'out'}", "latents.model=tiny"]
    told = run("run", tmp_path / "config.yaml", *settings, "--dry-run").output
    assert "  start: 1\n  end: 2\n" in told
    assert "input: 2 videos" in told
    assert "n_videos_per_batch is ignored" in caplog.text
    assert "store_intermediate_json is ignored: scores are always stored" in caplog.text
    assert "clips_taken_per_batch is ignored" in caplog.text and "select.count" in caplog.text


@pytest.mark.parametrize("verb", ["run", "fetch", "select", "retry", "fit-filter", "annotate", "explain", "failed"])
def test_every_verb_prints_its_settings_and_their_schema(run: Run, verb: str):
    assert "output:  # required; str" in run(verb, "--settings").output
    assert "output" in json.loads(run(verb, "--schema").output)["properties"]


def test_what_is_neither_settings_nor_an_output_is_named(run: Run, tmp_path: Path):
    assert "neither a settings file (.yaml) nor the output of a run" in run("select", tmp_path, code=2).output
    assert "output: this setting is required" in run("run", code=2).output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["frames.size=big"], "frames.size"),
        (["frame.size=64"], "frame"),
        (["videos.start=9"], "3 videos, 0 to 2"),
        (["latents.model=/nowhere"], "latents.model=/nowhere"),
        (["motion.num_gpus=1"], "motion.flow=raft"),
        (["select.by=luck"], "select.by"),
        (["select.count=1", "select.fraction=0.5"], "exclude"),
    ],
)
def test_what_cannot_work_stops_before_any_work(
    corpus: Path, run: Run, tmp_path: Path, settings: list[str], message: str
):
    base = [f"input={corpus}", f"output={tmp_path / 'out'}", "latents.model=tiny"]
    assert message in run("run", *base, *settings, code=2).output
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


KILLED = """
import os, signal, sys
from jobs.curation import corpus, loop
from jobs.curation.__main__ import app

def killed(*_): os.kill(os.getpid(), signal.SIGKILL)

loop.Recaption.steps, corpus.settle = killed, killed
app(sys.argv[1:])
"""
"""A command that is killed when it begins its work, and `select` when it has decided."""


@pytest.mark.slow
def test_a_killed_command_leaves_the_last_good_record(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEMINI_API_KEY", "none is asked with it")
    settings, store = config(tmp_path), Store(str(tmp_path))
    write_plan(store, {"a": 2})
    about = {"measured_by": measured_by(settings), "settings": asdict(settings)}
    store.write_json(about, "plan", "settings.json")
    write_scores(store, outputs.scene("a.0_0"), outputs.scene("a.1_0", ordinal=1))
    run("select", tmp_path, "select.min_velocity=0.5")
    before = run("explain", tmp_path, "a.0_0").output
    assert "select.min_velocity 0.5" in before
    program = [sys.executable, "-c", KILLED]
    for _ in range(2):
        assert subprocess.run([*program, "recaption", str(tmp_path)], cwd=ROOT).returncode == -signal.SIGKILL
        assert run("explain", tmp_path, "a.0_0").output == before
        told = run("status", tmp_path).output
        assert "Still running or interrupted" in told and "before it:" in told
        assert "2 scenes = 2 kept + 0 dropped + 0 failed" in told
    changed = subprocess.run([*program, "select", str(tmp_path), "select.min_velocity=0.7"], cwd=ROOT)
    assert changed.returncode == -signal.SIGKILL
    assert (
        "was selected anew by a command that did not end. Run `select`."
        in run("explain", tmp_path, "a.0_0", code=2).output
    )
    run("select", tmp_path, "select.min_velocity=0.7")
    assert "select.min_velocity 0.7" in run("explain", tmp_path, "a.0_0").output


def test_labels_become_a_filter_and_the_filter_decides(run: Run, tmp_path: Path):
    labelled = fast_is_good().scenes
    store = Store(str(tmp_path))
    settings = config(tmp_path)
    write_plan(store, dict.fromkeys(labelled.video_id.unique(), 10))
    measured = measured_by(settings)
    store.write_json({"measured_by": measured, "settings": asdict(settings)}, "plan", "settings.json")
    rows: list[Any] = labelled.drop(columns="label").to_dict("records")
    write_scores(store, *(outputs.scene(row["scene_id"], **row, ordinal=i) for i, row in enumerate(rows)))
    assert "holds no labels" in run("fit-filter", tmp_path, code=2).output
    said: Any = labelled.set_index(["video_id", "scene_id"]).label.to_dict()
    write_labels(store.uri("labels", "me.json"), said)
    run("select", tmp_path)
    assert "Learning curve" not in (tmp_path / "report.html").read_text()
    told = run("fit-filter", tmp_path).output
    assert "Learning curve" in (tmp_path / "report.html").read_text()
    assert f"120 labelled scenes of 12 videos: {labelled.label.sum()} good" in told
    assert "accuracy" in told and "importance: mean_velocity" in told
    assert told.splitlines()[-1] == f"next: python -m jobs.curation select {tmp_path} select.by=classifier"
    rules = ["select.max_rgb_diff=60000", "select.min_velocity=0", "select.count=20"]
    told = run("select", tmp_path, "select.by=classifier", *rules).output
    assert len(told.splitlines()) <= 10
    assert "ALARM" not in told
    scenes = table(tmp_path, "scenes")
    assert scenes.kept.sum() == 20
    assert all(said[key] for key in scenes[scenes.kept][["video_id", "scene_id"]].itertuples(index=False, name=None))
    told = run("explain", tmp_path, scenes.scene_id[0]).output
    assert "film.mp4" in told and "good with probability" in told and "rank " in told
    assert "has no scene v0.0_9" in run("explain", tmp_path, "v0.0_9", code=2).output
    least = scenes.probability[scenes.kept].min()
    assert (scenes.probability[scenes.reason == "not_selected"] <= least).all()
    told = run("select", tmp_path, "frames.min=100", "frames.max=200").output
    assert "ALARM: nothing is kept: all 120 measured scenes are dropped (too_short 120)" in told
    assert json.loads((tmp_path / "run.json").read_text())["alarms"]
    assert "other.json" in run("select", tmp_path, "select.by=classifier", "filter=other.json", code=2).output
