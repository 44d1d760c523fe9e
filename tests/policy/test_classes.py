"""A pass with rows of several service classes: the weighted price against trying everything, and who bears prompts."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.v1.inference_pb2 import ServiceClass
from scheduler.events import PassCost, TargetFacts
from scheduler.policy.classes import MAX_STRETCH, weights_of, within_pace
from scheduler.policy.policy import Base, bases
from scheduler.policy.price import Price
from scheduler.policy.selection import select
from scheduler.request import Request
from scheduler.service_class import SHARE
from tests.scheduler.classes import BATCH, INTERACTIVE, STANDARD, asked

STEEP = np.linspace(0.01, 1.01, 101)  # V(n): 10 ms, and 10 ms a token
FLAT = np.full(101, 0.01)

seeded = settings(derandomize=True, deadline=None, max_examples=200)
weighted_rows = st.lists(
    st.tuples(
        st.sampled_from([0.25, 1.0, 4.0]),
        st.lists(st.floats(0.001, 1), max_size=4).map(lambda row: np.array(sorted(row, reverse=True))),
    ),
    min_size=1,
    max_size=3,
)


@seeded
@given(weighted_rows, st.integers(1, 6), st.lists(st.floats(0.0, 0.5), min_size=20, max_size=20))
def test_no_other_choice_of_nodes_is_worth_more_a_second(
    rows: list[tuple[float, np.ndarray]], num_tokens: int, rises: list[float]
) -> None:
    seconds, survivals = np.cumsum([1.0, *rises]), [row for _, row in rows]
    weights = np.array([weight for weight, _ in rows])
    weights /= weights.mean()
    found = select(survivals, len(rows), num_tokens, seconds, weights)

    def rate(counts: tuple[int, ...]) -> float:
        gains = [w * row[:count].sum() for w, row, count in zip(weights, survivals, counts, strict=True)]
        return float((len(rows) + sum(gains)) / seconds[num_tokens + sum(counts)])

    best = max(map(rate, product(*(range(len(row) + 1) for row in survivals))))
    assert rate(tuple(found.num_nodes.tolist())) == pytest.approx(best)


def decoding(number: int, service_class: ServiceClass, num_nodes: int = 0) -> Request:
    request = Request(replace(asked(number, service_class, max_tokens=50), max_nodes=num_nodes), 0.0)
    request.tokens.append(1)
    request.target.known_len = len(request.tokens) - 1
    parent = None
    for _ in range(num_nodes):
        parent = request.tree.add(parent, 1, "a", 0.0)
        parent.chance = 0.8
    return request


def prompting(number: int, service_class: ServiceClass, length: int) -> Request:
    return Request(asked(number, service_class, prompt=length), 0.0)


def rows_of(*requests: Request) -> list[Base]:
    return bases(requests, 100)


def tokens_by_request(rows: list[Base]) -> dict[int, int]:
    return {row.request.number: row.num_tokens for row in rows}


def test_where_nodes_compete_the_urgent_rows_have_them() -> None:
    """The same trees, and a V at which about half of the nodes are worth it."""
    requests = [decoding(number, each, 4) for number, each in enumerate([BATCH, INTERACTIVE, STANDARD, BATCH], 1)]
    policy = Price()
    facts = TargetFacts(10, 4, 100, 100, [PassCost(1, 0, 0.010), PassCost(101, 0, 0.510)])
    policy.note_target(facts)
    rows = policy.plan(requests, [], [], facts, 0.0).rows
    nodes = {row.request.number: row.num_nodes for row in rows}
    assert nodes[2] >= nodes[3] >= nodes[1] == nodes[4]
    assert nodes[2] > nodes[1]


@pytest.mark.parametrize("service_class", [INTERACTIVE, STANDARD, BATCH])
def test_rows_of_one_class_have_no_weights(service_class: ServiceClass) -> None:
    assert weights_of(rows_of(decoding(1, service_class), decoding(2, service_class))) is None


def test_weights_of_rows_that_choose_are_one_in_the_mean() -> None:
    rows = rows_of(decoding(1, INTERACTIVE), decoding(2, BATCH), decoding(3, BATCH), prompting(4, BATCH, 200))
    weights = weights_of(rows)
    assert weights is not None
    assert weights[:3].mean() == pytest.approx(1)
    assert weights[0] / weights[1] == 16


def test_rows_that_choose_come_before_prompts_and_urgent_prompts_before_others() -> None:
    requests = [prompting(1, BATCH, 60), decoding(2, BATCH), prompting(3, STANDARD, 50), prompting(4, INTERACTIVE, 20)]
    assert list(tokens_by_request(rows_of(*requests)).items()) == [(2, 1), (4, 20), (3, 50), (1, 29)]


def test_a_prompt_that_many_passes_had_no_room_for_comes_first() -> None:
    overlooked = prompting(1, BATCH, 60)
    overlooked.num_passed_over = round(1 / SHARE)
    assert tokens_by_request(rows_of(prompting(2, STANDARD, 90), overlooked)) == {1: 60, 2: 40}


def test_a_prompt_of_a_lower_class_lengthens_a_pass_by_so_much_and_no_more() -> None:
    rows = within_pace(rows_of(decoding(1, INTERACTIVE), decoding(2, BATCH), prompting(3, BATCH, 90)), STEEP)
    sizes = tokens_by_request(list(rows))
    assert (sizes[1], sizes[2]) == (1, 1)
    assert STEEP[2 + sizes[3]] <= MAX_STRETCH * STEEP[2] < STEEP[2 + sizes[3] + 1]


def test_a_prompt_leaves_room_for_the_nodes_of_urgent_rows() -> None:
    rows = within_pace(rows_of(decoding(1, INTERACTIVE, 7), decoding(2, BATCH, 9), prompting(3, BATCH, 200)), FLAT)
    assert tokens_by_request(list(rows)) == {1: 1, 2: 1, 3: 100 - 2 - 7}


def test_a_token_of_a_prompt_goes_along_however_steep_passes_are() -> None:
    cliff = np.concatenate([np.full(3, 0.01), np.full(98, 10.0)])
    rows = within_pace(rows_of(decoding(1, INTERACTIVE), decoding(2, INTERACTIVE), prompting(3, BATCH, 90)), cliff)
    assert tokens_by_request(list(rows)) == {1: 1, 2: 1, 3: 1}


def test_prompts_of_the_most_urgent_class_in_a_pass_are_not_held_back() -> None:
    rows = rows_of(decoding(1, BATCH), prompting(2, STANDARD, 90))
    assert within_pace(rows, STEEP) is rows


def test_a_decision_over_one_class_is_what_it_was_without_classes() -> None:
    """All standard, or all batch: the same rows and nodes."""
    found = []
    for service_class in (STANDARD, BATCH):
        rng, requests = random.Random(3), []
        for number in range(1, 20):
            request = decoding(number, service_class, 6)
            for node in request.tree:
                node.chance = rng.random()
            request.tree.version += 1
            requests.append(request)
        policy = Price()
        facts = TargetFacts(10, 4, 100, 100, [PassCost(1, 0, 0.010), PassCost(101, 0, 0.110)])
        policy.note_target(facts)
        found.append([(row.request.number, row.num_nodes) for row in policy.plan(requests, [], [], facts, 0.0).rows])
    assert found[0] == found[1]
    assert sum(nodes for _, nodes in found[0]) > 0
