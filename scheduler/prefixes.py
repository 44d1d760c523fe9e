"""What a target group has computed, as far as the scheduler remembers. Part of the core: no I/O.

The group's own prefix cache evicts as it must, and says nothing of it: a prefix that is remembered here and gone there
is computed again, and that is all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import takewhile

MAX_BLOCKS = 1 << 16  # that are remembered of one group, however many it has


class Prefixes:
    """Blocks of tokens by the chained hash of all tokens up to their end, those of late: as many as the group holds."""

    def __init__(self, block_size: int, num_kv_blocks: int) -> None:
        self._block_size = block_size
        self._most = min(num_kv_blocks, MAX_BLOCKS)
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._blocks)

    def note(self, tokens: Sequence[int]) -> None:
        """These have been computed. A text's first blocks are forgotten last: those behind them are of no use alone."""
        for block in reversed([*self._hashes(tokens)]):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def num_known(self, tokens: Sequence[int]) -> int:
        """So many tokens, from the first on, should be found there."""
        return self._block_size * sum(1 for _ in takewhile(self._blocks.__contains__, self._hashes(tokens)))

    def _hashes(self, tokens: Sequence[int]) -> Iterator[int]:
        """Of the blocks that are full. Two texts with one hash would be a prefix that is not found, and no more."""
        before = 0
        for end in range(self._block_size, len(tokens) + 1, self._block_size):
            before = hash((before, *tokens[end - self._block_size : end]))
            yield before
