from __future__ import annotations

from collections.abc import Sequence

import pytest

from outrider.errors import InvalidRequest
from workers.engine.kv_cache import KVCache, OutOfBlocks

BLOCK_SIZE = 4


@pytest.fixture
def cache() -> KVCache:
    return KVCache(num_blocks=8, block_size=BLOCK_SIZE)


def run_pass(cache: KVCache, key: int, tokens: Sequence[int], nodes: Sequence[int] = ()) -> list[tuple[int, int]]:
    """What a forward of one row does to the books; its moves."""
    cache.allocate([(key, len(tokens) + len(nodes))])
    moves = cache.take_moves()
    cache.commit(key, tokens, nodes)
    cache.check_integrity()
    return moves


def slots_of(cache: KVCache, key: int, num_tokens: int) -> list[int]:
    return [cache.slot(key, index) for index in range(num_tokens)]


def unlike(key: int, num_tokens: int) -> list[int]:
    """Tokens that no other key's agree with."""
    return [100 * key + index for index in range(num_tokens)]


def test_tokens_and_nodes_take_whole_blocks_and_closing_gives_all_back(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 5), unlike(9, 4))
    assert cache.num_cached(1) == 5
    assert cache.num_free_blocks == 8 - 3
    cache.close(1)
    assert cache.num_free_blocks == 8
    assert not cache.is_open(1)


def test_a_pass_that_does_not_fit_changes_nothing_even_the_nodes_can_still_be_accepted(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, unlike(1, 3), unlike(9, 2))
    with pytest.raises(OutOfBlocks, match="needs 8 more KV blocks, 6 are free"):
        cache.allocate([(1, 10), (2, 23)])
    cache.accept(1, [1])
    cache.check_integrity()
    assert cache.num_cached(1) == 4


def test_blocks_that_dropped_nodes_held_serve_the_same_pass(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, unlike(1, 4), unlike(9, 28))
    assert cache.num_free_blocks == 0
    assert cache.blocks_needed([(1, 1), (2, 24)]) == 0
    cache.allocate([(1, 1), (2, 24)])
    cache.commit(1, [1], [])
    cache.commit(2, unlike(2, 24), [])
    cache.check_integrity()


def test_accepted_nodes_move_behind_the_committed_tokens_in_the_next_pass_only(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 2), unlike(9, 5))
    table = list(cache.block_table(1))
    slots = [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(7)]
    cache.accept(1, [0, 2, 4])
    assert cache.num_cached(1) == 5
    assert run_pass(cache, 1, unlike(1, 1)) == [(slots[4], slots[3]), (slots[6], slots[4])]
    assert run_pass(cache, 1, unlike(1, 1)) == []


def test_an_accepted_chain_moves_nothing(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 2), unlike(9, 3))
    cache.accept(1, [0, 1, 2])
    assert cache.take_moves() == []


def test_moves_into_blocks_that_nobody_will_read_are_forgotten(cache: KVCache) -> None:
    for key, num_tokens in ((1, 3), (2, 1)):
        cache.open(key)
        run_pass(cache, key, unlike(key, num_tokens), unlike(9, 5))
    for key in (1, 2):
        cache.accept(key, [1, 2])
    destinations = [cache.slot(1, index) for index in (3, 4)]
    cache.truncate(1, 4)
    cache.close(2)
    cache.check_integrity()
    assert [destination for _, destination in cache.take_moves()] == destinations[:1]


def test_nodes_are_gone_after_accept_truncate_and_the_next_pass(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 1), unlike(9, 2))
    cache.accept(1, [])
    with pytest.raises(InvalidRequest, match="last pass's 0 nodes"):
        cache.accept(1, [0])
    run_pass(cache, 1, unlike(1, 1), unlike(9, 2))
    cache.truncate(1, 1)
    with pytest.raises(InvalidRequest, match="last pass's 0 nodes"):
        cache.accept(1, [0])


