"""The job where it really runs: on a store that fails, on few CPUs, as a submitted job, over broken films."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.core import storage
from tests.support import corpus, films
from tests.support.corpus import FAST, ROOT, Head, run_here
from tests.support.servers import fault_proxy, s3, s3_server

__all__ = ["s3", "s3_server"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ON_A_RAY = """
import sys, ray
from jobs.curation.__main__ import app
from tests.support import forked_workers
forked_workers.use_forks()
ray.init(
    address="local", num_cpus=int(sys.argv[1]), num_gpus=int(sys.argv[2]), include_dashboard=False, log_to_driver=False
)
sys.exit(app(sys.argv[3:], standalone_mode=False))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four films and a page of text named like a film."""
    made = tmp_path_factory.mktemp("films")
    films.many(made, 4)
    films.text_file(made / "text.mp4")
    return made


@pytest.fixture(scope="module")
def on_a_folder(ray_cluster: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run from a folder into a folder."""
    output = tmp_path_factory.mktemp("on_a_folder") / "out"
    run_here("run", f"input={folder}", f"output={output}", *FAST)
    return output


@pytest.fixture
def prefix(s3: str, folder: Path) -> str:
    """The films under a prefix of the store."""
    for path in folder.iterdir():
        storage.upload(path, f"{s3}/films/{path.name}")
    return f"{s3}/films"


