"""No shape of the chart steps into a trap that nobody else would tell of, and each trap is one that we would see."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.helm.conftest import Release, Render
from tests.helm.traps import traps

pytestmark = pytest.mark.helm

Item = dict[str, Any]


def head(cluster: Item) -> Item:
    found: Item = cluster["spec"]["headGroupSpec"]
    return found


def group(cluster: Item, index: int = 2) -> Item:
    """A worker group; the last one is the draft pool."""
    found: Item = cluster["spec"]["workerGroupSpecs"][index]
    return found


def pod(cluster: Item, index: int = 2) -> Item:
    found: Item = group(cluster, index)["template"]["spec"]
    return found


def container(cluster: Item, index: int = 2) -> Item:
    found: Item = pod(cluster, index)["containers"][0]
    return found


# What to do to a good cluster → the trap that it steps into.
STEPS: dict[str, Callable[[Item], Any]] = {
    "the name is longer than 53": lambda c: c["metadata"].update(name="x" * 54),
    "token authentication without rayVersion": lambda c: c["spec"].pop("rayVersion"),
    "a field behind a feature gate": lambda c: c["spec"].update(tlsOptions={}),
    "a negative idle timeout": lambda c: c["spec"]["autoscalerOptions"].update(idleTimeoutSeconds=-1),
    "the autoscaler has no securityContext": lambda c: c["spec"]["autoscalerOptions"].pop("securityContext"),
    "Redis in the environment": lambda c: head(c)["template"]["spec"]["containers"][0]["env"].append(
        {"name": "REDIS_PASSWORD", "value": "secret"}
    ),
    "two groups have one name": lambda c: group(c).update(groupName="target"),
    "a group's name is longer than 63": lambda c: group(c).update(groupName="x" * 64),
    "a group's name is no lower-case": lambda c: group(c).update(groupName="Draft"),
    "resources both in rayStartParams": lambda c: group(c)["rayStartParams"].update({"num-cpus": "1"}),
    "labels in rayStartParams": lambda c: group(c)["rayStartParams"].update(labels="a=b"),
    "that are not strings": lambda c: group(c)["resources"].update(draft=1),
    "no CPU": lambda c: group(c)["resources"].pop("CPU"),
    "minReplicas above maxReplicas": lambda c: group(c).update(minReplicas=9),
    "another restartPolicy than Never": lambda c: pod(c).update(restartPolicy="Always"),
    "replicas are set where": lambda c: group(c).update(replicas=1),
    "two volumes have one name": lambda c: pod(c)["volumes"].append({"name": "tmp", "emptyDir": {}}),
    "a mount without its volume": lambda c: pod(c)["volumes"].pop(),
    "a port's name is longer than 15": lambda c: container(c, 0)["ports"].append({"name": "x" * 16}),
    "a GPU's request is not its limit": lambda c: container(c)["resources"]["limits"].update({"nvidia.com/gpu": 2}),
    "sleeps for the whole grace period": lambda c: container(c, 0)["lifecycle"]["preStop"]["sleep"].update(seconds=50),
    "a toleration's operator": lambda c: pod(c)["tolerations"].append({"operator": "Exist"}),
    "maxSkew below 1": lambda c: pod(c)["topologySpreadConstraints"][0].update(maxSkew=0),
}


def test_no_shape_steps_into_a_trap(release: Release) -> None:
    assert traps(release.cluster) == []


@pytest.mark.parametrize("trap", STEPS)
def test_each_trap_is_seen(render: Render, trap: str) -> None:
    cluster = copy.deepcopy(render("-f", "values-gpu.yaml").cluster)
    STEPS[trap](cluster)
    assert any(trap in found for found in traps(cluster))