@pytest.mark.parametrize("path", [[2], [-1], [1, 0], [0, 0]])
def test_a_path_outside_the_tree_is_refused(cache: KVCache, path: list[int]) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 1), unlike(9, 2))
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
    run_pass(cache, 1, unlike(1, 1))
    run_pass(cache, 2, unlike(2, 1))
    cache.block_table(2)[0] = cache.block_table(1)[0]
    with pytest.raises(AssertionError):
        cache.check_integrity()


def test_a_prefix_that_another_has_computed_is_adopted_in_whole_blocks(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    prompt = unlike(1, 11)
    run_pass(cache, 1, prompt)
    num_free = cache.num_free_blocks

    assert cache.reuse(2, [*prompt[:9], 5, 5, 5]) == 8

    assert cache.block_table(2) == cache.block_table(1)[:2]
    assert cache.num_free_blocks == num_free
    assert (cache.num_queried_tokens, cache.num_found_tokens) == (12, 8)
    cache.check_integrity()


def test_equal_blocks_behind_different_tokens_are_not_taken_for_each_other(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, [1, 2, 3, 4, 5, 6, 7, 8])
    assert cache.reuse(2, [5, 6, 7, 8, 5, 6, 7, 8]) == 0
    assert cache.reuse(2, [1, 2, 3, 9, 5, 6, 7, 8]) == 0


def test_what_comes_in_chunks_is_found_chunk_by_chunk_whatever_their_size(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    prompt = unlike(1, 16)
    run_pass(cache, 1, prompt)
    assert cache.reuse(2, prompt[:6]) == 4
    run_pass(cache, 2, prompt[4:6])  # half a block of its own, which the next chunk makes superfluous

    assert cache.reuse(2, prompt[6:]) == 16

    assert cache.block_table(2) == cache.block_table(1)
    assert cache.num_free_blocks == 8 - 4
    cache.check_integrity()


def test_a_closed_request_finds_its_blocks_again(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 10))
    table = list(cache.block_table(1))
    cache.close(1)
    assert cache.num_free_blocks == 8
    cache.open(1)
    assert cache.reuse(1, unlike(1, 10)) == 8
    assert cache.block_table(1) == table[:2]


def test_unregistered_blocks_are_taken_before_evictable_ones_and_those_by_age_tails_first(cache: KVCache) -> None:
    for key in (1, 2):
        cache.open(key)
        run_pass(cache, key, unlike(key, 8))
    old, young = list(cache.block_table(1)), list(cache.block_table(2))
    cache.close(1)
    cache.close(2)
    cache.open(3)

    run_pass(cache, 3, unlike(3, 32))

    assert cache.block_table(3)[4:] == [old[1], old[0], young[1], young[0]]
    assert cache.num_free_blocks == 0


def test_a_block_in_use_by_one_request_is_not_evicted_when_another_closes(cache: KVCache) -> None:
    cache.open(1)
    cache.open(2)
    run_pass(cache, 1, unlike(1, 8))
    cache.reuse(2, unlike(1, 8))
    cache.close(1)
    with pytest.raises(OutOfBlocks):
        cache.allocate([(2, 25)])
    run_pass(cache, 2, unlike(2, 24))
    assert cache.num_cached(2) == 32


def test_of_two_that_compute_the_same_the_first_stays_the_one_to_find(cache: KVCache) -> None:
    for key in (1, 2, 3):
        cache.open(key)
    run_pass(cache, 1, unlike(1, 4))
    run_pass(cache, 2, unlike(1, 4))
    cache.reuse(3, unlike(1, 4))
    assert cache.block_table(3) == cache.block_table(1) != cache.block_table(2)


def test_recomputing_the_last_token_of_a_cached_prompt_copies_its_last_block_for_no_block_more(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 8))
    original = slots_of(cache, 1, 8)
    cache.close(1)
    cache.open(2)
    assert cache.reuse(2, unlike(1, 8)) == 8
    cache.truncate(2, 7)
    assert cache.blocks_needed([(2, 1)]) == 0

    moves = run_pass(cache, 2, unlike(1, 8)[7:])

    copied = slots_of(cache, 2, 8)
    assert copied[:4] == original[:4]
    assert moves == list(zip(original[4:7], copied[4:7], strict=True))
    cache.open(3)
    cache.reuse(3, unlike(1, 8))
    assert slots_of(cache, 3, 8) == original


