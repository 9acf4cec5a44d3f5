"""Killed in the middle, the same command ends with the rows of an undisturbed run, and does nothing twice."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from actors.core import storage
from actors.core.store import Store
from pipelines.curation.rows import rows_now
from tests.support import corpus, films
from tests.support.corpus import FAST, Head, Job, run_here
from tests.support.servers import fault_proxy, s3, s3_server

SLOW = "tests.support.families:Slow"
__all__ = ["s3", "s3_server"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.make(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run over the folder of films."""
    output = tmp_path_factory.mktemp("undisturbed") / "films"
    run_here("run", f"input={folder}", f"output={output}", *FAST)
    return output


@pytest.fixture(scope="module")
def undisturbed_hdvg(ray_cluster: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run over the metadata."""
    output = tmp_path_factory.mktemp("undisturbed") / "hdvg"
    run_here("run", f"input={folder / 'hdvg.json'}", f"output={output}", *FAST)
    return output


@pytest.fixture(scope="module")
def head(s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster whose workers know the S3 store."""
    with corpus.head(tmp_path_factory.mktemp("head") / "log.txt", **s3_server) as running:
        yield running


def _kill_three_times(start: Callable[[], AbstractContextManager[Job]], output: str, seed: int) -> None:
    """Kill the driver after a few parts, after some more, and after a few clips; then let it end.

    After each kill the decode children end by themselves. What was whole at a kill stays as it is to the end.
    """
    random = np.random.default_rng(seed)
    moments = [("scores", random.integers(2, 6)), ("scores", random.integers(8, 12)), ("clips", random.integers(2, 6))]
    decoders = 0
    whole: dict[str, dict[str, bytes]] = {}
    for folder, count in moments:
        with start() as job:
            job.wait_until(partial(_holds, output, folder, int(count)))
            children = job.kill()
            decoders += len(children)
            _, left = psutil.wait_procs(children, timeout=60)
            assert not left
        assert "Rerun the same command to resume" in run_here("status", output).output
        whole = corpus.whole_videos(output) | whole
    assert decoders
    assert whole
    with start() as job:
        job.wait()
    corpus.assert_not_done_again(output, whole)


def _holds(output: str, folder: str, files: int) -> bool:
    return len(corpus.names(output, folder)) >= files


def test_a_driver_killed_three_times_on_a_folder(folder: Path, undisturbed: Path, tmp_path: Path):
    output = tmp_path / "out"
    command = ["run", f"input={folder}", f"output={output}", *FAST]
    _kill_three_times(lambda: corpus.job(tmp_path / "log.txt", *command), str(output), seed=1)
    corpus.assert_same_result(output, undisturbed)


def test_a_driver_killed_three_times_on_s3(head: Head, s3: str, folder: Path, undisturbed_hdvg: Path, tmp_path: Path):
    for path in folder.iterdir():
        storage.upload(path, f"{s3}/films/{path.name}")
    output = f"{s3}/out"
    command = ["run", f"input={s3}/films/hdvg.json", f"output={output}", *FAST]
    _kill_three_times(lambda: head.job(tmp_path / "log.txt", *command), output, seed=2)
    corpus.assert_same_result(output, undisturbed_hdvg)


def test_a_store_that_is_away_in_the_middle_of_a_run_is_waited_for(
    s3: str, s3_server: dict[str, str], folder: Path, undisturbed: Path, tmp_path: Path
):
    with fault_proxy(s3_server, 0, 0) as proxy:
        command = ["run", f"input={folder}", f"output={s3}/out", *FAST]
        with corpus.job(tmp_path / "log.txt", *command, **proxy.environment) as job:
            job.wait_until(partial(_holds, f"{s3}/out", "scores", 2))
            proxy.away = True
            # Longer than what a store is waited for that was never reached.
            time.sleep(20)
            assert job.process.poll() is None and proxy.faults.total()
            proxy.away = False
            job.wait()
    corpus.assert_same_result(f"{s3}/out", undisturbed)
    assert not [name for name in corpus.names(f"{s3}/out", "runs") if name.endswith(".lease")]
    # What went through is what an estimate says of it, though the run was held up.
    command = ["run", f"input={folder}", f"output={s3}/none", *FAST, "estimate.films=20", "--dry-run"]
    with corpus.job(tmp_path / "estimate.txt", *command, **s3_server) as job:
        (told,) = re.findall(r"requests: ([0-9,]+) PUT, POST and LIST, ([0-9,]+) GET and HEAD", job.wait())
    puts, gets = (int(number.replace(",", "")) for number in told)
    assert puts == pytest.approx(sum(proxy.methods[kind] for kind in ("PUT", "POST", "LIST")), rel=0.3)
    assert gets == pytest.approx(proxy.methods["GET"] + proxy.methods["HEAD"], rel=0.3)


def test_scores_that_are_added_on_s3_by_a_driver_that_is_killed(
    head: Head, s3: str, undisturbed_hdvg: Path, tmp_path: Path
):
    reference, output = shutil.copytree(undisturbed_hdvg, tmp_path / "reference"), f"{s3}/scored"
    for path in (path for path in reference.rglob("*") if path.is_file()):
        storage.upload(path, f"{output}/{path.relative_to(reference)}")
    run_here("measure", reference, f"scores={SLOW}")
    folder = f"measured/{SLOW.replace(':', '.')}"
    with head.job(tmp_path / "log.txt", "measure", output, f"scores={SLOW}") as job:
        job.wait_until(partial(_holds, output, folder, 2))
        job.kill()
    before = corpus.contents(output, folder)
    assert 0 < len(before) < len(corpus.names(reference, folder))
    with head.job(tmp_path / "log.txt", "measure", output, f"scores={SLOW}") as job:
        job.wait()
    assert before.items() <= corpus.contents(output, folder).items()
    rows = [rows_now(Store(str(root)), ["slow"]).scenes.set_index("scene_id") for root in (output, reference)]
    pd.testing.assert_series_equal(rows[0].slow, rows[1].slow)
    assert rows[0].slow.notna().sum() > 20


def test_a_decode_child_and_a_worker_killed_while_they_cut(folder: Path, undisturbed: Path, tmp_path: Path):
    output = tmp_path / "out"
    command = ["run", f"input={folder}", f"output={output}", *FAST]
    with corpus.job(tmp_path / "log.txt", *command, workers="own") as job:
        job.stop_decoder_of("long0.mp4").kill()
        child = job.stop_decoder_of("long1.mp4")
        worker = child.parent()
        assert worker is not None
        worker.kill()
        child.resume()
        _, left = psutil.wait_procs([child], timeout=60)
        assert not left
        job.wait()
    corpus.assert_same_result(output, undisturbed)
    before = corpus.contents(output)
    run_here(*command)
    assert corpus.contents(output) == before
    corpus.assert_same_result(output, undisturbed)


def test_a_torn_part_is_made_again(folder: Path, undisturbed: Path, tmp_path: Path):
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    part = sorted((output / "scores").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-100])
    whole = corpus.whole_videos(output)
    lost = set(corpus.whole_videos(undisturbed)) - set(whole)
    assert lost and whole
    run_here("run", f"input={folder}", f"output={output}", *FAST)
    corpus.assert_not_done_again(output, whole)
    corpus.assert_same_result(output, undisturbed)


