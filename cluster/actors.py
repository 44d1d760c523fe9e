"""The Ray actors: one process each, hosting one server of the other packages. They hold no logic of their own.

Each has `start`, which returns the address that it serves on, and `wait`, which ends only when the server does:
it returns after a stop and raises when the server failed. Ray ends the process when `wait` is answered, since
the cell's parts let go of it then. What they host is imported in the actor's own process, so that the process
that launches a cell never loads torch.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cluster.config import CellConfig, DrafterSection
from cluster.server_configs import drafter_config, scheduler_config, target_config
from cluster.threads import thread_environment
from outrider.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from scheduler.policy.worth import Lack, Worth
    from scheduler.pressure import Pressure

DRAFTER_NICENESS = 10


class _Actor:
    def __init__(self, threads: int) -> None:
        # torch reads these when it is imported, which none of the actors does before this.
        os.environ.update(thread_environment(threads))
        faulthandler.enable()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)

    async def identity(self) -> tuple[int, str]:
        """The process's id, and that of Ray's node that it runs on."""
        import ray

        return os.getpid(), ray.get_runtime_context().get_node_id()


class SchedulerActor(_Actor):
    def __init__(self, config: CellConfig, listen: str) -> None:
        super().__init__(threads=1)
        from scheduler.server import SchedulerServer, spare_collector

        spare_collector()
        self._server = SchedulerServer(scheduler_config(config, listen))

    async def start(self) -> str:
        return await self._server.start()

    async def metrics_address(self) -> str | None:
        return self._server.metrics_address

    async def set_workers(self, targets: Sequence[str], drafters: Sequence[str], num_missing: int) -> None:
        await self._server.set_workers(targets, drafters, num_missing)

    async def drain_worker(self, address: str, limit_s: float) -> None:
        await self._server.drain_worker(address, limit_s)

    async def worth(self, num_drafters: Mapping[str, int], most: int) -> dict[str, Worth | Lack]:
        return self._server.worth(num_drafters, most)

    async def pressure(self) -> Pressure:
        return self._server.pressure()

    async def show_scaling(self, scaling: bytes) -> None:
        self._server.show_scaling(pb.Scaling.FromString(scaling))

    async def wait(self) -> None:
        await self._server.wait_failed()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


class TargetActor(_Actor):
    """Rank 0 of a target group: serves gRPC, and leads the other ranks."""

    def __init__(self, config: CellConfig, threads: int) -> None:
        super().__init__(threads)
        self._config, self._threads = config, threads

    async def pick_group_address(self) -> str:
        """Where the ranks of this life of the group will meet: a free port of this machine."""
        host = _own_host()
        with socket.create_server((host, 0)) as probe:
            return f"{host}:{probe.getsockname()[1]}"

    async def start(self, group_address: str | None) -> str:
        from workers.target.server import TargetServer

        self._server = TargetServer(target_config(self._config, self._threads, _own_host(), group_address))
        return await self._server.start()

    async def wait(self) -> None:
        await self._server.wait_failed()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


class FollowerActor(_Actor):
    """Any other rank of a target group."""

    def __init__(self, config: CellConfig, threads: int, rank: int) -> None:
        super().__init__(threads)
        self._config, self._threads, self._rank = config, threads, rank

    async def follow(self, group_address: str) -> None:
        """Returns when rank 0 stops the group."""
        from workers.target.server import serve_follower

        config = target_config(self._config, self._threads, _own_host(), group_address)
        await asyncio.to_thread(serve_follower, config, self._rank)


class DrafterActor(_Actor):
    """It gives way to others on its machine: where a target or the scheduler shares its cores, a draft is worth less
    than a pass that is late for it."""

    def __init__(self, config: CellConfig, section: DrafterSection, threads: int) -> None:
        super().__init__(threads)
        os.nice(DRAFTER_NICENESS)
        from workers.draft.server import DrafterServer

        self._server = DrafterServer(drafter_config(config, section, threads, _own_host()))

    async def start(self) -> str:
        return await self._server.start()

    async def wait(self) -> None:
        await self._server.wait_failed()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


def _own_host() -> str:
    """The address under which the cell's other machines reach this one; 127.0.0.1 where Ray is local."""
    import ray

    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return host
