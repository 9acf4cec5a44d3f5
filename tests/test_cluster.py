"""`cluster.yaml` is what Ray's launcher takes, costs nothing when idle, and runs the versions that the project pins."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKERS = ("cpu", "gpu")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def pinned(package: str) -> str:
    """The version of `package` in constraints.txt."""
    return re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]


def test_it_fits_the_schema_of_ray(cluster: dict[str, Any]) -> None:
    schemas = [file for file in metadata.files("ray") or [] if file.name == "ray-schema.json"]
    schema = json.loads(schemas[0].read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"head_node": {}}, schema)


def test_the_head_runs_no_actor_and_the_pools_start_empty(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {cluster["head_node_type"], *WORKERS}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in WORKERS:
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(types[name]["max_workers"] for name in WORKERS) <= cluster["max_workers"]


def test_images_bear_the_pinned_version_of_ray(cluster: dict[str, Any]) -> None:
    assert cluster["docker"]["image"] == f"rayproject/ray:{pinned('ray')}-py311-cpu"
    gpu = cluster["available_node_types"]["gpu"]["docker"]["worker_image"]
    assert gpu == f"rayproject/ray:{pinned('ray')}-py311-gpu"


def test_every_node_installs_the_pinned_versions(cluster: dict[str, Any]) -> None:
    mounts = cluster["file_mounts"]
    for name in ("pyproject.toml", "constraints.txt"):
        assert mounts[f"/home/ray/filmray/{name}"] == name
        assert (ROOT / name).is_file()
    install = cluster["setup_commands"][-1]
    assert "-c constraints.txt" in install and "-r pyproject.toml" in install
    uv = re.findall(r"uv==\S+", (ROOT / "Makefile").read_text())
    assert uv == re.findall(r"uv==\S+", " ".join(cluster["setup_commands"])) and len(uv) == 1


def test_containers_have_what_nvdec_needs_of_the_driver(cluster: dict[str, Any]) -> None:
    needed = "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
    assert f"--env {needed}" in cluster["docker"]["run_options"]
    (pods,) = (found for found in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL))
    groups = yaml.safe_load(pods)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (gpu,) = (group for group in groups if group["groupName"] == "gpu")
    name, _, value = needed.partition("=")
    assert {"name": name, "value": value} in gpu["template"]["spec"]["containers"][0]["env"]


def test_whoever_has_no_token_is_refused(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
