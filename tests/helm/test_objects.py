"""What is rendered is what Kubernetes and KubeRay take.

KubeRay's CRDs are not ours to commit: OUTRIDER_CRDS names a folder with ray.io_rayclusters.yaml; by default it is
looked for in shared/crds beside the checkout.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.helm.conftest import Release, Render
from tests.helm.crd_schema import complaints, crd_validator

pytestmark = pytest.mark.helm

KUBERNETES = "1.36"
CRDS = Path(os.environ.get("OUTRIDER_CRDS", Path(__file__).parents[3] / "shared" / "crds"))


@pytest.fixture(scope="session")
def ray_cluster() -> jsonschema.protocols.Validator:
    file = CRDS / "ray.io_rayclusters.yaml"
    if not file.exists():
        pytest.skip(f"{file} is not there: set OUTRIDER_CRDS to a folder with KubeRay's CRDs")
    return crd_validator(file, "v1")


@functools.cache  # most objects are the same in most shapes
def _validate(item: str) -> None:
    kubernetes_validate.validate(json.loads(item), KUBERNETES, strict=True)


def test_every_built_in_object_is_valid_kubernetes(release: Release) -> None:
    for item in release.objects:
        if item["kind"] not in ("RayCluster", "ServiceMonitor"):
            _validate(json.dumps(item))


def test_every_pod_of_the_ray_cluster_is_valid_kubernetes(release: Release) -> None:
    for part, template in release.pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template["metadata"], "name": part}
        _validate(json.dumps(pod))


def test_each_target_group_has_a_pod(render: Render) -> None:
    two = render("--set", "cell.target.groups=2")
    assert (two.group("target")["minReplicas"], two.group("target")["maxReplicas"]) == (2, 2)
    assert _least_available(two) == 2


def _least_available(release: Release) -> int:
    budgets = [item for item in release.objects if item["kind"] == "PodDisruptionBudget"]
    [least] = [item["spec"]["minAvailable"] for item in budgets if item["metadata"]["name"] == "outrider-target"]
    return int(least)


SCALED_GROUPS = "cell.target.groups=2,cell.target.min_groups=1,cell.target.max_groups=4,cell.autoscale.enabled=true"


@pytest.mark.parametrize("autoscaling", ["true", "false"])
def test_pods_of_the_target_follow_the_bounds_of_its_groups(render: Render, autoscaling: str) -> None:
    """Where Ray adds none, all that there may be are there; and no drain of a node may take one."""
    release = render("--set", f"{SCALED_GROUPS},autoscaling.enabled={autoscaling}")
    target = release.group("target")
    least = 1 if autoscaling == "true" else 4
    assert (target["minReplicas"], target["maxReplicas"]) == (least, 4)
    assert target.get("replicas", "unset") == ("unset" if autoscaling == "true" else 4)
    assert _least_available(release) == 4


def test_the_ray_cluster_is_valid_to_kuberay(release: Release, ray_cluster: jsonschema.protocols.Validator) -> None:
    assert complaints(ray_cluster, release.cluster) == []


def _misspell(cluster: dict[str, Any]) -> None:
    cluster["spec"]["enableInTreeAutoscalin"] = True


def _number(cluster: dict[str, Any]) -> None:
    cluster["spec"]["headGroupSpec"]["rayStartParams"]["object-store-memory"] = 104857600


def _resource(cluster: dict[str, Any]) -> None:
    cluster["spec"]["workerGroupSpecs"][1]["resources"]["target"] = 1


def _image(cluster: dict[str, Any]) -> None:
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 1


@pytest.mark.parametrize("spoil", [_misspell, _number, _resource, _image])
def test_the_validator_finds_what_a_server_would(
    render: Render, ray_cluster: jsonschema.protocols.Validator, spoil: Callable[[dict[str, Any]], None]
) -> None:
    cluster = copy.deepcopy(render("-f", "values-gpu.yaml").cluster)
    spoil(cluster)
    assert complaints(ray_cluster, cluster)
