"""Several nodes of one Ray on this machine, each a raylet of its own on its own loopback address."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil

from cluster.ray_runtime import RayThread
from cluster.supervise import Part
from tests.cluster.conftest import TIMEOUT_S
from tests.ports import free_address

COMMON = {"object_store_memory": 80 * 2**20, "include_dashboard": False}  # Ray's least

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-the-tests-alone-and-long-enough",
    "RAY_worker_niceness": "0",
    # As the chart has them: a node that is gone is noticed after three seconds.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class RayNodes:
    """A head without room for workers, which the launcher of a cell connects to, and any number of other nodes.

    Set SETTINGS in the environment first: some are read once, by this process. Not by `ray start` and `ray stop`, of
    which the second ends every Ray of the machine.
    """

    def __init__(self) -> None:
        self._thread = RayThread()
        self._cluster: Any = None
        self._pools: dict[str, list[Any]] = {"target": [], "draft": []}  # nodes that were not killed, nor told to go
        self._last_host = 1

    async def start(self) -> None:
        await self._thread.run(self._start_head)

    @property
    def address(self) -> str:
        """What a cell's `ray.address` is."""
        return str(self._cluster.address)

    async def add(self, pool: str) -> Any:
        """Another node, on its own address, with room for one worker of a pool. Returns when the others know it."""
        self._last_host += 1
        node_args = {"num_cpus": 1, "resources": {pool: 1}, "node_ip_address": f"127.0.0.{self._last_host}"}
        node = await self._thread.run(lambda: self._cluster.add_node(**COMMON, **node_args))
        self._pools[pool].append(node)
        return node

    async def have(self, pool: str, num_nodes: int, holding: Part) -> Any:
        """Make the pool so large, or so small. Returns the node that holds the part, which stays."""
        held = self.of(holding)
        while len(self._pools[pool]) < num_nodes:
            await self.add(pool)
        for node in [node for node in self._pools[pool] if node is not held][num_nodes - 1 :]:
            self.kill(node)
        return held

    def of(self, part: Part) -> Any:
        """The node on which a part of a cell serves."""
        assert part.address is not None, f"{part.name} does not serve"
        host = part.address.rpartition(":")[0]
        [node] = [node for node in self._cluster.worker_nodes if node.node_ip_address == host]
        return node

    def kill(self, node: Any) -> None:
        """SIGKILL to its raylet and to all that runs there, as when its power fails."""
        self._forget(node)
        raylet = psutil.Process(_raylet_of(node).pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    async def announce_end(self, node: Any, within_s: float) -> None:
        """What Ray is told of a node that is pre-empted: it goes away, and nothing new is placed there."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

        self._forget(node)
        deadline_ms = int((time.time() + within_s) * 1000)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client = GcsClient(address=self.address)
        accepted, why_not = await asyncio.to_thread(client.drain_node, node.node_id, reason, "a test", deadline_ms)
        assert accepted, why_not

    async def wait_ended(self, node: Any) -> None:
        """Returns when its raylet has ended by itself, as it does once nothing runs on a node that goes away."""
        await asyncio.to_thread(_raylet_of(node).wait, TIMEOUT_S)

    async def kill_control_plane(self) -> None:
        await self._thread.run(self._cluster.head_node.kill_gcs_server)

    async def restart_control_plane(self) -> None:
        await self._thread.run(self._cluster.head_node.start_gcs_server)

    async def end(self) -> None:
        if self._cluster is not None:
            await self._thread.run(self._cluster.shutdown)
        self._thread.close()

    def _forget(self, node: Any) -> None:
        for pool in self._pools.values():
            if node in pool:
                pool.remove(node)

    def _start_head(self) -> None:
        from ray.cluster_utils import Cluster

        port = int(free_address().rpartition(":")[2])
        head = {"num_cpus": 0, "gcs_server_port": port, **COMMON}
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)


def _raylet_of(node: Any) -> Any:
    [raylet] = node.all_processes["raylet"]
    return raylet.process
