"""Which request holds which KV blocks, and where each of its tokens lies.

Bookkeeping only, kept by rank 0: the tensors are in `kv_store.py`, and every rank is told the block tables with
each batch. A slot is one token's place in every layer's tensors; block b holds slots
[b * block_size, (b + 1) * block_size), and token i of a request lies in the i-th slot of its block table.

    tokens of a request   0 ............... num_cached | num_cached ..... num_cached + num_nodes
    their slots           committed, canonical         | nodes of the last pass, provisional

Accepting a walk moves nodes to the slots right behind num_cached and gives back the rest. The moves are only
noted: they travel with the next batch, which carries them out before it writes anything. Until then no slot
is written, so a source stays intact even where its block has been freed and handed to another request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from outrider.errors import InvalidRequest, Overloaded


class OutOfBlocks(Overloaded):
    """A pass needs more KV blocks than are free. Nothing has been changed."""


@dataclass(slots=True)
class _Request:
    block_table: list[int] = field(default_factory=list)
    num_cached: int = 0
    num_nodes: int = 0
    moves: list[tuple[int, int]] = field(default_factory=list)  # (source slot, destination slot)


class KVCache:
    """A pool of reference-counted blocks and one block table a request."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # the lowest number is taken first
        self._ref_counts = [0] * num_blocks
        self._requests: dict[int, _Request] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def open(self, key: int) -> None:
        if key in self._requests:
            raise InvalidRequest.of("key", key, "it is already open")
        self._requests[key] = _Request()

    def close(self, key: int) -> None:
        """Give back all that a request holds. A key that is not open holds nothing."""
        request = self._requests.pop(key, None)
        if request is not None:
            self._release(request.block_table)

    def clear(self) -> None:
        for key in list(self._requests):
            self.close(key)

    def is_open(self, key: int) -> bool:
        return key in self._requests

    def num_cached(self, key: int) -> int:
        """Committed tokens of the request whose KV is here; nodes do not count."""
        return self._request(key).num_cached

    def block_table(self, key: int) -> list[int]:
        return self._request(key).block_table

    def blocks_needed(self, growth: Sequence[tuple[int, int]]) -> int:
        """Blocks that must be free for `allocate` to serve these (key, num_tokens); what the nodes give back counts."""
        return sum(
            self._blocks_for(request.num_cached + num_tokens) - len(request.block_table)
            for request, num_tokens in ((self._request(key), num_tokens) for key, num_tokens in growth)
        )

    def allocate(self, growth: Sequence[tuple[int, int]]) -> None:
        """Room for num_tokens behind the committed tokens of each key; provisional nodes are dropped first.

        Raises OutOfBlocks, and changes nothing, when there is not enough for all of them together.
        """
        needed = self.blocks_needed(growth)
        if needed > self.num_free_blocks:
            raise OutOfBlocks(f"the pass needs {needed} more KV blocks, {self.num_free_blocks} are free")
        for key, _ in growth:
            self.truncate(key, self.num_cached(key))
        for key, num_tokens in growth:
            request = self._request(key)
            while len(request.block_table) < self._blocks_for(request.num_cached + num_tokens):
                request.block_table.append(self._take())

    def commit(self, key: int, num_tokens: int, num_nodes: int) -> None:
        """A pass has written num_tokens for good, and num_nodes behind them provisionally."""
        request = self._request(key)
        request.num_cached += num_tokens
        request.num_nodes = num_nodes

    def accept(self, key: int, path: Sequence[int]) -> None:
        """Keep the nodes of `path`, given from the root down, as the next committed tokens; drop the others."""
        request = self._request(key)
        ascending = all(earlier < later for earlier, later in pairwise(path))
        if path and not (ascending and path[0] >= 0 and path[-1] < request.num_nodes):
            raise InvalidRequest.of(
                "path", list(path), f"it must ascend within the last pass's {request.num_nodes} nodes"
            )
        first = request.num_cached
        request.moves += [
            (self.slot(key, first + node), self.slot(key, first + depth))
            for depth, node in enumerate(path)
            if node != depth
        ]
        request.num_cached += len(path)
        self._drop_tail(request)

    def truncate(self, key: int, num_tokens: int) -> None:
        """Forget all but the first num_tokens committed tokens, and every node."""
        request = self._request(key)
        if not 0 <= num_tokens <= request.num_cached:
            raise InvalidRequest.of("num_tokens", num_tokens, f"{request.num_cached} tokens are cached")
        kept = {self.slot(key, i) for i in range(num_tokens, request.num_cached)}
        request.moves = [move for move in request.moves if move[1] not in kept]
        request.num_cached = num_tokens
        self._drop_tail(request)

    def take_moves(self) -> list[tuple[int, int]]:
        """The (source, destination) slots that the next batch must carry out; they count as done from here on."""
        moves = [move for request in self._requests.values() for move in request.moves]
        for request in self._requests.values():
            request.moves = []
        return moves

    def slot(self, key: int, index: int) -> int:
        block, offset = divmod(index, self.block_size)
        return self._request(key).block_table[block] * self.block_size + offset

    def check_integrity(self) -> None:
        """Raises AssertionError unless every block is either free or held as often as its reference count says."""
        held = [0] * self.num_blocks
        destinations: list[int] = []
        for key, request in self._requests.items():
            for block in request.block_table:
                held[block] += 1
            num_tokens = request.num_cached + request.num_nodes
            assert len(request.block_table) == self._blocks_for(num_tokens), (key, num_tokens, request.block_table)
            committed = {self.slot(key, i) for i in range(request.num_cached)}
            assert all(destination in committed for _, destination in request.moves), (key, request.moves)
            destinations += [destination for _, destination in request.moves]
        assert held == self._ref_counts, (held, self._ref_counts)
        assert sorted(self._free) == [block for block, count in enumerate(held) if count == 0], self._free
        assert len(destinations) == len(set(destinations)), destinations

    def _request(self, key: int) -> _Request:
        try:
            return self._requests[key]
        except KeyError:
            raise InvalidRequest.of("key", key, "it is not open") from None

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _drop_tail(self, request: _Request) -> None:
        request.num_nodes = 0
        num_blocks = self._blocks_for(request.num_cached)
        self._release(request.block_table[num_blocks:])
        del request.block_table[num_blocks:]

    def _take(self) -> int:
        block = self._free.pop()
        self._ref_counts[block] = 1
        return block

    def _release(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free.append(block)
