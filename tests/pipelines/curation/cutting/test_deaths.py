"""Workers and nodes die: the run goes on, and what kills its worker each time becomes a row."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray import exceptions

from actors.core.stage import Batch, Stage
from actors.curation.cutting import videos
from actors.curation.cutting.videos import Choice
from pipelines.core import deaths
from pipelines.core.attempts import KilledError
from pipelines.core.ray_data import TooSmallError, fit
from pipelines.curation.cutting import score as scoring
from pipelines.curation.cutting.plan import Plan, make_plan
from tests.conftest import ROOT
from tests.pipelines.curation.cutting.deaths import COMMAND
from tests.pipelines.curation.outputs import quick
from tests.support import corpus, films
from tests.support.servers import FileHost, Gemini, Reply, says


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "PAUSES_S", (0.1, 0.1, 0.1))
    monkeypatch.setattr(deaths, "living_nodes", lambda: frozenset("a"))


def rows(output: Path) -> dict[tuple[str, str], str]:
    """The error of each row of scores/; the last one counts."""
    table = pq.read_table(output / "scores").to_pandas().sort_values("written")
    return {(row.video_id, row.scene_id): row.error for row in table.itertuples()}


def cut_or_die(batch: Batch, config: Any) -> Iterator[Batch]:
    """As cut_videos, but b.mp4 takes the worker along."""
    for i, video_id in enumerate(batch["video_id"]):
        found = videos.cut_videos({name: column[i : i + 1] for name, column in batch.items()}, config)
        if video_id == "b.mp4" and not batch.get("error", [""])[i]:
            next(found)
            os.kill(os.getpid(), signal.SIGKILL)
        yield from found


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [3, 1])
def test_a_film_that_kills_its_workers_becomes_a_row(
    ray_cluster: None, fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    """In a task of its own, or with all others."""
    monkeypatch.setattr(scoring, "TASKS", tasks)
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        films.film(folder / name)
    config = quick(folder, tmp_path / "out")
    monkeypatch.setattr(scoring, "cut_videos", cut_or_die)
    plan = make_plan(config)
    assert scoring.together(plan) == 3 // tasks
    measured = scoring.score(config, plan, partial(make_plan, config))
    found = rows(tmp_path / "out")
    assert {key: error for key, error in found.items() if error} == {("b.mp4", ""): "crashed_worker"}
    assert {video for video, scene in found if scene} == {"a.mp4", "c.mp4"}
    assert measured.failed == 1 and make_plan(config).todo == 0
    message = pq.read_table(tmp_path / "out/scores").to_pandas().query("error != ''").message.iloc[0]
    assert "3 workers died at b.mp4" in message
    # What may work now is tried by `retry`.
    monkeypatch.undo()
    assert make_plan(config, frozenset({"crashed_worker"})).todo == 1


@pytest.mark.parametrize("for_memory", [False, True])
def test_a_film_whose_worker_the_kernel_killed_for_memory_is_tried_alone(
    fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_memory: bool
) -> None:
    plan, tries = Plan(2, 0, 2, 2, 0, False), list[Choice]()

    def run(config: Any, plan: Any, choice: Choice, *more: Any) -> None:
        tries.append(choice)
        if len(tries) == 1:
            raise KilledError("3 workers died at b.mp4", frozenset({1}), for_memory)

    monkeypatch.setattr(scoring, "_run", run)
    rest = iter([plan, replace(plan, todo=0)])
    scoring.score(quick(tmp_path, tmp_path / "out"), plan, lambda: next(rest, plan))
    assert tries[1] == Choice(without=frozenset({1}))
    (alone,) = tries[2:]
    assert alone.only == {1} and bool(alone.lost) is not for_memory


def run_and_lose(folder: Path, output: Path, which: str, *more: str) -> str:
    """Run on a cluster that loses nodes; returns what was printed."""
    command = [sys.executable, "-m", "tests.pipelines.curation.cutting.deaths", folder, output, which, *more]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        # A cluster tells its address there, and others that start meanwhile would join it.
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": place}
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=450, check=False)
        finally:
            corpus.Session(place).end()
    assert done.returncode == 0, done.stdout + done.stderr
    losses = {"own": 1, "other": 1, "both": 2}.get(which, len(which.split(",")))
    assert done.stdout.count("a node is gone") == losses
    of_head = [int(count) for count in re.findall(r"(\d+) workers of the head are gone", done.stdout)]
    assert len(of_head) == (which == "other") and all(of_head), done.stdout
    assert ("nodes have come" in done.stdout) == (which not in ("own", "other")), done.stderr
    found = rows(output)
    assert not any(found.values())
    assert Counter(video for video, scene in found if scene) == {f"{name}.mp4": 4 for name in "abcdef"}
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six")
    for name in "abcdef":
        films.film(folder / f"{name}.mp4", shots=(60,) * 4)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, six: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    corpus.run_here("run", f"input={six}", f"output={output}", *COMMAND)
    return output


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["own", "other"])
def test_the_node_of_the_model_or_the_one_beside_it_is_lost(
    six: Path, undisturbed: Path, tmp_path: Path, which: str
) -> None:
    """With one CPU a node, the actor that starts again on the other one, or stays there, leaves no room for tasks."""
    run_and_lose(six, tmp_path / "out", which)
    corpus.assert_same_result(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_nodes_are_lost_and_new_ones_are_waited_for(six: Path, undisturbed: Path, tmp_path: Path) -> None:
    told = run_and_lose(six, tmp_path / "out", "both")
    corpus.assert_same_result(tmp_path / "out", undisturbed)
    assert "the cluster has no CPUs for workers: add a node" in told
    assert not list((tmp_path / "out/runs").glob("*.lease"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_is_lost_while_films_are_fetched_scenes_measured_clips_written_and_captions_made(
    ray_cluster: None, six: Path, tmp_path: Path, host: FileHost, gemini: Gemini
) -> None:
    lines = ["video_id,url,start,end,caption"]
    for film in sorted(six.iterdir()):
        # A second a film.
        body = film.read_bytes()
        url = host.put(f"/{film.name}", Reply(body, pause_s=1024 / len(body)))
        lines += [f"{film.name},{url},{2.5 * i},{2.5 * (i + 1)},{film.stem} {i}" for i in range(4)]
    (tmp_path / "films.csv").write_text("\n".join(lines))
    gemini.otherwise = says("a better caption with more light in it", wait_s=0.5)
    settings = ("scores=[tests.support.families:Brightness]", "select.min_velocity=0")
    captions = ("recaption", f"captions.endpoint={gemini.endpoint}", "captions.requests_at_once=1")
    losing, calm = tmp_path / "losing", tmp_path / "calm"
    run_and_lose(tmp_path / "films.csv", losing, "videos,measured,clips,captions", *settings, "--", *captions)
    corpus.run_here("run", f"input={tmp_path / 'films.csv'}", f"output={calm}", *COMMAND, *settings)
    corpus.run_here(captions[0], calm, *captions[1:])
    corpus.assert_same_result(losing, calm)
    scenes = corpus.table(losing, "scenes")
    assert set(scenes.recaption[scenes.kept]) == {"a better caption with more light in it"} and scenes.kept.sum() == 12


@pytest.mark.slow
def test_deaths_without_progress_end_the_run(fast: None) -> None:
    again = deaths.Perseverance()

    def work() -> None:
        raise exceptions.WorkerCrashedError

    for _ in deaths.PAUSES_S:
        assert not again.tried(work)
        again.pause(0)
    assert not again.tried(work)
    with pytest.raises(exceptions.WorkerCrashedError):
        again.pause(0)
    # Where something was done between them there is no end.
    for done in range(1, 20):
        assert not again.tried(work)
        again.pause(done)


def test_where_nodes_are_lost_there_is_no_end(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    again, number = deaths.Perseverance(), 0
    monkeypatch.setattr(deaths, "living_nodes", lambda: frozenset([number]))

    def work() -> None:
        nonlocal number
        number += 1
        raise exceptions.WorkerCrashedError

    for _ in range(3 * len(deaths.PAUSES_S)):
        assert not again.tried(work)
        again.pause(0)


def test_nodes_are_waited_for_where_a_cluster_has_become_too_small(
    fast: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [frozenset("a")]
    monkeypatch.setattr(deaths, "living_nodes", lambda: nodes[0])
    monkeypatch.setattr(deaths, "LOOK_S", 0.01)
    there, tries = [2.0], []

    def work() -> None:
        tries.append(there[0])
        fit({"model": Stage()}, {}, there[0], 0)
        if len(tries) == 1:
            raise exceptions.WorkerCrashedError

    again = deaths.Perseverance()
    assert not again.tried(work) and not again.no_room
    there[0] = 0
    again.pause(0)
    assert not again.tried(work) and again.no_room

    def come() -> None:
        there[0], nodes[0] = 2.0, frozenset("ab")

    timer = threading.Timer(0.3, come)
    timer.start()
    again.pause(0)
    assert nodes[0] == frozenset("ab"), "it went on before a node was there"
    assert again.tried(work)
    timer.join()
    (line,) = [line for line in caplog.messages if "Waiting for nodes" in line]
    assert line.startswith("the cluster has no CPUs for workers: add a node")

    # There is an end, and a cluster that was too small from the start is not waited for.
    monkeypatch.setattr(deaths, "ROOM_S", 0.05)
    monkeypatch.setattr(deaths, "TOLD_EVERY_S", 0.02)
    there[0] = 0
    again = deaths.Perseverance(ran=True)
    assert not again.tried(work)
    again.pause(0)
    time.sleep(0.05)
    assert not again.tried(work)
    with pytest.raises(deaths.ShrunkError, match="the cluster has no CPUs for workers"):
        again.pause(0)
    with pytest.raises(TooSmallError):
        deaths.Perseverance().tried(work)


def test_an_exception_is_no_death(fast: None) -> None:
    def work() -> None:
        raise exceptions.ActorDiedError

    def start() -> None:
        error = exceptions.ActorDiedError()
        error._actor_init_failed = True
        raise error

    def fail() -> None:
        raise ZeroDivisionError

    assert not deaths.Perseverance().tried(work)
    with pytest.raises(exceptions.ActorDiedError):
        deaths.Perseverance().tried(start)
    with pytest.raises(ZeroDivisionError):
        deaths.Perseverance().tried(fail)


def test_work_that_waits_for_what_is_gone_is_ended(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    monkeypatch.setattr(deaths, "QUIET_S", 0.2)

    def results() -> Iterator[int]:
        yield 1
        time.sleep(30)
        yield 2

    two, three = Stage(num_cpus=2), Stage(num_cpus=3)
    with pytest.raises(
        deaths.ShrunkError,
        match=r"only 2 CPUs, 0 GPUs and .* GiB of memory left, and .*need 3 CPUs",
    ):
        list(deaths.while_it_fits(results(), {"model": three}, {}))
    monkeypatch.setattr(time, "sleep", lambda _: threading.Event().wait(1))
    assert list(deaths.while_it_fits(results(), {"model": two}, {})) == [1, 2]
