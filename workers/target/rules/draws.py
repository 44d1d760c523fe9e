"""The random decisions of an acceptance rule, which are no part of the rule: tests enumerate them."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from workers.choice.noise import uniform
from workers.target.rules.laws import Array

_STREAM = 2  # 0 is the noise that target and drafters share, 1 that of the drafters' own draws


class Draws(Protocol):
    def accepts(self, probability: float) -> bool:
        """True with this probability, from 0 to 1."""

    def pick(self, weights: Array) -> int:
        """An index with a probability in proportion to its weight; never one of weight 0. [n], one at least > 0."""


class StreamDraws:
    """A function of (seed, committed_len) alone, so a row that is verified again is decided in the same way.

    A committed_len is verified to its end once, and no two use the same numbers.
    """

    def __init__(self, seed: int, committed_len: int) -> None:
        self._seed = seed
        self._committed_len = committed_len
        self._num_drawn = 0

    def accepts(self, probability: float) -> bool:
        return self._uniform() < probability

    def pick(self, weights: Array) -> int:
        cumulative = weights.cumsum()
        index = int(np.searchsorted(cumulative, self._uniform() * cumulative[-1], side="right"))
        # By rounding, the product may be the sum itself.
        return index if index < len(weights) else int(np.flatnonzero(weights)[-1])

    def _uniform(self) -> float:
        self._num_drawn += 1
        return uniform(self._seed, self._committed_len, index=self._num_drawn, stream=_STREAM)
