"""How many free blocks the rows of a pass take together.

A block that some rows would write into, and may not, is left by each of them for a copy of its own. With k such rows
that costs k blocks; if nobody else holds it, it costs one less: the block itself becomes free, or serves the last one.

    block 7 is held by 3, left by 2   costs 2
    block 7 is held by 2, left by 2   costs 1
    block 7 is held by 1, left by 1   costs 0    (a registered block: its copy costs one, and it becomes evictable)

So a row's share depends on the other rows, and on who adopts the block before the pass runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workers.engine.block_pool import BlockPool


@dataclass(frozen=True, slots=True)
class Growth:
    """What one request needs to write a row."""

    num_new: int  # blocks behind those that it has; negative where dropped nodes give back more
    left: int | None  # the block that it would have to write into and may not


class Demand:
    """The sum over rows, exact whenever it is asked: also after requests have adopted or given back blocks."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._num_new = 0
        self._num_leaving: Counter[int] = Counter()  # by block; never 0

    @property
    def num_blocks(self) -> int:
        ref_count = self._pool.ref_count
        return self._num_new + sum(rows - (rows == ref_count(block)) for block, rows in self._num_leaving.items())

    @property
    def is_met(self) -> bool:
        return self.num_blocks <= self._pool.num_free

    def add(self, growth: Growth) -> None:
        self._num_new += growth.num_new
        if growth.left is not None:
            self._num_leaving[growth.left] += 1

    def remove(self, growth: Growth) -> None:
        """Take back an `add`."""
        self._num_new -= growth.num_new
        if growth.left is not None:
            self._num_leaving -= Counter([growth.left])  # drops what falls to 0
