"""`cluster.yaml` is what Ray's launcher takes, costs nothing when idle, and runs the versions that the project pins."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
WORKERS = ("cpu", "gpu")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def extras_of(cluster: dict[str, Any]) -> set[str]:
    """The extras that every node installs."""
    return set(re.findall(r"--extra ([\w-]+)", cluster["setup_commands"][-1]))


def sources() -> Iterator[Path]:
    """The project's own code, without what copies the demo's films onto one's own machine."""
    for layer in ("jobs", "pipelines", "actors"):
        yield from (path for path in (ROOT / layer).rglob("*.py") if path != ROOT / "jobs/samples.py")


def installed(project: dict[str, Any], extras: set[str]) -> set[str]:
    """Every package that the project needs with these extras, and what these need in turn."""
    wanted = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    todo, seen = [Requirement(line) for line in wanted], set()
    while todo:
        one = todo.pop()
        key = canonicalize_name(one.name), frozenset(one.extras)
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(one.name) or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": name}) for name in ("", *one.extras)):
                todo.append(need)
    return {name for name, _ in seen}


def imported(path: Path) -> set[str]:
    """Modules that a file names in its import statements, wherever they stand in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {*sys.stdlib_module_names, "jobs", "pipelines", "actors"}
    return {name for name in names if name.partition(".")[0] not in own}


def owners() -> dict[str, set[str]]:
    """The packages that hold a module or a folder of modules, by its dotted name."""
    found: dict[str, set[str]] = {}
    for package in metadata.distributions():
        name = canonicalize_name(package.name)
        for file in package.files or ():
            if file.suffix in (".py", ".so"):
                parts = PurePath(str(file).partition(".")[0]).parts
                for end in range(1, len(parts) + 1):
                    found.setdefault(".".join(parts[:end]), set()).add(name)
    return found


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


@pytest.mark.slow
def test_every_node_has_what_any_capability_imports(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    there, held = installed(project, extras_of(cluster)), owners()
    lacking = {}
    for path in sources():
        for module in imported(path):
            # Of a folder that packages share, as google, its deepest part counts.
            parts = module.split(".")
            known = (held[name] for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in held)
            packages = next(known, set())
            if packages.isdisjoint(there):
                lacking[module] = (str(path.relative_to(ROOT)), packages)
    assert not lacking
    assert "peft" not in installed(project, set()), "else the extras would prove nothing"


def test_every_node_has_the_extras_that_messages_ask_for(cluster: dict[str, Any]) -> None:
    asked = re.compile(r"extra `?([\w-]+\w)|(?:filmray|\.)\[([\w-]+)\]")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name for path in sources() for found in asked.findall(path.read_text()) for name in found if name}
    # vLLM wants an older torch than all others.
    named &= set(project["optional-dependencies"]) - {"vllm"}
    assert {"movie-characters", "faces", "transnetv2", "adam8bit", "tiny-vae"} <= named
    assert named == extras_of(cluster)


def test_the_image_for_kubernetes_is_made_as_nodes_are(cluster: dict[str, Any]) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert f"FROM {cluster['available_node_types']['gpu']['docker']['worker_image']}" in lines
    image, node = ("\n".join(some) for some in (lines, cluster["setup_commands"]))
    assert re.findall(r"uv pip install .*", image) == re.findall(r"uv pip install .*", node)
    assert re.findall(r"uv==\S+", image) == re.findall(r"uv==\S+", node)
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[2:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == packages | {"pyproject.toml", "constraints.txt"}
    assert all((ROOT / name).exists() for name in copied)


def test_commands_of_ray_in_the_documentation_have_these_options() -> None:
    from ray.scripts.scripts import cli

    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/clusters.md", "cluster.yaml")]
    found = {line for text in texts for line in re.findall(r"^(?:# +)?ray ([a-z][^#\n]*)", text, re.MULTILINE)}
    assert {line.split()[0] for line in found} == {"get-auth-token", "up", "dashboard", "job", "monitor", "down"}
    for line in found:
        command: Any = cli
        words = line.partition(" -- ")[0].split()
        while hasattr(command, "commands"):
            name = words.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert known.issuperset(word for word in words if word.startswith("-")), line


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
