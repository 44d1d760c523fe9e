"""Any sequence of operations on the KV cache leaves every cached token where its block table says it is.

Beside the cache stands what its slots hold: by slot the token and all tokens before it, which is what KV depends on.
Passes write it and moves copy it, as they would the tensors.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.engine.block_pool import NO_HASH, chained_hash
from workers.engine.kv_cache import KVCache, OutOfBlocks

KEYS = range(4)
VOCAB = 2  # so few that requests agree all the time
MAX_TOKENS = 12

Path = tuple[int, ...]
Row = tuple[list[int], list[int], list[int]]  # tokens, node_tokens, node_parents

keys = st.sampled_from(KEYS)
# What a step does in detail. Drawn as one number: hypothesis gives a history only so many choices.
details = st.integers(0, 1 << 16).map(random.Random)


class KVCacheStates(RuleBasedStateMachine):
    """Every key is open at all times: closing one opens it again, empty."""

    @initialize(block_size=st.integers(1, 4), num_blocks=st.integers(4, 10))
    def begin(self, block_size: int, num_blocks: int) -> None:
        self.cache = KVCache(num_blocks, block_size)
        self.content: dict[int, Path] = {}  # by slot
        self._all_empty()

    @rule(rng=details)
    def forward(self, rng: random.Random) -> None:
        rows = {key: self._row(rng, key) for key in rng.sample(KEYS, rng.choice([1, 1, 2, len(KEYS)]))}
        growth = [(key, len(row[0]) + len(row[1])) for key, row in rows.items()]
        needed, num_free = self.cache.blocks_needed(growth), self.cache.num_free_blocks
        if needed > num_free:
            self._check_that_it_is_refused(growth)
            return
        self.cache.allocate(growth)
        assert self.cache.num_free_blocks == num_free - needed
        self.content = self._after_moves(self.cache.take_moves())
        written: list[int] = []
        for key, (linear, node_tokens, parents) in rows.items():
            first = len(self.committed[key])
            self.committed[key] += tuple(linear)
            paths = [self.committed[key][: first + i + 1] for i in range(len(linear))]
            for token, parent in zip(node_tokens, parents, strict=True):
                paths.append((*paths[len(linear) + parent], token))
            self.trees[key] = (parents, paths[len(linear) :])
            slots = [self.cache.slot(key, first + i) for i in range(len(paths))]
            self.content |= zip(slots, paths, strict=True)
            written += slots
        assert len(written) == len(set(written)), "two tokens of a pass in one slot"
        for key, (linear, node_tokens, _) in rows.items():
            self.cache.commit(key, linear, node_tokens)

    @precondition(lambda self: self.trees)
    @rule(rng=details)
    def accept(self, rng: random.Random) -> None:
        key = rng.choice(sorted(self.trees))
        parents, paths = self.trees.pop(key)
        accepted: list[int] = []
        while children := [i for i, parent in enumerate(parents) if parent == [-1, *accepted][-1]]:
            if rng.random() < 0.1:
                break
            accepted.append(rng.choice(children))
        self.cache.accept(key, accepted)
        if accepted:
            self.committed[key] = paths[accepted[-1]]

    @rule(key=keys, rng=details)
    def reuse(self, key: int, rng: random.Random) -> None:
        """For what another request has, more or less."""
        before = self.committed[key]
        other = self.committed[rng.choice(KEYS)]
        sought = other[len(before) :] if rng.random() < 0.8 else ()
        self._adopt(key, (*sought, *self._tokens(rng, rng.randint(0, 4))))

    @rule(key=keys, child=keys)
    def fork(self, key: int, child: int) -> None:
        if child == key:
            return
        self.close(child)
        self.cache.close(child)
        num_free = self.cache.num_free_blocks
        self.cache.fork(key, child)
        self.committed[child] = self.committed[key]
        assert self.cache.num_free_blocks == num_free

    @rule(key=keys, rng=details)
    def truncate(self, key: int, rng: random.Random) -> None:
        num_tokens = rng.randint(0, len(self.committed[key]))
        self.cache.truncate(key, num_tokens)
        self.committed[key] = self.committed[key][:num_tokens]
        self.trees.pop(key, None)

    @rule(key=keys)
    def close(self, key: int) -> None:
        self.cache.close(key)
        self.cache.open(key)
        self.committed[key] = ()
        self.trees.pop(key, None)

    @rule(key=keys)
    def close_and_come_back(self, key: int) -> None:
        path = self.committed[key]
        self.close(key)
        self._adopt(key, path)

    @rule(rng=details)
    def pretend(self, rng: random.Random) -> None:
        """A request beside the others, and a fork of it, whose tokens are theirs and whose content is not."""
        first, fork = len(KEYS), len(KEYS) + 1
        num_tokens, num_free = rng.randint(1, 8), self.cache.num_free_blocks
        if -(-num_tokens // self.cache.block_size) > num_free:
            with pytest.raises(OutOfBlocks):
                self.cache.pretend(first, num_tokens)
            assert not self.cache.is_open(first)
            return
        self.cache.pretend(first, num_tokens)
        self.cache.fork(first, fork)
        for key in rng.sample([first, fork], 2):
            tokens, nodes = self._tokens(rng, rng.randint(1, 3)), self._tokens(rng, rng.randint(0, 3))
            growth = [(key, len(tokens) + len(nodes))]
            if self.cache.blocks_needed(growth) <= self.cache.num_free_blocks:
                self.cache.allocate(growth)
                self.content = self._after_moves(self.cache.take_moves())
                cached = self.cache.num_cached(key)
                self.content |= {self.cache.slot(key, cached + i): (-3,) for i in range(len(tokens) + len(nodes))}
                self.cache.commit(key, tokens, nodes)
                self.cache.accept(key, range(rng.randint(0, len(nodes))))
                assert self.cache.reuse(key, [0, 1] * 4) == self.cache.num_cached(key)
            self.the_books_agree()
            self.every_registered_block_holds_what_its_hash_says_once_the_moves_are_done()
            self.cache.truncate(key, rng.randint(0, self.cache.num_cached(key)))
        self.cache.close(first)
        self.cache.close(fork)
        assert self.cache.num_free_blocks == num_free

    @rule(rng=details)
    def fail(self, rng: random.Random) -> None:
        if rng.random() < 0.2:
            self.cache.clear()
            self._all_empty()
            self.content = dict.fromkeys(self.content, (-1,))  # a failed pass may have written anything anywhere
            assert self.cache.num_free_blocks == self.cache.num_blocks

    @invariant()
    def the_books_agree(self) -> None:
        self.cache.check_integrity()

    @invariant()
    def every_cached_token_lies_in_its_slot_once_the_moves_are_done(self) -> None:
        content = self._after_moves(self.cache._moves.peek())
        for key, path in self.committed.items():
            assert self.cache.num_cached(key) == len(path)
            for index in range(len(path)):
                assert content[self.cache.slot(key, index)] == path[: index + 1], (key, index)

    @invariant()
    def every_registered_block_holds_what_its_hash_says_once_the_moves_are_done(self) -> None:
        content = self._after_moves(self.cache._moves.peek())
        size = self.cache.block_size
        for block, block_hash in self.cache._pool._hash_of.items():
            path = content[block * size + size - 1]
            for offset in range(size):
                assert content[block * size + offset] == path[: len(path) - size + offset + 1], (block, offset)
            before = NO_HASH
            for start in range(0, len(path), size):
                before = chained_hash(before, path[start : start + size])
            assert before == block_hash, block

    def _all_empty(self) -> None:
        self.committed: dict[int, Path] = {}
        self.trees: dict[int, tuple[list[int], list[Path]]] = {}  # parents, and each node's path from the first token
        for key in KEYS:
            self.cache.open(key)
            self.committed[key] = ()

    def _adopt(self, key: int, sought: Path) -> None:
        before = self.committed[key]
        num_cached = self.cache.reuse(key, sought)
        assert num_cached == len(before) or (num_cached > len(before) and num_cached % self.cache.block_size == 0)
        self.committed[key] = (before + sought)[:num_cached]
        self.trees.pop(key, None)

    def _check_that_it_is_refused(self, growth: list[tuple[int, int]]) -> None:
        before = (self.cache.num_free_blocks, [list(self.cache.block_table(key)) for key in KEYS])
        with pytest.raises(OutOfBlocks):
            self.cache.allocate(growth)
        assert before == (self.cache.num_free_blocks, [self.cache.block_table(key) for key in KEYS])

    def _row(self, rng: random.Random, key: int) -> Row:
        linear = self._tokens(rng, rng.randint(1, 6 if len(self.committed[key]) < MAX_TOKENS else 1))
        node_tokens = self._tokens(rng, rng.choice([0, 2, 5]))
        return linear, node_tokens, [rng.randint(-1, node - 1) for node in range(len(node_tokens))]

    def _tokens(self, rng: random.Random, num_tokens: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(num_tokens)]

    def _after_moves(self, moves: list[tuple[int, int]]) -> dict[int, Path]:
        """All sources are read before one destination is written, as `KVStore.move` does."""
        unwritten = (-2,)
        return self.content | {destination: self.content.get(source, unwritten) for source, destination in moves}


KVCacheStates.TestCase.settings = settings(derandomize=True, max_examples=200, stateful_step_count=50, deadline=None)
test_any_history_of_the_cache_leaves_every_token_in_its_slot = KVCacheStates.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_long_histories_leave_every_token_in_its_slot(seed: int) -> None:
    """The same, with the mix of a busy target: hypothesis is good at short histories that are odd."""
    rng = random.Random(seed)
    states = KVCacheStates()
    states.begin(block_size=rng.randint(1, 4), num_blocks=rng.randint(8, 24))
    for _ in range(400):
        key, other = rng.choice(KEYS), rng.choice(KEYS)
        draw = rng.random()
        if len(states.committed[key]) > MAX_TOKENS:
            states.truncate(key, rng)
        if draw < 0.45:
            states.forward(rng)
        elif draw < 0.65 and states.trees:
            states.accept(rng)
            if rng.random() < 0.3:
                states.fork(key, other)
        elif draw < 0.75:
            states.reuse(key, rng)
        elif draw < 0.80:
            states.fork(key, other)
        elif draw < 0.88:
            states.truncate(key, rng)
        elif draw < 0.95:
            states.close_and_come_back(key)
        elif draw < 0.97:
            states.pretend(rng)
        elif draw < 0.99:
            states.close(key)
        else:
            states.fail(rng)
        states.the_books_agree()
        states.every_cached_token_lies_in_its_slot_once_the_moves_are_done()
        states.every_registered_block_holds_what_its_hash_says_once_the_moves_are_done()
