"""How long a modelled forward takes: interpolated between measured points, or from a machine's published limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.events import PassCost
from scheduler.policy.pass_time import PassTime


class Cost(Protocol):
    def seconds(self, num_rows: int, num_tokens: int, context_len: int, num_without: int = 0) -> float:
        """Of one forward: `num_tokens` of all rows, `num_without` of them without logits, each row behind `context_len`
        tokens in the mean."""


class Table:
    """Measured points of one row, with all its logits; several rows add what their contexts cost, and nothing else."""

    def __init__(self, points: Sequence[PassCost], logits_s: float = 0.0) -> None:
        """`logits_s`: what a token's logits take."""
        self._times = PassTime(points)
        self._logits_s = logits_s

    def seconds(self, num_rows: int, num_tokens: int, context_len: int, num_without: int = 0) -> float:
        least = self._times.seconds(1, context_len)
        one = max(self._times.seconds(num_tokens, context_len) - num_without * self._logits_s, least)
        behind = least - self._times.seconds(1, 0)
        return one + max(behind, 0.0) * (num_rows - 1)


@dataclass(frozen=True, slots=True)
class Roofline:
    """Reading weights and KV, or arithmetic: whichever takes longer, and what every forward costs on top."""

    weight_bytes: float  # read by each forward
    kv_bytes_per_token: float
    bytes_per_s: float  # that are really reached, all devices together
    flops_per_token: float
    flops_per_s: float  # that are really reached
    overhead_s: float  # launches, all-reduces, choosing

    def seconds(self, num_rows: int, num_tokens: int, context_len: int, num_without: int = 0) -> float:
        """Logits are a small part of a large model's work: they are not told apart."""
        read = self.weight_bytes + num_rows * context_len * self.kv_bytes_per_token
        return self.overhead_s + max(read / self.bytes_per_s, num_tokens * self.flops_per_token / self.flops_per_s)


def profile_of(cost: Cost, max_tokens: int, contexts: Sequence[int]) -> list[PassCost]:
    """What a target with this cost would measure of itself when it starts: one row, sizes that double."""
    sizes = [1 << i for i in range(max_tokens.bit_length()) if 1 << i <= max_tokens]
    return [PassCost(n, context, cost.seconds(1, n, context)) for context in contexts for n in sizes]
