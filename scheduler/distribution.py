"""Counts of values by size: what Prometheus calls a histogram, without a lock, since one event loop fills it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import inf


class Distribution:
    """`bounds`: ascending; a value counts at the first one that is not below it, and at infinity beyond them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.sum = 0.0
        self._bounds = (*bounds, inf)
        self._counts = [0] * len(self._bounds)

    def add(self, value: float, times: int = 1) -> None:
        self.sum += value * times
        self._counts[bisect_left(self._bounds, value)] += times

    def cumulative(self) -> list[tuple[str, float]]:
        """How many values are not above each bound, with the bound as Prometheus writes it."""
        names = ["+Inf" if bound == inf else str(float(bound)) for bound in self._bounds]
        return [(name, float(count)) for name, count in zip(names, accumulate(self._counts), strict=True)]
