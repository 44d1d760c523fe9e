"""A TCP relay that holds every byte back: a longer wire, for links on one machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType

_CHUNK_BYTES = 1 << 16
_MAX_CHUNKS = 1024  # on the wire


class Relay:
    """Entered, it gives the address that leads to `address`. `delay_s` may change at any time; order is kept.

    A process of its own, whose threads block: an event loop counts in milliseconds, and is busy with other things.
    """

    def __init__(self, address: str, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._delay_s: Synchronized[float] = context.Value("d", 0.0)
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(address, core, self._delay_s, theirs), daemon=True)

    @property
    def delay_s(self) -> float:
        return self._delay_s.value

    @delay_s.setter
    def delay_s(self, delay_s: float) -> None:
        self._delay_s.value = delay_s

    def __enter__(self) -> str:
        self._process.start()
        address: str = self._mine.recv()
        return address

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _serve(address: str, core: int, delay_s: Synchronized[float], pipe: Connection) -> None:
    os.sched_setaffinity(0, {core})
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(f"127.0.0.1:{server.getsockname()[1]}")
        while True:
            near, _ = server.accept()
            far = socket.create_connection((host, int(port)))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire: queue.Queue[tuple[float, bytes]] = queue.Queue(_MAX_CHUNKS)
                threading.Thread(target=_take, args=(one, wire, delay_s), daemon=True).start()
                threading.Thread(target=_deliver, args=(wire, other), daemon=True).start()


def _take(source: socket.socket, wire: queue.Queue[tuple[float, bytes]], delay_s: Synchronized[float]) -> None:
    chunk = b"begun"
    while chunk:
        try:
            chunk = source.recv(_CHUNK_BYTES)
        except ConnectionError:
            chunk = b""
        wire.put((time.perf_counter() + delay_s.value, chunk))


def _deliver(wire: queue.Queue[tuple[float, bytes]], destination: socket.socket) -> None:
    """Until the other end has closed; what comes after this end has is lost."""
    while True:
        due_s, chunk = wire.get()
        time.sleep(max(due_s - time.perf_counter(), 0.0))
        try:
            if not chunk:
                destination.shutdown(socket.SHUT_WR)
                return
            destination.sendall(chunk)
        except OSError:
            return
