"""Waiting for drafts, and taking turns: where they pay by arithmetic that can be done by hand."""

from __future__ import annotations

import numpy as np

from scheduler.policy.growth_curve import GrowthCurve
from scheduler.policy.pace import Pace
from scheduler.policy.selection import Selection, select
from scheduler.policy.waiting import Coming, wait_until_s

FLAT = np.full(65, 0.020)  # V of a target whose nodes are free


def nothing_there(num_rows: int) -> Selection:
    return select([np.empty(0)] * num_rows, num_rows, num_rows, FLAT)


def coming(in_s: float, gain: float = 1.5) -> Coming:
    return Coming(in_s, latest_s=100 + 2 * in_s, gain=gain, num_nodes=4)


def test_a_row_waits_for_a_draft_that_brings_more_than_the_time_it_takes() -> None:
    # 1 token in 20 ms, or 2.5 in 20 ms and the wait: a quarter more tokens a second at 20 ms.
    assert wait_until_s(nothing_there(1), 1, 1, [coming(0.010)], FLAT) == 100.020
    assert wait_until_s(nothing_there(1), 1, 1, [coming(0.019)], FLAT) is not None
    assert wait_until_s(nothing_there(1), 1, 1, [coming(0.021)], FLAT) is None


def test_hits_do_not_wait_for_misses() -> None:
    hits = select([np.array([0.9, 0.8, 0.7])] * 7 + [np.empty(0)], 8, 8, FLAT)
    assert wait_until_s(hits, 8, 8 + 21, [coming(0.010)], FLAT) is None


def test_it_waits_for_the_first_reports_when_the_last_ones_take_too_long() -> None:
    until_s = wait_until_s(nothing_there(4), 4, 4, [coming(0.005), coming(0.006), coming(0.5), coming(0.6)], FLAT)
    assert until_s == 100.010


def test_two_groups_take_turns_when_the_gap_costs_more_than_the_smaller_passes() -> None:
    def flat(num_tokens: int) -> float:
        return 0.020

    pace = Pace()
    assert not pace.takes_turns(8, 8, linear), "no gap, nothing to hide"
    pace.note_turnaround(0.010)
    assert pace.takes_turns(8, 8, linear)
    assert not pace.takes_turns(8, 8, flat), "each row's round is a pass and the gap in any case"


def linear(num_tokens: int) -> float:
    return 0.001 + 0.002 * num_tokens


def pace_with_drafts(after_s: float, lost_share: float) -> Pace:
    pace = Pace()
    for _ in range(50):
        pace.note_missing_drafts(after_s, lost_share)
    return pace


def test_the_time_that_rows_wait_for_drafts_is_hidden_as_well() -> None:
    assert pace_with_drafts(0.010, 0.5).takes_turns(8, 8, linear), "34 ms in turn; 33 ms and the drafts together"


def test_drafts_that_come_too_late_for_a_turn_are_no_reason_to_take_turns() -> None:
    assert not pace_with_drafts(0.050, 0.3).takes_turns(8, 8, linear), "the other's pass hides 17 ms of 50"


def test_once_all_rows_have_drafts_there_is_nothing_left_to_hide() -> None:
    pace = pace_with_drafts(0.010, 0.5)
    for _ in range(50):
        pace.note_drafts()
    assert not pace.takes_turns(8, 8, linear)


def test_a_curve_follows_a_drafter_that_changes_and_gives_up_on_what_is_late() -> None:
    curve = GrowthCurve()
    for _ in range(100):
        curve.learn(0, 0.010, 0.8, 2)
        curve.learn(1, 0.020, 1.4, 4)
    first, second = curve.reports
    assert (round(first.after_s, 4), round(second.worth, 4)) == (0.010, 1.4)
    assert first.latest_s < 0.012
    for _ in range(100):
        curve.learn(0, 0.030, 0.2, 1)
    assert round(first.after_s, 3) == 0.030
    assert round(first.worth, 3) == 0.2


def test_a_report_without_those_before_it_is_not_counted() -> None:
    curve = GrowthCurve()
    curve.learn(3, 0.010, 0.8, 2)
    assert curve.reports == []
