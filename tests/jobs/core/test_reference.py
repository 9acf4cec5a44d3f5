"""The settings pages are those that the settings classes make, and every setting says what it is."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.core.describe import settings_of
from jobs.core.settings import type_at
from jobs.reference import CAPABILITIES, pages

ROOT = Path(__file__).parents[3]


def test_the_settings_pages_are_up_to_date():
    there = {path.name: path.read_text() for path in (ROOT / "docs" / "settings").glob("*.md")}
    assert there == pages(), "run `make docs` and commit docs/settings"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_setting_says_what_it_is(capability: str):
    app = importlib.import_module(f"jobs.{capability}.__main__").app
    for command, verb in app.commands().items():
        for one in settings_of(verb.settings()):
            assert len(one.doc) > 3, f"{command}: {one.path} has no docstring"
            assert not re.match(r"(The same|Of it|As above|That model)\b", one.doc), f"{command}: {one.path}"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_verb_lists_the_same_settings_as_yaml_and_as_schema_with_those_of_all_verbs(capability: str):
    app = importlib.import_module(f"jobs.{capability}.__main__").app
    for command in app.commands():
        text, schema = (CliRunner().invoke(app, [*command.split(), name]).stdout for name in ("--settings", "--schema"))
        listed, described = yaml.safe_load(text), json.loads(schema)
        assert {"store", "log"} <= listed.keys(), command
        assert_same(listed, described, described.get("$defs", {}), command)


def assert_same(listed: dict[str, Any], described: dict[str, Any], definitions: dict[str, Any], where: str) -> None:
    """The settings of a group, and of the groups in it, are the properties of its schema."""
    assert listed.keys() == described["properties"].keys(), where
    for name, value in listed.items():
        about = described["properties"][name]
        kinds = [definitions[found] for found in re.findall(r"#/\$defs/(\w+)", json.dumps(about))]
        if isinstance(value, dict) and kinds and "additionalProperties" not in about:
            assert any(value.keys() == kind["properties"].keys() for kind in kinds), f"{where} {name}"
            for kind in kinds:
                if value.keys() == kind["properties"].keys():
                    assert_same(value, kind, definitions, f"{where} {name}")
                    break


def test_commands_in_the_documentation_name_verbs_and_settings_that_exist():
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    pattern = r"python -m jobs\.([a-z_]+) ((?:score )?[a-z][\w-]*) ?([^`\n#]*)"
    commands = {found for text in texts for found in re.findall(pattern, text.read_text())}
    assert len(commands) > 20
    for capability, command, arguments in commands:
        verbs = importlib.import_module(f"jobs.{capability}.__main__").app.commands()
        name = command if command in verbs else command.split()[0]
        assert name in verbs, f"{capability} {command}"
        for key in re.findall(r"(?<![\w./:])([a-z][\w.]*)=", arguments):
            assert type_at(verbs[name].settings(), key) is not None, f"{capability} {name}: {key}"
