"""A TCP relay that cuts the wire: each connection is reset when it has carried so many bytes to the client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_CHUNK_BYTES = 1 << 12
_TIMEOUT_S = 60.0


class CuttingRelay:
    """Leads from `address`, its own, to a server. `budgets`: bytes for the next connections, the first one first;
    a connection that finds none is left in peace."""

    def __init__(self, server: str) -> None:
        self.address = ""
        self.budgets: list[int] = []
        self.num_cuts = 0
        self._host, _, self._port = server.rpartition(":")
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections now. From any thread."""
        for task in list(self._tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_writer: asyncio.StreamWriter | None = None
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
            budget = self.budgets.pop(0) if self.budgets else None
            there = asyncio.create_task(_carry(reader, far_writer, None))
            back = asyncio.create_task(_carry(far_reader, writer, budget))
            try:
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                self.num_cuts += back.done() and back.result()
            finally:
                for each in (there, back):
                    each.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        except OSError:
            return  # the server is not there: neither is the connection
        finally:
            for end in (writer, far_writer):
                if end is not None:
                    end.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None) -> bool:
    """True when the budget has been used up, False when an end has closed."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk if budget is None else chunk[:budget])
            await writer.drain()
            if budget is not None:
                budget -= len(chunk)
                if budget <= 0:
                    return True
    except OSError:
        return False
    return False


@contextmanager
def cutting_relay(server: str) -> Iterator[CuttingRelay]:
    """On an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="cutting relay")
    thread.start()
    relay = CuttingRelay(server)
    try:
        asyncio.run_coroutine_threadsafe(relay.start(), loop).result(_TIMEOUT_S)
        yield relay
    finally:
        asyncio.run_coroutine_threadsafe(relay.stop(), loop).result(_TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
