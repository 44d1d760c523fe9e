"""A Ray whose own autoscaler adds nodes, and takes them away; and a cell for it, whose drafter is worth its price.

It is what Ray's AutoscalingCluster is made of: Ray's autoscaler, and its provider of nodes that are raylets on this
machine. Not that class itself: it begins and ends with `ray stop`, which ends every Ray of the machine, and it needs a
file that is not in Ray's wheel.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.config import CellConfig, load_config
from cluster.ray_runtime import RayThread
from tests.cluster.nodes.ray_nodes import COMMON, SETTINGS
from tests.ports import free_address
from tests.tiny import save_tiny_pair

IDLE_S = 6.0  # after which a node without a worker goes

AUTOSCALED = SETTINGS | {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_FAKE_CLUSTER": "1",  # its provider asks for it
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}

_HEAD_ID = "f" * 51 + "00000"
_NODE_TYPE_OF_HEAD = "ray.head.default"


class AutoscaledRay:
    """A head without room for workers, a node for a target group or up to so many, and up to so many with room for a
    drafter each.

    Set AUTOSCALED in the environment first.
    """

    def __init__(self, max_drafters: int, folder: Path, max_groups: int = 1) -> None:
        """`folder`: for its configuration."""
        self._thread = RayThread()
        self._cluster: Any = None
        self._config_file = folder / "autoscaler.json"
        self._max_drafters, self._max_groups = max_drafters, max_groups

    async def start(self) -> None:
        await self._thread.run(self._start_head)

    @property
    def address(self) -> str:
        """What a cell's `ray.address` is."""
        return str(self._cluster.address)

    async def num_nodes(self) -> Counter[str]:
        """By pool. A cell has to be connected."""
        import ray

        nodes: list[Any] = await asyncio.to_thread(ray.nodes)
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        return Counter(pool for pool in ("target", "draft") for resources in alive if pool in resources)

    async def end(self) -> None:
        if self._cluster is not None:
            await self._thread.run(self._cluster.shutdown)
        self._thread.close()

    def _start_head(self) -> None:
        from ray._private.services import get_node_ip_address
        from ray.cluster_utils import Cluster

        port = int(free_address().rpartition(":")[2])
        config = self._config(f"{get_node_ip_address()}:{port}")  # type: ignore[no-untyped-call]
        self._config_file.write_text(json.dumps(config), encoding="utf-8")
        known_as = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID, "RAY_CLOUD_INSTANCE_ID": _HEAD_ID}
        head = {"num_cpus": 0, "gcs_server_port": port, "env_vars": known_as, **COMMON}
        head["autoscaling_config"] = str(self._config_file)
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

    def _config(self, gcs_address: str) -> dict[str, Any]:
        return {
            "cluster_name": "tests",
            "max_workers": self._max_groups + self._max_drafters,
            "idle_timeout_minutes": IDLE_S / 60,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": gcs_address,
                "head_node_id": _HEAD_ID,
                "launch_multiple": True,
                "disable_node_updaters": True,  # nothing is to be installed on its nodes
            },
            "head_node_type": _NODE_TYPE_OF_HEAD,
            "available_node_types": {
                _NODE_TYPE_OF_HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "for-a-target": _node_type("target", 1, self._max_groups),
                "for-a-drafter": _node_type("draft", 0, self._max_drafters),
            },
            # Ray refuses a file without these.
            "file_mounts": {},
            "cluster_synced_files": [],
            **{f"{when}_commands": [] for when in ("initialization", "setup", "head_setup", "worker_setup")},
        }


def _node_type(pool: str, least: int, most: int) -> dict[str, Any]:
    resources = {"CPU": 1, pool: 1, "object_store_memory": COMMON["object_store_memory"]}
    return {"resources": resources, "node_config": {}, "min_workers": least, "max_workers": most}


def autoscaled_cell(address: str, max_drafters: int, folder: Path) -> CellConfig:
    """The cell begins without a drafter. Its models are made in `folder`.

    The target's pass takes ten times as long as the draft model's step, which is right about most tokens: so the first
    drafter is worth many times its price, and another one as much as the drafts of many requests come sooner.
    """
    model, draft = save_tiny_pair(folder, num_layers=24, max_context=2048)
    common = {"dtype": "float32", "threads": 1, "compiled": False}
    target = {"model": str(model), "kv_cache_bytes": 1 << 26, "profile_s": 0.0, "price_per_hour": 10.0}
    drafter = {"kind": "model", "source": str(draft), "name": "draft", "kv_cache_bytes": 1 << 24}
    bounds = {"min_workers": 0, "max_workers": max_drafters, "price_per_hour": 1.2}
    flags = {
        "ray": {"address": address, "autoscaled": True, "machines_timeout_s": 60.0},
        "scheduler": {"listen": "127.0.0.1:0"},
        "target": target | common,
        "drafters": [drafter | common | bounds],
        "autoscale": {"enabled": True, "period_s": 1.0, "up_cool_down_s": 10.0, "down_cool_down_s": 25.0},
    }
    return load_config(None, flags)
