"""How long a pass takes, V(num_tokens): the target's profile, corrected by every pass that it runs.

What is learned is the logarithm of measured time by profiled time, in bins of the number of tokens that double. A
number's correction is the mean of all bins, those near it most: so one bin that was never measured does not stand out
from its neighbours, and a machine that is slower in all is known after a few passes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.events import PassCost

_NUM_BINS = 17
_POINTS_BY_DOUBLING = 12  # at which V is computed; lines lie between
_BINS = np.arange(_NUM_BINS, dtype=np.float64)
_MEMORY = 30.0  # passes after which older ones fade
_PRIOR_WEIGHT = 0.02  # passes that the profile itself counts for
_MAX_RATIO = 2.0  # one pass counts as no further off than this: it may have met something else, a compiler, say
_UNKNOWN = (PassCost(1, 0, 0.020), PassCost(64, 0, 0.060))  # for a target that was not profiled; soon corrected


class PassTime:
    """Seconds of a pass by its tokens and the context behind them."""

    def __init__(self, costs: Sequence[PassCost]) -> None:
        curves: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for cost in costs or _UNKNOWN:
            curves[cost.context_len][cost.num_tokens] = cost.pass_s
        self._contexts = sorted(curves)
        self._points = [
            (np.array(sorted(curves[c])), np.array([s for _, s in sorted(curves[c].items())])) for c in self._contexts
        ]
        self._weights = np.zeros(_NUM_BINS)
        self._logs = np.zeros(_NUM_BINS)  # mean of log(measured / profiled), by bin
        doublings = np.arange(_NUM_BINS * _POINTS_BY_DOUBLING) / _POINTS_BY_DOUBLING
        known = [sizes for sizes, _ in self._points]
        self._sizes = np.unique(np.concatenate([np.rint(2**doublings).astype(np.int64), *known]))
        self._nearness = _nearness(np.log2(self._sizes))
        self._corrections = self._correction(self._nearness)  # at the sizes

    def curve(self, max_tokens: int, context_len: int) -> NDArray[np.float64]:
        """V(n) for n = 0 … max_tokens, [max_tokens + 1] in seconds; never falling, and V(0) is V(1)."""
        num = min(int(np.searchsorted(self._sizes, max_tokens)) + 1, len(self._sizes))
        sizes = self._sizes[:num]
        seconds = np.maximum.accumulate(self._profiled(sizes, context_len) * self._corrections[:num])
        return _line(np.arange(max_tokens + 1), sizes, seconds)

    def seconds(self, num_tokens: int, context_len: int) -> float:
        sizes = np.array([max(num_tokens, 1)])
        return float((self._profiled(sizes, context_len) * self._correction(_nearness(np.log2(sizes))))[0])

    def never_falling(self, num_tokens: int, context_len: int) -> float:
        """Seconds that are no less than those of fewer tokens."""
        fewer = int(np.searchsorted(self._sizes, num_tokens))
        most = (self._profiled(self._sizes[:fewer], context_len) * self._corrections[:fewer]).max(initial=0.0)
        return max(float(most), self.seconds(num_tokens, context_len))

    def at_best(self, num_tokens: int, context_len: int) -> float:
        """Seconds by the profile, or as corrected: whichever is less."""
        return min(float(self._profiled(np.array([num_tokens]), context_len)[0]), self.seconds(num_tokens, context_len))

    def learn(self, num_tokens: int, context_len: int, seconds: float) -> None:
        sizes = np.array([max(num_tokens, 1)])
        expected = self.seconds(num_tokens, context_len)
        if self._weights.any():
            seconds = min(max(seconds, expected / _MAX_RATIO), expected * _MAX_RATIO)
        ratio = seconds / float(self._profiled(sizes, context_len)[0])
        where = min(round(math.log2(sizes[0])), _NUM_BINS - 1)
        self._weights *= 1 - 1 / _MEMORY
        weight = self._weights[where]
        self._logs[where] = (self._logs[where] * weight + math.log(ratio)) / (weight + 1)
        self._weights[where] = weight + 1
        self._corrections = self._correction(self._nearness)

    def _profiled(self, sizes: NDArray[np.int64], context_len: int) -> NDArray[np.float64]:
        """Linear between the measured points, and beyond the last ones as steep as before them; of contexts below the
        first one too."""
        curves = [_line(sizes, *points) for points in self._points]
        if len(curves) == 1:
            return curves[0]
        above = min(max(1, int(np.searchsorted(self._contexts, context_len))), len(curves) - 1)
        low, high = self._contexts[above - 1], self._contexts[above]
        share = (context_len - low) / (high - low)
        mixed: NDArray[np.float64] = curves[above - 1] + share * (curves[above] - curves[above - 1])
        return np.maximum(mixed, 0.1 * curves[0])

    def _correction(self, nearness: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of numbers of tokens that are so near to the bins."""
        near = self._weights * nearness
        corrected: NDArray[np.float64] = np.exp((near @ self._logs) / (near.sum(1) + _PRIOR_WEIGHT))
        return corrected


def _nearness(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of log2 of numbers of tokens to each bin, [len(places), _NUM_BINS]."""
    near: NDArray[np.float64] = 1 / (1 + (places[:, None] - _BINS) ** 2) ** 2
    return near


def _line(sizes: NDArray[np.int64], known: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.interp(sizes, known, seconds)
    if len(known) == 1:
        return inside
    slope = max((seconds[-1] - seconds[-2]) / (known[-1] - known[-2]), 0.0)
    extended: NDArray[np.float64] = inside + slope * np.maximum(sizes - known[-1], 0)
    return extended
