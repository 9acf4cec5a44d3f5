"""What a worker runs must not depend on Ray: the modules of `actors` load without it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "ray" in sys.modules:
        sys.exit(f"{name} imports ray")
"""


@pytest.mark.slow
def test_actors_never_import_ray() -> None:
    files = (file.relative_to(ROOT).with_suffix("") for file in (ROOT / "actors").rglob("*.py"))
    modules = sorted(".".join(file.parts) for file in files if file.name != "__init__")
    assert "actors.core.stage" in modules
    probe = subprocess.run([sys.executable, "-c", PROBE, *modules], cwd=ROOT, capture_output=True, text=True)
    assert probe.returncode == 0, probe.stderr
