"""The cell that the chart describes is one that `outriderd up` takes, and that fits on the pods beside it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.config import CellConfig, load_config
from cluster.default_model import DEFAULT_DRAFTERS
from cluster.placement import Machine, check_feasible
from tests.helm.conftest import Release, Render

pytestmark = pytest.mark.helm

GPU = ("-f", "values-gpu.yaml")


def cell_of(release: Release, folder: Path) -> CellConfig:
    file = folder / "cell.toml"
    file.write_text(release.cell_toml, encoding="utf-8")
    cell = load_config(file, {})
    if cell.target.model is None and "drafters" not in cell.model_fields_set:
        return cell.model_copy(update={"drafters": DEFAULT_DRAFTERS})  # as with_model does, which would fetch it
    return cell


def machines_of(release: Release, replicas: str) -> list[Machine]:
    """The Ray nodes that the pods become, with as many drafters' pods as `replicas` says."""
    machines = []
    for name in ("scheduler", "target", "draft"):
        group = release.group(name)
        offers = {resource: float(amount) for resource, amount in group["resources"].items()}
        machines += [Machine(name, offers)] * group[replicas]
    return machines


def test_the_configuration_file_is_one_that_outriderd_takes(release: Release, tmp_path: Path) -> None:
    cell = cell_of(release, tmp_path)
    assert cell.cache_dir == Path("/cache")
    assert cell.ray.address == "outrider-head-svc:6379"  # the Service that KubeRay makes for the head
    assert cell.ray.autoscaled is release.cluster["spec"]["enableInTreeAutoscaling"]
    assert cell.ray.machines_timeout_s > 0


def test_the_cell_fits_on_the_pods_that_are_or_can_be_there(release: Release, tmp_path: Path) -> None:
    cell = cell_of(release, tmp_path)
    check_feasible(cell, machines_of(release, "minReplicas"))
    all_groups = cell.target.model_copy(update={"groups": cell.target.max_groups})
    at_most = cell.model_copy(update={"ray": cell.ray.model_copy(update={"autoscaled": False}), "target": all_groups})
    check_feasible(at_most, machines_of(release, "maxReplicas"))


def test_threads_follow_from_the_pods_cores_where_none_are_named(render: Render, tmp_path: Path) -> None:
    cell = cell_of(render(*GPU), tmp_path)
    assert (cell.target.threads, [drafter.threads for drafter in cell.drafters]) == (4, [2, 1])
    named = render(*GPU, "--set", "cell.target.threads=9,cell.drafters[0].threads=3")
    cell = cell_of(render(*GPU, "--set", "cell.target.threads=9"), tmp_path)
    assert cell.target.threads == 9
    assert "threads = 3" in named.cell_toml


def test_large_numbers_and_odd_texts_arrive_as_they_are(render: Render, tmp_path: Path) -> None:
    arguments = ["--set-json", "cell.target.kv_cache_bytes=68719476736", "--set-json", r'cell.target.model="a\"b\\<ü"']
    cell = cell_of(render(*arguments), tmp_path)
    assert cell.target.kv_cache_bytes == 1 << 36
    assert cell.target.model == 'a"b\\<ü'


def test_gpus_go_to_the_ranks_and_to_the_drafters_that_compute_on_them(render: Render) -> None:
    pods = render(*GPU).pods
    limits = {part: pods[part]["spec"]["containers"][0]["resources"]["limits"] for part in pods}
    assert {part: own["nvidia.com/gpu"] for part, own in limits.items() if "nvidia.com/gpu" in own} == {
        "target": 4,
        "draft": 1,
    }


def test_the_service_leads_to_the_port_on_which_the_scheduler_listens(render: Render, tmp_path: Path) -> None:
    release = render()
    [service] = [item for item in release.all("Service") if item["metadata"]["name"] == "outrider"]
    assert service["spec"]["selector"] == {"ray.io/cluster": "outrider", "ray.io/group": "scheduler"}
    [port] = [port for port in service["spec"]["ports"] if port["name"] == "grpc"]
    [listening] = [own for own in release.pods["scheduler"]["spec"]["containers"][0]["ports"] if own["name"] == "grpc"]
    assert cell_of(release, tmp_path).scheduler.listen == f"0.0.0.0:{listening['containerPort']}"
    assert port["targetPort"] == "grpc"


def test_the_grace_period_covers_the_drain(release: Release, tmp_path: Path) -> None:
    drain_s = cell_of(release, tmp_path).ray.drain_s
    for part in ("headgroup", "scheduler", "target", "draft"):
        assert release.pods[part]["spec"]["terminationGracePeriodSeconds"] >= drain_s + 15 + 5


def test_a_changed_cell_changes_the_pod_that_launches_it(render: Render) -> None:
    before, after = render(), render("--set", "cell.scheduler.max_nodes=3")
    checksums = {release.pods["scheduler"]["metadata"]["annotations"]["checksum/cell"] for release in (before, after)}
    assert len(checksums) == 2
    assert before.pods["target"] == after.pods["target"]


def test_a_model_that_nobody_named_is_fetched_where_the_target_runs(render: Render) -> None:
    [fetch] = render().pods["target"]["spec"]["initContainers"]
    assert fetch["command"] == ["outriderd", "fetch"]
    assert {"name": "OUTRIDER_CACHE", "value": "/cache"} in fetch["env"]
    assert "initContainers" not in render(*GPU).pods["target"]["spec"]


def test_the_launcher_joins_ray_and_becomes_outriderd(render: Render, tmp_path: Path) -> None:
    container = render().pods["scheduler"]["spec"]["containers"][0]
    for name in ("ray", "outriderd"):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "$$ {name} $*" >> {tmp_path}/calls\n', encoding="utf-8")
        command.chmod(0o755)
    start = "ray start  --address=head:6379  --block  --num-cpus=1  --resources='{\"a\":1}' "  # as KubeRay writes it
    process = subprocess.Popen(
        [*container["command"], *container["args"]],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBERAY_GEN_RAY_START_CMD": start},
    )
    assert process.wait(timeout=30) == 0
    [joined, became] = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert joined.split(" ", 1)[1] == 'ray start --address=head:6379 --num-cpus=1 --resources={"a":1}'
    assert became == f"{process.pid} outriderd up --config /etc/outrider/cell.toml"


def test_the_launcher_ends_where_ray_can_not_be_joined(render: Render, tmp_path: Path) -> None:
    container = render().pods["scheduler"]["spec"]["containers"][0]
    done = subprocess.run(
        [*container["command"], *container["args"]],
        env={"PATH": os.environ["PATH"], "KUBERAY_GEN_RAY_START_CMD": "false"},
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