@pytest.fixture(scope="module")
def head(s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster whose workers know the store."""
    with corpus.head(tmp_path_factory.mktemp("head") / "log.txt", **s3_server) as running:
        yield running


def assert_no_credentials(output: str, environment: dict[str, str], *local: Path) -> None:
    """Neither the key nor the secret is in a file of the output, or below a local file or folder."""
    files = corpus.contents(output, "")
    for root in local:
        paths = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else [root]
        files |= {str(path): path.read_bytes() for path in paths}
    assert files
    for name, data in files.items():
        assert environment["AWS_SECRET_ACCESS_KEY"].encode() not in data, name
        assert environment["AWS_ACCESS_KEY_ID"].encode() not in data, name


def test_a_store_that_fails_gives_the_rows_of_a_folder(
    s3_server: dict[str, str], s3: str, prefix: str, on_a_folder: Path, tmp_path: Path
):
    output = f"{s3}/out"
    with fault_proxy(s3_server, refused=0.08, cut=0.08, seed=3) as proxy:
        log = tmp_path / "log.txt"
        with corpus.job(log, "run", f"input={prefix}", f"output={output}", *FAST, **proxy.environment) as job:
            job.wait()
            assert_no_credentials(output, s3_server, log, Path(job.session.folder))
    assert proxy.faults["refused"] and proxy.faults["cut_request"] + proxy.faults["cut_response"]
    corpus.assert_same_result(output, on_a_folder)


def test_a_submitted_job_writes_its_rows_and_tells_its_exit_code(
    head: Head, s3_server: dict[str, str], s3: str, prefix: str, on_a_folder: Path, tmp_path: Path
):
    scripts = sysconfig.get_path("scripts")
    output = f"{s3}/out"

    def submit(*more: str) -> tuple[int, str]:
        job = ["python", "-m", "jobs.curation", "run", f"input={prefix}", f"output={output}", *FAST, *more]
        done = subprocess.run(
            [f"{scripts}/ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *job],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        (tmp_path / "log.txt").write_text(done.stdout)
        assert_no_credentials(output, s3_server, tmp_path / "log.txt", Path(head.session.folder))
        return done.returncode, done.stdout

    code, told = submit()
    assert code == 0, told
    assert "succeeded" in told
    corpus.assert_same_result(output, on_a_folder)
    # What is not code is not sent along.
    (sent,) = Path(head.session.folder).rglob("jobs/curation/__main__.py")
    assert {".git", ".venv", "output"}.isdisjoint(path.name for path in sent.parents[2].iterdir())

    scores = corpus.contents(output)
    code, told = submit("--max-rejected", "0")
    assert code == 1, told
    assert "exit code 3" in told
    assert corpus.contents(output) == scores
    assert json.loads(storage.read_bytes(f"{output}/run.json"))["status"] == "rejected"


@pytest.mark.parametrize("cpus", [1, 2])
def test_few_cpus_are_enough_and_what_is_scaled_down_by_half_is_told(
    cpus: int, folder: Path, on_a_folder: Path, tmp_path: Path
):
    output, log = tmp_path / "out", tmp_path / "log.txt"
    program = ["-c", ON_A_RAY, str(cpus), "0"]
    with corpus.job(log, "run", f"input={folder}", f"output={output}", *FAST, program=program) as job:
        assert (f"to fit {cpus} CPUs" in job.wait()) == (cpus == 1)
    corpus.assert_same_result(output, on_a_folder)


@pytest.mark.parametrize(("gpus", "code", "reason"), [(0, 2, "needs more GPUs"), (1, 1, "torch cannot use a GPU")])
def test_where_no_gpu_can_decode_a_run_ends_before_its_first_film(
    gpus: int, code: int, reason: str, folder: Path, tmp_path: Path
):
    """With 1, Ray is told of a GPU that is not there, as of one whose driver torch cannot use."""
    pytest.importorskip("torchcodec")
    output = tmp_path / "out"
    settings = (f"input={folder}", f"output={output}", *FAST, "video.decoder=torchcodec", "video.num_gpus=0.5")
    done = subprocess.run(
        [sys.executable, "-c", ON_A_RAY, "2", str(gpus), "run", *settings],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "99"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert reason in done.stderr and "video" in done.stderr
    assert not list(output.glob("scores/*")) and not list(output.glob("plan/held/*"))


BROKEN = {
    "empty.mp4": (films.empty_file, "empty_file"),
    "no_index.mp4": (films.without_index, "no_index"),
    "sound.mp4": (films.sound_only, "no_video_stream"),
    "text.mp4": (films.text_file, "not_a_video"),
    "truncated.mp4": (films.truncated, "truncated"),
    "unknown.mp4": (films.unknown_codec, "unknown_codec"),
}
SOUND = {
    "good.mp4": (films.film, 3),
    "mjpeg.avi": (films.no_motion_vectors, 3),
    "odd.mkv": (films.odd_size, 3),
    "one_frame.mp4": (films.one_frame, 1),
    "pcm.mov": (films.pcm_mov, 3),
    "pixels.mp4": (films.non_square_pixels, 3),
    "rotated.mp4": (films.rotated, 3),
    "variable.mp4": (films.variable_rate, 2),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every broken film beside every sound one."""
    made = tmp_path_factory.mktemp("damaged")
    for name, (make, _) in {**BROKEN, **SOUND}.items():
        make(made / name)
    return made


def assert_adds_up(output: Path, rows: int) -> None:
    scenes, record = corpus.table(output, "scenes"), json.loads((output / "run.json").read_text())
    kept, dropped, failed = scenes.kept, scenes.reason != "", scenes.error != ""
    assert (kept.astype(int) + dropped + failed == 1).all()
    told = record["rows"]
    assert told["in"] == len(scenes) == rows
    assert told["kept"] == kept.sum()
    assert told["dropped"] == scenes.reason[dropped].value_counts().to_dict()
    assert told["failed"] == scenes.error[failed].value_counts().to_dict()
    rejected = corpus.table(output, "rejected")
    assert sorted(rejected.code[rejected.scene_id != ""]) == sorted(scenes.error[failed])
    lost = Counter(record["lost_videos"]) + Counter(record["incomplete_videos"])
    assert lost == rejected.code[rejected.scene_id == ""].value_counts().to_dict()
    assert (rejected.message != "").all()


def test_a_folder_of_broken_films(ray_cluster: None, damaged: Path, tmp_path: Path):
    output = tmp_path / "out"
    command = ["run", f"input={damaged}", f"output={output}", *FAST]
    run_here(*command)
    scenes, rejected = corpus.table(output, "scenes"), corpus.table(output, "rejected")
    lost = rejected[rejected.scene_id == ""].set_index("video_id").code
    assert lost.to_dict() == {name: code for name, (_, code) in BROKEN.items()}
    found = scenes[scenes.video_id != "truncated.mp4"].video_id.value_counts()
    assert found.to_dict() == {name: count for name, (_, count) in SOUND.items()}
    # What came before the break is sound.
    broken_off = scenes[scenes.video_id == "truncated.mp4"]
    assert list(broken_off.error) == [""] * (len(broken_off) - 1) + ["truncated"]
    assert scenes[scenes.video_id == "variable.mp4"].start_s.to_list() == pytest.approx([0, 5], abs=0.002)
    assert scenes[scenes.video_id == "one_frame.mp4"].reason.to_list() == ["too_short"]
    assert_adds_up(output, found.sum() + len(broken_off))
    scores = corpus.contents(output)
    run_here(*command, "--max-rejected", 0, code=3)
    assert_adds_up(output, len(scenes))
    run_here(*command, "--max-rejected", len(rejected))
    assert corpus.contents(output) == scores


def test_metadata_over_broken_films(ray_cluster: None, damaged: Path, tmp_path: Path):
    videos: dict[str, dict[str, Any]] = {name: _video(name, [("0", "1")], [[0, -1]]) for name in (*BROKEN, *SOUND)}
    codes = {name: code for name, (_, code) in BROKEN.items()} | {"one_frame.mp4": "span_beyond_end"}
    odd = {
        "truncated.mp4": ([("0", "1"), ("4", "4.7")], [[0, -1]], ["", "truncated"]),
        "beyond": ([("3", "9")], [[0, -1]], ["span_beyond_end"]),
        "long": ([("0", "1")], [[0, 12], [10, 100]], ["", "scene_beyond_span"]),
        "backwards": ([("2", "1")], [[0, -1]], ["bad_span"]),
        "cut": ([("0", "1")], [[9, 3], [0, 0], [0, -1]], ["bad_scene_cut", "bad_scene_cut", ""]),
        "gone": ([("0", "1")], [[0, -1]], ["not_found"]),
        "none": ([], [], []),
    }
    for name, (spans, cuts, _) in odd.items():
        url = {"truncated.mp4": name, "gone": "gone.mp4"}.get(name, "good.mp4")
        videos[name] = _video(name, spans, cuts) | {"url": url}
    # The second of two spans has the scene's id of the first.
    videos["twice"] = _video("twice", [("0", "1"), ("1", "2")], [[0, -1]]) | {"url": "good.mp4"}
    for clip in videos["twice"]["clip"].values():
        clip["scene_split"][0]["clip_id"] = "twice.0_0"
    expected = [(name, f"{name}.0_0", codes.get(name, "")) for name in (*BROKEN, *SOUND) if name != "truncated.mp4"]
    for name, (spans, cuts, errors) in odd.items():
        ids = [f"{name}.{k}_{s}" for k in range(len(spans)) for s in range(len(cuts))]
        expected += [(name, scene_id, error) for scene_id, error in zip(ids, errors, strict=True)]
    expected += [("twice", "twice.0_0", ""), ("twice", "twice.0_0", "duplicate_id")]

    table, output = damaged / "hdvg.json", tmp_path / "out"
    table.write_text(json.dumps(videos))
    run_here("run", f"input={table}", f"output={output}", *FAST)
    scenes, rejected = corpus.table(output, "scenes"), corpus.table(output, "rejected")
    assert sorted(zip(scenes.video_id, scenes.scene_id, scenes.error, strict=True)) == sorted(expected)
    assert rejected[rejected.scene_id == ""][["video_id", "code"]].to_numpy().tolist() == [["none", "no_scenes"]]
    assert_adds_up(output, len(expected))


def _video(name: str, spans: list[tuple[str, str]], cuts: list[list[int]]) -> dict[str, Any]:
    clips = {
        f"{name}.{k}.mp4": {
            "span": list(span),
            "fps": 24.0,
            "scene_split": [
                {"clip_id": f"{name}.{k}_{s}", "scene_cut": cut, "caption": ""} for s, cut in enumerate(cuts)
            ],
        }
        for k, span in enumerate(spans)
    }
    return {"url": name, "clip": clips}


def _line(name: str) -> str:
    return json.dumps({name: _video(name, [("0", "1")], [[0, -1]])})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", _line("v")[:-20], "broken JSON"),
        ("a.csv", "video_id,start,end\nv,0,1\n", "no column url"),
    ],
)
def test_broken_metadata_stops_before_any_work(name: str, text: str, message: str, on_a_folder: Path, tmp_path: Path):
    table, output = tmp_path / name, tmp_path / "out"
    table.write_text(text)
    assert message in run_here("run", f"input={table}", f"output={output}", *FAST, code=2).output
    assert not any(path.is_file() for path in output.rglob("*"))
    shutil.copytree(on_a_folder, output, dirs_exist_ok=True)
    before = corpus.contents(output, "")
    run_here("run", f"input={table}", f"output={output}", *FAST, code=2)
    after = corpus.contents(output, "")
    # Where the record lies while a command runs.
    assert after.pop("runs/last.json") == before["run.json"] and after == before


def test_input_and_output_in_conflict(folder: Path, on_a_folder: Path):
    before = corpus.contents(on_a_folder, ""), sorted(folder.rglob("*"))
    for output in (folder, folder / "out"):
        assert "inside input" in run_here("run", f"input={folder}", f"output={output}", *FAST, code=2).output
    other = [*FAST, "frames.size=32"]
    assert "frames.size=64 there" in run_here("run", f"input={folder}", f"output={on_a_folder}", *other, code=2).output
    assert (corpus.contents(on_a_folder, ""), sorted(folder.rglob("*"))) == before


def test_a_process_with_bad_settings_ends_with_code_2(folder: Path, tmp_path: Path):
    with corpus.job(
        tmp_path / "log.txt", "run", f"input={folder}", f"output={tmp_path / 'out'}", "frames.sise=64"
    ) as job:
        assert "error: frames.sise: there is no such setting" in job.wait(code=2)
    assert not (tmp_path / "out").exists()
