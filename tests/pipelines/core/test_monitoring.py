"""What the dashboard draws is what a cluster exports, read from its port as Prometheus does."""

import json
import re
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from pipelines.core.progress import Progress, tracked

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


@pytest.mark.slow
def test_each_metric_of_the_dashboard_is_exported(ray_cluster: None) -> None:
    import ray

    from pipelines.core.ray_data import batches

    progress = Progress("watched", 8, "rows")
    rows = ray.data.range(8, override_num_blocks=4).map_batches(lambda batch: batch, batch_size=2)
    for batch in tracked(batches(rows), progress, lambda batch: len(batch["id"])):
        progress.fail(int((batch["id"] == 5).sum()))
    (node,) = ray.nodes()
    until = time.monotonic() + 90
    while drawn() - (found := exported(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}")).keys():
        assert time.monotonic() < until, drawn() - found.keys()
        time.sleep(2)
    for name, value in {"done": 8, "total": 8, "failed": 1}.items():
        (line,) = (line for line in found[f"ray_filmray_{name}"] if 'stage="watched"' in line)
        assert 'unit="rows"' in line and float(line.split()[-1]) == value


def test_no_metric_is_exported_without_ray() -> None:
    progress = Progress("alone", 2)
    progress.advance()
    progress.fail(1)
    assert progress.done == 1


def test_the_page_on_clusters_explains_each_metric() -> None:
    page = (ROOT / "docs/clusters.md").read_text()
    assert {name for name in drawn() if f"`{name}`" not in page} == set()
