from __future__ import annotations

import pytest

from outrider.errors import InvalidRequest
from workers.engine.kv_cache import KVCache, OutOfBlocks

BLOCK_SIZE = 4


@pytest.fixture
def cache() -> KVCache:
    return KVCache(num_blocks=8, block_size=BLOCK_SIZE)


def run_pass(cache: KVCache, key: int, num_tokens: int, num_nodes: int = 0) -> list[tuple[int, int]]:
    """What a forward of one row does to the books; its moves."""
    cache.allocate([(key, num_tokens + num_nodes)])
    moves = cache.take_moves()
    cache.commit(key, num_tokens, num_nodes)
    cache.check_integrity()
    return moves


def test_tokens_and_nodes_take_whole_blocks_and_closing_gives_all_back(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, num_tokens=5, num_nodes=4)
    assert cache.num_cached(1) == 5
    assert cache.num_free_blocks == 8 - 3
    cache.close(1)
    assert cache.num_free_blocks == 8
    assert not cache.is_open(1)


def test_a_pass_that_does_not_fit_changes_nothing_even_the_nodes_can_still_be_accepted(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, num_tokens=3, num_nodes=2)
    with pytest.raises(OutOfBlocks, match="needs 8 more KV blocks, 6 are free"):
        cache.allocate([(1, 10), (2, 23)])
    cache.accept(1, [1])
    cache.check_integrity()
    assert cache.num_cached(1) == 4


def test_blocks_that_dropped_nodes_held_serve_the_same_pass(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, num_tokens=4, num_nodes=28)
    assert cache.num_free_blocks == 0
    assert cache.blocks_needed([(1, 1), (2, 24)]) == 0
    cache.allocate([(1, 1), (2, 24)])
    cache.commit(1, 1, 0)
    cache.commit(2, 24, 0)
    cache.check_integrity()


def test_accepted_nodes_move_behind_the_committed_tokens_in_the_next_pass_only(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, num_tokens=2, num_nodes=5)
    table = list(cache.block_table(1))
    slots = [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(7)]
    cache.accept(1, [0, 2, 4])
    assert cache.num_cached(1) == 5
    assert run_pass(cache, 1, num_tokens=1) == [(slots[4], slots[3]), (slots[6], slots[4])]
    assert run_pass(cache, 1, num_tokens=1) == []


def test_an_accepted_chain_moves_nothing(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, num_tokens=2, num_nodes=3)
    cache.accept(1, [0, 1, 2])
    assert cache.take_moves() == []


def test_truncating_or_closing_forgets_moves_into_what_is_gone(cache: KVCache) -> None:
    for key in (1, 2):
        cache.open(key)
        run_pass(cache, key, num_tokens=2, num_nodes=3)
    for key in (1, 2):
        cache.accept(key, [1, 2])
    kept = cache.slot(1, 2)
    cache.truncate(1, 3)
    cache.close(2)
    cache.check_integrity()
    assert [destination for _, destination in cache.take_moves()] == [kept]


def test_nodes_are_gone_after_accept_truncate_and_the_next_pass(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, num_tokens=1, num_nodes=2)
    cache.accept(1, [])
    with pytest.raises(InvalidRequest, match="last pass's 0 nodes"):
        cache.accept(1, [0])
    run_pass(cache, 1, num_tokens=1, num_nodes=2)
    cache.truncate(1, 1)
    with pytest.raises(InvalidRequest, match="last pass's 0 nodes"):
        cache.accept(1, [0])


@pytest.mark.parametrize("path", [[2], [-1], [1, 0], [0, 0]])
def test_a_path_outside_the_tree_is_refused(cache: KVCache, path: list[int]) -> None:
    cache.open(1)
    run_pass(cache, 1, num_tokens=1, num_nodes=2)
    with pytest.raises(InvalidRequest, match="path"):
        cache.accept(1, path)


def test_wrong_keys_and_lengths_are_refused_by_name(cache: KVCache) -> None:
    cache.open(1)
    with pytest.raises(InvalidRequest, match="key is 1: it is already open"):
        cache.open(1)
    with pytest.raises(InvalidRequest, match="key is 7: it is not open"):
        cache.num_cached(7)
    with pytest.raises(InvalidRequest, match="num_tokens is 1: 0 tokens are cached"):
        cache.truncate(1, 1)
    cache.close(7)
    cache.check_integrity()


def test_the_integrity_check_sees_a_block_that_two_requests_hold(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, num_tokens=1)
    run_pass(cache, 2, num_tokens=1)
    cache.block_table(2)[0] = cache.block_table(1)[0]
    with pytest.raises(AssertionError):
        cache.check_integrity()
