"""A small corpus, the job run over it as its users run it, and what lies in an output.

The job runs in this process, in the suite's cluster (`run_here`), or in one of its own that can be killed: with a Ray
of its own (`job`), or as a driver on a `head`. Ray's processes are known by the folder that they write to.
"""

import io
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner, Result

from actors.core import storage
from actors.curation.cutting.keyframes import KEY_FRAMES
from jobs.curation.__main__ import app
from tests.support import films, forked_workers
from tests.support.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 500
"""How long a run may take on a machine that is busy with other work, in seconds."""
CHEAPER = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD")
"""Of Ray's variables, which are not inherited, those that spare a job's Ray what no test needs."""
FAST = (
    "frames.size=64",
    "latents.model=tiny",
    "write.batch_size=4",
    "select.max_rgb_diff=60000",
    "select.count=12",
)
"""Settings of every run: small frames, the encoder that ships, parts of four rows, twelve scenes kept."""


def make(folder: Path) -> Path:
    """Six films of 2 to 4 shots, two of 20, a page of text named like a film, and `hdvg.json`; returns the folder.

    The metadata asks for three scenes of each small film and 20 of the long ones; one scene has a cut that is none, and
    one video has no file.
    """
    small = films.many(folder, 6)
    long = [films.film(folder / f"long{i}.mp4", shots=(30,) * 20) for i in range(2)]
    films.text_file(folder / "text.mp4")
    videos: dict[str, Any] = {path.stem: _spans(path, [("0", "1.0"), ("1", "2")]) for path in small}
    videos |= {path.stem: _spans(path, [(str(s), str(s + 2)) for s in range(0, 24, 2)]) for path in long}
    videos["gone"] = _spans(folder / "gone.mp4", [("0", "1")])
    videos["film000"]["clip"]["film000.0.mp4"]["scene_split"][1]["scene_cut"] = [9, 3]
    (folder / "hdvg.json").write_text(json.dumps(videos))
    return folder


