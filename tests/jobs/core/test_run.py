"""Settings from YAML and key=value, with errors that name the key; what each kind of error ends with."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import pyarrow as pa
import pytest
import typer
from ray.exceptions import RayTaskError

from jobs.core.run import DONE, FAILED, REJECTED, USAGE, SettingsError, exit_codes, load, recorded, versions
from pipelines.curation.rows import IncompleteError
from pipelines.curation.settings import CurationConfig


@dataclass(frozen=True)
class Inner:
    size: int = 240
    share: float | None = 0.5
    how: Literal["fast", "exact"] = "exact"
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ValueError(f"size starts at 16, not {self.size}")


@dataclass(frozen=True)
class Config:
    input: str
    inner: Inner = field(default_factory=Inner)
    end: int | None = None


def told(*arguments: str, base: dict[str, Any] | None = None) -> str:
    """The message of the error."""
    with pytest.raises(SettingsError) as error:
        load(Config, arguments, base)
    return str(error.value)


def write(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_stand_where_nothing_is_said():
    assert load(Config, ["input=a"]) == Config("a", Inner(240, 0.5, "exact", []), None)


def test_single_settings_go_before_the_file_and_the_file_before_the_base(tmp_path: Path):
    file = write(tmp_path, "input: file\ninner:\n  size: 64\n  names: [x]\n")
    base = {"input": "base", "end": 7, "inner": {"size": 32, "share": 0.1, "names": ["y", "z"]}}
    assert load(Config, [file], base) == Config("file", Inner(64, 0.1, "exact", ["x"]), 7)
    assert load(Config, [file, "inner.size=128", "end=null"], base) == Config("file", Inner(128, 0.1, "exact", ["x"]))
    assert load(Config, ["inner.size=1", "inner.size=16"], base).inner == Inner(16, 0.1, "exact", ["y", "z"])
    # What was given is not changed.
    assert base == {"input": "base", "end": 7, "inner": {"size": 32, "share": 0.1, "names": ["y", "z"]}}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("inner.names=[a, 'b c']", Inner(names=["a", "b c"])),
        ("inner.share=null", Inner(share=None)),
        ("inner.share=1e-3", Inner(share=0.001)),
        ("inner.share=2", Inner(share=2.0)),
        ("inner={size: 20, how: fast}", Inner(20, how="fast")),
        ("inner.how=fast", Inner(how="fast")),
    ],
)
def test_values_are_read_as_yaml(argument: str, expected: Inner):
    assert load(Config, ["input=a", argument]).inner == expected


@pytest.mark.parametrize(
    "value",
    ["s3://bucket/a=b/corpus.json", "/films/with space", "C#1:2", "stabilityai/sdxl-vae", "https://host/?a=b&c=d"],
)
def test_a_path_may_hold_what_paths_hold(value: str):
    assert load(Config, [f"input={value}"]).input == value


@pytest.mark.parametrize("text", ["inner.size: 99\n", "inner:\n  size: 99\n", "inner: {size: 99}\n"])
def test_a_key_of_a_file_may_be_dotted(tmp_path: Path, text: str):
    assert load(Config, [write(tmp_path, text), "input=a", "inner.how=fast"]).inner == Inner(99, how="fast")


def test_an_empty_file_and_an_empty_group_hold_no_settings(tmp_path: Path):
    assert load(Config, [write(tmp_path, "# nothing yet\n"), "input=a"]) == Config("a")
    assert load(Config, [write(tmp_path, "inner:\n"), "input=a", "inner.size=20"]).inner == Inner(20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "input: this setting is needed"),
        (["input=a", "inner.sizes=3"], "inner.sizes: there is no such setting"),
        (["input=a", "outer=3"], "outer: there is no such setting"),
        (["input=a", "inner.size.x=3"], "inner.size: Input should be a valid integer"),
        (["input=a", "inner=3"], "inner: "),
        (["input=a", "inner.size=big"], "inner.size: Input should be a valid integer"),
        (["input=a", "inner.size=64.5"], "inner.size: Input should be a valid integer"),
        (["input=a", "inner.size=null"], "inner.size: "),
        (["input=a", "inner.how=luck"], "inner.how: Input should be 'fast' or 'exact'"),
        (["input=a", "inner.size=3"], "inner: size starts at 16, not 3"),
        (["input=7"], "input: Input should be a valid string"),
        (["input=null"], "input: "),
        (["input=a", "end=[1]"], "end: "),
        (["input=a", "inner.names=a"], "inner.names: "),
        (["input=a", "inner.names=[1]"], "inner.names.0: "),
    ],
)
def test_an_error_names_its_setting_by_the_dotted_path(arguments: list[str], message: str):
    assert told(*arguments).startswith(message)


def test_all_that_is_wrong_is_told_at_once():
    assert told("inner.size=big", "end=late", "more=1").count(";") == 3


@pytest.mark.parametrize("junk", ["inner.size", "--help", "=5", ""])
def test_an_argument_that_is_no_setting_is_told(junk: str):
    assert told("input=a", junk) == f"{junk!r} is no setting: write key=value, as in frames.interval_ms=500"


def test_a_value_that_is_not_yaml_is_told_with_its_key():
    assert told("input=a", "inner.names=[a").startswith("'inner.names=[a': the value is not YAML")


def test_a_missing_file_is_told(tmp_path: Path):
    assert told(str(tmp_path / "none.yaml")) == f"there is no settings file {tmp_path}/none.yaml"
    assert told("inner.size") == "there is no settings file inner.size"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: [", "is not YAML: while parsing"),
        ("\x00", "is not YAML"),
        ("- input\n- inner\n", "holds no settings"),
        ("input", "holds no settings"),
        ("!!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
    ],
)
def test_a_broken_file_is_told_with_its_name(tmp_path: Path, text: str, message: str):
    file = write(tmp_path, text)
    assert f"{file} {message}" in told(file)


def test_keys_that_are_no_names_are_no_settings(tmp_path: Path):
    assert told(write(tmp_path, "input: a\n1: 2\n")) == "1: there is no such setting"


def test_the_settings_of_curation_load_from_what_a_plan_keeps():
    config = load(CurationConfig, ["input=in", "output=out", "frames.size=64", "select.count=null", "videos.end=9"])
    assert load(CurationConfig, ["select.count=3"], asdict(config)).select.count == 3
    assert load(CurationConfig, [], asdict(config)) == config
    assert (config.frames.size, config.videos.end) == (64, 9)


# ----------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (SettingsError("frames.size: must be a number"), USAGE, "error: frames.size: must be a number"),
        (ValueError("no such file"), USAGE, "error: no such file"),
        (IncompleteError("2 videos have scenes without a row"), FAILED, "failed: IncompleteError: 2 videos have"),
        (ConnectionError("s3://b/k: gave up"), FAILED, "failed: ConnectionError: s3://b/k: gave up"),
        (RuntimeError("a worker said:\n  many lines\nKeyError: 'x'"), FAILED, "failed: KeyError: 'x'"),
        (RuntimeError(), FAILED, "failed: RuntimeError:"),
        (pa.ArrowInvalid("not a Parquet file"), FAILED, "failed: ArrowInvalid: not a Parquet file"),
        (RayTaskError("f", "a worker's trace", ValueError("x")).as_instanceof_cause(), FAILED, "failed: "),
    ],
)
def test_each_kind_of_error_has_its_code_and_its_line(
    error: Exception, code: int, last: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(typer.Exit) as left, exit_codes():
        raise error
    assert left.value.exit_code == code
    assert left.value.__cause__ is error
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith(last)
    assert ("Traceback" in told) is (code == FAILED)


def test_a_code_that_was_chosen_stays_and_an_interrupt_goes_through():
    with pytest.raises(typer.Exit) as left, exit_codes():
        raise typer.Exit(REJECTED)
    assert left.value.exit_code == REJECTED
    with pytest.raises(KeyboardInterrupt), exit_codes():
        raise KeyboardInterrupt
    with exit_codes():
        pass
    assert (DONE, FAILED, USAGE, REJECTED) == (0, 1, 2, 3)


def test_versions_are_those_that_run():
    assert versions()["av"] == av.__version__
    assert {"python", "ray", "torch"} <= versions().keys()


def record_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "runs" / "embed.json").read_text())


def test_a_verb_leaves_its_record_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with recorded("embed", Config("films"), str(tmp_path)) as record:
        record["rows"] = {"in": 5, "out": 3, "rejected": {"broken": 2}}
        record["stages"] = {"embed": {"rows": 5, "seconds": 0.5}}
        record["more"] = "kept"
    found = record_of(tmp_path)
    assert (found["status"], found["error"], found["command"], found["more"]) == ("done", None, "embed", "kept")
    assert found["settings"] == asdict(Config("films")) and found["versions"] == versions() and found["seconds"] >= 0
    told = capsys.readouterr().out
    assert "5 rows = 3 done + 2 rejected" in told and "broken 2" in told and "10.0 rows/s" in told


def test_rows_that_do_not_add_up_fail_the_verb(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="5 rows came in, but 3 went out and 1 were rejected"),
        recorded("embed", Config("films"), str(tmp_path)) as record,
    ):
        record["rows"] = {"in": 5, "out": 3, "rejected": {"broken": 1}}
    assert record_of(tmp_path)["status"] == "failed"


def test_more_rejected_rows_than_allowed_end_with_their_exit_code(tmp_path: Path):
    rows = {"in": 5, "out": 3, "rejected": {"broken": 2}}
    with recorded("embed", Config("films"), str(tmp_path), max_rejected=2) as record:
        record["rows"] = rows
    with pytest.raises(typer.Exit) as end, recorded("embed", Config("films"), str(tmp_path), max_rejected=1) as record:
        record["rows"] = rows
    assert end.value.exit_code == REJECTED and record_of(tmp_path)["status"] == "rejected"


def test_what_broke_a_verb_is_in_its_record_and_a_users_mistake_leaves_the_one_before(tmp_path: Path):
    with pytest.raises(OSError, match="full"), recorded("embed", Config("films"), str(tmp_path)):
        raise OSError("the disk is full")
    before = record_of(tmp_path)
    assert (before["status"], before["error"]) == ("failed", "OSError: the disk is full")
    with pytest.raises(ValueError, match="no films"), recorded("embed", Config("elsewhere"), str(tmp_path)):
        raise ValueError("no films there")
    assert record_of(tmp_path) == before
