"""An output that not every node sees is refused before any work."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.core.nodes import check_shared
from tests.conftest import ROOT

TWO_NODES = """
import sys
import ray
from ray.cluster_utils import Cluster
from actors.core.errors import UserError
from pipelines.core.nodes import check_shared
from tests.support import forked_workers

forked_workers.use_forks()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.add_node(num_cpus=0)
ray.init(cluster.address)
check_shared(sys.argv[1])
try:
    # As on a node with disks of its own.
    check_shared(sys.argv[1], lambda uri: False)
except UserError as error:
    sys.stdout.write(str(error))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_with_disks_of_its_own_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_NODES, str(tmp_path)]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # A cluster tells its address there, and others that start meanwhile would join it.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert f"output={tmp_path} is a local folder that 1 of 1 other nodes do not see" in done.stdout
    assert "write to s3://bucket/folder" in done.stdout and not list(tmp_path.iterdir())


def test_one_node_is_asked_nothing(ray_cluster: None, tmp_path: Path) -> None:
    check_shared(str(tmp_path), lambda uri: False)
