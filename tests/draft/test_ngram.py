"""Prompt lookup proposes what followed the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import InvalidRequest
from outrider.tree import check_parents
from tests.draft.drafting import Driver
from workers.choice.params import ChoiceParams
from workers.draft.drafter import Request, Resources
from workers.draft.ngram import MAX_CONTINUATIONS, MAX_MATCH_LEN, MAX_MATCHES, NgramDrafter, load

texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@dataclass(frozen=True)
class Nodes:
    tokens: list[int]
    parents: list[int]  # -1 is the root
    scores: list[float]
    is_done: bool


def draft(tokens: Sequence[int], max_nodes: int, *, pieces: int = 1) -> Nodes:
    """The one step over a text that was told in so many pieces."""
    driver = Driver(NgramDrafter())
    size = -(-len(tokens) // pieces)
    driver.open(1, ChoiceParams(), tokens[:size], 0)
    for start in range(size, len(tokens), size):
        driver.order(1, tokens[start : start + size], max_nodes)
    driver.order(1, [], max_nodes)
    (new,) = driver.step()
    assert driver.step() == []
    return Nodes(list(new.tokens), [parent - 1 for parent in new.parents], list(new.scores), new.is_done)


def paths(nodes: Nodes) -> set[tuple[int, ...]]:
    """The tokens from the root down to each leaf."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(nodes.tokens, nodes.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    inner = set(nodes.parents)
    return {path for node, path in enumerate(found) if node not in inner}


def best_match_by_definition(tokens: Sequence[int]) -> int | None:
    """The token after the longest, then most recent, earlier place with the same last tokens."""
    for length in range(min(MAX_MATCH_LEN, len(tokens)), 0, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return tokens[end]
    return None


@settings(max_examples=300, deadline=None)
@given(texts)
def test_the_first_node_is_what_followed_the_longest_and_most_recent_match(tokens: list[int]) -> None:
    expected = best_match_by_definition(tokens)

    assert list(draft(tokens, 1).tokens) == ([] if expected is None else [expected])


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(0, 12))
def test_nodes_are_a_small_tree_within_the_budget(tokens: list[int], max_nodes: int) -> None:
    nodes = draft(tokens, max_nodes)

    assert nodes.is_done
    assert len(nodes.tokens) == len(nodes.parents) == len(nodes.scores) <= max_nodes
    check_parents(nodes.parents)
    assert len(paths(nodes)) <= MAX_CONTINUATIONS
    siblings = list(zip(nodes.parents, nodes.tokens, strict=True))
    assert len(siblings) == len(set(siblings))


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(1, 40))
def test_a_text_told_in_pieces_drafts_what_it_drafts_at_once(tokens: list[int], pieces: int) -> None:
    assert draft(tokens, 8, pieces=pieces) == draft(tokens, 8)


def test_a_repeated_passage_is_proposed_as_a_chain() -> None:
    passage = [10, 11, 12, 13, 14, 15, 16]

    nodes = draft([*passage, 99, *passage[:3]], 4)

    assert (nodes.tokens, nodes.parents) == ([13, 14, 15, 16], [-1, 0, 1, 2])


def test_a_loop_is_continued_beyond_the_texts_end() -> None:
    assert paths(draft([7, 1, 2, 3, 1, 2, 3], 7)) == {(1, 2, 3, 1, 2, 3, 1)}


def test_different_continuations_become_branches_and_the_better_one_comes_first() -> None:
    #        the longer match ends in 5,6 -> 7;  the shorter, more recent one in 6 -> 8
    nodes = draft([5, 6, 7, 30, 31, 9, 6, 8, 40, 41, 5, 6], 6)

    assert nodes.tokens[0] == 7
    assert {path[0] for path in paths(nodes)} == {7, 8}
    scores = dict(zip(nodes.tokens, nodes.scores, strict=True))
    assert scores[7] > scores[8]


def test_scores_rise_with_the_length_of_the_match() -> None:
    scores = [draft([*range(10, 10 + length), 50, 99, *range(10, 10 + length)], 1).scores[0] for length in (1, 2, 3, 4)]

    assert scores == sorted(set(scores))


def test_a_text_without_repetition_gives_nothing_and_says_so() -> None:
    assert draft([1, 2, 3, 4], 8) == Nodes([], [], [], is_done=True)


def test_a_step_looks_at_a_bounded_number_of_matches() -> None:
    drafter = NgramDrafter()
    request = Request(1, ChoiceParams())
    drafter.open(request)
    drafter.commit(request, [4] * 5000)

    assert len(list(drafter._texts[1].matches())) <= MAX_MATCH_LEN * MAX_MATCHES


def test_a_closed_request_is_forgotten() -> None:
    drafter = NgramDrafter()
    driver = Driver(drafter)
    driver.open(1, ChoiceParams(), [1, 1], 3)
    driver.finish()

    driver.close(1)
    driver.step()

    assert not drafter._texts


def test_what_survives_a_verdict_is_not_told_again() -> None:
    driver = Driver(NgramDrafter())
    driver.open(1, ChoiceParams(), [1, 2, 3, 4, 5, 6, 7, 1], 4)
    driver.finish()
    assert driver.told[1].standing() == [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5)]

    driver.order(1, [2, 3], 4)
    driver.finish()  # the driver fails where a node that stands is told again

    assert driver.told[1].standing() == [(4,), (4, 5), (4, 5, 6), (4, 5, 6, 7)]


def test_an_ngram_drafter_takes_no_source() -> None:
    with pytest.raises(InvalidRequest, match="ngram:big"):
        load("big", Resources())
