"""Which request holds which KV blocks, and where each of its tokens lies.

Bookkeeping only, kept by rank 0: the tensors are in `kv_store.py`, and every rank is told the block tables with
each batch. A slot is one token's place in every layer's tensors; block b holds slots
[b * block_size, (b + 1) * block_size), and token i of a request lies in the i-th slot of its block table.

    tokens of a request   0 ........................ num_cached | num_cached ..... num_cached + num_nodes
    their slots           committed, canonical                  | nodes of the last pass, provisional
    their blocks          full: registered    | partial         | fresh ones

Accepting a walk moves nodes to the slots right behind num_cached and gives back the rest. The moves are only
noted (`pending_moves.py`) and belong to the slots, not to the request: a block that became full by them is
registered at once and may be adopted by another request before they are done, or outlive the request that
accepted. That is sound because they are done before the next batch reads or writes anything.

Full blocks of committed tokens are registered by their chained hashes (`block_pool.py`), so a request can adopt
those that others have computed, or that it held itself in an earlier life. A block that is shared or registered is
never written: who would write behind the tokens that it has in such a block gets a fresh one, and what it has there
is copied by moves. Only the block that holds slot num_cached can be concerned; all behind it are fresh.

A request can also be opened with a context that nobody computed (`pretend`), to see how long a pass over it takes. What
such a request holds has no hash, now or later: nobody finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from outrider.errors import InvalidRequest, Overloaded
from workers.engine.block_pool import NO_HASH, BlockPool, chained_hash
from workers.engine.demand import Demand, Growth
from workers.engine.pending_moves import PendingMoves


class OutOfBlocks(Overloaded):
    """A pass needs more KV blocks than are free. Nothing has been changed."""


@dataclass(slots=True)
class _Request:
    tokens: list[int] = field(default_factory=list)  # committed and cached
    nodes: Sequence[int] = ()  # tokens of the last pass's tree
    block_table: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of the full blocks; none of a pretended request
    is_pretended: bool = False  # its KV is not that of its tokens: it must never be registered


class KVCache:
    """A pool of shared blocks and one block table a request."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_queried_tokens = 0  # that `reuse` has looked for, since the start
        self.num_found_tokens = 0  # of these
        self.clear()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request holds, those of the prefix cache among them."""
        return self._pool.num_free

    def open(self, key: int) -> None:
        if key in self._requests:
            raise InvalidRequest.of("key", key, "it is already open")
        self._requests[key] = _Request()

    def fork(self, key: int, child: int) -> None:
        """Open `child` with all that is cached of `key`. It takes no block until one of the two writes."""
        parent = self._request(key)
        self.open(child)
        block_table = parent.block_table[: self._blocks_for(len(parent.tokens))]
        for block in block_table:
            self._pool.share(block)
        self._requests[child] = _Request(
            parent.tokens.copy(), (), block_table, parent.hashes.copy(), parent.is_pretended
        )

    def pretend(self, key: int, num_tokens: int) -> None:
        """Open a request as if num_tokens were cached. The next moves copy what its first slot holds to its others.

        Nothing of it is ever registered, nor of what is written behind it, nor of its forks.
        Raises OutOfBlocks, and changes nothing, when there are not enough blocks.
        """
        num_blocks = self._blocks_for(num_tokens)
        if num_blocks > self.num_free_blocks:
            raise OutOfBlocks(
                f"a context of {num_tokens} tokens needs {num_blocks} KV blocks, {self.num_free_blocks} are free"
            )
        self.open(key)
        block_table = [self._take() for _ in range(num_blocks)]
        self._requests[key] = _Request([0] * num_tokens, (), block_table, is_pretended=True)
        for index in range(1, num_tokens):
            # Written, not left as it is: memory that was never written is one page of zeros, and read too fast.
            self._moves.add(self.slot(key, 0), self.slot(key, index))

    def reuse(self, key: int, tokens: Sequence[int]) -> int:
        """Adopt registered blocks for as many of `tokens`, which follow what is cached, as there are.

        Returns the number of tokens that are cached then. Nodes are dropped. A request need not be empty: a prompt
        that comes in chunks is looked for chunk by chunk. Fewer tokens than a block are not looked for.
        """
        request = self._request(key)
        self._keep(request, len(request.tokens))
        if len(tokens) >= self.block_size and not request.is_pretended:
            self._adopt(request, tokens)
        return len(request.tokens)

    def close(self, key: int) -> None:
        """Give back all that a request holds. A key that is not open holds nothing."""
        request = self._requests.pop(key, None)
        if request is not None:
            self._release(request.block_table)

    def disown(self, key: int) -> None:
        """Let nobody find what the request has computed or adopted. It keeps its blocks, and so do those who share."""
        for block in self._request(key).block_table:
            self._pool.unregister(block)

    def clear(self) -> None:
        """Close every request and forget what the blocks hold: after a failed pass it can't be trusted."""
        self._pool = BlockPool(self.num_blocks)
        self._moves = PendingMoves(self.block_size)
        self._requests: dict[int, _Request] = {}

    def is_open(self, key: int) -> bool:
        return key in self._requests

    def num_cached(self, key: int) -> int:
        """Committed tokens of the request whose KV is here; nodes do not count."""
        return len(self._request(key).tokens)

    def block_table(self, key: int) -> list[int]:
        return self._request(key).block_table

    def growth(self, key: int, num_tokens: int) -> Growth:
        """What the request takes to write num_tokens behind its committed ones, in place of its nodes."""
        request = self._request(key)
        num_cached = len(request.tokens)
        num_new = self._blocks_for(num_cached + num_tokens) - len(request.block_table)
        index, num_copied = divmod(num_cached, self.block_size)
        if num_tokens == 0 or num_copied == 0 or self._pool.is_writable(request.block_table[index]):
            return Growth(num_new, None)
        return Growth(num_new, request.block_table[index])

    def demand(self) -> Demand:
        """The demand of no row; `growth` tells what to add to it."""
        return Demand(self._pool)

    def blocks_needed(self, growth: Sequence[tuple[int, int]]) -> int:
        """Blocks that must be free for `allocate` to serve these (key, num_tokens); what the nodes give back counts."""
        demand = self.demand()
        for key, num_tokens in growth:
            demand.add(self.growth(key, num_tokens))
        return demand.num_blocks

    def allocate(self, growth: Sequence[tuple[int, int]]) -> None:
        """Room to write num_tokens behind the committed tokens of each key; provisional nodes are dropped first.

        Raises OutOfBlocks, and changes nothing, when there is not enough for all of them together.
        """
        needed = self.blocks_needed(growth)
        if needed > self.num_free_blocks:
            raise OutOfBlocks(f"the pass needs {needed} more KV blocks, {self.num_free_blocks} are free")
        writers = [(self._request(key), num_tokens) for key, num_tokens in growth if num_tokens > 0]
        for key, _ in growth:
            self._keep(self._request(key), self.num_cached(key))
        # All is given back before anything is taken: where nothing is free, a copy takes the place of its original.
        sources = [self._leave_partial_block(request) for request, _ in writers]
        for (request, num_tokens), copied in zip(writers, sources, strict=True):
            num_blocks = self._blocks_for(len(request.tokens) + num_tokens)
            first_new = len(request.block_table)
            request.block_table += [self._take() for _ in range(num_blocks - first_new)]
            for offset, source in enumerate(copied):
                self._moves.add(source, request.block_table[first_new] * self.block_size + offset)

    def commit(self, key: int, tokens: Sequence[int], node_tokens: Sequence[int]) -> None:
        """A pass has written the tokens for good, and the nodes behind them provisionally."""
        request = self._request(key)
        request.nodes = list(node_tokens)
        self._append(request, tokens)

    def accept(self, key: int, path: Sequence[int]) -> None:
        """Keep the nodes of `path`, given from the root down, as the next committed tokens; drop the others."""
        request = self._request(key)
        nodes, first = request.nodes, len(request.tokens)
        ascending = all(earlier < later for earlier, later in pairwise(path))
        if path and not (ascending and path[0] >= 0 and path[-1] < len(nodes)):
            raise InvalidRequest.of("path", list(path), f"it must ascend within the last pass's {len(nodes)} nodes")
        for depth, node in enumerate(path):
            if node != depth:
                # No move into a node's slot is pending: the pass that wrote the nodes took all there were.
                self._moves.add(self.slot(key, first + node), self.slot(key, first + depth))
        self._append(request, [nodes[node] for node in path])
        self._keep(request, len(request.tokens))

    def truncate(self, key: int, num_tokens: int) -> None:
        """Forget all but the first num_tokens committed tokens, and every node."""
        request = self._request(key)
        if not 0 <= num_tokens <= len(request.tokens):
            raise InvalidRequest.of("num_tokens", num_tokens, f"{len(request.tokens)} tokens are cached")
        self._keep(request, num_tokens)

    def take_moves(self) -> list[tuple[int, int]]:
        """The (source, destination) slots that the next batch must carry out; they count as done from here on."""
        return self._moves.take()

    def slot(self, key: int, index: int) -> int:
        block, offset = divmod(index, self.block_size)
        return self._request(key).block_table[block] * self.block_size + offset

    def check_integrity(self) -> None:
        """Raises AssertionError unless requests, blocks, hashes and moves agree with each other."""
        held = [0] * self.num_blocks
        for key, request in self._requests.items():
            num_tokens, table = len(request.tokens), request.block_table
            assert len(table) == self._blocks_for(num_tokens + len(request.nodes)), (key, num_tokens, table)
            assert len(table) == len(set(table)), (key, table)
            for block in table:
                held[block] += 1
            self._check_hashes(request)
        self._pool.check_integrity(held)
        moves = self._moves.peek()
        assert len(moves) == len({destination for _, destination in moves}), moves
        for source, destination in moves:
            assert 0 <= source < self.num_blocks * self.block_size, moves
            assert self._pool.is_kept(destination // self.block_size), moves

    def _check_hashes(self, request: _Request) -> None:
        num_full = len(request.tokens) // self.block_size
        before = NO_HASH
        if request.is_pretended:
            assert not request.hashes, request
            assert all(self._pool.hash_of(block) is None for block in request.block_table), request
            return
        assert len(request.hashes) == num_full, request
        for index, block in enumerate(request.block_table[:num_full]):
            before = chained_hash(before, request.tokens[index * self.block_size : (index + 1) * self.block_size])
            assert request.hashes[index] == before, request
            # Registered under the request's own hash; or a twin is, or was until it was evicted.
            assert self._pool.hash_of(block) in (None, before), request
        if request.nodes:
            assert all(self._pool.hash_of(block) is None for block in request.block_table[num_full:]), request

    def _request(self, key: int) -> _Request:
        try:
            return self._requests[key]
        except KeyError:
            raise InvalidRequest.of("key", key, "it is not open") from None

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _append(self, request: _Request, tokens: Sequence[int]) -> None:
        """Commit tokens that are written, or will be by the pending moves; register the blocks that they fill."""
        request.tokens += tokens
        if request.is_pretended:
            return
        num_full = len(request.hashes)
        for index in range(num_full, len(request.tokens) // self.block_size):
            block_tokens = request.tokens[index * self.block_size : (index + 1) * self.block_size]
            request.hashes.append(chained_hash(request.hashes[-1] if index else NO_HASH, block_tokens))
            self._pool.register(request.block_table[index], request.hashes[-1])

    def _adopt(self, request: _Request, tokens: Sequence[int]) -> None:
        """Take over the registered blocks that hold `tokens`; the first may replace the partial block."""
        before, num_full = len(request.tokens), len(request.hashes)
        sought = [*request.tokens[num_full * self.block_size :], *tokens]
        block_hash = request.hashes[-1] if num_full else NO_HASH
        found: list[tuple[bytes, int]] = []
        for start in range(0, len(sought) - self.block_size + 1, self.block_size):
            block_hash = chained_hash(block_hash, sought[start : start + self.block_size])
            block = self._pool.find(block_hash)
            if block is None:
                break
            self._pool.share(block)
            found.append((block_hash, block))
        if found:
            self._keep(request, num_full * self.block_size)
            request.tokens += sought[: len(found) * self.block_size]
            request.hashes += [block_hash for block_hash, _ in found]
            request.block_table += [block for _, block in found]
        self.num_queried_tokens += len(tokens)
        self.num_found_tokens += len(request.tokens) - before

    def _keep(self, request: _Request, num_tokens: int) -> None:
        """Drop all behind the first num_tokens, and every node."""
        request.nodes = ()
        num_blocks = self._blocks_for(num_tokens)
        del request.tokens[num_tokens:]
        del request.hashes[num_tokens // self.block_size :]
        self._release(request.block_table[num_blocks:])
        del request.block_table[num_blocks:]

    def _leave_partial_block(self, request: _Request) -> list[int]:
        """Give back the block behind whose tokens the request is to write, if it may not.

        Returns where these tokens lie, [num_copied] slots: to be copied to the start of the block that takes its place.
        """
        num_copied = len(request.tokens) % self.block_size
        if num_copied == 0 or self._pool.is_writable(request.block_table[-1]):
            return []
        block = request.block_table.pop()
        first = block * self.block_size
        sources = [self._moves.source_of(slot) for slot in range(first, first + num_copied)]
        self._release([block])
        return sources

    def _take(self) -> int:
        block = self._pool.take()
        self._moves.drop_into(block)
        return block

    def _release(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._pool.release(block)
            if not self._pool.is_kept(block):
                self._moves.drop_into(block)
