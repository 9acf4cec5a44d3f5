"""The verb recaption: what it says, what an output holds then, and that after a kill nothing is paid for twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.core.store import Store
from tests.support import corpus, films
from tests.support.chat_server import KEY, MODEL, chat_server
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


@pytest.mark.slow
def test_recaption_of_what_is_kept(output: Path, settings: list[str], gemini: Gemini, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    chosen = kept(output)
    refused = chosen[1]
    gemini.replies[refused] = [blocks()]
    assert recaptions(output) == {}

    told = run_here("recaption", output, "--dry-run").output
    assert f"{KEPT} of {KEPT} scenes to caption with gemini-3.5-flash-lite: about " in told
    assert "$0.01 at $0.3 and $2.5 per million, at most 3 times that with retries" in told
    told = run_here("recaption", output, "captions.requests_per_minute=2", "--dry-run").output
    assert f", {KEPT / 2:.1f} min at 2 requests a minute" in told
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_in_several_styles_ends_with_the_rows_of_an_undisturbed_one(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed twice with SIGKILL: first a worker that asks, then all of it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server() as server:
        asked = [f"captions.endpoint={server.endpoint}", "captions.by=openai", f"captions.model={MODEL}"]
        asked += ["captions.styles=[improved, short]", "captions.requests_at_once=2", "export.caption=short"]
        whole, killed = (shutil.copytree(exported, tmp_path / name) for name in ("whole", "killed"))
        run_here("recaption", whole, *asked)
        undisturbed = captions_of(whole)
        before = server.log()["whole"]
        assert len(undisturbed) == 2 * KEPT and set(before.values()) == {1}

        server.script(wait_s=1.5)
        store = Store(str(killed))
        with corpus.job(tmp_path / "log", "recaption", killed, *asked) as job:
            job.wait_until(lambda: len(store.parts("captions")) >= 2)
            first = stored_in(store)
            [worker] = workers_of(job.session)
            worker.kill()
            job.wait_until(lambda: len(store.parts("captions")) >= 6)
            job.kill()
        stored, by_then = stored_in(store), server.log()["whole"]
        assert 2 <= len(first) < len(stored) < 2 * KEPT
        server.script(wait_s=0)
        run_here("recaption", killed, *asked)
        assert captions_of(killed) == undisturbed
        # What was under way at a kill has no answer, and is asked again; what was stored is not.
        now = server.log()["whole"]
        assert {now[name] - before[name] for name in first} == {1}
        assert all(now[name] == by_then[name] for name in stored)
    exported_now = json.loads((killed / "kept.json").read_text())["scenes"]
    assert {row["captions"]["short"] for row in exported_now} == {
        text for (_, style), (text, *_) in undisturbed.items() if style == "short"
    }


def stored_in(store: Store) -> set[str]:
    """What is stored, by the names that the server has for it."""
    rows = [row for part in store.read_parts("captions") for row in part.to_pylist()]
    return {row["caption"] + "*" * (row["style"] != "improved") for row in rows}


def captions_of(output: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """What captions/ says of each style of each scene, but for when."""
    rows = table(output, "captions").to_dict("records")
    names = ("recaption", "code", "message", "attempts", "by", "model", "prompt", "caption")
    assert len(rows) == len({(row["scene_id"], row["style"]) for row in rows})
    return {(row["scene_id"], row["style"]): tuple(row[name] for name in names) for row in rows}


def workers_of(session: corpus.Session) -> list[psutil.Process]:
    """The workers of one Ray that ask a service."""
    # Ray writes the actor's name in the place of the command line.
    return [process for process in session.processes() if "ServiceRecaptioner" in " ".join(process.cmdline())]
