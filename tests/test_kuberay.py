"""The RayJob of docs/clusters.md is one that KubeRay takes, with pods that Kubernetes takes: no field is misspelt."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

ROOT = Path(__file__).parents[1]


class Strict(BaseModel):
    """Fields of ray.io/v1 that the job uses, with their types; others are refused. Compared with KubeRay 1.7."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Strict):
    """KubeRay makes the token, and sets RAY_AUTH_MODE and RAY_AUTH_TOKEN in every container of Ray."""

    mode: Literal["disabled", "token"]


class Head(Strict):
    """A headGroupSpec."""

    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Workers(Strict):
    """One of workerGroupSpecs."""

    groupName: str
    minReplicas: int
    maxReplicas: int
    replicas: int
    rayStartParams: dict[str, str]
    template: dict[str, Any]

    @model_validator(mode="after")
    def _in_range(self) -> "Workers":
        assert 0 <= self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class Cluster(Strict):
    """A rayClusterSpec."""

    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    headGroupSpec: Head
    workerGroupSpecs: list[Workers]


class Spec(Strict):
    """The spec of a RayJob."""

    entrypoint: str
    shutdownAfterJobFinishes: bool
    rayClusterSpec: Cluster


class RayJob(Strict):
    """A RayJob."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[Literal["name", "namespace"], str]
    spec: Spec


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    (block,) = re.findall(r"```yaml\n(apiVersion: ray.*?)```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL)
    return yaml.safe_load(block)


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of a job, as objects of Kubernetes."""
    cluster = RayJob.model_validate(job).spec.rayClusterSpec
    templates = [cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **template} for template in templates]


def check_pod(pod: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: make test")
    validate.validate(pod, validate.latest_version(), strict=True)


@pytest.mark.parametrize("of", ["", "spec", "spec.rayClusterSpec", "spec.rayClusterSpec.headGroupSpec"])
def test_the_job_is_one_of_kuberay_and_a_misspelt_field_is_none(job: dict[str, Any], of: str) -> None:
    assert RayJob.model_validate(job)
    wrong = deepcopy(job)
    at = wrong
    for name in filter(None, of.split(".")):
        at = at[name]
    first = next(iter(at))
    at[f"{first}s"] = at[first]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        RayJob.model_validate(wrong)


def test_a_number_where_ray_takes_text_is_refused(job: dict[str, Any]) -> None:
    wrong = deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(ValidationError, match="valid string"):
        RayJob.model_validate(wrong)


def test_its_pods_are_those_of_kubernetes_and_a_misspelt_field_is_none(job: dict[str, Any]) -> None:
    found = pods(job)
    assert len(found) == 3
    for pod in found:
        check_pod(pod)
        wrong = deepcopy(pod)
        wrong["spec"]["containers"][0]["resource"] = {}
        with pytest.raises(Exception, match="resource"):
            check_pod(wrong)
