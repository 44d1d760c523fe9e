"""The drafters of one [[drafters]] section: added when more are wanted, drained and then let go when fewer are.

Each is kept alive by a task of its own; that of one which goes ends first, so that nothing starts it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from cluster.config import DrafterSection
from cluster.parts import DrafterPart
from cluster.scaling_decision import PoolState

Steps = Coroutine[Any, Any, None]


@dataclass(frozen=True)
class Crew:
    """What a pool has its cell do."""

    new_drafter: Callable[[DrafterSection, int], DrafterPart]  # that the cell knows from now on; it is not started
    keep: Callable[[DrafterPart], Steps]  # start it, and again whenever it is lost; returns when it is given up
    let_go: Callable[[DrafterPart], Steps]  # drain it, and end it; the cell knows it no more


class DrafterPool:
    def __init__(self, section: DrafterSection, crew: Crew, clock: Callable[[], float]) -> None:
        self.section = section
        self._crew = crew
        self._clock = clock
        self._wanted: list[DrafterPart] = []  # the oldest first
        self._wanted_since_s: dict[DrafterPart, float] = {}
        self._keepers: dict[DrafterPart, asyncio.Task[None]] = {}
        self._num_made = 0
        self._changed_s = clock()
        self.num_draining = 0

    def adopt(self, parts: list[DrafterPart], tasks: asyncio.TaskGroup) -> None:
        """Keep these, which are there; and whatever the pool does runs in `tasks`."""
        self._tasks = tasks
        self._num_made = len(parts)
        for part in parts:
            self._watch(part)

    def now_s(self) -> float:
        return self._clock()

    @property
    def num_present(self) -> int:
        return sum(part.address is not None for part in self._wanted)

    @property
    def state(self) -> PoolState:
        starting = [self._wanted_since_s[part] for part in self._wanted if part.address is None]
        return PoolState(len(self._wanted), len(starting), min(starting, default=0.0), self._changed_s)

    def scale_to(self, number: int) -> None:
        """Returns at once; what starts, or drains, takes its time."""
        self._changed_s = self._clock()
        while len(self._wanted) < number:
            self._num_made += 1
            self._watch(self._crew.new_drafter(self.section, self._num_made))
        while len(self._wanted) > number:
            # One that has not come yet is missed by nobody; of the others the newest has fewest requests.
            newest_first = self._wanted[::-1]
            part = next((part for part in newest_first if part.address is None), newest_first[0])
            self._wanted.remove(part)
            del self._wanted_since_s[part]
            self._tasks.create_task(self._retire(part))

    def _watch(self, part: DrafterPart) -> None:
        self._wanted.append(part)
        self._wanted_since_s[part] = self._clock()
        self._keepers[part] = self._tasks.create_task(self._crew.keep(part))

    async def _retire(self, part: DrafterPart) -> None:
        self.num_draining += 1
        try:
            keeper = self._keepers.pop(part)
            keeper.cancel()
            await asyncio.wait([keeper])
            await self._crew.let_go(part)
        finally:
            self.num_draining -= 1
