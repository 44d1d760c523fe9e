"""How likely is a drafted token to be the target's choice? Measured, not believed.

A drafter gives each node a score; what a score is worth is learned from verdicts, by the node's rank among its
siblings. Whoever decides what to draft, or what to verify, keeps a calibration of what it sees.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence

SCORE_BORDERS = (-8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CHANCE_BORDERS = tuple(i / 20 for i in range(1, 20))
MAX_RANK = 7

_PRIOR_WEIGHT = 6.0  # verdicts that the prior counts for
_MAX_KNOWN = 4096  # scores travel in steps, so these are few
_MEMORY = 400.0  # verdicts after which older ones fade: a drafter may change, and so may its texts


class Calibration:
    """Chances by (rank among siblings, score), of one source of nodes."""

    def __init__(self, borders: Sequence[float], prior: Callable[[int, float], float]) -> None:
        """`borders`: of the bins of scores. `prior`: the chance of (rank, score) that is assumed without verdicts."""
        self._borders = borders
        self._prior = prior
        self._counts: dict[tuple[int, int], tuple[float, float]] = {}  # (rank, bin) -> (verdicts, accepted)
        self._known: dict[tuple[int, float], tuple[tuple[int, int], float]] = {}  # (rank, score) -> bin, prior
        self._chances: dict[tuple[int, float], float] = {}  # (rank, score) -> chance, since the last verdict

    def chance(self, rank: int, score: float) -> float:
        """That the node is the choice, if its parent is reached."""
        chance = self._chances.get((rank, score))
        if chance is None:
            chance = self._chance(rank, score)
            if len(self._chances) < _MAX_KNOWN:
                self._chances[rank, score] = chance
        return chance

    def _chance(self, rank: int, score: float) -> float:
        key, prior = self._key_and_prior(rank, score)
        num, accepted = self._counts.get(key, (0.0, 0.0))
        return (accepted + _PRIOR_WEIGHT * prior) / (num + _PRIOR_WEIGHT)

    def learn(self, rank: int, score: float, *, is_accepted: bool) -> None:
        """A verdict on a node whose parent was reached."""
        self._chances.clear()
        key, _ = self._key_and_prior(rank, score)
        num, accepted = self._counts.get(key, (0.0, 0.0))
        fading = 1 - 1 / _MEMORY
        self._counts[key] = num * fading + 1, accepted * fading + is_accepted

    def _key_and_prior(self, rank: int, score: float) -> tuple[tuple[int, int], float]:
        known = self._known.get((rank, score))
        if known is None:
            known = (min(rank, MAX_RANK), bisect(self._borders, score)), self._prior(rank, score)
            if len(self._known) < _MAX_KNOWN:
                self._known[rank, score] = known
        return known


def by_score() -> Calibration:
    """For scores as drafters give them: the gap to the runner-up, or, of other ranks, how far it is behind the best."""
    return Calibration(SCORE_BORDERS, _prior_of_gap)


def by_chance() -> Calibration:
    """For scores that are chances already, if not the right ones."""
    return Calibration(CHANCE_BORDERS, lambda _rank, chance: chance)


def _prior_of_gap(rank: int, gap: float) -> float:
    """Of a fair draft model: measured on Qwen2.5 0.5B and 1.5B, a gap below 0.5 means 0.34, from 2 to 4 0.88."""
    if rank == 0:
        return 1 - 0.75 * math.exp(-0.6 * max(gap, 0.0))
    return 0.3 * math.exp(-0.9 * max(-gap, 0.0)) / rank
