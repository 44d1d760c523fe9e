"""How well a modelled drafter guesses: acceptance by rank and depth, and how much its scores tell of it.

Whether a guess is right is a function of the text that it follows, and of the drafter: two runs over the same requests
meet the same hits and misses, whatever decides what is drafted and verified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.simulation.law import Law, draw_uniform

_MAX_SCORE = 16.0
_LEAST, _MOST = 0.02, 0.98  # of a modelled confidence: no drafter is ever sure


@dataclass(frozen=True, slots=True)
class Guess:
    """A child that the drafter proposes."""

    token: int
    score: float  # as drafters give it: the gap to the runner-up, or how far it is behind the best
    chance: float  # that it is right, as the drafter believes


@dataclass(frozen=True, slots=True)
class GuessModel:
    acceptance: Sequence[float]  # by rank among siblings: how often it is the target's choice, in the mean
    by_depth: float = 1.0  # of the first rank's acceptance: a factor for each token after the root
    sharpness: float = 0.0  # how much places differ: 0, all are alike; 1, the drafter nearly knows where it is right
    salt: int = 1  # drafters with different ones are right in different places

    def guesses(self, law: Law, state: int, depth: int) -> list[Guess]:
        """After a text with this fold, the likeliest first; depth 1 is right behind the root."""
        first = self._first_chance(state, depth)
        chances = [first, *self._others(first)]
        draw, right_rank = draw_uniform(state, 2 * self.salt), None
        for rank, chance in enumerate(chances):
            draw -= chance
            if draw < 0:
                right_rank = rank
                break
        choice = law.choice(state)
        gap = _gap_of(first)
        return [
            Guess(
                token=choice if rank == right_rank else (choice + 1 + rank) % law.vocab_size,
                score=-gap - 0.5 * rank if rank else gap,
                chance=chance,
            )
            for rank, chance in enumerate(chances)
        ]

    def _first_chance(self, state: int, depth: int) -> float:
        """Confidence is u^k with u uniform, whose mean is 1 / (k + 1)."""
        mean = min(max(self.acceptance[0] * self.by_depth ** (depth - 1), _LEAST), _MOST)
        if not self.sharpness:
            return mean
        drawn: float = draw_uniform(state, 2 * self.salt + 1) ** ((1 - mean) / mean)
        return min(max((1 - self.sharpness) * mean + self.sharpness * drawn, _LEAST), _MOST)

    def _others(self, first: float) -> list[float]:
        """What is left is shared among the other ranks as it is in the mean."""
        left = (1 - first) / (1 - self.acceptance[0]) if self.acceptance[0] < 1 else 0.0
        return [share * left for share in self.acceptance[1:]]


def _gap_of(chance: float) -> float:
    """The score that a fair draft model would give (outrider/calibration.py)."""
    return min(max(-math.log((1 - chance) / 0.75) / 0.6, 0.0), _MAX_SCORE)
