"""What happens when a part of the cell is lost: start it anew, later each time, and not for ever. No Ray here."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable

from cluster.config import RestartSection
from cluster.errors import ClusterError, WorkerFailed

log = logging.getLogger(__name__)


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
        delay_s = min(self._limits.first_backoff_s * 2.0 ** len(self._restarts), self._limits.max_backoff_s)
        self._restarts.append(now_s)
        return delay_s


async def keep_alive(
    part: Part,
    limits: RestartSection,
    on_up: Callable[[], Awaitable[None]],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Start a part that does not serve yet, and again whenever it is lost, until cancelled; `on_up` runs after each.

    Raises WorkerFailed, with the last reason, when the budget of restarts is spent; the part is then killed.
    """
    budget = RestartBudget(limits)
    while True:
        reason: str | None = await part.lost() if part.address else f"{part.name} has not been started yet"
        lost_at_s = clock()
        while reason is not None:
            reason = await _restart(part, budget, clock(), reason)
        log.warning("%s is back on %s after %.1f s", part.name, part.address, clock() - lost_at_s)
        await on_up()


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
