"""The runner: what every verb has without a line of its own."""

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from actors.core.errors import UserError
from actors.core.lease import Lease
from actors.core.log_format import LOG_FORMAT
from actors.core.patience import PATIENCE, PATIENCE_S, patience_s
from actors.core.stage import Stage
from actors.core.store import Store
from jobs.core.counts import decoder_lines, listed, nothing_done
from jobs.core.status import Status
from jobs.core.verbs import Preview, Run, Verb, Verbs, versions
from pipelines.core.progress import Progress

app = Verbs("A capability of a test.")
app.verb(Status)


@dataclass(frozen=True)
class CountConfig:
    """Settings of `count-films`."""

    input: str
    """A folder."""
    output: str
    """Another."""
    rows: int = 5
    """Rows of the input."""
    out: int = 3
    """Those that are sound."""
    fail: str = ""
    """How it fails."""
    sound: bool = False
    """Whether all rows come out."""


@app.verb
class CountFilms(Verb):
    """Count the films of a folder."""

    positional = ("output",)

    def settings(self) -> type[CountConfig]:
        return CountConfig

    def plan(self, config: CountConfig) -> int:
        if config.fail == "plan":
            raise UserError("there are no films")
        if config.fail == "read":
            Path(config.input).read_text()
        return config.rows

    def preview(self, config: CountConfig, plan: int) -> Preview:
        return Preview(
            [f"input: {plan} films"], {"table": f"{config.output}/table"}, {"embed": Stage(2)}, {"read": Stage(0)}
        )

    def work(self, config: CountConfig, plan: int, run: Run) -> None:
        with Progress("count", plan, "films") as progress:
            progress.advance(config.out)
            if config.fail == "users":
                raise UserError("a film is none")
            if config.fail:
                raise OSError("the disk is full")
        bad = {} if config.sound else {"broken": 2}
        run.record["rows"] = {"in": plan, "out": config.out, "rejected": bad}
        run.stage("count", plan, 0.5)
        run.say(f"table: {run.store.uri('table')}")


@dataclass(frozen=True)
class LookConfig:
    """Settings of `look`."""

    output: str
    """A folder."""
    found: int = 3
    """Rows that are sound."""
    lost: int = 0
    """Rows that are not."""


@app.verb
class Look(Verb):
    """Look at an output."""

    positional = ("output",)

    def settings(self) -> type[LookConfig]:
        return LookConfig

    def root(self, config: LookConfig) -> None:
        return None

    def work(self, config: LookConfig, plan: None, run: Run) -> None:
        run.record["rows"] = {
            "in": config.found + config.lost,
            "out": config.found,
            "rejected": {"lost": config.lost} if config.lost else {},
        }
        run.say(f"seen {config.output}")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def record_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "runs" / "count-films.json").read_text())


def test_a_run_of_which_nothing_came_out_has_failed(tmp_path: Path):
    done = run("count-films", "input=films", f"output={tmp_path}", "rows=2", "out=0", code=1)
    assert done.stderr.splitlines()[-1] == "failed: none of 2 rows came out: broken 2"
    # What the run has to say stands above it.
    assert "table: " in done.stdout
    assert (record_of(tmp_path)["status"], record_of(tmp_path)["error"]) == (
        "failed",
        "none of 2 rows came out: broken 2",
    )
    assert nothing_done({"rows": {"in": 0, "out": 0, "rejected": {}}}) == ""
    assert nothing_done({"rows": {"in": 2, "out": 1, "rejected": {"broken": 1}}}) == nothing_done({}) == ""


def test_the_first_rejected_rows_are_printed_with_their_reasons(tmp_path: Path):
    rows = [{"image": f"{n}.jpg", "code": "no_face", "message": "none was found"} for n in range(5)]
    Store(str(tmp_path)).replace_table("rejected", [pa.Table.from_pylist(rows)])
    told = run("count-films", "input=films", f"output={tmp_path}").stdout.splitlines()
    start = told.index("  0.jpg: no_face: none was found")
    assert told[start + 2 : start + 4] == ["  2.jpg: no_face: none was found", f"  and 2 more: {tmp_path}/rejected"]
    # Without rejected rows, what an earlier run left is not printed.
    assert "no_face" not in run("count-films", "input=films", f"output={tmp_path}", "rows=3", "sound=true").stdout


def test_a_verb_leaves_its_record_and_a_summary(tmp_path: Path):
    told = run("count-films", "input=films", f"output={tmp_path}").stdout
    found = record_of(tmp_path)
    assert (found["status"], found["error"], found["command"]) == ("done", None, "count-films")
    assert found["settings"] == asdict(CountConfig("films", str(tmp_path)))
    assert found["versions"] == versions() and found["seconds"] >= 0
    assert "5 rows = 3 done + 2 rejected" in told and "broken 2" in told and "10.0 rows/s" in told
    assert told.splitlines()[-1] == f"table: {tmp_path}/table"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["count-films.json"], "no progress file is left"


