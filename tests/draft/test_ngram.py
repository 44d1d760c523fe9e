"""Prompt lookup proposes what followed the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import InvalidRequest
from outrider.tree import check_parents
from workers.choice.params import ChoiceParams
from workers.draft.drafter import NewNodes, Resources
from workers.draft.ngram import MAX_CONTINUATIONS, MAX_MATCH_LEN, MAX_MATCHES, NgramDrafter, load

texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def draft(tokens: Sequence[int], max_nodes: int, *, pieces: int = 1) -> NewNodes:
    """The one step over a text that was told in so many pieces."""
    drafter = NgramDrafter()
    drafter.open(1, ChoiceParams())
    size = -(-len(tokens) // pieces)
    for start in range(0, len(tokens), size):
        drafter.extend(1, tokens[start : start + size])
    drafter.begin(1, max_nodes)
    (nodes,) = drafter.step()
    assert drafter.step() == []
    return nodes


def paths(nodes: NewNodes) -> set[tuple[int, ...]]:
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
    assert draft([1, 2, 3, 4], 8) == NewNodes(1, [], [], [], is_done=True)


def test_a_step_looks_at_a_bounded_number_of_matches() -> None:
    drafter = NgramDrafter()
    drafter.open(1, ChoiceParams())
    drafter.extend(1, [4] * 5000)

    assert len(list(drafter._texts[1].matches())) <= MAX_MATCH_LEN * MAX_MATCHES


def test_a_closed_request_is_forgotten() -> None:
    drafter = NgramDrafter()
    drafter.open(1, ChoiceParams())
    drafter.extend(1, [1, 1])
    drafter.begin(1, 3)

    drafter.close(1)

    assert drafter.step() == []
    drafter.open(1, ChoiceParams())
    drafter.extend(1, [1])
    drafter.begin(1, 3)
    assert drafter.step()[0].tokens == []


def test_an_ngram_drafter_takes_no_source() -> None:
    with pytest.raises(InvalidRequest, match="ngram:big"):
        load("big", Resources())
