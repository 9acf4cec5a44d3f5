"""What a worker runs must not depend on Ray: the modules of `actors` load without it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "ray" in sys.modules:
        sys.exit(f"{name} imports ray")
"""


def test_actors_never_import_ray() -> None:
    modules = sorted(f"actors.{file.stem}" for file in (ROOT / "actors").glob("*.py") if file.stem != "__init__")
    assert "actors.core.stage" in modules
    probe = subprocess.run([sys.executable, "-c", PROBE, *modules], cwd=ROOT, capture_output=True, text=True)
    assert probe.returncode == 0, probe.stderr
