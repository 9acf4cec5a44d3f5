"""The settings pages are those that the settings classes make, and every setting says what it is."""

import importlib
import re
from pathlib import Path

import pytest

from jobs.core.describe import settings_of
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
            assert not re.match(r"(The same|Of it|As above|That model|Also)\b", one.doc), f"{command}: {one.path}"
