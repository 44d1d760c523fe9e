"""Real cells of a tiny model: Ray, actor processes, gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.config import CellConfig, load_config
from cluster.launch import Cell
from tests.tiny import save_tiny_llama

TIMEOUT_S = 120.0  # of one step of a cell; minutes only where the machine is very busy

MakeConfig = Callable[..., CellConfig]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("cell") / "tiny", max_context=2048)


@pytest.fixture(scope="session")
def cell_config(tiny_model: Path) -> MakeConfig:
    """Makes the config of a cell that starts fast: the tiny model in float32, one thread, a free port."""

    def make(**sections: Any) -> CellConfig:
        target = {
            "model": str(tiny_model),
            "dtype": "float32",
            "threads": 1,
            "kv_cache_bytes": 1 << 24,
            "compiled": False,
            "profile_s": 0,
        }
        scheduler = {"listen": "127.0.0.1:0"} | sections.pop("scheduler", {})
        flags = {"target": target | sections.pop("target", {}), "scheduler": scheduler, **sections}
        return load_config(None, flags)

    return make


@asynccontextmanager
async def running(config: CellConfig) -> AsyncIterator[Cell]:
    cell = Cell(config)
    async with asyncio.timeout(TIMEOUT_S):
        await cell.start()
    try:
        yield cell
    finally:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await cell.stop(at_once=True)
        finally:
            _disconnect()


def _disconnect() -> None:
    """Where a cell did not stop, only its own test is to fail: a process has one connection to Ray."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


class Returns(logging.Handler):
    """The parts that came back after a loss, or have moved, as the supervisor logs them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._names: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        if ("is back" in record.msg or "has moved" in record.msg) and isinstance(record.args, tuple):
            self._names.put_nowait(str(record.args[0]))

    async def next(self) -> str:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._names.get()

    def are_all_taken(self) -> bool:
        return self._names.empty()


@contextmanager
def listening() -> Iterator[Returns]:
    handler = Returns()
    logging.getLogger("cluster.supervise").addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger("cluster.supervise").removeHandler(handler)


@pytest.fixture
def returns() -> Iterator[Returns]:
    with listening() as handler:
        yield handler