def test_two_ranges_make_one_output(folder: Path, undisturbed: Path, tmp_path: Path):
    output = tmp_path / "out"
    command = ["run", f"input={folder}", f"output={output}", *FAST]
    run_here(*command, "videos.end=5")
    first = corpus.whole_videos(output)
    run_here(*command, "videos.start=6", "videos.end=8")
    assert set(corpus.table(output, "scenes").video_id) == {"long0.mp4", "long1.mp4"}
    before = corpus.contents(output)
    run_here(*command)
    assert corpus.contents(output) == before
    assert len(first) == 6
    corpus.assert_not_done_again(output, first)
    corpus.assert_same_result(output, undisturbed)


def test_a_film_that_comes_late_is_measured_by_retry(ray_cluster: None, tmp_path: Path):
    output, metadata = tmp_path / "out", tmp_path / "films.csv"
    metadata.write_text("video_id,url,start,end\na,a.mp4,0,1\nlate,late.mp4,0,1\nlate,late.mp4,1,2\n")
    films.film(tmp_path / "a.mp4")
    command = ["run", f"input={metadata}", f"output={output}", *FAST]
    run_here(*command)
    rejected = corpus.table(output, "rejected")
    assert rejected[["video_id", "step", "code"]].to_numpy().tolist() == [["late", "fetch", "not_found"]] * 2
    films.film(tmp_path / "late.mp4")
    before = corpus.contents(output)
    run_here(*command)
    run_here("retry", output, "--codes", "crashed")
    assert corpus.contents(output) == before
    for codes in ([], ["--codes", "not_found"]):
        again = tmp_path / f"again{len(codes)}"
        shutil.copytree(output, again)
        run_here("retry", again, *codes)
        scenes = corpus.table(again, "scenes")
        assert list(scenes.scene_id) == ["a.0_0", "late.0_0", "late.1_0"]
        assert set(scenes.error) == {""}
        assert corpus.table(again, "rejected").empty
        assert "nothing failed" in run_here("failed", again).output
        # What was there is there still, and what was sound was not measured again.
        assert before.items() <= corpus.contents(again).items()
        assert corpus.table(again, "scores").video_id.value_counts()["a"] == 2


def test_an_output_that_was_moved_is_worked_on_where_it_lies(undisturbed: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(undisturbed, moved)
    before = corpus.table(undisturbed, "scenes")
    run_here("select", moved, "select.count=1")
    assert corpus.table(moved, "scenes").kept.sum() == 1
    pd.testing.assert_frame_equal(corpus.table(undisturbed, "scenes"), before)
