"""What is remembered of a target group's prefix cache, against plain lists of texts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.prefixes import Prefixes

texts = st.lists(st.integers(0, 2), max_size=12)


def common(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(1, 4), st.lists(texts, max_size=6), texts)
def test_a_text_is_known_for_as_many_full_blocks_as_it_shares_with_one_before(
    block_size: int, before: list[list[int]], text: list[int]
) -> None:
    prefixes = Prefixes(block_size, num_kv_blocks=1000)
    for each in before:
        prefixes.note(each)
    longest = max((common(each, text) for each in before), default=0)
    assert prefixes.num_known(text) == longest // block_size * block_size


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(texts, max_size=12), st.integers(0, 8))
def test_no_more_blocks_are_remembered_than_the_group_has(before: list[list[int]], num_kv_blocks: int) -> None:
    prefixes = Prefixes(2, num_kv_blocks)
    for each in before:
        prefixes.note(each)
        assert len(prefixes) <= num_kv_blocks
        assert prefixes.num_known(each) == min(len(each) // 2, num_kv_blocks) * 2, "its first blocks are the last to go"


def test_what_nobody_has_asked_for_lately_is_forgotten_first() -> None:
    prefixes = Prefixes(2, num_kv_blocks=4)
    prefixes.note([1, 1, 1, 1])
    prefixes.note([2, 2, 2, 2])
    prefixes.note([1, 1, 1, 1])
    prefixes.note([3, 3])
    assert [prefixes.num_known([token] * 4) for token in (1, 2, 3)] == [4, 2, 2]
