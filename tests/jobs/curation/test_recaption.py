"""The verb recaption: what it says, what an output holds then, and that after a kill nothing is paid for twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.core.store import Store
from tests.support import corpus, films
from tests.support.corpus import run_here, table
from tests.support.servers import Gemini, blocks, fails, says

SCENES = 8
KEPT = 6


@pytest.fixture(scope="module")
def exported(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over eight scenes of a second, of which six are kept."""
    folder = tmp_path_factory.mktemp("films")
    films.film(folder / "a.mp4", shots=(48,) * 4)
    lines = [f"a,a.mp4,{i},{i + 1},scene {i}" for i in range(SCENES)]
    (folder / "scenes.csv").write_text("\n".join(["video_id,url,start,end,caption", *lines]))
    rules = ["select.max_rgb_diff=60000", "select.min_velocity=0", f"select.count={KEPT}"]
    where = [f"input={folder / 'scenes.csv'}", f"output={folder / 'out'}"]
    run_here("run", *where, *rules, "frames.size=64", "latents.model=tiny")
    return folder / "out"


@pytest.fixture
def output(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "out")


@pytest.fixture
def settings(gemini: Gemini) -> list[str]:
    return [f"captions.endpoint={gemini.endpoint}", "captions.pause_s=0.01", "captions.requests_at_once=1"]


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


def kept(output: Path) -> list[str]:
    """Captions of the scenes that are kept."""
    scenes = table(output, "scenes")
    return sorted(scenes.caption[scenes.kept])


def recaptions(output: Path) -> dict[str, str]:
    """Recaptions by caption in scenes/, those of kept scenes also in kept.json."""
    rows = table(output, "scenes").set_index("caption")
    exported = {row["caption"]: row["recaption"] for row in json.loads((output / "kept.json").read_text())["scenes"]}
    assert exported == {caption: text or None for caption, text in rows.recaption[rows.kept].items()}
    return {str(caption): text for caption, text in rows.recaption.items() if text}


def better(captions: list[str]) -> dict[str, str]:
    """What the service says by itself."""
    return {caption: f"a better caption, with more light in it, than {caption}" for caption in captions}


def holds(output: Path, key: str) -> list[Path]:
    """Files below a folder that hold a text, in tables too."""
    found = []
    for path in output.rglob("*"):
        if path.is_file():
            rows = str(table(output, str(path.parent.relative_to(output))).to_dict()) if ".parquet" in path.name else ""
            if key in rows or key.encode() in path.read_bytes():
                found.append(path)
    return found


