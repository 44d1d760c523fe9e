"""What the CRD accepts and KubeRay, Kubernetes or Ray then stumble over, often in silence.

`traps(cluster)` lists the ones that a RayCluster has stepped into. Each was met on a real API server with the real
operator; most of them leave a release "deployed" without a single pod.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Item = dict[str, Any]

_RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
_REDIS_ENV = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
_GATED = {"networkPolicy", "tlsOptions", "historyServerOptions"}  # fields that the operator refuses by default
_OPERATORS = {"Exists", "Equal"}


def traps(cluster: Item) -> list[str]:
    spec = cluster["spec"]
    groups = [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in spec["workerGroupSpecs"])]
    found = [*_of_the_cluster(cluster["metadata"]["name"], spec), *_of_the_names([name for name, _ in groups[1:]])]
    for name, group in groups:
        found += [f"{name}: {trap}" for trap in (*_of_a_group(group, spec), *_of_a_pod(group["template"]["spec"]))]
    return found


def _of_the_cluster(name: str, spec: Item) -> Iterator[str]:
    if len(name) > 53:
        yield "the name is longer than 53"
    if spec.get("authOptions", {}).get("mode") == "token" and not spec.get("rayVersion"):
        yield "token authentication without rayVersion"
    if _GATED & set(spec) or spec.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        yield "a field behind a feature gate"
    options = spec.get("autoscalerOptions", {})
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "a negative idle timeout"
    if spec.get("enableInTreeAutoscaling") and not options.get("securityContext"):
        yield "the autoscaler has no securityContext, and a restricted namespace refuses the head"
    if "gcsFaultToleranceOptions" in spec:
        container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        if _REDIS_ENV & {variable["name"] for variable in container["env"]}:
            yield "Redis in the environment beside gcsFaultToleranceOptions"


def _of_the_names(names: list[str]) -> Iterator[str]:
    if len(set(names)) != len(names):
        yield "two groups have one name"
    for name in names:
        if len(name) > 63:
            yield "a group's name is longer than 63"
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            yield "a group's name is no lower-case DNS label"


def _of_a_group(group: Item, spec: Item) -> Iterator[str]:
    params, resources = group.get("rayStartParams", {}), group.get("resources", {})
    if resources and _RESOURCE_PARAMS & set(params):
        yield "resources both in rayStartParams and beside them"
    if "labels" in params:
        yield "labels in rayStartParams"
    if not all(isinstance(value, str) for value in [*params.values(), *resources.values()]):
        yield "rayStartParams or resources that are not strings"
    if "CPU" not in resources and "num-cpus" not in params:
        yield "no CPU, and the autoscaler crashes"
    if group.get("minReplicas", 0) > group.get("maxReplicas", 0):
        yield "minReplicas above maxReplicas"
    if spec.get("enableInTreeAutoscaling"):
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "autoscaler v2 with another restartPolicy than Never"
        if "replicas" in group and group["minReplicas"] != group["maxReplicas"]:
            yield "replicas are set where the autoscaler sets them"


def _of_a_pod(pod: Item) -> Iterator[str]:
    volumes = [volume["name"] for volume in pod["volumes"]]
    if len(set(volumes)) != len(volumes):
        yield "two volumes have one name"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        if not {mount["name"] for mount in container["volumeMounts"]} <= set(volumes):
            yield "a mount without its volume"
        if any(len(port["name"]) > 15 for port in container.get("ports", [])):
            yield "a port's name is longer than 15"
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        if any(requests.get(key) != limits.get(key) for key in {*requests, *limits} if "/" in key):
            yield "a GPU's request is not its limit"
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if sleep >= pod["terminationGracePeriodSeconds"]:
            yield "preStop sleeps for the whole grace period"
    if any(toleration.get("operator", "Equal") not in _OPERATORS for toleration in pod.get("tolerations", [])):
        yield "a toleration's operator does not exist"
    if any(spread["maxSkew"] < 1 for spread in pod.get("topologySpreadConstraints", [])):
        yield "maxSkew below 1"
