"""A cell in this process, without Ray: the same servers and the same gRPC, on one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from cluster.config import CellConfig
from cluster.errors import ConfigError, WorkerFailed
from cluster.launch import Report
from cluster.server_configs import drafter_config, scheduler_config, target_config
from cluster.threads import available_cores, plan_threads, thread_environment
from outrider import AsyncClient
from outrider.types import ServerInfo

if TYPE_CHECKING:
    from workers.draft.server import DrafterServer
    from workers.target.server import TargetServer

_HOST = "127.0.0.1"
_READY_TIMEOUT_S = 120.0  # once the servers are up, for the scheduler to reach them
_POLL_S = 0.05
_GRACE_S = 1.0  # for calls that a stop interrupts to end


def local_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a cell to verify in this process, with what suits that: in float32 equal tokens are a promise.

    It starts soon rather than runs fast, waits for its drafters, however busy the machine is, and verifies small
    trees, since every node costs time on a CPU.
    """
    settings = dict(flags)
    settings["target"] = {"dtype": "float32", "compiled": False, "profile_s": 0} | flags.get("target", {})
    settings["scheduler"] = {"listen": f"{_HOST}:0", "draft_wait_s": 60.0, "max_nodes": 4}
    return settings


@asynccontextmanager
async def local_cell(config: CellConfig, report: Report) -> AsyncIterator[str]:
    """Runs the cell for as long as the block lasts; yields its "host:port".

    Raises ConfigError for a cell that needs several processes, WorkerFailed where a drafter does not fit the
    target, and what the servers raise. A server that fails meanwhile ends the block with its error.
    """
    if config.target.tensor_parallel > 1:
        raise ConfigError(
            f"target.tensor_parallel is {config.target.tensor_parallel}: a cell in one process has one rank; "
            "start the cell with `outriderd up` and name it with --server"
        )
    threads = plan_threads(config, max(1, available_cores() - 1))  # the event loop needs a core, too
    os.environ.update(thread_environment(threads.target))  # torch reads it when it is imported, which is below
    async with AsyncExitStack() as stack:
        report("Starting the target; a first start converts and compiles")
        target = await _start_target(config, threads.target, stack)
        drafters: dict[str, DrafterServer] = {}  # by address
        for section, share in zip(config.drafters, threads.drafters, strict=True):
            report(f"Starting drafter {section.name}")
            from workers.draft.server import DrafterServer

            uncompiled = section.model_copy(update={"compiled": False})  # it starts sooner
            server = DrafterServer(drafter_config(config, uncompiled, share, _HOST))
            stack.push_async_callback(server.stop, _GRACE_S)
            drafters[await server.start()] = server
        endpoint = await _start_scheduler(config, target[0], list(drafters), stack)
        report("The cell is ready")
        async with _watched([target[1], *drafters.values()]):
            yield endpoint


async def _start_target(config: CellConfig, threads: int, stack: AsyncExitStack) -> tuple[str, TargetServer]:
    from workers.target.server import TargetServer

    server = TargetServer(target_config(config, threads, _HOST, None))
    stack.push_async_callback(server.stop, _GRACE_S)
    return await server.start(), server


async def _start_scheduler(config: CellConfig, target: str, drafters: Sequence[str], stack: AsyncExitStack) -> str:
    from scheduler.server import SchedulerServer

    scheduler = SchedulerServer(scheduler_config(config, config.scheduler.listen))
    stack.push_async_callback(scheduler.stop, _GRACE_S)
    endpoint = await scheduler.start()
    await scheduler.set_workers([target], drafters)
    async with AsyncClient(endpoint) as client:
        await _wait_ready(client)
    return endpoint


async def _wait_ready(client: AsyncClient) -> None:
    info: ServerInfo | None = None
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while info is None or info.state != "ready":
                await asyncio.sleep(_POLL_S)
                info = await client.server_info()
                refused = [worker for worker in (*info.targets, *info.drafters) if worker.state == "refused"]
                if refused:
                    raise WorkerFailed(f"{refused[0].name} does not fit the target: {refused[0].detail}")
    except TimeoutError:
        raise WorkerFailed(f"the cell is not ready after {_READY_TIMEOUT_S:g} s: {info}") from None


@asynccontextmanager
async def _watched(servers: Sequence[TargetServer | DrafterServer]) -> AsyncIterator[None]:
    """Cancels the block, and raises, as soon as a server fails."""
    try:
        async with asyncio.TaskGroup() as group:
            watches = [group.create_task(server.wait_failed()) for server in servers]
            yield
            for watch in watches:
                watch.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