def test_recaption_of_what_is_kept(output: Path, settings: list[str], gemini: Gemini, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    chosen = kept(output)
    refused = chosen[1]
    gemini.replies[refused] = [blocks()]
    assert recaptions(output) == {}

    told = run_here("recaption", output, "--dry-run").output
    assert f"{KEPT} of {KEPT} scenes to caption with gemini-3.5-flash-lite: about " in told
    assert "$0.01 at $0.3 and $2.5 per million, at most 3 times that with retries" in told
    assert gemini.asked == []

    told = run_here("recaption", output, *settings, "captions.max_requests=1").output
    assert f"captions: 1 made, 0 failed, {KEPT - 1} left; 1 requests, 1000 + 50 tokens, $0.00" in told
    told += run_here("recaption", output, *settings).output
    made = better([caption for caption in chosen if caption != refused])
    assert recaptions(output) == made
    done = record(output)
    assert done["rows"] == {"in": 8, "kept": 5, "dropped": {"not_selected": 2}, "failed": {"caption_failed": 1}}
    assert (done["captions"]["captioned"], done["captions"]["failed"], done["captions"]["left"]) == (4, 1, 0)
    [bad] = table(output, "rejected").to_dict("records")
    assert (bad["step"], bad["code"], bad["message"], bad["attempts"]) == (
        *("caption", "caption_failed"),
        *("refused: SAFETY", 3),
    )
    told += run_here("failed", output).output + run_here("failed", output, "--rows").output
    assert f"caption  caption_failed     retry may help  {bad['scene_id']}: refused: SAFETY" in told

    # Deciding and exporting anew keeps what was paid for, and asks for nothing.
    asked = len(gemini.asked)
    run_here("select", output)
    run_here("export", output)
    assert "captions: 0 made, 0 failed, 0 left; 0 requests" in run_here("recaption", output, *settings).output
    assert recaptions(output) == made
    assert len(gemini.asked) == asked
    run_here("select", output, "select.count=8")
    assert "2 of 7 scenes to caption" in run_here("recaption", output, "--dry-run").output

    assert gemini.key not in told and gemini.key not in caplog.text
    assert holds(output, refused) and holds(output, gemini.key) == []


def test_retry_asks_again_for_what_failed_and_for_nothing_else(
    output: Path, settings: list[str], gemini: Gemini, monkeypatch: pytest.MonkeyPatch
):
    gemini.otherwise = says("NO")
    run_here("recaption", output, *settings, "captions.max_requests=4")
    assert record(output)["captions"]["failed"] == 1 and len(gemini.asked) == 4
    [failed] = {caption for caption, _ in gemini.asked[:3]}
    with monkeypatch.context() as without:
        without.delenv("GEMINI_API_KEY")
        assert "set GEMINI_API_KEY" in run_here("retry", output, code=2).output
        run_here("retry", output, "--codes", "crashed")
    assert record(output)["rows"]["failed"] == {"caption_failed": 1}
    gemini.otherwise = says("a man in the rain, at last")
    run_here("retry", output, *settings)
    assert [caption for caption, _ in gemini.asked[4:]] == [failed]
    assert recaptions(output) == {failed: "a man in the rain, at last"}
    assert record(output)["rows"]["failed"] == {} and not len(table(output, "rejected"))
    # Which codes were tried again is no setting of the output.
    assert "codes" not in record(output)["settings"]


def test_a_run_that_cannot_ask_says_why(
    output: Path, settings: list[str], gemini: Gemini, monkeypatch: pytest.MonkeyPatch
):
    gemini.otherwise = fails(429, "RESOURCE_EXHAUSTED", "quota", Retry_After="90000")
    told = run_here("recaption", output, *settings, code=1).output
    assert "asks to wait 90000 s" in told and "run the same command later" in told
    assert record(output)["status"] == "failed"
    told = run_here("recaption", output, *settings, "captions.model=gemini-0", code=2).output
    assert "captions.model=gemini-0 is not there" in told
    monkeypatch.setenv("GEMINI_API_KEY", "a-wrong-key")
    told = run_here("recaption", output, *settings, code=2).output
    assert "check GEMINI_API_KEY" in told and "a-wrong-key" not in told
    assert holds(output, "a-wrong-key") == []
    monkeypatch.delenv("GEMINI_API_KEY")
    assert "set GEMINI_API_KEY" in run_here("recaption", output, *settings, code=2).output
    assert not (output / "captions").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_answered_before_a_kill_is_not_asked_again(
    output: Path, settings: list[str], gemini: Gemini, tmp_path: Path
):
    chosen = kept(output)
    gemini.otherwise = says("a man in a boat on the sea", wait_s=1)
    store, log = Store(str(output)), tmp_path / "log"
    with corpus.job(log, "recaption", output, *settings) as job:
        job.wait_until(lambda: len(store.parts("captions")) >= 2)
        job.kill()
    stored = {row["caption"] for part in store.read_parts("captions") for row in part.to_pylist()}
    assert 2 <= len(stored) < KEPT
    with corpus.job(log, "recaption", output, *settings) as again:
        told = again.wait()
        logs = [path for path in Path(again.session.folder).rglob("*") if path.is_file()]
        assert logs and not any(gemini.key.encode() in path.read_bytes() for path in logs)
    assert {caption for caption, _ in gemini.asked} == set(chosen)
    assert all(gemini.count(caption) == 1 for caption in stored)
    assert f"captions: {KEPT - len(stored)} made, 0 failed, 0 left" in told
    assert sorted(recaptions(output)) == chosen
    assert len(store.parts("captions")) == 1
    assert gemini.key not in log.read_text() and holds(output, gemini.key) == []