def _spans(path: Path, spans: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A video of HDVG metadata, its url relative: every second span in two scenes, the others whole."""
    clips = {}
    for k, span in enumerate(spans):
        cuts = [[0, -1]] if k % 2 else [[0, 12], [12, -1]]
        scenes = [
            {"clip_id": f"{path.stem}.{k}_{s}", "scene_cut": cut, "caption": f"{k}, {s}"} for s, cut in enumerate(cuts)
        ]
        clips[f"{path.stem}.{k}.mp4"] = {"span": list(span), "fps": 24.0, "scene_split": scenes}
    return {"url": path.name, "clip": clips}


# ------------------------------------------------------------------------------------------------------------- running


def run_here(*arguments: object, code: int = 0) -> Result:
    """Run the job in this process, and so in the cluster that it has joined."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


class Session:
    """The processes of one Ray, known by the folder that they write to."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def processes(self) -> list[psutil.Process]:
        """Those that are alive: they were told of the folder, or hold a file of it open."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                told = any(self.folder in argument for argument in process.cmdline())
                if told or any(file.path.startswith(self.folder) for file in process.open_files()):
                    found.append(process)
        return found

    def decoders(self) -> list[psutil.Process]:
        """The decode children that are alive."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if "actors.core.child" in process.cmdline():
                    found.append(process)
        return found

    def end(self) -> None:
        """End what is left, by process ids."""
        while left := self.processes():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=5)


@dataclass(frozen=True)
class Job:
    """A run of the job in a process of its own."""

    process: subprocess.Popen[bytes]
    session: Session
    log: Path
    """Standard output and error."""

    def wait(self, code: int = 0) -> str:
        """Wait for its end; returns what it has printed."""
        ended = self.process.wait(PATIENCE_S)
        text = self.log.read_text()
        assert ended == code, text
        return text

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something to happen while the job runs."""
        until = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, f"ended before it happened:\n{self.log.read_text()}"
            assert time.monotonic() < until, f"did not happen:\n{self.log.read_text()}"
            time.sleep(0.02)

    def stop_decoder_of(self, film: str) -> psutil.Process:
        """Wait until a decode child has a film of this name open, and stop it there."""
        found: list[psutil.Process] = []

        def look() -> bool:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if "actors.core.child" in child.cmdline():
                        child.suspend()
                        if any(Path(file.path).name == film for file in child.open_files()):
                            found.append(child)
                            return True
                        child.resume()
            return False

        self.wait_until(look)
        return found[0]

    def kill(self) -> list[psutil.Process]:
        """End the driver at once; returns the decode children that were alive then."""
        assert self.process.poll() is None, f"ended before it could be killed:\n{self.log.read_text()}"
        decoders = self.session.decoders()
        self.process.kill()
        self.process.wait()
        return decoders


@contextmanager
def job(
    log: Path,
    *arguments: object,
    program: Sequence[str] = ("-m", "jobs.curation"),
    workers: str = "forked",
    **environment: str,
) -> Iterator[Job]:
    """Start the job, with a Ray of its own; at the end nothing of it is left.

    With workers="own" they are its children and in its group, as a user's are, and take seconds more to start.
    """
    if workers == "forked" and program[0] == "-m":
        program = ("-m", forked_workers.__name__, "run", *program[1:])
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        session = Session(folder)
        process = _start(log, [*program, *map(str, arguments)], RAY_TMPDIR=folder, **environment)
        try:
            yield Job(process, session, log)
        finally:
            process.kill()
            process.wait()
            session.end()


def _start(log: Path, arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    # As in the suite's own cluster.
    ray |= {name: os.environ[name] for name in CHEAPER if name in os.environ}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**inherited, **ray, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            # A group of its own, so that a signal may go to all of it.
            start_new_session=True,
        )


@dataclass(frozen=True)
class Head:
    """The head of a cluster."""

    address: str
    dashboard: str
    session: Session

    @contextmanager
    def job(self, log: Path, *arguments: object, **environment: str) -> Iterator[Job]:
        """Start the job as a driver on this cluster; what it leaves on the cluster is the cluster's to end."""
        process = _start(log, ["-m", "jobs.curation", *map(str, arguments)], RAY_ADDRESS=self.address, **environment)
        try:
            yield Job(process, self.session, log)
        finally:
            process.kill()
            process.wait()


@contextmanager
def head(log: Path, **environment: str) -> Iterator[Head]:
    """Run a cluster of one node with two CPUs, ready for jobs; its workers have the environment."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray = ("-m", forked_workers.__name__, "run", "ray.scripts.scripts")
        options = ["--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        options += [f"--{name}={port}" for name, port in ports.items()]
        # Jobs are submitted as `python -m ...`: that of this environment.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        process = _start(log, [*ray, "start", *options], PATH=path, **environment)
        session = Session(folder)
        try:
            dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
            until = time.monotonic() + 240
            while not _answers(f"{dashboard}/api/jobs/"):
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.5)
            yield Head(f"127.0.0.1:{ports['port']}", dashboard, session)
        finally:
            process.kill()
            process.wait()
            session.end()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


# ------------------------------------------------------------------------------------------------- what an output holds


def names(output: str | Path, folder: str) -> set[str]:
    """The files below a folder of an output."""
    return {entry.name for entry in storage.listing(storage.join(str(output), folder))}


def table(output: str | Path, folder: str) -> pd.DataFrame:
    """A table of an output."""
    return pa.concat_tables(_readable(contents(output, folder)).values()).to_pandas()


def contents(output: str | Path, folder: str = "scores") -> dict[str, bytes]:
    """The files below a folder of an output, or below all of it with "", by name."""
    listed = storage.listing(storage.join(str(output), *filter(None, [folder])))
    return {entry.name: storage.read_bytes(entry.uri) for entry in listed}


def _readable(files: dict[str, bytes]) -> dict[str, pa.Table]:
    found = {}
    for name, data in files.items():
        with suppress(pa.ArrowInvalid):
            found[name] = pq.read_table(io.BytesIO(data))
    return found


def assert_same_result(output: str | Path, reference: str | Path) -> None:
    """Two outputs have the same rows of scenes/ and rejected/, the same clips and the same kept.json."""
    # How often something was tried, and where it was looked for, may differ.
    pd.testing.assert_frame_equal(_sorted(output, "scenes"), _sorted(reference, "scenes"), check_exact=True)
    failed, expected = (_sorted(root, "rejected").drop(columns=["message", "attempts"]) for root in (output, reference))
    pd.testing.assert_frame_equal(failed, expected)
    assert names(output, "clips") == names(reference, "clips")
    assert _kept(output) == _kept(reference)
    assert_key_frames(output)


def assert_key_frames(output: str | Path) -> None:
    """The part of keyframes/ beside each part of scores/ has the key frames of its measured scenes, each once."""
    stored = _readable(contents(output, "keyframes"))
    for name, part in _readable(contents(output, "scores")).items():
        rows = part.to_pandas()
        measured = rows[(rows.scene_id != "") & (rows.error == "") & rows.no_frames.between(1, 60)]
        frames = stored[name].to_pandas() if len(measured) else measured
        expected = sorted(zip(measured.video_id, measured.scene_id, strict=True))
        assert sorted(zip(frames.video_id, frames.scene_id, strict=True)) == expected
        for count, row in zip(measured.no_frames, frames.to_dict("records") if len(measured) else (), strict=True):
            files = [row[column] for column in KEY_FRAMES if row[column]]
            assert len(files) == min(count, 3) and all(data.startswith(b"\xff\xd8") for data in files)


def _sorted(output: str | Path, folder: str) -> pd.DataFrame:
    return table(output, folder).sort_values(["video_id", "scene_id"]).reset_index(drop=True)


def _kept(output: str | Path) -> Any:
    return json.loads(storage.read_bytes(storage.join(str(output), "kept.json")))


def whole_videos(output: str | Path) -> dict[str, dict[str, bytes]]:
    """Videos all of whose rows are in scores/, each with the parts that hold them."""
    planned = table(output, "plan/videos").set_index("video_id").scenes
    held: dict[str, dict[str, bytes]] = {}
    scenes: dict[str, set[str]] = {}
    expected: dict[str, int] = {}
    data = contents(output)
    for name, part in _readable(data).items():
        for row in part.select(["video_id", "scene_id", "scenes"]).to_pylist():
            video = row["video_id"]
            held.setdefault(video, {})[name] = data[name]
            ids = scenes.setdefault(video, set())
            if row["scene_id"]:
                ids.add(row["scene_id"])
            else:
                # A film whose scenes the input does not name tells itself how many it has.
                expected[video] = row["scenes"] if planned[video] < 0 else planned[video]
    return {video: held[video] for video, count in expected.items() if len(scenes[video]) == count}


def assert_not_done_again(output: str | Path, before: dict[str, dict[str, bytes]]) -> None:
    """Videos that were whole have one film's row, and the parts that held them are the same byte for byte."""
    rows = table(output, "scores")
    films_rows = rows[rows.scene_id == ""].video_id.value_counts()
    data = contents(output)
    for video, held in before.items():
        assert films_rows[video] == 1, video
        assert held.items() <= data.items(), video
