"""KV blocks by number: which are free, who shares which, and which can be found again by what they hold.

A block is counted by the requests that hold it, and registered once it is full of committed tokens:

                   not registered           registered
    count 0        free: taken first        evictable: found by its hash until it is taken, the longest unused first
    count 1        its holder may write     nobody may write: the hash promises the content
    count 2 ..     nobody may write: the others read it

A hash stands for all tokens up to the end of its block, since KV depends on all of them: it is that of the
block's token ids, chained to the hash of the block before. So a block can be found though its predecessor has been
evicted and computed anew elsewhere. The registered blocks are the prefix cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from outrider.packing import pack_i32

NO_HASH = b""  # what the first block of a request is chained to


def chained_hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """Of one full block: the same in every process, and beyond anybody's means to forge."""
    return blake2b(before + pack_i32(tokens), digest_size=32).digest()


class BlockPool:
    """Reference counts and hashes of `num_blocks` blocks. Content and tokens are its owner's affair."""

    def __init__(self, num_blocks: int) -> None:
        self._ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # the lowest number is taken first
        self._evictable: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `take` can give: those that nobody holds, registered or not."""
        return len(self._free) + len(self._evictable)

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def is_writable(self, block: int) -> bool:
        """Whether a holder may write into it: nobody else reads it, and no hash promises what it holds."""
        return self._ref_counts[block] == 1 and block not in self._hash_of

    def is_kept(self, block: int) -> bool:
        """Whether its content can still be read by somebody, now or later."""
        return self._ref_counts[block] > 0 or block in self._hash_of

    def take(self) -> int:
        """A block to write into. The caller has made sure that there is one."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holds it. It is held already, or registered."""
        self._evictable.pop(block, None)
        self._ref_counts[block] += 1

    def release(self, block: int) -> None:
        """One less holds it. Of a request's blocks the last one goes first: heads serve more requests than tails."""
        self._ref_counts[block] -= 1
        if self._ref_counts[block] > 0:
            return
        if block in self._hash_of:
            self._evictable[block] = None
        else:
            self._free.append(block)

    def register(self, block: int, block_hash: bytes) -> None:
        """Let a held block be found. One that another block bears already stays where it is: both hold the same."""
        assert self._ref_counts[block] > 0, block
        assert block not in self._hash_of, block
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def unregister(self, block: int) -> None:
        """Let a held block be found no more: what it holds is not what its hash promises."""
        assert self._ref_counts[block] > 0, block
        if block in self._hash_of:
            del self._block_of[self._hash_of.pop(block)]

    def find(self, block_hash: bytes) -> int | None:
        return self._block_of.get(block_hash)

    def hash_of(self, block: int) -> bytes | None:
        """The hash that the block is registered under."""
        return self._hash_of.get(block)

    def check_integrity(self, held: Sequence[int]) -> None:
        """Raises AssertionError unless `held`, by block how often requests hold it, agrees with everything here."""
        assert list(held) == self._ref_counts, (held, self._ref_counts)
        unheld = {block for block, count in enumerate(held) if count == 0}
        assert len(self._free) == len(set(self._free)), self._free
        assert set(self._free) == unheld - self._hash_of.keys(), self._free
        assert set(self._evictable) == unheld & self._hash_of.keys(), self._evictable
        assert {block_hash: block for block, block_hash in self._hash_of.items()} == self._block_of
        assert len(self._hash_of) == len(self._block_of)
