"""A TCP relay that holds every byte back: a longer wire, for links on one machine."""

from __future__ import annotations

import asyncio
from types import TracebackType

_CHUNK_BYTES = 1 << 16
_MAX_CHUNKS = 1024  # on the wire


class Relay:
    """Entered, it gives the address that leads to `address`. `delay_s` may change at any time; order is kept."""

    def __init__(self, address: str) -> None:
        self.delay_s = 0.0
        self._host, _, self._port = address.rpartition(":")
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        for ends in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._carry(*ends))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_CHUNKS)
        deliver = asyncio.create_task(_deliver(wire, writer))
        try:
            now = asyncio.get_running_loop().time
            while chunk := await reader.read(_CHUNK_BYTES):
                await wire.put((now() + self.delay_s, chunk))
            await wire.put((now() + self.delay_s, b""))
            await deliver
        finally:
            deliver.cancel()
            writer.close()


async def _deliver(wire: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    while True:
        due_s, chunk = await wire.get()
        remaining_s = due_s - asyncio.get_running_loop().time()
        if remaining_s > 0:
            await asyncio.sleep(remaining_s)
        if not chunk:
            return
        writer.write(chunk)
        await writer.drain()
