"""Bans, biases and penalties: what they do, on the path of each node and of no other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.choice.penalties import edit

VOCAB = 8
NO = -math.inf


def edited(logits: Sequence[float], params: ChoiceParams, history: Sequence[int]) -> list[float]:
    """After one path."""
    row = torch.tensor([logits], dtype=torch.float32)
    edit(row, params, Paths(history))
    values: list[float] = row[0].tolist()
    return values


def test_a_path_runs_from_the_root_to_its_node() -> None:
    paths = Paths([9, 8], node_tokens=[1, 2, 3, 4], node_parents=[-1, 0, -1, 1])

    assert paths.behind_root() == [(), (1,), (1, 2), (3,), (1, 2, 4)]
    assert paths.positions == [2, 3, 4, 3, 5]


def test_only_allowed_tokens_keep_their_logits() -> None:
    assert edited([1, 2, 3, 4], ChoiceParams(allowed_token_ids=(1, 3)), [0]) == [NO, 2, NO, 4]


def test_a_bias_is_added_and_does_not_bring_back_a_banned_token() -> None:
    params = ChoiceParams(logit_bias=((0, 2.5), (2, -1.0), (3, 100.0)), allowed_token_ids=(0, 1, 2))

    assert edited([1, 2, 3, 4], params, [0]) == [3.5, 2, 2, NO]


@pytest.mark.parametrize(
    ("history", "banned"),
    [([5], {1}), ([5, 2], {1}), ([2, 3], {1, 4}), ([3], {1}), ([2, 3, 3], {1}), ([0, 2, 3], {1, 4})],
)
def test_a_bad_word_is_never_completed_and_only_its_last_token_is_banned(history: list[int], banned: set[int]) -> None:
    row = edited([0.0] * VOCAB, ChoiceParams(bad_words=((1,), (2, 3, 4))), history)

    assert {token for token, value in enumerate(row) if value == NO} == banned


def test_ends_are_held_back_until_the_answer_has_min_tokens() -> None:
    params = ChoiceParams(min_tokens=2, num_prompt_tokens=3, end_token_ids=(0, 7))
    logits = torch.zeros(4, VOCAB)

    edit(logits, params, Paths([1, 1, 1], node_tokens=[2, 3, 4], node_parents=[-1, 0, -1]))

    is_banned = (logits == NO).tolist()
    assert [row[0] and row[7] for row in is_banned] == [True, True, False, True]
    assert sum(map(sum, is_banned)) == 6


def test_penalties_are_those_of_their_definitions() -> None:
    params = ChoiceParams(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, num_prompt_tokens=2)

    # The prompt is 0, 1; the answer 1, 2, 2. Token 3 is new.
    assert edited([4.0, -4.0, 4.0, 4.0], params, [0, 1, 1, 2, 2]) == [2.0, -8.0 - 0.75, 2.0 - 1.25, 4.0]


def test_a_grammars_mask_excludes_the_rest_after_each_node() -> None:
    logits = torch.zeros(2, 3)

    edit(
        logits,
        ChoiceParams(grammar="any"),
        Paths([1], [2], [-1]),
        torch.tensor([[True, False, True], [False, False, True]]),
    )

    assert logits.tolist() == [[0, NO, 0], [NO, NO, 0]]


params_with_history = st.builds(
    ChoiceParams,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.2]),
    bad_words=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    min_tokens=st.integers(0, 6),
    num_prompt_tokens=st.integers(1, 4),
    end_token_ids=st.just((0,)),
    logit_bias=st.sampled_from([(), ((3, 1.5),)]),
    allowed_token_ids=st.sampled_from([(), (0, 1, 2, 3, 5)]),
)


@settings(max_examples=200, deadline=None)
@given(
    params=params_with_history,
    committed=st.lists(st.integers(0, VOCAB - 1), min_size=4, max_size=9),
    tree=st.lists(st.tuples(st.integers(0, VOCAB - 1), st.floats(0, 1, exclude_max=True)), max_size=7),
    seed=st.integers(0, 99),
)
def test_after_a_node_the_logits_are_what_they_are_with_its_path_committed(
    params: ChoiceParams, committed: list[int], tree: list[tuple[int, float]], seed: int
) -> None:
    tokens = [token for token, _ in tree]
    parents = [int(share * (node + 1)) - 1 for node, (_, share) in enumerate(tree)]
    paths = Paths(committed, tokens, parents)
    logits = torch.randn(1 + len(tree), VOCAB, generator=torch.Generator().manual_seed(seed))
    expected = [
        edited(row.tolist(), params, [*committed, *behind])
        for row, behind in zip(logits, paths.behind_root(), strict=True)
    ]

    edit(logits, params, paths)

    assert logits.tolist() == expected


def test_the_law_of_paths_sees_penalties_of_the_root_used_for_every_node() -> None:
    """A wrong twin: one penalty vector for the whole tree, as engines do that approximate."""
    params = ChoiceParams(presence_penalty=1.0, num_prompt_tokens=1)
    right, wrong = torch.zeros(3, VOCAB), torch.zeros(3, VOCAB)

    edit(right, params, Paths([1, 2], [3, 4], [-1, 0]))
    for row in wrong:
        edit(row[None], params, Paths([1, 2]))

    assert torch.equal(right[0], wrong[0])
    assert not torch.equal(right[1], wrong[1])