def test_where_nothing_is_free_a_block_that_nobody_shares_is_written_in_its_place(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 32))
    table = list(cache.block_table(1))
    cache.truncate(1, 31)
    assert cache.num_free_blocks == 0

    assert run_pass(cache, 1, [5]) == []

    assert cache.block_table(1) == table
    cache.close(1)
    cache.open(2)
    assert cache.reuse(2, unlike(1, 32)) == 28


def test_a_fork_takes_no_block_until_one_of_the_two_writes(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 6))
    cache.fork(1, 2)
    assert cache.num_free_blocks == 8 - 2
    assert cache.blocks_needed([(1, 1)]) == cache.blocks_needed([(2, 1)]) == cache.blocks_needed([(1, 1), (2, 1)]) == 1
    original = slots_of(cache, 1, 6)

    moves = run_pass(cache, 2, [7])

    assert moves == list(zip(original[4:], slots_of(cache, 2, 6)[4:], strict=True))
    assert run_pass(cache, 1, [8]) == []  # alone in its block again
    assert slots_of(cache, 1, 6) == original
    assert cache.num_free_blocks == 8 - 3


def test_forks_that_write_in_one_pass_leave_the_last_of_them_the_original(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 6))
    for child in (2, 3):
        cache.fork(1, child)
    table = list(cache.block_table(1))
    assert cache.blocks_needed([(key, 1) for key in (1, 2, 3)]) == 2
    cache.allocate([(key, 1) for key in (1, 2, 3)])
    assert cache.block_table(3) == table
    assert len({cache.block_table(key)[1] for key in (1, 2, 3)}) == 3
    assert {source for source, _ in cache.take_moves()} == {cache.slot(3, 4), cache.slot(3, 5)}


def test_a_fork_that_does_not_fit_changes_nothing(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 30))
    cache.fork(1, 2)
    with pytest.raises(OutOfBlocks, match="needs 1 more KV blocks, 0 are free"):
        cache.allocate([(1, 1), (2, 1)])
    cache.check_integrity()
    assert cache.block_table(1) == cache.block_table(2)
    assert cache.take_moves() == []


def test_a_copy_of_tokens_that_are_still_to_be_moved_comes_from_where_they_lie_now(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, unlike(1, 5), [7, 8])
    lies, goes = cache.slot(1, 6), cache.slot(1, 5)
    first = cache.slot(1, 4)
    cache.accept(1, [1])
    cache.fork(1, 2)

    moves = run_pass(cache, 2, [9])

    assert sorted(moves) == sorted([(lies, goes), (first, cache.slot(2, 4)), (lies, cache.slot(2, 5))])


def test_a_block_that_accepted_nodes_fill_can_be_found_before_they_are_moved_and_after_its_request(
    cache: KVCache,
) -> None:
    cache.open(1)
    run_pass(cache, 1, [1, 2], [3, 4, 5])
    lies = cache.slot(1, 3), cache.slot(1, 4)
    cache.accept(1, [1, 2])
    goes = cache.slot(1, 2), cache.slot(1, 3)
    cache.close(1)
    cache.open(2)

    assert cache.reuse(2, [1, 2, 4, 5]) == 4

    assert cache.take_moves() == list(zip(lies, goes, strict=True))


def test_a_block_that_is_taken_anew_is_not_moved_into(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, [1, 2], [3, 4, 5])
    cache.accept(1, [1, 2])
    cache.close(1)
    cache.open(2)
    assert run_pass(cache, 2, unlike(2, 32)) == []


