"""The walk gives what decoding one token at a time gives, whatever was drafted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import NoTokenLeft
from outrider.tree import TreeError
from workers.choice.choose import NO_TOKEN, UNUSABLE
from workers.choice.errors import UnusableLogits
from workers.target.walk import Walk, walk

VOCAB = 3


def choice_of(seed: int) -> Callable[[Sequence[int]], int]:
    """A target's choice as a function of the whole path, root excluded: any function will do."""
    return lambda path: random.Random(f"{seed}:{list(path)}").randrange(VOCAB)


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Tokens and parents of any tree, also with equal siblings."""
    num_nodes = draw(st.integers(0, 12))
    parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    return [draw(st.integers(0, VOCAB - 1)) for _ in range(num_nodes)], parents


def path_tokens(node: int, tokens: Sequence[int], parents: Sequence[int]) -> list[int]:
    return [] if node == -1 else [*path_tokens(parents[node], tokens, parents), tokens[node]]


def chosen_after_each(choice: Callable[[Sequence[int]], int], tokens: list[int], parents: list[int]) -> list[int]:
    return [choice(path_tokens(node, tokens, parents)) for node in range(-1, len(tokens))]


def decode(choice: Callable[[Sequence[int]], int], num_tokens: int) -> tuple[int, ...]:
    """One token at a time."""
    decoded: list[int] = []
    while len(decoded) < num_tokens:
        decoded.append(choice(decoded))
    return tuple(decoded)


@settings(max_examples=400, deadline=None)
@given(tree=trees(), seed=st.integers(0, 1000))
def test_a_walks_tokens_are_those_of_decoding_one_at_a_time(tree: tuple[list[int], list[int]], seed: int) -> None:
    tokens, parents = tree
    choice = choice_of(seed)

    result = walk(chosen_after_each(choice, tokens, parents), tokens, parents)

    assert result.tokens == decode(choice, len(result.tokens))
    assert [tokens[node] for node in result.path] == list(result.tokens[:-1])
    assert [parents[node] for node in result.path] == [-1, *result.path][: len(result.path)]


@settings(max_examples=400, deadline=None)
@given(tree=trees(), seed=st.integers(0, 1000))
def test_a_walk_ends_only_where_no_child_bears_the_next_token(tree: tuple[list[int], list[int]], seed: int) -> None:
    tokens, parents = tree
    end = [-1, *(result := walk(chosen_after_each(choice_of(seed), tokens, parents), tokens, parents)).path][-1]

    assert all(tokens[node] != result.tokens[-1] for node in range(len(tokens)) if parents[node] == end)


def walk_by_depth(chosen: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> Walk:
    """A wrong twin: compares a node with its parent's choice, but does not ask whether the parent was accepted."""
    path = [node for node, parent in enumerate(parents) if tokens[node] == chosen[parent + 1]]
    return Walk(tuple(path), (*(tokens[node] for node in path), chosen[path[-1] + 1 if path else 0]))


def test_the_law_sees_a_walk_that_ignores_whether_the_parent_was_accepted() -> None:
    rng = random.Random(0)
    failures = 0
    for seed in range(100):
        parents = [rng.randrange(-1, node) for node in range(8)]
        tokens = [rng.randrange(VOCAB) for _ in range(8)]
        choice = choice_of(seed)
        result = walk_by_depth(chosen_after_each(choice, tokens, parents), tokens, parents)
        failures += result.tokens != decode(choice, len(result.tokens))
    assert failures > 50


def test_without_a_draft_the_walk_is_the_next_token() -> None:
    assert walk([7], [], []) == Walk((), (7,))


def test_a_chain_is_accepted_to_its_end_and_a_token_more() -> None:
    assert walk([4, 5, 6], [4, 5], [-1, 0]) == Walk((0, 1), (4, 5, 6))


def test_a_later_sibling_is_found_and_its_path_ascends() -> None:
    #  root -> 0 (token 1), root -> 1 (token 2); 0 -> 2 (token 3), 1 -> 3 (token 3)
    assert walk([2, 9, 3, 9, 8], [1, 2, 3, 3], [-1, -1, 0, 1]) == Walk((1, 3), (2, 3, 8))


def test_a_token_that_ends_the_answer_is_the_next_token_also_where_it_was_drafted() -> None:
    assert walk([4, 9, NO_TOKEN], [4, 9], [-1, 0], ends={9}) == Walk((0,), (4, 9))


def test_a_place_without_a_choice_is_an_error_only_where_the_walk_comes_to_it() -> None:
    assert walk([4, 5, UNUSABLE, NO_TOKEN], [4, 6, 7], [-1, -1, 0]) == Walk((0,), (4, 5))
    with pytest.raises(UnusableLogits):
        walk([4, UNUSABLE], [4], [-1])
    with pytest.raises(NoTokenLeft):
        walk([NO_TOKEN], [], [])


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-2], [1, -1]])
def test_parents_that_are_no_tree_in_order_are_refused(parents: list[int]) -> None:
    with pytest.raises(TreeError):
        walk([0] * (len(parents) + 1), [0] * len(parents), parents)
