"""What drafters are worth, where it can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.policy.worth import DraftPace, Drafts, Load, Pool, Worth, goodput, worth_of

PASS_S, GAP_S = 0.020, 0.002
FLAT = np.full(257, PASS_S)  # V of a target whose nodes are free
STEEP = PASS_S * np.arange(257) / 8  # and of one whose nodes cost as much as rows
SERIAL = DraftPace(round_trip_s=0.002, node_s=0.0, node_row_s=0.005)  # a drafter that takes its rows one by one
ALWAYS = np.ones(9)
OFTEN = 0.7 ** np.arange(1, 10)
NEVER = np.zeros(9)


def load(num_rows: float, seconds: np.ndarray = FLAT, num_drafted: float | None = None) -> Load:
    return Load(seconds, GAP_S, num_rows, num_rows if num_drafted is None else num_drafted)


def pool(survivals: np.ndarray, pace: DraftPace = SERIAL, without: Drafts | None = None) -> Pool:
    return Pool(survivals, pace, without)


def test_without_rows_nothing_is_worth_anything() -> None:
    assert worth_of(pool(ALWAYS), 2, load(0)) == Worth(2, (0.0,) * 4)


def test_a_drafter_that_is_always_right_is_worth_what_arithmetic_says() -> None:
    # Ahead of a pass of 22 ms with its gap, 4 nodes of 5 ms after a round trip of 2; the target adds one token.
    worth = worth_of(pool(ALWAYS), 1, load(1))
    assert worth.goodput == pytest.approx(5 / 0.022)
    assert worth.goodputs[0] == pytest.approx(1 / 0.022), "plain decoding"
    assert worth.of_one_more == pytest.approx(0.0), "a row has one drafter of a pool"


def test_two_drafters_draft_twice_as_deep_for_two_rows() -> None:
    # A node takes one of them 10 ms for both rows, so 2 in a pass and its gap; two take 5 ms each, so 4.
    worth = worth_of(pool(ALWAYS), 1, load(2))
    assert worth.goodput == pytest.approx(2 * 3 / 0.022)
    assert worth.goodputs[2] == pytest.approx(2 * 5 / 0.022)
    assert worth.of_the_last == pytest.approx(2 * 2 / 0.022)


def test_drafts_that_are_right_in_part_are_worth_the_best_way_to_use_them() -> None:
    # One node, S(1) = S, S(2) = 0: a row that misses has a node next time with S, one that hits has none.
    survival = 0.5
    hits = survival / (1 + survival)
    ahead = (1 + hits * survival) / 0.022
    waiting = (1 + survival) / (0.022 + 0.007)
    assert goodput(pool(np.array([survival, 0.0])), 1, load(1)) == pytest.approx(max(ahead, waiting))
    fast = DraftPace(0.0, 0.0, 0.001)
    assert goodput(pool(np.array([survival, 0.0]), fast), 1, load(1)) == pytest.approx((1 + survival) / 0.023)


def gains_of(survivals: np.ndarray, num_rows: int) -> np.ndarray:
    return np.diff(worth_of(pool(survivals), 0, load(num_rows), most=num_rows + 2).goodputs)


def test_each_further_drafter_is_worth_less() -> None:
    gains = gains_of(OFTEN, 4)
    assert (gains[:4] > 0).all()
    assert (np.diff(gains) < 1e-9).all()
    assert gains[4:] == pytest.approx(0.0), "more drafters than rows"


def test_drafters_that_are_always_right_are_worth_the_nodes_that_they_have_time_for() -> None:
    # Each has 20 ms of a pass's 22, and so 4 nodes of 5 ms.
    assert gains_of(ALWAYS, 4) == pytest.approx([4 / 0.022] * 4 + [0, 0])


def test_too_few_drafters_for_all_rows_are_worth_nothing_and_enough_of_them_are() -> None:
    # A step of one that has all 16 rows takes 80 ms, four passes: its nodes are out of date when they come.
    gains = gains_of(OFTEN, 16)
    assert gains[0] == 0.0
    assert gains[:4].sum() > 0.3 * 16 / 0.022


def test_drafters_that_are_never_right_are_worth_nothing() -> None:
    worth = worth_of(pool(NEVER), 1, load(4))
    assert (worth.of_one_more, worth.of_the_last) == (0.0, 0.0)


def test_where_a_node_costs_as_much_as_a_row_drafters_are_worth_next_to_nothing() -> None:
    # All that a node of survival 0.7 can do is to share the gap; a node of survival 1 is as good as a row.
    worth = worth_of(pool(OFTEN), 1, load(32, STEEP))
    assert worth.of_the_last < 0.01 * worth.goodput
    assert worth_of(pool(ALWAYS, DraftPace(0.0, 0.0, 0.0)), 1, load(1, FLAT)).of_the_last > 0


def test_a_pool_is_worth_what_it_adds_to_the_others() -> None:
    others = Drafts(OFTEN, np.zeros(9))
    alone, beside = (worth_of(pool(OFTEN, without=each), 1, load(4)) for each in (None, others))
    assert beside.of_the_last == 0.0, "it says what is there already"
    assert alone.of_the_last > 0


def test_two_target_groups_with_twice_the_rows_and_drafters_bring_twice_as_much() -> None:
    one = worth_of(pool(OFTEN), 1, load(4, STEEP))
    two = worth_of(pool(OFTEN), 2, replace(load(8, STEEP), num_groups=2))
    assert [two.goodputs[0], two.goodputs[2]] == pytest.approx([2 * one.goodputs[0], 2 * one.goodputs[1]])


def test_rows_that_may_not_use_the_pool_gain_nothing() -> None:
    all_of_them, half = (worth_of(pool(ALWAYS), 1, load(2, num_drafted=n)) for n in (2, 1))
    assert half.of_the_last == pytest.approx(4 / 0.022), "one row at five tokens a round, one at one"
    assert all_of_them.of_the_last == pytest.approx(4 / 0.022)


def test_a_pass_takes_no_more_than_it_has_room_for() -> None:
    assert goodput(pool(ALWAYS, DraftPace(0.0, 0.0, 0.0)), 1, load(1, FLAT[:4])) == pytest.approx(3 / 0.022)
