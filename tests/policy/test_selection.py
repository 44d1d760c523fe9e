"""The price against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policy.selection import select

seeded = settings(derandomize=True, deadline=None, max_examples=200)
rows_of_survivals = st.lists(
    st.lists(st.floats(0.001, 1), max_size=4).map(lambda row: np.array(sorted(row, reverse=True))), max_size=3
)
steps = st.lists(st.floats(0.0, 0.5), min_size=20, max_size=20)


@seeded
@given(rows_of_survivals, st.integers(1, 6), steps)
def test_no_other_choice_of_nodes_brings_more_tokens_a_second(
    survivals: list[np.ndarray], num_tokens: int, rises: list[float]
) -> None:
    seconds = np.cumsum([1.0, *rises])
    num_choosing = max(len(survivals), 1)
    found = select(survivals, num_choosing, num_tokens, seconds)

    def rate(counts: tuple[int, ...]) -> float:
        gain = sum(float(row[:count].sum()) for row, count in zip(survivals, counts, strict=True))
        return (num_choosing + gain) / float(seconds[num_tokens + sum(counts)])

    best = max(map(rate, product(*(range(len(row) + 1) for row in survivals))))
    assert rate(tuple(found.num_nodes.tolist())) == pytest.approx(best)
    assert found.price == pytest.approx(best)


def test_flat_passes_take_every_node_and_steep_ones_none() -> None:
    survivals = [np.array([0.9, 0.5]), np.array([0.3])]
    assert select(survivals, 2, 2, np.full(10, 0.02)).num_nodes.tolist() == [2, 1]
    assert select(survivals, 2, 2, np.arange(10) * 0.02).num_nodes.tolist() == [0, 0]


def test_nodes_beside_a_prompt_cost_what_their_time_is_worth_elsewhere() -> None:
    seconds = 0.010 + 0.005 * np.arange(100)
    beside_prompt = [np.array([0.85, 0.7])], 1, 40, seconds  # 40 tokens take 0.21 s and bring one: 5 tokens a second
    assert select(*beside_prompt).num_nodes.tolist() == [2], "by the pass alone, 0.025 tokens a node"
    assert select(*beside_prompt, min_price=150.0).num_nodes.tolist() == [1], "by what time is worth, 0.75"
    assert select(*beside_prompt, min_price=200.0).num_nodes.tolist() == [0]


def test_a_pass_never_grows_beyond_its_limit() -> None:
    found = select([np.full(9, 0.9)], 1, 4, np.full(8, 0.02))  # V is known up to seven tokens
    assert found.num_nodes.tolist() == [3]


def test_a_pass_of_prompt_chunks_has_no_nodes() -> None:
    found = select([np.empty(0)], 0, 512, np.linspace(0.01, 1, 600))
    assert (found.num_nodes.tolist(), found.gain) == ([0], 0.0)
