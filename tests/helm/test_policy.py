"""What every pod is held to, and who may speak to whom."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.helm.conftest import SHAPES, Release, Render

pytestmark = pytest.mark.helm

GPU = ("-f", "values-gpu.yaml")
SHUT = SHAPES["shut"]


def containers(release: Release) -> list[tuple[str, dict[str, Any]]]:
    """Every container, by its part and name."""
    return [
        (f"{part}/{container['name']}", container)
        for part, template in release.pods.items()
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    ]


def test_every_pod_is_one_that_a_restricted_namespace_admits(release: Release) -> None:
    for part, template in release.pods.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, part
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, part
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), part
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "configMap", "persistentVolumeClaim", "secret"}, part
    for name, container in containers(release):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert not any("hostPort" in port for port in container.get("ports", [])), name


def test_the_autoscalers_container_is_admitted_too(render: Render) -> None:
    security = render(*GPU).cluster["spec"]["autoscalerOptions"]["securityContext"]
    assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_every_container_says_what_it_needs_and_memory_can_not_run_away(release: Release) -> None:
    for name, container in containers(release):
        resources = container["resources"]
        assert resources["requests"].keys() >= {"cpu", "memory"}, name
        assert resources["limits"]["memory"] == resources["requests"]["memory"], name


def test_every_container_that_serves_is_probed(release: Release) -> None:
    for part, template in release.pods.items():
        for container in template["spec"]["containers"]:
            if template["spec"].get("restartPolicy") == "Never" and container["name"] == "generate":
                continue  # the test's pod: it asks, once, and ends
            assert {"readinessProbe", "livenessProbe"} <= set(container), part


def test_the_scheduler_is_ready_when_the_cell_says_so(release: Release) -> None:
    container = release.pods["scheduler"]["spec"]["containers"][0]
    [port] = [port["containerPort"] for port in container["ports"] if port["name"] == "grpc"]
    is_encrypted = any(volume["name"] == "tls" for volume in release.pods["scheduler"]["spec"]["volumes"])
    if is_encrypted:  # Kubernetes' own probe knows no TLS
        command = container["readinessProbe"]["exec"]["command"]
        assert command == ["python", "-m", "cluster.probe", "/etc/outrider/cell.toml"]
    else:
        assert container["readinessProbe"]["grpc"] == {"port": port}


def test_certificates_are_where_the_cell_looks_for_them_in_every_pod_that_needs_them(render: Render) -> None:
    release = render(*SHUT)
    holders = {}
    for part, template in release.pods.items():
        secrets = {
            volume["secret"]["secretName"] for volume in template["spec"].get("volumes", []) if "secret" in volume
        }
        mounts = {
            mount["mountPath"]
            for mount in template["spec"]["containers"][0].get("volumeMounts", [])
            if mount["name"] in {"tls", "auth"}
        }
        holders[part] = (secrets, mounts)
    tls, auth = "/etc/outrider-tls", "/etc/outrider-auth"
    assert holders["headgroup"] == (set(), set()), "no process of the cell runs there"
    assert holders["target"] == holders["draft"] == holders["outrider-test-generate"] == ({"t"}, {tls})
    assert holders["scheduler"] == ({"t", "a"}, {tls, auth})
    cell = tomllib.loads(release.one("ConfigMap")["data"]["cell.toml"])
    assert {str(Path(cell["tls"][key]).parent) for key in ("certificate", "key", "ca")} == {tls}
    assert cell["auth"] == {"tokens_file": f"{auth}/tokens.toml"}


def test_a_secret_that_changes_restarts_nothing_since_no_pod_is_told_of_its_contents(render: Render) -> None:
    release = render(*SHUT)
    assert release.all("Secret") == []
    for part, template in release.pods.items():
        for container in template["spec"]["containers"]:
            assert all("subPath" not in mount for mount in container.get("volumeMounts", [])), part


def test_with_tokens_there_is_no_test_that_could_only_fail(render: Render) -> None:
    tokens = ("--set", "tls.secretName=t,auth.secretName=a")
    assert render(*tokens).all("Pod") == []
    [test] = render(*SHUT).all("Pod")
    environment = {variable["name"] for variable in test["spec"]["containers"][0]["env"]}
    assert environment == {f"OUTRIDER_{name}" for name in ("TLS_CA", "TLS_NAME", "TLS_CERT", "TLS_KEY", "TOKEN")}


def test_no_image_floats(release: Release) -> None:
    for name, container in containers(release):
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert tag, name
        assert tag != "latest", name


def test_nobody_but_the_autoscaler_has_a_token_of_kubernetes(release: Release) -> None:
    is_autoscaled = release.cluster["spec"]["enableInTreeAutoscaling"]
    for part, template in release.pods.items():
        is_head = part == "headgroup"
        assert template["spec"]["automountServiceAccountToken"] is (is_head and is_autoscaled), part


def test_the_workers_account_is_not_the_one_that_kuberay_gives_rights_to(release: Release) -> None:
    name = release.one("ServiceAccount")["metadata"]["name"]
    assert name != release.cluster["metadata"]["name"]  # under which KubeRay makes the autoscaler's
    for part in ("scheduler", "target", "draft"):
        assert release.pods[part]["spec"]["serviceAccountName"] == name


def test_ray_takes_no_call_without_a_token(release: Release) -> None:
    assert release.cluster["spec"]["authOptions"] == {"mode": "token"}


def test_budgets_count_pods_and_let_drafters_go(render: Render) -> None:
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in render(*GPU).all("PodDisruptionBudget")}
    assert set(budgets) == {"outrider-head", "outrider-scheduler", "outrider-target"}
    assert all(spec["minAvailable"] == 1 and "maxUnavailable" not in spec for spec in budgets.values())
    annotations = {part: template["metadata"].get("annotations") or {} for part, template in render(*GPU).pods.items()}
    staying = {part for part, own in annotations.items() if own.get("karpenter.sh/do-not-disrupt") == "true"}
    assert staying == {"headgroup", "scheduler", "target"}


def test_every_pod_of_the_release_is_shut_but_for_what_a_policy_names(render: Render) -> None:
    release = render(*GPU)
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in release.all("NetworkPolicy")}
    ray, redis = policies["outrider"], policies["outrider-redis"]
    assert ray["podSelector"]["matchLabels"] == {"ray.io/cluster": "outrider"}
    assert ray["policyTypes"] == redis["policyTypes"] == ["Ingress", "Egress"]
    assert ray["ingress"] == [{"from": [{"podSelector": ray["podSelector"]}]}]
    assert redis["ingress"] == [
        {"from": [{"podSelector": ray["podSelector"]}], "ports": [{"protocol": "TCP", "port": 6379}]}
    ]
    labels = release.one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert redis["podSelector"]["matchLabels"].items() <= labels.items()
    assert "egress" not in redis
    clients = policies["outrider-clients"]
    assert clients["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 50051}]}]
    assert clients["podSelector"]["matchLabels"]["ray.io/group"] == "scheduler"


def test_without_https_out_no_address_beyond_the_release_is_open_but_for_names(render: Render) -> None:
    [policy] = [
        policy
        for policy in render("--set", "networkPolicy.httpsOut=false").all("NetworkPolicy")
        if "Egress" in policy["spec"]["policyTypes"]
    ]
    anywhere = [rule for rule in policy["spec"]["egress"] if "to" not in rule]
    assert [port["port"] for rule in anywhere for port in rule["ports"]] == [53, 53]


def test_the_password_is_read_from_the_secret_and_from_nowhere_else(render: Render) -> None:
    release = render(*GPU)
    secret = {"secretKeyRef": {"name": "outrider-redis", "key": "password"}}
    [redis] = release.pods["outrider-redis"]["spec"]["containers"]
    assert redis["env"] == [{"name": "REDISCLI_AUTH", "valueFrom": secret}]
    assert release.cluster["spec"]["gcsFaultToleranceOptions"]["redisPassword"] == {"valueFrom": secret}
    assert release.all("Secret") == []