def test_notes_of_a_record_end_its_summary(tmp_path: Path):
    record = {"command": "embed", "status": "done", "seconds": 1, "notes": ["vectors of 2 images"]}
    assert CountFilms().summary(record, Store(str(tmp_path)))[-1] == "NOTE: vectors of 2 images"


def test_a_second_run_on_an_output_is_told_who_is_at_work(tmp_path: Path):
    output = tmp_path / "out"
    with Lease(Store(str(output)), "count-films"):
        refused = run("count-films", "input=films", f"output={output}", code=2)
        assert f"process {os.getpid()}" in refused.stderr
        assert not (output / "runs" / "count-films.json").exists()
        # What a dry run prints and what other verbs do is no second run.
        run("count-films", "input=films", f"output={output}", "--dry-run")
        run("count-films", "input=films", f"output={output}", "--force")
        run("status", output)
    run("count-films", "input=films", f"output={output}")


def test_what_killed_writers_left_in_an_output_is_removed(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    names = (".filmray-part-1", ".filmray-token-1", "film.mp4", ".filmray-part-young")
    for name in names:
        (output / name).write_bytes(b"")
        if "young" not in name:
            os.utime(output / name, (0, 0))
    run("count-films", "input=films", f"output={output}")
    assert {name for name in names if (output / name).exists()} == {"film.mp4", ".filmray-part-young"}


@pytest.mark.parametrize("form", ["store.patience_s=7", "--store.patience-s=7", "file"])
def test_patience_is_a_setting_of_every_verb(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(PATIENCE, raising=False)
    seen = []
    monkeypatch.setattr(CountFilms, "work", lambda *_: seen.append(patience_s()))
    monkeypatch.setattr(CountFilms, "needs_result", False)
    if form == "file":
        form = str(tmp_path / "settings.yaml")
        Path(form).write_text("store: {patience_s: 7}")
    run("count-films", "input=films", f"output={tmp_path}", form)
    assert seen == [7] and patience_s() == PATIENCE_S
    wrong = run("count-films", "input=films", f"output={tmp_path}", "store.patience=7", code=2)
    assert "store.patience_s" in wrong.stderr


def test_settings_come_in_any_form_and_around_options(tmp_path: Path):
    run("count-films", "--dry-run", tmp_path, "--input", "films", "--rows=7")
    told = run("count-films", tmp_path, "--input", "films", "--dry-run", "--out", "5", "rows=7").stdout
    assert "input: 7 films" in told and "out: 5" in told
    assert "embed: 2 actors of 1 CPUs" in told and "read: as many as fit tasks of" in told
    assert f"table: {tmp_path}/table" in told and not list(tmp_path.iterdir())


def test_rows_that_do_not_add_up_fail_the_verb(tmp_path: Path):
    told = run("count-films", tmp_path, "input=a", "rows=6", code=1).output
    assert told.splitlines()[-1] == "failed: RuntimeError: 6 rows in, but 3 out and 2 rejected"
    assert record_of(tmp_path)["status"] == "failed"


def test_more_rejected_rows_than_allowed_end_with_their_exit_code(tmp_path: Path):
    run("count-films", tmp_path, "input=a", "--max-rejected", "2")
    run("count-films", tmp_path, "input=a", "--max_rejected=1", code=3)
    assert record_of(tmp_path)["status"] == "rejected"


def test_a_fault_is_recorded_and_a_users_mistake_leaves_the_record_before(tmp_path: Path):
    assert "failed: OSError: the disk is full" in run("count-films", tmp_path, "input=a", "fail=disk", code=1).output
    before = record_of(tmp_path)
    assert (before["status"], before["error"]) == ("failed", "OSError: the disk is full")
    for how, told in {"plan": "there are no films", "users": "a film is none"}.items():
        assert run("count-films", tmp_path, "input=b", f"fail={how}", code=2).output.strip() == f"error: {told}"
        assert record_of(tmp_path) == before


def test_a_verb_that_only_looks_leaves_nothing(tmp_path: Path):
    assert run("look", tmp_path).stdout == f"seen {tmp_path}\n"
    assert not list(tmp_path.iterdir())
    assert "changes nothing" in run("look", tmp_path, "--dry-run").stdout


def test_a_verb_without_a_record_has_the_same_exit_codes(tmp_path: Path):
    assert "--max-rejected allows 1" in run("look", tmp_path, "lost=2", "--max-rejected", 1, code=3).stderr
    run("look", tmp_path, "lost=1", "--max-rejected", 1)
    done = run("look", tmp_path, "found=0", "lost=2", code=1)
    assert done.stderr.splitlines()[-1] == "failed: none of 2 rows came out: lost 2"
    assert not list(tmp_path.iterdir())


def test_an_input_that_is_missing_or_of_another_kind_is_a_users_mistake(tmp_path: Path):
    (tmp_path / "file").touch()
    for fail, told in {
        "none": "none does not exist",
        "file/below": "file/below is a file, and a folder is needed",
        ".": "is a folder, and a file is needed",
    }.items():
        found = run("count-films", tmp_path, f"input={tmp_path / fail}", "fail=read", code=2).stderr.strip()
        assert told in found and found.endswith("Check the setting that names it.") and "Traceback" not in found
        run("count-films", tmp_path, f"input={tmp_path / fail}", "fail=read", "--dry-run", code=2)


def test_settings_and_schema_are_printed_without_any_setting(tmp_path: Path):
    text = run("count-films", "--settings").stdout
    assert "# Rows of the input.\nrows: 5  # int" in text
    assert yaml.safe_load(run("count-films", "--settings", "input=a", "output=b", "rows=9").stdout)["rows"] == 9
    assert json.loads(run("count-films", "--schema").stdout)["required"] == ["input", "output"]


def test_status_shows_records_and_the_stages_that_are_in_progress(tmp_path: Path):
    assert "no run records" in run("status", tmp_path, code=2).output
    run("count-films", tmp_path, "input=a")
    about = {"done": 4, "total": 8, "unit": "films", "rate": 2.0, "remaining_s": 2.0, "note": "loss 0.5", "time": 0}
    (tmp_path / "runs" / "embed.progress.json").write_text(json.dumps({"embed": about}))
    lines = run("status", tmp_path).stdout.splitlines()
    assert lines[0].startswith("count-films done after")
    assert lines[-1].startswith("embed embed: 4 of 8 films, 2/s, 2 s left, loss 0.5 (")


def json_lines(text: str) -> list[dict[str, Any]]:
    """Lines that are JSON objects, each with what every one has."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"level", "logger", "message"} <= line.keys() and line["time"].endswith("Z")
        assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60
    return lines


@pytest.mark.parametrize("form", ["log.format=json", "--log.format=json", "file"])
def test_all_that_a_command_logs_is_json_on_request(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if form == "file":
        form = str(tmp_path / "settings.yaml")
        Path(form).write_text("log: {format: json}")
    monkeypatch.setattr("pipelines.core.progress.FIRST_S", 0.0)
    # A terminal shows no live line then.
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    done = run("count-films", tmp_path / "out", "input=a", form)
    progress, end = json_lines(done.stderr)
    assert (progress["stage"], progress["done"], progress["total"], progress["unit"]) == ("count", 3, 5, "films")
    assert (end["command"], end["status"], end["rows"]["rejected"]) == ("count-films", "done", {"broken": 2})
    assert end["message"].startswith("count-films done after") and end["lines"][-1].startswith("table: ")
    assert done.stdout == "" and "log" not in record_of(tmp_path / "out")["settings"]
    (_, fault) = json_lines(run("count-films", tmp_path / "out", "input=a", "fail=work", form, code=1).stderr)
    assert (fault["level"], fault["exit_code"]) == ("ERROR", 1)
    assert fault["message"] == "failed: OSError: the disk is full" and "Traceback" in fault["traceback"]
    *_, few = json_lines(run("count-films", tmp_path / "out", "input=a", form, "--max-rejected", "1", code=3).stderr)
    assert few["exit_code"] == 3 and few["message"].startswith("failed: 2 rows rejected")
    told = run("look", tmp_path / "out", form)
    assert told.stdout.splitlines() and not told.stderr, "what a verb without a record says is its result"


def test_a_mistake_in_settings_is_json_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = json_lines(run("count-films", tmp_path, "input=a", "row=3", "log.format=json", code=2).stderr)
    assert [(one["message"], one["exit_code"]) for one in told] == [
        ("row: there is no such setting; did you mean rows?", 2)
    ]
    assert "log.format: " in run("count-films", tmp_path, "input=a", "log.format=xml", code=2).stderr
    monkeypatch.setenv(LOG_FORMAT, "xml")
    assert f"{LOG_FORMAT}=xml" in run("count-films", tmp_path, "input=a", code=2).stderr


def test_help_is_the_docstring_and_names_come_from_classes():
    told = run("--help").stdout
    assert "count-films" in told and "Count the films of a folder." in told


def test_only_our_own_lines_are_logged_unless_verbose(tmp_path: Path):
    root = logging.getLogger()
    run("look", tmp_path)
    assert root.level == logging.ERROR and logging.getLogger("pipelines").level == logging.INFO
    run("look", tmp_path, "--verbose")
    assert root.level == logging.INFO


def test_counts_and_versions():
    assert listed({"a": 1, "b": 2}) == ": a 1, b 2" and listed({}) == ""
    assert versions()["av"] == av.__version__ and {"python", "ray", "torch"} <= versions().keys()


def test_what_decoded_films_is_told_where_it_is_not_what_was_asked_for():
    assert decoder_lines({"pyav": 3}, by_nvdec=False) == []
    assert decoder_lines({"nvdec": 3}, by_nvdec=True) == ["decoded by: nvdec 3"]
    mixed, note = decoder_lines({"nvdec": 3, "torchcodec-cpu": 2, "nvdec+pyav": 1}, by_nvdec=True)
    assert mixed == "decoded by: nvdec 3, torchcodec-cpu 2, nvdec+pyav 1"
    assert note.startswith("NOTE: 3 of 6 films were not decoded by NVDEC alone")
    assert len(decoder_lines({"pyav": 1, "torchcodec-cpu": 2}, by_nvdec=False)) == 1
