"""What the dashboard draws is what a cluster exports, read from its port as Prometheus does."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from pyarrow import compute

from actors.core.store import Store
from actors.curation.tables import SCORES
from pipelines.core.progress import Progress
from tests.support import corpus, films

ROOT = Path(__file__).parents[3]


def drawn() -> set[str]:
    """Metrics that docs/grafana.json names."""
    dashboard = json.loads((ROOT / "docs/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def exported(address: str) -> dict[str, list[str]]:
    """Lines of the metrics of a node, by name."""
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("#"):
            found.setdefault(re.split(r"[{ ]", line, maxsplit=1)[0], []).append(line)
    return found


def total(found: dict[str, list[str]], name: str, *labels: str) -> float:
    """Sum over the series of a metric of ours that have these labels."""
    lines = [line for line in found.get(f"ray_filmray_{name}", ()) if all(label in line for label in labels)]
    return sum(float(line.split()[-1]) for line in lines)


RUN = """
import sys
import ray
from jobs.core.session import ray_session
from jobs.curation.__main__ import app
from pipelines.core.progress import Progress
with ray_session():
    (node,) = ray.nodes()
    print(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}", flush=True)
    Progress("watched", 8).advance(2)
    app(sys.argv[1:], standalone_mode=False)
    print("done", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_metric_of_the_dashboard_is_exported(tmp_path: Path) -> None:
    """By a run of its own Ray, whose workers count what they read, write and decode."""
    (tmp_path / "films").mkdir()
    film = Path(shutil.copy(films.bikes_mp4(), tmp_path / "films"))
    films.text_file(tmp_path / "films/text.mp4")
    program = [sys.executable, "-c", RUN, "run", f"input={film.parent}", f"output={tmp_path / 'out'}", *corpus.FAST]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_metrics_report_interval_ms": "6000"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, cwd=ROOT, env=environment, **pipes) as run:
        assert run.stdout and run.stdin
        address, seen = run.stdout.readline().strip(), set[str]()
        found: dict[str, list[str]] = {}
        until = time.monotonic() + 150
        # Ray drops gauges of a dataset that has ended.
        while drawn() - seen or total(found, "items_total", 'stage="score"') < 6:
            assert time.monotonic() < until, drawn() - seen
            seen |= (found := exported(address)).keys()
            time.sleep(1)
        assert "done\n" in iter(run.stdout.readline, "")
        time.sleep(7)
        while total(found := exported(address), "done_items", 'stage="watched"') != 2:
            assert time.monotonic() < until
            time.sleep(1)
        run.stdin.close()
        assert run.wait(60) == 0
    score = 'stage="score"'
    rows = len(Store(str(tmp_path / "out")).read_table("scores", SCORES).filter(compute.field("scene_id") != ""))
    assert total(found, "items_total", score, 'unit="scenes"') == total(found, "done_items", score) == rows
    # Of a stage that has not moved since.
    assert (total(found, "done_items", 'stage="watched"'), total(found, "expected_items", 'stage="watched"')) == (2, 8)
    assert total(found, "errors_total", score, 'code="not_a_video"') == total(found, "errors_total") == 1
    assert 10 <= total(found, "film_seconds_total") < 30, "a film of 10 s"
    assert total(found, "read_bytes_total", 'store="folder"') > film.stat().st_size
    written = sum(path.stat().st_size for path in (tmp_path / "out/scores").iterdir())
    assert total(found, "written_bytes_total", 'store="folder"') > written


def test_no_metric_is_exported_without_ray() -> None:
    progress = Progress("alone", 2)
    progress.advance()
    progress.fail({"broken": 1})
    assert progress.done == 1 and progress.codes == {"broken": 1}


def test_the_page_on_clusters_explains_each_metric() -> None:
    page = (ROOT / "docs/clusters.md").read_text()
    assert {name for name in drawn() if f"`{name}`" not in page} == set()
