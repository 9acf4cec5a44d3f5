"""The examples of CONTRIBUTING.md apply to this code, pass its checks, and do what they say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRAST = """
import numpy as np
from actors.curation.measuring.family import scorer_class
from pipelines.curation.measuring.measure_settings import MeasureConfig, check_scores, family_settings

measure = MeasureConfig()
check_scores(["contrast", "quality"], measure)
split = np.zeros((2, 16, 16, 3), np.uint8)
split[:, :8] = 255
frames = np.empty(2, object)
frames[:] = [split, np.full_like(split, 9)]
half, flat = scorer_class("contrast")(family_settings(measure, "contrast"))({"frames": frames})["contrast"]
assert abs(half - 0.5) < 1e-6 and flat == 0
"""


def run(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_the_examples_apply_pass_the_checks_and_work(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=ignored)
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(diffs) == 3
    patch = tmp_path / "patch.diff"
    for part in re.split(r"^(?=--- )", "".join(diffs), flags=re.MULTILINE)[1:]:
        patch.write_text(part)
        run(tree, "git", "apply", "--recount", "--unidiff-zero", str(patch))
    tools = Path(sys.executable).parent
    run(tree, str(tools / "ruff"), "check", "--no-cache", ".")
    run(tree, str(tools / "ruff"), "format", "--no-cache", "--check", ".")
    run(tree, str(tools / "lint-imports"), "--no-cache")
    (tree / "out").mkdir()
    assert run(tree, sys.executable, "-m", "jobs.genres", "count", "out").splitlines()[-1] == "0 films"
    assert "films" in (tree / "out" / "runs" / "count.json").read_text()
    assert "no run records" in run(tree, sys.executable, "-m", "jobs.weather", "status", "empty", code=2)
    run(tree, sys.executable, "-c", CONTRAST)
