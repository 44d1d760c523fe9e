"""Parts of one kind whose number changes, the drafters of one [[drafters]] section or the target groups: started when
more are wanted, drained and then let go when fewer are.

Each is kept alive by a task of its own; that of one which goes ends first, so that nothing starts it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cluster.parts import ActorPart
from cluster.scaling_decision import PoolState

AnyPart = TypeVar("AnyPart", bound=ActorPart)
Steps = Coroutine[Any, Any, None]


@dataclass(frozen=True)
class Crew(Generic[AnyPart]):
    """What a pool has its cell do."""

    new: Callable[[int], AnyPart]  # the first, the second, …: the cell knows it from now on; it is not started
    keep: Callable[[AnyPart], Steps]  # start it, and again whenever it is lost; returns when it is given up
    let_go: Callable[[AnyPart], Steps]  # drain it, and end it; the cell knows it no more


class Pool(Generic[AnyPart]):
    def __init__(self, name: str, crew: Crew[AnyPart], clock: Callable[[], float]) -> None:
        self.name = name
        self._crew = crew
        self._clock = clock
        self._wanted: list[AnyPart] = []  # the oldest first
        self._missing_since_s: dict[AnyPart, float] = {}  # those of them that do not serve
        self._keepers: dict[AnyPart, asyncio.Task[None]] = {}
        self._num_made = 0
        self._changed_s = clock()
        self.num_draining = 0

    def adopt(self, parts: list[AnyPart], tasks: asyncio.TaskGroup) -> None:
        """Keep these, which are there; and whatever the pool does runs in `tasks`."""
        self._tasks = tasks
        self._num_made = len(parts)
        for part in parts:
            self._watch(part)

    def now_s(self) -> float:
        return self._clock()

    @property
    def num_wanted(self) -> int:
        return len(self._wanted)

    @property
    def num_present(self) -> int:
        return sum(part.address is not None for part in self._wanted)

    def look(self) -> PoolState:
        """As it is now. What is found missing counts as starting from then on."""
        missing = [part for part in self._wanted if part.address is None]
        self._missing_since_s = {part: self._missing_since_s.get(part, self._clock()) for part in missing}
        return PoolState(len(self._wanted), tuple(self._missing_since_s.values()), self._changed_s)

    def scale_to(self, number: int) -> None:
        """Returns at once; what starts, or drains, takes its time."""
        self._changed_s = self._clock()
        while len(self._wanted) < number:
            self._num_made += 1
            self._watch(self._crew.new(self._num_made))
        while len(self._wanted) > number:
            part = min(reversed(self._wanted), key=self._how_missed)
            self._wanted.remove(part)
            self._missing_since_s.pop(part, None)
            self.num_draining += 1
            self._tasks.create_task(self._retire(part))

    def _how_missed(self, part: AnyPart) -> tuple[int, float]:
        """One that is given up, or has not come yet, is missed by nobody, least of all the one that has tried longest;
        of the others the newest has fewest requests."""
        if part.address is not None:
            return 2, 0.0
        return 0 if self._keepers[part].done() else 1, self._missing_since_s.get(part, self._clock())

    def _watch(self, part: AnyPart) -> None:
        self._wanted.append(part)
        if part.address is None:
            self._missing_since_s[part] = self._clock()
        self._keepers[part] = self._tasks.create_task(self._crew.keep(part))

    async def _retire(self, part: AnyPart) -> None:
        try:
            keeper = self._keepers.pop(part)
            keeper.cancel()
            await asyncio.wait([keeper])
            await self._crew.let_go(part)
        finally:
            self.num_draining -= 1
