"""Settings from YAML and the command line, with errors that name the key."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from jobs.core.settings import SettingsError, load
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
        ("inner.names=a", Inner(names=["a"])),
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


@pytest.mark.parametrize("text", ["007", "2026-11-28", "no", "1:30", "1e3", "1_000", "0x10", "~x", "None", "=", ".5"])
def test_text_stays_as_it_was_written(tmp_path: Path, text: str):
    written = write(tmp_path, f"input: {text}\ninner: {{names: [{text}]}}\n")
    for arguments in ([written], [f"input={text}", f"inner.names=[{text}]"]):
        assert load(Config, arguments) == Config(text, Inner(names=[text]))


def test_numbers_are_decimal_and_words_are_flags_where_a_flag_is_wanted(tmp_path: Path):
    @dataclass(frozen=True)
    class Flags:
        show: bool = False
        plot: bool | str = False
        scenes: str | int = 0
        rates: dict[str, float] = field(default_factory=dict)

    written = write(tmp_path, "show: yes\nplot: off\nscenes: 010\nrates: {007: 1e-3, b: .inf, c: 5}\n")
    found = load(Flags, [written])
    assert found == Flags(True, False, 10, {"007": 0.001, "b": float("inf"), "c": 5.0})
    assert (type(found.scenes), type(found.rates["c"])) == (int, float)
    assert load(Flags, ["plot=curves.png", "show=on"]) == Flags(True, "curves.png")


@pytest.mark.parametrize("text", ["inner.size: 99\n", "inner:\n  size: 99\n", "inner: {size: 99}\n"])
def test_a_key_of_a_file_may_be_dotted(tmp_path: Path, text: str):
    assert load(Config, [write(tmp_path, text), "input=a", "inner.how=fast"]).inner == Inner(99, how="fast")


def test_an_empty_file_and_an_empty_group_hold_no_settings(tmp_path: Path):
    assert load(Config, [write(tmp_path, "# nothing yet\n"), "input=a"]) == Config("a")
    assert load(Config, [write(tmp_path, "inner:\n"), "input=a", "inner.size=20"]).inner == Inner(20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "input: this setting is required"),
        (["input=a", "inner.sizes=3"], "inner.sizes: there is no such setting"),
        (["input=a", "outer=3"], "outer: there is no such setting"),
        (["input=a", "inner.size.x=3"], "inner.size: Input should be a valid integer"),
        (["input=a", "inner=3"], "inner: "),
        (["input=a", "inner.size=big"], "inner.size: Input should be a valid integer"),
        (["input=a", "inner.size=64.5"], "inner.size: Input should be a valid integer"),
        (["input=a", "inner.size=null"], "inner.size: "),
        (["input=a", "inner.how=luck"], "inner.how: Input should be 'fast' or 'exact'"),
        (["input=a", "inner.size=3"], "inner: size starts at 16, not 3"),
        (["input=null"], "input: "),
        (["input=[a]"], "input: Input should be a valid string"),
        (["input=a", "end=1:30"], "end: Input should be a valid integer"),
        (["input=a", "end=[1]"], "end: "),
        (["input=a", "inner.names=[[1]]"], "inner.names.0: "),
    ],
)
def test_an_error_names_its_setting_by_the_dotted_path(arguments: list[str], message: str):
    assert told(*arguments).startswith(message)


def test_all_that_is_wrong_is_told_at_once():
    assert told("inner.size=big", "end=late", "more=1").count(";") == 3


@pytest.mark.parametrize("junk", ["inner.size", "=5", ""])
def test_an_argument_that_is_neither_a_setting_nor_a_file_is_named(junk: str):
    assert told("input=a", junk) == f"{junk!r}: no such settings file. Write single settings as key=value."


def test_there_is_one_settings_file_at_most(tmp_path: Path):
    file = write(tmp_path, "input: a\n")
    assert told(file, file) == f"Unexpected argument {file!r}. Write settings as key=value, as in output=results."


def test_a_value_that_is_not_yaml_is_told_with_its_key():
    assert told("input=a", "inner.names=[a").startswith("'inner.names=[a': the value is not YAML")


def test_a_missing_file_is_told(tmp_path: Path):
    assert told(str(tmp_path / "none.yaml")).startswith(f"'{tmp_path}/none.yaml': no such settings file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: [", "is not YAML: line 1: "),
        ("input: a\ninput: b\n", "is not YAML: line 2: 'input' stands twice"),
        ("input: a\ninner: {size: 16, size: 17}\n", "is not YAML: line 2: 'size' stands twice"),
        ("input: a\n[1]: b\n", "is not YAML: line 2: a key must be a word"),
        ("\x00", "is not YAML"),
        ("- input\n- inner\n", "has no settings"),
        ("input", "has no settings"),
        ("!!python/object/apply:os.getcwd []", "is not YAML: line 1: could not determine a constructor"),
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


# --------------------------------------------------------------------------------------------- habits of command lines


@dataclass(frozen=True)
class Model:
    name: str = "small"
    use_it: bool = False
    ALIASES: ClassVar[dict[str, Any]] = {"model_name": "name"}


def _gpus(use_gpu: bool) -> float:
    return float(use_gpu)


@dataclass(frozen=True)
class Wide:
    input: str | tuple[str, ...] = ()
    output: str = ""
    target_text: str = ""
    seed_range: tuple[int, ...] = ()
    ks: list[int] = field(default_factory=list)
    center_crop: bool = False
    plot: bool | str = False
    num_gpus: float = 0.0
    rate: float = 0.1
    model: Model = field(default_factory=Model)
    models: dict[str, Model] = field(default_factory=dict)
    ALIASES: ClassVar[dict[str, Any]] = {
        "input_files": "input",
        "o": "output",
        "use_gpu": ("num_gpus", _gpus),
        "trainer.lr": "rate",
    }
    IGNORED: ClassVar[dict[str, str]] = {"colab_path": "there is no notebook here"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["output=a"], Wide(output="a")),
        (["--output", "a"], Wide(output="a")),
        (["--output=a"], Wide(output="a")),
        (["-o", "a"], Wide(output="a")),
        (["--center-crop", "--rate", "0.5"], Wide(center_crop=True, rate=0.5)),
        (["--center_crop", "rate=-1"], Wide(center_crop=True, rate=-1)),
        (["--center_crop", "false"], Wide()),
        (["--rate", "-1"], Wide(rate=-1)),
        (["--seed_range", "0", "10", "--output", "a"], Wide(seed_range=(0, 10), output="a")),
        (["--ks", "5", "output=a"], Wide(ks=[5], output="a")),
        (["--ks=[1, 5]"], Wide(ks=[1, 5])),
        (["--input_files", "a", "b"], Wide(input=("a", "b"))),
        (["--input-files", "a"], Wide(input="a")),
        (["--target_text", "a photo: sks"], Wide(target_text="a photo: sks")),
        (["target_text=[half"], Wide(target_text="[half")),
        (["--plot"], Wide(plot=True)),
        (["--plot", "curves", "output=a"], Wide(plot="curves", output="a")),
        (["--plot", "output=a"], Wide(plot=True, output="a")),
        (["--use_gpu"], Wide(num_gpus=1.0)),
        (["--use_gpu", "false"], Wide()),
        (["use_gpu=true"], Wide(num_gpus=1.0)),
        (["trainer.lr=2"], Wide(rate=2)),
        (["--model.model_name", "big", "--model.use-it"], Wide(model=Model("big", True))),
        (["models={a: {model_name: x}}"], Wide(models={"a": Model("x")})),
    ],
)
def test_any_habit_of_the_command_line_works(arguments: list[str], expected: Wide):
    assert load(Wide, arguments) == expected


def test_an_older_name_on_the_command_line_overrides_the_file_and_what_a_run_kept(tmp_path: Path):
    file = write(tmp_path, "input: a\nrate: 3\n")
    assert load(Wide, [file, "input_files=b", "trainer.lr=4"], {"o": "kept"}) == Wide("b", "kept", rate=4)


def test_an_option_that_means_nothing_is_logged_and_left_out(caplog: pytest.LogCaptureFixture):
    assert load(Wide, ["--colab_path", "/content"]) == Wide()
    assert caplog.messages == ["colab_path is ignored: there is no notebook here"]


def test_an_option_without_its_value_and_one_that_does_not_exist_are_named():
    with pytest.raises(SettingsError, match=r"^--rate needs a value\.$"):
        load(Wide, ["--rate", "--output", "a"])
    with pytest.raises(SettingsError, match=r"^centre_crop: there is no such setting; did you mean center_crop"):
        load(Wide, ["--centre_crop=true"])


def test_values_may_stand_without_their_names_where_a_verb_says_so(tmp_path: Path):
    file = write(tmp_path, "rate: 3\n")
    assert load(Wide, ["here", file, "--center_crop"], positional=["output"]) == Wide(
        output="here", rate=3, center_crop=True
    )


@dataclass(frozen=True)
class Near:
    by: Literal["near"]
    gallery: str
    ALIASES: ClassVar[dict[str, Any]] = {"input_dir": "gallery"}


@dataclass(frozen=True)
class Far:
    by: Literal["far"]
    gpus: float = 0.0
    ALIASES: ClassVar[dict[str, Any]] = {"use_gpu": ("gpus", _gpus)}


@dataclass(frozen=True)
class Several:
    models: dict[str, Annotated[Near | Far, Field(discriminator="by")]]
    k_range: int | list[int] = 5


def test_members_of_a_union_have_names_of_their_own_which_the_file_may_decide(tmp_path: Path):
    file = write(tmp_path, "models: {a: {by: near, input_dir: b}, c: {by: far, gpus: 2}}")
    models = load(Several, [file, "models.a.input_dir=d", "models.c.use_gpu=true"]).models
    assert models == {"a": Near("near", "d"), "c": Far("far", 1.0)}


def test_an_error_in_a_member_of_a_union_is_named_as_the_setting_is():
    with pytest.raises(SettingsError, match=r"^models.a.gallery: this setting is required; models.a.size: there is no"):
        load(Several, ["models={a: {by: near, size: 1}}"])
    with pytest.raises(SettingsError, match=r"^models.a.by: this setting is required$"):
        load(Several, ["models={a: {gallery: b}}"])
    with pytest.raises(SettingsError, match=r"^models.a.by: 'beside' is none of 'near', 'far'$"):
        load(Several, ["models={a: {by: beside}}"])


def test_one_number_stays_a_number_where_a_list_may_stand_too():
    assert load(Several, ["--k_range", "7", "models={}"]).k_range == 7
    assert load(Several, ["--k_range", "1", "7", "models={}"]).k_range == [1, 7]


@dataclass(frozen=True)
class Group:
    workers: int = 1
    batch_size: int = 4
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Grouped:
    group: Group = field(default_factory=lambda: Group(batch_size=64, inner=Inner(size=99, names=["x"])))


def test_one_setting_of_a_group_leaves_the_groups_own_defaults():
    config = load(Grouped, ["group.workers=2", "group.inner.how=fast"])
    assert config.group == Group(2, 64, Inner(99, how="fast", names=["x"]))
    assert load(Grouped, ["group.batch_size=8"]).group == Group(1, 8, Inner(99, names=["x"]))
    assert load(Grouped, []) == Grouped()
