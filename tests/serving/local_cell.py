"""A whole cell without Ray: real servers and real gRPC, on one event loop in a thread of its own.

Tests use it through the user's client. Ranks above 0 are processes, as they are everywhere.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from outrider import Client
from outrider.rpc import server_options
from outrider.v1.drafter_pb2_grpc import DrafterServicer, add_DrafterServicer_to_server
from scheduler.core import Core
from scheduler.server import SchedulerConfig, SchedulerServer
from tests.ports import free_address
from workers.draft.server import DrafterConfig, DrafterServer
from workers.target.server import TargetConfig, TargetServer

START_TIMEOUT_S = 120.0
Result = TypeVar("Result")

_FOLLOW = """
import sys
from pathlib import Path
from workers.target.server import TargetConfig, serve_follower
model, size, address, dtype = sys.argv[1:]
serve_follower(TargetConfig(model=model, tensor_parallel=int(size), group_address=address, dtype=dtype, threads=1,
                            kv_cache_bytes=int(256e6)), rank=1)
"""

_DRAFT = """
import asyncio, sys
from workers.draft.server import DrafterConfig, DrafterServer
async def main():
    server = DrafterServer(DrafterConfig(name="alone", drafters=(sys.argv[1],), dtype="float32", threads=1,
                                         kv_cache_bytes=int(256e6)))
    print(await server.start(), flush=True)
    await server.wait_failed()
asyncio.run(main())
"""


_SERVE = """
import asyncio, sys
from workers.target.server import TargetConfig, TargetServer
async def main():
    server = TargetServer(TargetConfig(model=sys.argv[1], dtype="float32", threads=1, kv_cache_bytes=int(sys.argv[2]),
                                       profile_s=0))
    print(await server.start(), flush=True)
    await server.wait_failed()
