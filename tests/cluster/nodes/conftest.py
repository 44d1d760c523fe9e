"""One cell on several Ray nodes, for all tests here; what each case took is told at the end, as a table.

A test says how many nodes each pool has, so they may run in any order, and alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio

from cluster.launch import Cell
from cluster.parts import DrafterPart, TargetGroup
from tests.cluster.conftest import MakeConfig, Returns, listening, running
from tests.cluster.nodes.ray_nodes import SETTINGS, RayNodes
from tests.cluster.streams import Streams
from tests.ports import free_address

NUM_STREAMS = 8
NUM_TOKENS = 200
TOKENS_BETWEEN = 200  # of all streams together: before what happens, and after the cell has recovered
RESTARTS = {"max_restarts": 1000, "first_backoff_s": 0.0}

_ROWS = pytest.StashKey[list[tuple[str, float | None, float]]]()


@dataclass
class CellUnderLoad:
    """A cell with one target and one drafter, and what is asked of it."""

    cell: Cell
    nodes: RayNodes
    has_redis: bool
    streams: Streams
    _returns: Returns
    _rows: list[tuple[str, float | None, float]]
    _since_s: float = 0.0

    @property
    def target(self) -> TargetGroup:
        assert self.cell.target is not None
        return self.cell.target

    @property
    def drafter(self) -> DrafterPart:
        return self.cell.drafters[0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The streams run meanwhile; each of them must have brought what it brings undisturbed."""
        num_answers = self.streams.num_answers
        async with self.streams.running():
            await self.streams.wait_tokens(TOKENS_BETWEEN)
            yield
        assert self.streams.wrong == []
        assert self.streams.num_answers - num_answers >= NUM_STREAMS

    def begin(self) -> None:
        """What is to be recovered from happens now."""
        self.streams.take_longest_pause_s()
        self._since_s = time.monotonic()

    async def recovered(self, what: str, part: str) -> None:
        """Returns when this part has come back, alone, and the streams have brought more."""
        assert await self._returns.next() == part
        await self.went_on(what, time.monotonic() - self._since_s)

    async def went_on(self, what: str, took_s: float | None = None) -> None:
        """Returns when the streams have brought more; nothing else has come back. A row of the table."""
        await self.streams.wait_tokens(TOKENS_BETWEEN)
        assert self._returns.are_all_taken()
        self._rows.append((what, took_s, self.streams.take_longest_pause_s()))


@pytest.fixture(scope="module")
def redis_address() -> Iterator[str | None]:
    """Where Ray's control plane keeps what it knows, so that it can be started anew; None without a Redis here."""
    if shutil.which("redis-server") is None:
        yield None
        return
    address = free_address()
    host, port = address.split(":")
    command = ["redis-server", "--port", port, "--bind", host, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    yield address
    server.kill()
    server.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(redis_address: str | None) -> AsyncIterator[RayNodes]:
    before = set(psutil.Process().children(recursive=True))
    nodes = RayNodes()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SETTINGS.items():
            environment.setenv(name, value)
        if redis_address is not None:
            environment.setenv("RAY_REDIS_ADDRESS", redis_address)
        try:
            await nodes.start()
            yield nodes
        finally:
            await nodes.end()
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    assert psutil.wait_procs(left, timeout=30)[1] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(
    cell_config: MakeConfig, nodes: RayNodes, redis_address: str | None, pytestconfig: pytest.Config
) -> AsyncIterator[CellUnderLoad]:
    for pool in ("target", "draft"):
        await nodes.add(pool)
    async with running(cell_config(restarts=RESTARTS, ray={"address": nodes.address})) as cell:
        streams = Streams(cell.endpoint, NUM_STREAMS, NUM_TOKENS)
        await streams.learn()
        rows = pytestconfig.stash.setdefault(_ROWS, [])
        with listening() as returns:
            yield CellUnderLoad(cell, nodes, redis_address is not None, streams, returns, rows)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        terminalreporter.section(f"times to recover, under {NUM_STREAMS} streams ({machine})")
        terminalreporter.write_line(f"{'what happened':62} {'is back after':>14} {'longest pause':>14}")
        for what, took_s, pause_s in rows:
            took = f"{'–':>14}" if took_s is None else f"{took_s:12.1f} s"
            terminalreporter.write_line(f"{what:62} {took} {pause_s:12.1f} s")
