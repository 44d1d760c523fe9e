"""How busy a thread is."""

from __future__ import annotations

import time
from collections.abc import Callable


class BusyShare:
    """Of the thread that asks."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, computed: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._computed = clock, computed
        self._last = clock(), computed()

    def since_last(self) -> float:
        """The share of the time since the last call in which it was computing."""
        last, self._last = self._last, (self._clock(), self._computed())
        elapsed_s = self._last[0] - last[0]
        return (self._last[1] - last[1]) / elapsed_s if elapsed_s > 0 else 0.0
