"""Rows that are sent before the verdict that they build on: which nodes are left for them, and when that pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.tree import Node, below, pack_nodes, with_ancestors
from scheduler.policy.ahead import NUM_TRIED, TRIED_AFTER, Ahead, Draft
from scheduler.policy.selection import select
from scheduler.request import Request, SentRow
from tests.scheduler.classes import STANDARD, asked

NOT_DRAFTED = 2  # stands for every token that is none of a node's children

seeded = settings(derandomize=True, deadline=None, max_examples=150)
# A tree: each node's parent, chance, and whether it is in the pass that runs, if its parent is.
trees = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.2, 0.3, 0.45]), st.booleans()), min_size=1, max_size=9)


def request_with(tree: list[tuple[int, float, bool]], max_nodes: int = 16) -> Request:
    """A request whose first row is on its way. A parent is a place in the list from 1 on, and 0 the root; it has two
    children at most."""
    request = Request(replace(asked(1, STANDARD, max_tokens=50), max_nodes=max_nodes), 0.0)
    request.tokens.append(1)
    places: list[Node | None] = [None]
    sent: list[Node] = []
    for parent_place, chance, is_sent in tree:
        parent = places[parent_place % len(places)]
        token = len(request.tree.children(parent))
        if token == NOT_DRAFTED:
            continue
        node = request.tree.add(parent, token, "a")
        node.chance = chance
        places.append(node)
        if is_sent and (parent is None or parent in sent):
            sent.append(node)
    deepest = max((node.depth for node in sent), default=0)
    request.sent = [SentRow(1, sent, request.committed_len, 1 + deepest, is_ahead=False)]
    return request


def futures(request: Request, node: Node | None = None) -> list[tuple[float, list[int]]]:
    """All ways that the target's choices may take through the tree, until they leave it, with their probabilities."""
    children = request.tree.children(node)
    found = [(1.0 - sum(child.chance for child in children.values()), [NOT_DRAFTED])]
    for token, child in children.items():
        found += [(child.chance * chance, [token, *rest]) for chance, rest in futures(request, child)]
    return found


def walk(future: list[int], tokens: list[int], parents: list[int]) -> int:
    """Tokens that a pass commits: those of the nodes on the way, and the target's own."""
    children = {edge: node for node, edge in enumerate(zip(parents, tokens, strict=True))}
    at, length = -1, 0
    for token in future:
        length += 1
        if (at, token) not in children:
            break
        at = children[at, token]
    return length


@seeded
@given(trees)
def test_what_is_expected_of_a_row_ahead_is_what_all_futures_bring_in_the_mean(
    tree: list[tuple[int, float, bool]],
) -> None:
    """By enumeration: the first pass walks among what was sent, the second among what that leaves of the others."""
    request = request_with(tree)
    found = request.candidates_ahead()
    tokens, parents = pack_nodes(with_ancestors(found.nodes))
    gain = computed = 0.0
    for probability, future in futures(request):
        first = walk(future, *pack_nodes(request.sent[0].nodes))
        left, places = below(future[:first], tokens, parents)
        computed += probability * len(left)
        if left:
            gain += probability * (walk(future[first:], [tokens[node] for node in left], places) - 1)
    assert found.survivals.sum() == pytest.approx(gain)
    assert found.shares.sum() == pytest.approx(computed)


def test_the_likeliest_when_computed_come_first_and_parents_before_children() -> None:
    #  root ── 1 (sent) ─┬─ 2 ── 3 ── 4
    #                    └─ 5 ── 6
    tree = [(0, 0.45), (1, 0.45), (2, 0.2), (3, 0.45), (1, 0.3), (5, 0.45)]
    request = request_with([(parent, chance, parent == 0) for parent, chance in tree])
    found = request.candidates_ahead()
    assert [node.number for node in found.nodes] == [6, 3, 4]
    assert found.shares.tolist() == pytest.approx([0.45 * 0.3, 0.45**2, 0.45**2])
    assert found.survivals.tolist() == pytest.approx([0.45 * 0.3 * 0.45, 0.45**2 * 0.2, 0.45**2 * 0.2 * 0.45])


def test_no_more_nodes_than_a_row_may_have_nor_deeper_ones_than_can_be_committed() -> None:
    chain = [(place, 0.45, place < 2) for place in range(9)]
    assert len(request_with(chain).candidates_ahead().nodes) == 6
    assert len(request_with(chain, max_nodes=4).candidates_ahead().nodes) == 4
    request = request_with(chain)
    request.new = replace(request.new, max_tokens=7)  # one is there, and the last one is the target's own
    assert max(node.depth for node in request.candidates_ahead().nodes) == 5


def test_a_row_that_may_end_the_answer_has_none_ahead_of_its_verdict() -> None:
    request = request_with([(0, 0.45, True), (1, 0.45, True)])
    for max_tokens, may in ((4, False), (5, True)):
        request.new = replace(request.new, max_tokens=max_tokens)
        assert request.may_go_ahead == may, "one is there, and two nodes and one more may come"
    request.sent.append(request.sent[0])
    assert not request.may_go_ahead


def test_a_node_takes_the_time_that_it_is_expected_to_take() -> None:
    """20 ms, and 10 ms a token: a node that is chosen in 0.2 of all cases is not worth it, nor one that is there in a
    half of them and chosen then in 0.4; in a quarter, and then in 0.8, it is."""
    seconds = 0.01 + 0.01 * np.arange(8)
    for share, num_nodes in ((1.0, 0), (0.5, 0), (0.25, 4)):
        found = select([np.full(4, 0.2)], 1, 1, seconds, shares=[np.full(4, share)])
        assert found.num_nodes.tolist() == [num_nodes]


# ── when it pays ────────────────────────────────────────────────────────────────────────────────────


def measured(more: float, usual: float = 0.8) -> Ahead:
    ahead = Ahead()
    for _ in range(NUM_TRIED):
        assert not ahead.may_pay, "it is not known yet what waiting brings"
        ahead.note_left(Draft(usual - more, 1.0))
        ahead.note_usual(Draft(usual, 2.0), 0.0)
    assert ahead.may_pay
    return ahead


@pytest.mark.parametrize(("more", "saved_s", "pays"), [(0.0, 0.001, True), (0.5, 0.003, False), (0.5, 0.03, True)])
def test_it_pays_where_the_time_saved_brings_more_than_is_lost(more: float, saved_s: float, pays: bool) -> None:
    """Four rows of 1.8 tokens in 40 ms: 180 a second; half a token of each is worth 11 ms."""
    assert measured(more).pays(4, 4, saved_s, usual_s=0.04) == pays


def test_verdicts_are_waited_for_now_and_then_and_the_rarer_the_more_often_in_vain() -> None:
    ahead = measured(0.0)
    for times in (1, 2, 4, 1):
        num_ahead = 0
        while ahead.may_pay:
            ahead.note_ahead()
            num_ahead += 1
        assert num_ahead == times * TRIED_AFTER
        for _ in range(NUM_TRIED + (times == 4)):  # the last of which was better than going ahead
            ahead.note_left(Draft(0.8, 1.0))
            ahead.note_usual(Draft(0.8, 1.0), 0.0)
