"""Virtual time: what happens next, and when. Nothing here takes a second of real time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

Action = Callable[[], None]


class Agenda:
    """Actions by their time; those of one time in the order in which they were put down."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._order = count()
        self._entries: list[tuple[float, int, Action]] = []

    def at(self, time_s: float, action: Action) -> None:
        """What should have happened already happens now."""
        heappush(self._entries, (max(time_s, self.now_s), next(self._order), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now_s + delay_s, action)

    @property
    def next_s(self) -> float | None:
        """When the next action is due; None: there is none."""
        return self._entries[0][0] if self._entries else None

    def step(self) -> bool:
        """Move to the next action and do it. False: nothing will ever happen again."""
        if not self._entries:
            return False
        self.now_s, _, action = heappop(self._entries)
        action()
        return True
