"""values.yaml and its schema: what is refused, and that no value does nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.helm.cell_schema import cell_schema
from tests.helm.conftest import CHART, Helm, Render

pytestmark = pytest.mark.helm

GPU = ("-f", "values-gpu.yaml")
SCALED = ("--set", "autoscaling.enabled=true,draft.maxReplicas=3")
CELL_SCALES = ("--set", "cell.autoscale.enabled=true")
MONITOR = ("--set", "metrics.serviceMonitor.enabled=true")
BOARD = ("--set", "metrics.dashboard.enabled=true")
TLS = ("--set", "tls.secretName=t")
SHUT_MONITOR = ("--set", "tls.secretName=t,tls.requireClientCertificate=true,metrics.serviceMonitor.enabled=true")
REDIS = ("--set", "redis.enabled=true,redis.passwordSecret=r")

# Values of the wrong type or shape, misspelt keys, and combinations that could not run → what the message says.
REFUSED: dict[tuple[str, ...], str] = {
    ("--set", "cell.target.tensor_paralel=2"): "additional properties 'tensor_paralel' not allowed",
    ("--set", "target.gpus=4"): "additional properties 'gpus' not allowed",
    ("--set", "tls.enabled=true"): "additional properties 'enabled' not allowed",
    ("--set", "draft.replicas=1"): "additional properties 'replicas' not allowed",
    ("--set", "head.shm=1Gi"): "additional properties 'shm' not allowed",
    ("--set", "cell.ray.address=elsewhere:6379"): "additional properties 'address' not allowed",
    ("--set", "cell.ray.autoscaled=true"): "additional properties 'autoscaled' not allowed",
    ("--set", "cell.scheduler.listen=0.0.0.0:1"): "additional properties 'listen' not allowed",
    ("--set", "cell.scheduler.metrics_port=1"): "additional properties 'metrics_port' not allowed",
    ("--set", "cell.cache_dir=/tmp"): "additional properties 'cache_dir' not allowed",
    ("--set", "target.cpu=0"): "at '/target/cpu'",
    ("--set", "target.cpu=500m"): "at '/target/cpu'",
    ("--set", "target.memory=0"): "at '/target/memory'",
    ("--set", "target.memory=6 GB"): "at '/target/memory'",
    ("--set", "target.cpu=null"): "missing property 'cpu'",
    ("--set", "target.memory=null"): "missing property 'memory'",
    ("--set", "cell.target.device=gpu"): "at '/cell/target/device'",
    ("--set", "cell.target.tensor_parallel=0"): "at '/cell/target/tensor_parallel'",
    ("--set", "cell.target.dtype=int8"): "at '/cell/target/dtype'",
    ("--set", "cell.target.min_groups=0"): "at '/cell/target/min_groups'",
    ("--set", "cell.target.max_groups=many"): "at '/cell/target/max_groups'",
    (*CELL_SCALES, "--set", "cell.target.groups=3,cell.target.max_groups=2"): "cell.target.groups is 3, with which",
    (*CELL_SCALES, "--set", "cell.target.min_groups=3,cell.target.max_groups=2"): "min_groups, 3, to max_groups, 2",
    ("--set", "cell.target.max_groups=2"): "max_groups 2, and nothing scales the groups: set cell.autoscale.enabled",
    ("--set", "cell.ray.drain_s=0"): "at '/cell/ray/drain_s'",
    ("--set", "cell.ray.drain_s=null"): "missing property 'drain_s'",
    ("--set-json", 'cell.drafters=[{"kind":"medusa"}]'): "at '/cell/drafters/0/kind'",
    ("--set-json", 'cell.drafters=[{"kind":"model"}]'): "missing property 'source'",
    ("--set-json", 'cell.drafters={"kind":"ngram"}'): "at '/cell/drafters'",
    ("--set", "image.tag=latest"): "at '/image/tag'",
    ("--set", "image.repository="): "at '/image/repository'",
    ("--set", "image.repository=registry/outrider:1"): "at '/image/repository'",
    ("--set", "image.digest=sha256:12"): "at '/image/digest'",
    ("--set", "image.pullPolicy=Sometimes"): "at '/image/pullPolicy'",
    ("--set", "redis.image=redis:latest"): "at '/redis/image'",
    ("--set", "redis.image=redis"): "at '/redis/image'",
    ("--set", "redis.enabled=true"): "at '/redis/passwordSecret'",
    ("--set", "redis.runAsUser=0"): "at '/redis/runAsUser'",
    ("--set", "redis.enabled=yes please"): "at '/redis/enabled'",
    ("--set", "autoscaling.idleTimeoutSeconds=-1"): "at '/autoscaling/idleTimeoutSeconds'",
    ("--set", "draft.slots=0"): "at '/draft/slots'",
    ("--set", "draft.minReplicas=-1"): "at '/draft/minReplicas'",
    ("--set", "draft.topologySpread[0].maxSkew=0"): "at '/draft/topologySpread/0/maxSkew'",
    ("--set-json", 'target.tolerations=[{"operator":"Exist"}]'): "at '/target/tolerations/0/operator'",
    ("--set", "target.nodeSelector=big"): "at '/target/nodeSelector'",
    ("--set", "podDisruptionBudgets=50%"): "at '/podDisruptionBudgets'",
    ("--set", "upgradeStrategy=BlueGreen"): "at '/upgradeStrategy'",
    ("--set", "env.RAY_ADDRESS=there:6379"): "RAY_ADDRESS",
    ("--set", "env.REDIS_PASSWORD=secret"): "REDIS_PASSWORD",
    ("--set", "env.NUMBER=1"): "at '/env/NUMBER'",
    ("--set", "tls.requireClientCertificate=true"): "at '/tls/secretName'",
    ("--set", "tls.name="): "at '/tls/name'",
    ("--set", "auth.testTokenSecret=x"): "at '/auth/secretName'",
    ("--set", "auth.secretName=a"): 'auth.secretName is "a" without TLS: tokens would cross the network in the clear',
    ("--set-json", "networkPolicy.clients=[]"): "at '/networkPolicy/clients'",
    ("--set-json", "networkPolicy.scrapers=[]"): "at '/networkPolicy/scrapers'",
    ("--set", "networkPolicy.scrapers[0].everybody=true"): "additional properties 'everybody' not allowed",
    ("--set", "metrics.port=9090"): "additional properties 'port' not allowed",
    ("--set", "metrics.serviceMonitor.interval=often"): "at '/metrics/serviceMonitor/interval'",
    ("--set", "metrics.enabled=false,metrics.serviceMonitor.enabled=true"): "there is nothing to scrape",
    SHUT_MONITOR: "Prometheus has to show a certificate: set metrics.serviceMonitor.certificateSecret",
    (*TLS, *MONITOR, "--set", "metrics.serviceMonitor.certificateSecret=p"): "nobody asks for a certificate",
    ("--set", "metrics.serviceMonitor.certificateSecret=Not A Name"): "at '/metrics/serviceMonitor/certificateSecret'",
    ("--set", "draft.minReplicas=2,draft.maxReplicas=1"): "draft.minReplicas is 2, above draft.maxReplicas, 1",
    ("--set", "draft.slots=1"): "2 drafters need a place, and draft.minReplicas × draft.slots is 1 × 1",
    (*GPU, "--set", "draft.maxReplicas=0"): "2 drafters need a place, and draft.maxReplicas × draft.slots is 0 × 2",
    (*GPU, "--set", "draft.gpus=0"): "1 drafters have device cuda, and draft.maxReplicas × draft.gpus is 1 × 0",
    ("--set", "draft.gpus=1"): "no drafter in cell.drafters has device cuda",
    ("--set", "cell.target.model=/models/big"): '"/models/big" lies on a volume that is not there: set models.claim',
    (*GPU, "--set", "models.claim="): '"/models/target" lies on a volume that is not there',
}

# Of every value: how to change it, where it matters.
EFFECTS: dict[str, tuple[tuple[str, ...], str]] = {
    "image.repository": ((), "image.repository=other"),
    "image.tag": ((), "image.tag=1.2"),
    "image.digest": ((), "image.digest=sha256:" + "0" * 64),
    "image.pullPolicy": ((), "image.pullPolicy=Always"),
    "image.pullSecrets": ((), "image.pullSecrets={s}"),
    "cell.target.device": ((), "cell.target.device=cuda"),
    "cell.target.tensor_parallel": ((), "cell.target.tensor_parallel=2"),
    "cell.ray.machines_timeout_s": ((), "cell.ray.machines_timeout_s=5"),
    "cell.ray.start_timeout_s": ((), "cell.ray.start_timeout_s=5"),
    "cell.ray.drain_s": ((), "cell.ray.drain_s=5"),
    "target.shm": ((), "target.shm=3Gi"),
    "target.cache": ((), "target.cache=3Gi"),
    "target.gpuResource": (GPU, "target.gpuResource=amd.com/gpu"),
    "target.nccl.debug": (GPU, "target.nccl.debug=INFO"),
    "target.nccl.socketIfname": (GPU, "target.nccl.socketIfname=eth0"),
    "draft.slots": ((), "draft.slots=3"),
    "draft.gpus": (GPU, "draft.gpus=2"),
    "draft.minReplicas": ((), "draft.minReplicas=2,draft.maxReplicas=2"),
    "draft.maxReplicas": (SCALED, "draft.maxReplicas=4"),
    "draft.shm": ((), "draft.shm=3Gi"),
    "draft.cache": ((), "draft.cache=3Gi"),
    "draft.gpuResource": (GPU, "draft.gpuResource=nvidia.com/mig-1g.10gb"),
    "draft.topologySpread": ((), "draft.topologySpread=[]"),
    "autoscaling.enabled": ((), "autoscaling.enabled=true"),
    "autoscaling.idleTimeoutSeconds": (SCALED, "autoscaling.idleTimeoutSeconds=7"),
    "redis.enabled": ((), "redis.enabled=true,redis.passwordSecret=r"),
    "redis.passwordSecret": (REDIS, "redis.passwordSecret=other"),
    "redis.address": (REDIS, "redis.address=there:6379"),
    "redis.image": (REDIS, "redis.image=valkey:8.1"),
    "redis.runAsUser": (REDIS, "redis.runAsUser=1001"),
    "redis.storage": (REDIS, "redis.storage=7Gi"),
    "redis.storageClassName": (REDIS, "redis.storageClassName=fast"),
    "models.claim": ((), "models.claim=models"),
    "models.hubTokenSecret": ((), "models.hubTokenSecret=hub"),
    "env": ((), "env.HTTPS_PROXY=http://proxy:3128"),
    "metrics.enabled": ((), "metrics.enabled=false"),
    "metrics.serviceMonitor.enabled": ((), "metrics.serviceMonitor.enabled=true"),
    "metrics.serviceMonitor.interval": (MONITOR, "metrics.serviceMonitor.interval=1m"),
    "metrics.serviceMonitor.labels": (MONITOR, "metrics.serviceMonitor.labels.release=prometheus"),
    "metrics.serviceMonitor.certificateSecret": (
        (*SHUT_MONITOR, "--set", "metrics.serviceMonitor.certificateSecret=p"),
        "metrics.serviceMonitor.certificateSecret=other",
    ),
    "metrics.dashboard.enabled": ((), "metrics.dashboard.enabled=true"),
    "metrics.dashboard.labels.grafana_dashboard": (BOARD, "metrics.dashboard.labels.grafana_dashboard=yes"),
    "networkPolicy.scrapers": ((), "networkPolicy.scrapers[0].podSelector.matchLabels.app=prometheus"),
    "tls.secretName": ((), "tls.secretName=t"),
    "tls.name": (TLS, "tls.name=other"),
    "tls.requireClientCertificate": (TLS, "tls.requireClientCertificate=true"),
    "auth.secretName": (TLS, "auth.secretName=a"),
    "auth.testTokenSecret": ((*TLS, "--set", "auth.secretName=a"), "auth.testTokenSecret=x"),
    "networkPolicy.enabled": ((), "networkPolicy.enabled=false"),
    "networkPolicy.clients": ((), "networkPolicy.clients[0].podSelector.matchLabels.app=mine"),
    "networkPolicy.httpsOut": ((), "networkPolicy.httpsOut=false"),
    "podDisruptionBudgets": ((), "podDisruptionBudgets=false"),
    "upgradeStrategy": ((), "upgradeStrategy=None"),
} | {
    f"{pool}.{key}": ((), f"{pool}.{change}")
    for pool in ("head", "scheduler", "target", "draft")
    for key, change in {
        "cpu": "cpu=5",
        "memory": "memory=5Gi",
        "nodeSelector": "nodeSelector.disk=ssd",
        "tolerations": "tolerations[0].operator=Exists",
        "priorityClassName": "priorityClassName=high",
        "runtimeClassName": "runtimeClassName=nvidia",
    }.items()
}


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: arguments[-1])
def test_values_that_could_not_run_are_refused_with_the_reason(helm: Helm, arguments: tuple[str, ...]) -> None:
    done = helm("template", "outrider", ".", *arguments)
    assert done.returncode != 0
    assert REFUSED[arguments] in done.stderr


def test_a_name_that_kuberay_would_not_take_is_refused(helm: Helm) -> None:
    done = helm("template", "outrider-" + "x" * 42, ".")
    assert "51 characters; KubeRay allows 50" in done.stderr
    assert helm("template", "outrider-" + "x" * 41, ".").returncode == 0


@pytest.mark.parametrize("value", EFFECTS)
def test_every_value_changes_what_is_installed(render: Render, value: str) -> None:
    where, change = EFFECTS[value]
    flag = "--set-json" if change.endswith("]") else "--set"
    assert render(*where).text != render(*where, flag, change).text


def test_no_value_is_left_out_of_the_test_above() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(_leaves(values)) == set(EFFECTS)


def test_the_schema_of_the_cell_is_that_of_the_configuration_file() -> None:
    schema = _schema()
    assert schema["$defs"]["cell"] == cell_schema(), "python -m tests.helm.cell_schema prints it as it has to be"


def test_every_object_in_the_schema_is_closed() -> None:
    open_on_purpose = {"global", "podSelector", "namespaceSelector", "ipBlock"}
    assert _open_objects(_schema()) == open_on_purpose


def _schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return found


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def _open_objects(schema: object, name: str = "") -> set[str]:
    """The names of the objects that take any key."""
    if isinstance(schema, list):
        return set().union(*(_open_objects(item, name) for item in schema))
    if not isinstance(schema, dict):
        return set()
    is_open = schema.get("type") == "object" and "additionalProperties" not in schema
    return set().union({name} if is_open else set(), *(_open_objects(part, key) for key, part in schema.items()))
