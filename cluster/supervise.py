"""What happens when a part of the cell is lost: start it anew, later each time, and not for ever. And when a machine
of it is going away: start it anew elsewhere before it is lost. No Ray here."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

from cluster.config import RestartSection
from cluster.errors import ClusterError, WorkerFailed

log = logging.getLogger(__name__)

_MOST_DOUBLINGS = 1023  # of 1.0 that are a float
_GRACE_S = 1.0  # for the old life of a part that has moved: nobody sends to it any more


class Part(ABC):
    """What is started, lost and restarted as one: the scheduler, a drafter, or all ranks of a target group."""

    name: str
    address: str | None = None  # where it serves; None while it does not

    @abstractmethod
    async def start(self) -> None:
        """Serve on `address`, healthy. Raises ClusterError; then `kill` cleans up."""

    @abstractmethod
    async def lost(self) -> str:
        """Returns, with the reason, once a started part no longer serves."""

    @abstractmethod
    async def stop(self, grace_s: float) -> None:
        """End in an orderly way, within about `grace_s`. A part that is not up has nothing to do."""

    @abstractmethod
    def kill(self) -> None:
        """End at once, whatever it is doing: all its processes, and `address` is None. May be called again."""

    @abstractmethod
    async def leaving(self) -> None:
        """Returns once a machine that the part runs on is going away."""

    @abstractmethod
    def successor(self) -> Self:
        """The same part, not started, in a place of its own."""

    @abstractmethod
    def change_places(self, other: Self) -> None:
        """Go on with the processes and the address of `other`, which gets this one's."""

    @abstractmethod
    def release(self) -> None:
        """Give back the place of a killed part. Where it is started again, it takes another."""


class RestartBudget:
    """How often a part may still be restarted, and how soon."""

    def __init__(self, limits: RestartSection) -> None:
        self._limits = limits
        self._restarts: deque[float] = deque()

    def next_delay_s(self, now_s: float) -> float | None:
        """Counts one more restart and says how long to wait before it; None when the budget is spent."""
        while self._restarts and self._restarts[0] <= now_s - self._limits.window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._limits.max_restarts:
            return None
        factor = 2.0 ** min(len(self._restarts), _MOST_DOUBLINGS)
        delay_s = min(self._limits.first_backoff_s * factor, self._limits.max_backoff_s)
        self._restarts.append(now_s)
        return delay_s


OnUp = Callable[[], Awaitable[None]]
HandOver = Callable[[Part], Awaitable[None]]  # given the old life of a part that has moved; it ends afterwards


async def keep_alive(
    part: Part,
    limits: RestartSection,
    on_up: OnUp,
    hand_over: HandOver,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Start a part that does not serve yet, and again whenever it is lost, until cancelled; `on_up` runs after each.
    It is moved while it serves where its machine is going away; then `hand_over` runs.

    Raises WorkerFailed, with the last reason, when the budget of restarts is spent; the part is then killed.
    """
    budget = RestartBudget(limits)
    while True:
        not_yet = f"{part.name} has not been started yet"
        reason: str | None = await _while_up(part, hand_over) if part.address else not_yet
        lost_at_s = clock()
        while reason is not None:
            reason = await _restart(part, budget, clock(), reason)
        log.warning("%s is back on %s after %.1f s", part.name, part.address, clock() - lost_at_s)
        await on_up()


async def _while_up(part: Part, hand_over: HandOver) -> str:
    """Returns why the part is lost, once it is. Until then it moves whenever a machine of it is going away."""
    while True:
        lost, leaving = asyncio.ensure_future(part.lost()), asyncio.ensure_future(part.leaving())
        try:
            await asyncio.wait([lost, leaving], return_when=asyncio.FIRST_COMPLETED)
            if lost.done() or not await _move(part, lost, hand_over):
                return await lost
        finally:
            lost.cancel()
            leaving.cancel()


async def _move(part: Part, lost: asyncio.Future[str], hand_over: HandOver) -> bool:
    """Start the part anew elsewhere, hand over, and end its old life; until then it serves where it is, if it can.

    Where there is no room it waits for some. False when the new start failed.
    """
    log.warning("a machine of %s is going away: starting it on another", part.name)
    other, is_moved = part.successor(), False
    try:
        await _start_beside(part, other, lost)
        part.change_places(other)
        is_moved = True
        log.warning("%s has moved to %s", part.name, part.address)
        await hand_over(other)
        await other.stop(_GRACE_S)
    except ClusterError as error:
        log.warning("moving %s: %s", part.name, error.message)
    finally:
        other.kill()
        other.release()
    return is_moved


async def _start_beside(part: Part, other: Part, lost: asyncio.Future[str]) -> None:
    """Returns when `other` serves; `part` is killed if it is lost before that."""
    start = asyncio.create_task(other.start())
    either: list[asyncio.Future[Any]] = [start, lost]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            log.warning(lost.result())
            part.kill()
            part.release()  # else its old place and that of `other` would wait for the same room
        await start
    finally:
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)


async def _restart(part: Part, budget: RestartBudget, now_s: float, reason: str) -> str | None:
    """One attempt; returns why it failed, or None."""
    part.kill()
    delay_s = budget.next_delay_s(now_s)
    if delay_s is None:
        raise WorkerFailed(f"{part.name} is given up, its restarts are used up. {reason}")
    log.warning("%s\nStarting %s in %.1f s", reason, part.name, delay_s)
    await asyncio.sleep(delay_s)
    try:
        await part.start()
    except ClusterError as error:
        return error.message
    return None
