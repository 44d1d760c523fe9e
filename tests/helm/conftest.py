"""The chart, rendered by the real helm, as a dictionary of objects."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.helm_binary import NoHelmError, find_helm

CHART = Path(__file__).parents[2] / "helm" / "outrider"
EXAMPLES = ("values.yaml", "values-cpu.yaml", "values-gpu.yaml")
# Each option of the chart at least once; together with the examples these are the shapes that it can take.
OPTIONS: dict[str, tuple[str, ...]] = {
    "no autoscaling, GPU": ("-f", "values-gpu.yaml", "--set", "autoscaling.enabled=false,draft.minReplicas=1"),
    "autoscaled, CPU": ("--set", "autoscaling.enabled=true,draft.minReplicas=0,draft.maxReplicas=4"),
    "a Redis of yours": ("--set", "redis.enabled=true,redis.passwordSecret=r,redis.address=redis.db:6380"),
    "own Redis, OpenShift": ("--set", "redis.enabled=true,redis.passwordSecret=r,redis.runAsUser=null"),
    "hub model, ranks": ("--set", "cell.target.model=org/name,cell.target.tensor_parallel=2,models.hubTokenSecret=h"),
    "target groups": ("--set", "cell.target.groups=2,cell.target.tensor_parallel=2"),
    "scaled groups": (
        "--set",
        "cell.target.groups=2,cell.target.min_groups=1,cell.target.max_groups=4,cell.autoscale.enabled=true,autoscaling.enabled=true",
    ),
    "scaled groups on pods that stay": ("--set", "cell.target.max_groups=3,cell.autoscale.enabled=true"),
    "alone": ("--set-json", "cell.drafters=[]", "--set", "draft.minReplicas=0,draft.maxReplicas=0"),
    "nothing optional": ("--set", "networkPolicy.enabled=false,podDisruptionBudgets=false,upgradeStrategy=None"),
    "watched": ("--set", "metrics.serviceMonitor.enabled=true,metrics.dashboard.enabled=true"),
    "unwatched": ("--set", "metrics.enabled=false"),
    "pinned image": ("--set", "image.digest=sha256:" + "0" * 64, "--set-json", 'image.pullSecrets=["s"]'),
    "encrypted": ("--set", "tls.secretName=t"),
    "shut": ("--set", "tls.secretName=t,tls.requireClientCertificate=true,auth.secretName=a,auth.testTokenSecret=x"),
    "shut, watched": (
        "--set",
        "tls.secretName=t,tls.requireClientCertificate=true,"
        "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.certificateSecret=p",
    ),
    "placed": ("--set", "target.priorityClassName=high,target.runtimeClassName=nvidia,env.HTTPS_PROXY=http://p:1"),
}
SHAPES: dict[str, tuple[str, ...]] = {name: ("-f", name) for name in EXAMPLES} | OPTIONS


@dataclass(frozen=True)
class Release:
    """What helm would install."""

    text: str

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        return [item for item in yaml.load_all(self.text, yaml.CSafeLoader) if item]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        [item] = self.all(kind)
        return item

    @cached_property
    def cell_toml(self) -> str:
        [text] = [item["data"]["cell.toml"] for item in self.all("ConfigMap") if "cell.toml" in item["data"]]
        return str(text)

    @cached_property
    def cluster(self) -> dict[str, Any]:
        return self.one("RayCluster")

    def group(self, name: str) -> dict[str, Any]:
        """A group of the Ray cluster: headgroup, scheduler, target or draft."""
        spec = self.cluster["spec"]
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        found: dict[str, Any] = spec["headGroupSpec"] if name == "headgroup" else groups[name]
        return found

    @cached_property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Every pod template and pod, by the part that it belongs to."""
        pods = {name: self.group(name)["template"] for name in ("headgroup", "scheduler", "target", "draft")}
        pods |= {item["metadata"]["name"]: item["spec"]["template"] for item in self.all("StatefulSet")}
        return pods | {item["metadata"]["name"]: item for item in self.all("Pod")}


Helm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., Release]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs helm beside the chart's values files, with nothing of the user's own settings."""
    try:
        binary = find_helm()
    except NoHelmError as error:
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("helm")
    own = {f"HELM_{kind}_HOME": str(home / kind) for kind in ("CACHE", "CONFIG", "DATA")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [binary, *arguments],
            cwd=CHART,
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The chart with more arguments of `helm template`; each of them once."""
    known: dict[tuple[str, ...], Release] = {}

    def template(*arguments: str, name: str = "outrider") -> Release:
        key = (name, *arguments)
        if key not in known:
            done = helm("template", name, ".", *arguments)
            assert done.returncode == 0, done.stderr
            known[key] = Release(done.stdout)
        return known[key]

    return template


@pytest.fixture(params=list(SHAPES))
def release(render: Render, request: pytest.FixtureRequest) -> Release:
    """Every shape in turn."""
    return render(*SHAPES[request.param])