asyncio.run(main())
"""


class LocalCell:
    """Servers that were started, and the address of the public one."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], client: Callable[[str], Client]) -> None:
        self._run = run
        self._client = client
        self.endpoint = ""
        self.target_address = ""
        self.other_targets: list[str] = []
        self.drafters: dict[str, DrafterServer] = {}  # by address

    async def start(self, scheduler: SchedulerConfig, target: TargetConfig, drafters: Sequence[DrafterConfig]) -> None:
        self._config = scheduler
        self._scheduler = SchedulerServer(scheduler)
        self.endpoint = await self._scheduler.start()
        self._target = TargetServer(target)
        self.target_address = await self._target.start()
        for config in drafters:
            server = DrafterServer(config)
            self.drafters[await server.start()] = server
        await self._scheduler.set_workers([self.target_address], list(self.drafters))

    def restart_scheduler(self, grace_s: float = 0.0) -> None:
        """Another one takes its place, on its address, once it has drained."""
        self._run(self._restart_scheduler(grace_s))

    async def _restart_scheduler(self, grace_s: float) -> None:
        await self._scheduler.stop(grace_s)
        self._scheduler = SchedulerServer(replace(self._config, listen=self.endpoint))
        await self._scheduler.start()
        await self._scheduler.set_workers([self.target_address], list(self.drafters))

    @property
    def metrics_address(self) -> str:
        assert self._scheduler.metrics_address is not None, "the scheduler's metrics_port is not set"
        return self._scheduler.metrics_address

    def held(self) -> dict[str, int]:
        """What the scheduler holds for requests, by kind, and how many tasks run on the cell's event loop."""
        counts: dict[str, int] = self._run(self._held())
        return counts

    async def _held(self) -> dict[str, int]:
        driver, service = self._scheduler._driver, self._scheduler._service
        assert driver is not None
        assert service is not None
        return {
            "requests": len(driver.core._requests),
            "mailboxes": len(driver._mailboxes),
            "calls": len(service.calls),
            "tasks": len(asyncio.all_tasks()),
        }

    async def stop(self) -> None:
        await self._scheduler.stop(grace_s=0)
        for server in self.drafters.values():
            await server.stop(0)
        await self._target.stop(0)

    @contextmanager
    def target_process(self, model: str, kv_cache_bytes: int) -> Iterator[subprocess.Popen[str]]:
        """One more target group, of one rank, in a process of its own, for as long as the block lasts: it may be
        killed."""
        command = [sys.executable, "-c", _SERVE, model, str(kv_cache_bytes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip()
                self.other_targets.append(address)
                self._use_drafters(list(self.drafters))
                self.wait_ready()
                yield process
            finally:
                process.kill()
                self.other_targets.remove(address)
                self._use_drafters(list(self.drafters))

    @contextmanager
    def drafter_process(self, spec: str) -> Iterator[subprocess.Popen[str]]:
        """One more drafter worker, in a process of its own, for as long as the block lasts: it may be killed."""
        with subprocess.Popen([sys.executable, "-c", _DRAFT, spec], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip()
                self._use_drafters([*self.drafters, address])
                self.wait_ready()
                yield process
            finally:
                process.kill()
                self._use_drafters(list(self.drafters))

    @contextmanager
    def other_drafter(self, servicer: DrafterServicer) -> Iterator[None]:
        """One more drafter worker, which answers as the test wants, for as long as the block lasts."""
        server, address = self._run(_serve(servicer))
        try:
            self._use_drafters([*self.drafters, address])
            self.wait_ready()
            yield
        finally:
            self._use_drafters(list(self.drafters))
            self._run(server.stop(0))

    @contextmanager
    def another_drafter(self, config: DrafterConfig) -> Iterator[str]:
        """One more drafter worker of ours, in this process; yields its address, before anybody has reached it."""
        server = DrafterServer(config)
        address: str = self._run(server.start())
        try:
            self._use_drafters([*self.drafters, address])
            yield address
        finally:
            self._use_drafters(list(self.drafters))
            self._run(server.stop(0))

    def look(self, into: Callable[[Core], Result]) -> Result:
        """What can be seen in the scheduler's core between two of its events."""

        async def look() -> Result:
            assert self._scheduler._driver is not None
            return into(self._scheduler._driver.core)

        result: Result = self._run(look())
        return result

    def drain(self, address: str, limit_s: float) -> None:
        """Returns when no request is on this worker any more, or after the limit."""
        self._run(self._scheduler.drain_worker(address, limit_s))

    def _use_drafters(self, addresses: list[str]) -> None:
        self._run(self._scheduler.set_workers([self.target_address, *self.other_targets], addresses))

    def wait_ready(self) -> None:
        """Until the target serves and every drafter is used or refused."""
        done = threading.Event()
        with self._client(self.endpoint) as client:
            for _ in range(int(START_TIMEOUT_S / 0.05)):
                info = client.server_info()
                states = {worker.state for worker in (*info.targets, *info.drafters)}
                if info.targets and states <= {"ready", "refused", "late"}:
                    return
                done.wait(0.05)
        raise TimeoutError(f"the cell is not ready after {START_TIMEOUT_S} s: {info}")


async def _serve(servicer: DrafterServicer) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=server_options(-1))
    add_DrafterServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    return server, address


@contextmanager
def local_cell(
    target: TargetConfig,
    drafters: Sequence[DrafterConfig] = (),
    scheduler: SchedulerConfig | None = None,
    client: Callable[[str], Client] = Client,
) -> Iterator[LocalCell]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="local cell")
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(START_TIMEOUT_S)

    followers: list[subprocess.Popen[bytes]] = []
    cell = LocalCell(run, client)
    try:
        if target.tensor_parallel > 1:
            target = replace(target, group_address=free_address())
            arguments = [target.model, str(target.tensor_parallel), str(target.group_address), target.dtype]
            followers.append(subprocess.Popen([sys.executable, "-c", _FOLLOW, *arguments]))
        run(cell.start(scheduler or SchedulerConfig(listen="127.0.0.1:0"), target, drafters))
        cell.wait_ready()
        yield cell
    finally:
        try:
            run(cell.stop())
        finally:
            for follower in followers:
                follower.kill()
                follower.wait()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
