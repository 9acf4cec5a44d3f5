"""What a settings class offers, as YAML that can be loaded, as a schema that checks it, and as a table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
import yaml

from jobs.core.describe import as_markdown, as_schema, as_yaml, docs_of, kind_text, settings_of
from jobs.core.settings import SettingsError, load


@dataclass(frozen=True)
class Stage:
    workers: int = 1
    """Actors at once."""
    batch_size: int = 1
    """Rows of one call."""


@dataclass(frozen=True)
class Clip(Stage):
    by: Literal["clip"] = "clip"
    """The model."""
    batch_size: int = 64
    pretrained: str | None = None
    """Name of the weights; null: random ones."""


@dataclass(frozen=True)
class Faces(Stage):
    by: Literal["faces"] = "faces"
    """The model."""
    side: int = 80
    """Side of the smallest face, in pixels."""


@dataclass(frozen=True)
class Config:
    input: str
    """A folder
    or prefix."""
    model: Clip | Faces = field(default_factory=Clip)
    """How images are embedded."""
    others: dict[str, Clip | Faces] = field(default_factory=dict)
    """More models, by name."""
    ks: list[int] = field(default_factory=lambda: [1, 5])
    """Which k."""


def test_settings_come_in_order_with_what_stands_below_their_fields():
    found = {one.path: one for one in settings_of(Config)}
    assert list(found) == [
        *("input", "model", "model.workers", "model.batch_size", "model.by", "model.pretrained", "others", "ks"),
    ]
    assert found["model"].group and not found["model.by"].group
    assert (found["model.batch_size"].value, found["model.batch_size"].doc) == (64, "Rows of one call.")
    assert docs_of(Config)["input"] == "A folder\nor prefix."


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (int, "int"),
        (str | None, "str or null"),
        (Literal["a", "b"], "a | b"),
        (list[int], "list of int"),
        (tuple[int, ...], "list of int"),
        (dict[str, float], "mapping of str to float"),
        (str | tuple[str, ...], "str or list of str"),
    ],
)
def test_types_in_words(kind: object, told: str):
    assert kind_text(kind) == told


def test_the_printed_file_is_complete_and_loads_once_what_is_required_is_filled_in(tmp_path: Path):
    text = as_yaml(Config)
    assert "# A folder\n# or prefix.\ninput:  # required; str" in text
    assert "  # Rows of one call.\n  batch_size: 64  # int" in text
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"^input: this setting is required$"):
        load(Config, [str(file)])
    assert load(Config, [str(file), "input=films"]) == Config("films")
    changed = Config("films", Faces(workers=3), {"a": Clip(pretrained="x: y")}, [2])
    file.write_text(as_yaml(Config, changed))
    assert load(Config, [str(file)]) == changed


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("input: a\nmodel: {by: faces, side: 3}\nks: [2]\n", True),
        ("input: a\nothers: {x: {by: clip, pretrained: null}}\n", True),
        ("{}\n", False),
        ("input: a\nkss: [2]\n", False),
        ("input: a\nmodel: {by: clip, side: 3}\n", False),
        ("input: a\nothers: {x: {by: clip, workers: many}}\n", False),
    ],
)
def test_the_schema_takes_just_what_loading_takes(text: str, sound: bool, tmp_path: Path):
    errors = list(jsonschema.Draft202012Validator(as_schema(Config)).iter_errors(yaml.safe_load(text)))
    assert (not errors) is sound
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    if sound:
        load(Config, [str(file)])
    else:
        with pytest.raises(SettingsError):
            load(Config, [str(file)])


def test_the_schema_says_what_settings_mean():
    schema = as_schema(Config)
    assert schema["properties"]["input"]["description"] == "A folder or prefix."
    assert schema["$defs"]["Faces"]["properties"]["side"]["description"] == "Side of the smallest face, in pixels."


def test_the_table_has_a_row_for_each_setting_and_no_bar_in_a_cell():
    lines = as_markdown(Config).splitlines()
    assert lines[2] == "| `input` | str | required | A folder or prefix. |"
    assert len(lines) == 2 + len(list(settings_of(Config)))
    assert "| `model.pretrained` | str or null | `null` | Name of the weights; null: random ones. |" in lines
