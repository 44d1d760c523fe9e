"""The one thread that touches an engine, seen from asyncio.

Jobs run one at a time, in the order in which they were given. An engine's jobs never fail in part: whatever a
job raises ends the thread's work, fails all that waits for it, and is what `wait_failed` raises, so that whoever
supervises the server learns of it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from outrider.errors import ServerUnavailable

_log = logging.getLogger(__name__)
T = TypeVar("T")


class EngineFailed(ServerUnavailable):
    """The engine has failed before, or is stopping; it takes no more jobs."""


class EngineThread:
    """Made and used on one event loop. A daemon: a job that hangs, in a collective say, doesn't keep the process."""

    def __init__(self, name: str) -> None:
        self.failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        # Without a bound here: each giver waits for its results, or gives what a stream has opened back.
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_over = asyncio.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """The result of a job to come. A job that nobody waits for any more is still carried out."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._is_closed or self.failure is not None:
            future.set_exception(EngineFailed(self._reason()))
        else:
            self._jobs.put(partial(self._run, job, future))
        return future

    async def run(self, job: Callable[[], T]) -> T:
        return await self.submit(job)

    def post(self, job: Callable[[], None]) -> None:
        """A job whose end nobody waits for. Nothing where the engine is gone: it holds nothing any more."""
        if not (self._is_closed or self.failure is not None):
            self._jobs.put(partial(self._run, job, None))

    async def wait_failed(self) -> None:
        """Returns when the thread is closed; raises what a job raised, as soon as it does."""
        await self._is_over.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self, timeout_s: float = 10.0) -> None:
        """Let the jobs given so far end, then the thread. Harmless when it has ended."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():
            _log.error("%s still has not ended after %.0f s; it is left behind", self._thread.name, timeout_s)
        self._is_over.set()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run(self, job: Callable[[], T], future: asyncio.Future[T] | None) -> None:
        if self.failure is not None:
            self._loop.call_soon_threadsafe(_fail, future, EngineFailed(self._reason()))
            return
        try:
            result = job()
        except BaseException as err:  # noqa: BLE001 - it ends the server, through wait_failed
            self.failure = err
            self._loop.call_soon_threadsafe(self._is_over.set)
            self._loop.call_soon_threadsafe(_fail, future, err)
        else:
            self._loop.call_soon_threadsafe(_resolve, future, result)

    def _reason(self) -> str:
        return f"{self._thread.name} is stopping" if self.failure is None else f"{self._thread.name}: {self.failure}"


def _resolve(future: asyncio.Future[T] | None, result: T) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T] | None, error: BaseException) -> None:
    if future is not None and not future.done():
        future.set_exception(error)


async def wait_any_failed(threads: Iterable[EngineThread]) -> None:
    """Returns when all are closed; raises what a job on one of them raised, as soon as it does."""
    waits = [asyncio.create_task(thread.wait_failed()) for thread in threads]
    try:
        for wait in asyncio.as_completed(waits):
            await wait
    finally:
        for task in waits:
            task.cancel()