def test_after_clear_nothing_can_be_found(cache: KVCache) -> None:
    cache.open(1)
    run_pass(cache, 1, [1, 2], [3, 4, 5])
    cache.accept(1, [1, 2])
    cache.clear()
    cache.check_integrity()
    assert not cache.is_open(1)
    assert cache.num_free_blocks == 8
    assert cache.take_moves() == []
    cache.open(1)
    assert cache.reuse(1, [1, 2, 4, 5]) == 0


def test_what_a_disowned_request_holds_is_not_found_and_stays_its_own(cache: KVCache) -> None:
    tokens = unlike(1, 10)
    cache.open(1)
    run_pass(cache, 1, tokens)
    cache.open(2)
    assert cache.reuse(2, tokens) == 8
    slots = slots_of(cache, 1, 10)

    cache.disown(1)

    cache.check_integrity()
    assert (cache.num_cached(1), slots_of(cache, 1, 10)) == (10, slots)
    assert slots_of(cache, 2, 8) == slots[:8], "who shares it already keeps it"
    cache.close(2)
    cache.open(2)
    assert cache.reuse(2, tokens) == 0
    cache.truncate(1, 6)
    run_pass(cache, 1, unlike(3, 4))  # it goes on in its own blocks, and what it fills now can be found again
    assert slots_of(cache, 1, 10) == slots
    cache.close(1)
    cache.close(2)
    cache.check_integrity()
    assert cache.num_free_blocks == cache.num_blocks


def test_demand_is_exact_also_when_a_later_row_adopts_what_an_earlier_one_would_write(cache: KVCache) -> None:
    for key in (1, 2):
        cache.open(key)
    run_pass(cache, 1, unlike(1, 8))
    cache.truncate(1, 7)
    demand = cache.demand()
    demand.add(cache.growth(1, 1))
    assert demand.num_blocks == 0

    cache.reuse(2, unlike(1, 8))

    assert demand.num_blocks == 1
    growth = cache.growth(2, 4)
    demand.add(growth)
    assert demand.num_blocks == cache.blocks_needed([(1, 1), (2, 4)]) == 2
    demand.remove(growth)
    cache.close(2)
    assert demand.num_blocks == 0


def test_a_pretended_context_takes_its_blocks_and_gives_them_back(cache: KVCache) -> None:
    cache.pretend(1, 9)
    assert (cache.num_cached(1), cache.num_free_blocks) == (9, 8 - 3)
    first, *others = slots_of(cache, 1, 9)
    assert run_pass(cache, 1, [7], unlike(9, 5)) == [(first, other) for other in others], "all of it is written"
    cache.truncate(1, 9)
    cache.check_integrity()
    cache.close(1)
    assert cache.num_free_blocks == 8


def test_nothing_of_a_pretended_request_or_of_its_fork_is_ever_found(cache: KVCache) -> None:
    cache.pretend(1, 8)
    run_pass(cache, 1, [0, 0, 0, 0], [1, 2, 3, 4])
    cache.accept(1, [0, 1, 2, 3])
    cache.fork(1, 2)
    run_pass(cache, 2, [5, 6, 7, 8])
    cache.close(1)
    cache.close(2)

    cache.open(3)
    assert cache.reuse(3, [0] * 12 + [1, 2, 3, 4, 5, 6, 7, 8]) == 0
    run_pass(cache, 3, [0] * 8)
    cache.close(3)
    cache.pretend(4, 4)
    assert cache.reuse(4, [0] * 8) == 4  # and it finds nothing, though there are such tokens


def test_a_pretended_context_that_does_not_fit_changes_nothing(cache: KVCache) -> None:
    with pytest.raises(OutOfBlocks, match="33 tokens needs 9 KV blocks, 8 are free"):
        cache.pretend(1, 33)
    assert not cache.is_open(1)
    cache.check_integrity()
