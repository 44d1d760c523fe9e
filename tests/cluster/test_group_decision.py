"""How many target groups are wanted, from figures that can be checked by hand. A group has 8 places and 100 blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from cluster.config import AutoscaleSection, TargetSection
from cluster.group_decision import Peak, TooFew, decide_groups
from cluster.scaling_decision import Decision, PoolState
from scheduler.pressure import Pressure

NOW_S = 1000.0
RULES = AutoscaleSection(
    enabled=True, period_s=5, hysteresis=0.25, up_cool_down_s=15, down_cool_down_s=120, give_up_s=60
)


def asked(num_running: int, num_waiting: int = 0, num_blocks: int = 0, **more: Any) -> Pressure:
    known = {"num_groups": 1, "waited_s": 60.0 if num_waiting else 0.0, "preempted_s": math.inf} | more
    return Pressure(
        num_places=8,
        num_blocks=100,
        num_running=num_running,
        num_waiting=num_waiting,
        num_blocks_needed=num_blocks,
        **known,
    )


def decided(
    number: int,
    pressure: Pressure,
    *,
    least: int = 1,
    most: int = 4,
    peak: float | None = None,
    too_few: int = 0,
    rules: AutoscaleSection = RULES,
    **state: Any,
) -> Decision:
    section = TargetSection(groups=least, min_groups=least, max_groups=most)
    known: dict[str, Any] = {"starting_since_s": (), "changed_s": 0.0, **state}
    peak = pressure.demand if peak is None else peak
    return decide_groups(rules, section, PoolState(number, **known), pressure, peak, too_few, NOW_S)


@pytest.mark.parametrize(
    ("pressure", "demand"),
    [
        (asked(6), 0.75),
        (asked(8, 4), 1.5),
        (asked(2, 1, num_blocks=150), 1.5),
        (asked(8, 4, num_blocks=150), 1.5),
        (asked(4, num_blocks=0, num_groups=0), 0.5),
    ],
)
def test_demand_is_by_places_or_blocks_whichever_is_more(pressure: Pressure, demand: float) -> None:
    assert pressure.demand == demand


def test_one_is_added_once_requests_have_waited_for_a_period() -> None:
    assert decided(1, asked(8, 1, waited_s=4.9)).num_after == 1
    decision = decided(1, asked(8, 1, waited_s=5.0))
    assert decision.num_after == 2
    assert decision.reason == "1 requests wait for room; all that run or wait would fill 1.12 groups"


def test_one_is_added_at_once_where_a_request_had_to_give_way() -> None:
    assert decided(1, asked(8, 1, waited_s=0.1, preempted_s=5.0)).num_after == 2
    assert decided(1, asked(8, 1, waited_s=0.1, preempted_s=5.1)).num_after == 1
    assert decided(1, asked(8, 0, preempted_s=0.0)).num_after == 1, "it runs again"


@pytest.mark.parametrize(("num_waiting", "number"), [(8, 2), (9, 3), (16, 3), (17, 4), (200, 4)])
def test_as_many_come_as_have_room_for_all_within_the_bound(num_waiting: int, number: int) -> None:
    assert decided(1, asked(8, num_waiting)).num_after == number


def test_one_more_comes_where_demand_would_fit_and_some_still_find_no_room() -> None:
    """Three requests of 60 blocks: two groups have room for one each, though all three are 1.8 groups' blocks."""
    assert decided(2, asked(2, 1, num_blocks=180)).num_after == 3


def test_while_some_are_starting_more_come_only_for_more_than_they_have_room_for() -> None:
    starting = {"starting_since_s": (NOW_S - 30,)}
    assert not decided(2, asked(8, 8), **starting).is_change
    assert decided(2, asked(8, 9), **starting).num_after == 3


def test_at_the_most_it_says_so() -> None:
    decision = decided(4, asked(32, 10))
    assert not decision.is_change
    assert decision.reason.endswith("would fill 5.25 groups, and there may be no more")


# With a hysteresis of a quarter, two groups' work has to come down to three quarters of one group's.
@pytest.mark.parametrize(
    ("number", "peak", "after"),
    [(2, 0.75, 1), (2, 0.7501, 2), (3, 1.5, 2), (3, 1.5001, 3), (4, 0.75, 1), (4, 1.5, 2), (4, 0.0, 1), (1, 0.0, 1)],
)
def test_the_fewest_stay_that_the_peak_leaves_a_share_free_in(number: int, peak: float, after: int) -> None:
    assert decided(number, asked(0), peak=peak).num_after == after


def test_as_many_as_have_been_too_few_are_not_gone_down_to() -> None:
    assert decided(5, asked(0), most=8, peak=2.0, too_few=4).num_after == 5
    assert decided(6, asked(0), most=8, peak=2.0, too_few=4).num_after == 5
    assert decided(6, asked(0), most=8, peak=2.0, too_few=1).num_after == 3
    decision = decided(5, asked(5, num_blocks=275), most=8, too_few=4)
    assert decision.reason == "all that run or wait would fill 2.75 groups, for which 4 have been too few"


def test_groups_have_been_too_few_until_demand_stays_below_what_they_had_no_room_for() -> None:
    too_few = TooFew()
    waiting, run, less = asked(4, 1, num_blocks=275, num_groups=4), asked(5, num_blocks=275), asked(4, num_blocks=220)
    assert too_few.note(RULES, run, run.demand) == 0
    assert too_few.note(RULES, replace(waiting, waited_s=4.9), waiting.demand) == 0, "not for a period yet"
    assert too_few.note(RULES, waiting, waiting.demand) == 4
    assert too_few.note(RULES, run, run.demand) == 4
    assert too_few.note(RULES, less, run.demand) == 4, "a moment's demand is not the peak"
    assert too_few.note(RULES, less, less.demand) == 0
    assert too_few.note(RULES, run, run.demand) == 0


def numbers_under(rules: AutoscaleSection, num_requests: list[int], num_blocks: int) -> list[int]:
    """Of groups, from one on, with so many requests at each step, of so many blocks each."""
    peak, too_few, number, changed_s, idle_s, numbers = Peak(rules.down_cool_down_s), TooFew(), 1, 0.0, 0.0, []
    for step, total in enumerate(num_requests):
        now_s = NOW_S + step * rules.period_s
        running = min(total, number * (100 // num_blocks))
        idle_s = now_s if running == total else idle_s
        pressure = asked(running, total - running, total * num_blocks, num_groups=number, waited_s=now_s - idle_s)
        high = peak.note(pressure.demand, now_s)
        known = (high, too_few.note(rules, pressure, high))
        section = TargetSection(groups=1, min_groups=1, max_groups=9)
        number = decide_groups(rules, section, PoolState(number, (), changed_s), pressure, *known, now_s).num_after
        changed_s = now_s if numbers and number != numbers[-1] else changed_s
        numbers.append(number)
    return numbers


@pytest.mark.parametrize("hysteresis", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("num_blocks", [34, 40, 55, 90])
def test_requests_that_do_not_fill_groups_keep_as_many_as_they_came_to_need(num_blocks: int, hysteresis: float) -> None:
    rules = RULES.model_copy(update={"hysteresis": hysteresis})
    numbers = numbers_under(rules, [7] * 200 + [3] * 200 + [0] * 200, num_blocks)
    for num_requests, seen in ((7, numbers[100:200]), (3, numbers[300:400]), (0, numbers[500:])):
        needed = max(1, math.ceil(num_requests / (100 // num_blocks)))
        loose = math.ceil(num_requests * num_blocks / 100 / (1 - hysteresis))
        assert len(set(seen)) == 1, "it stays where it is"
        assert needed <= seen[-1] <= max(needed, loose)


def test_the_bound_below_is_kept() -> None:
    assert decided(3, asked(0), least=2).num_after == 2


def test_none_goes_while_some_request_finds_no_room() -> None:
    assert decided(2, asked(1, 1, waited_s=60.0), most=2, peak=0.25).num_after == 2


def test_load_that_brought_a_group_does_not_let_it_go() -> None:
    """Whatever brings the second group is above what one would do with."""
    brought = decided(1, asked(8, 1))
    assert brought.num_after == 2
    assert not decided(2, asked(9)).is_change


@pytest.mark.parametrize(("ago_s", "number"), [(14.0, 1), (15.0, 2)])
def test_after_a_change_more_are_added_only_later(ago_s: float, number: int) -> None:
    decision = decided(1, asked(8, 1), changed_s=NOW_S - ago_s)
    assert decision.num_after == number
    assert decision.is_change or decision.reason.endswith(": 2 in 1 s, if it stays so")


@pytest.mark.parametrize(("ago_s", "number"), [(119.0, 2), (120.0, 1)])
def test_and_removed_later_still(ago_s: float, number: int) -> None:
    assert decided(2, asked(0), changed_s=NOW_S - ago_s).num_after == number


def test_those_that_do_not_start_are_not_wanted_any_more() -> None:
    since_s = NOW_S - RULES.give_up_s
    late = {"starting_since_s": (since_s, since_s), "changed_s": NOW_S}
    assert decided(3, asked(8, 8), **late).num_after == 1
    assert decided(3, asked(8, 8), least=2, **late).num_after == 2
    assert not decided(3, asked(8, 8), **late | {"starting_since_s": (NOW_S - 59.9, NOW_S - 59.9)}).is_change


def test_one_that_was_lost_a_moment_ago_is_not_given_up_with_one_that_has_tried_for_long() -> None:
    decision = decided(3, asked(8, 8), starting_since_s=(NOW_S - RULES.give_up_s, NOW_S - 1), changed_s=NOW_S)
    assert (decision.num_after, decision.reason) == (2, "1 did not start within 60 s")


def test_nothing_is_decided_while_no_group_is_there() -> None:
    decision = decided(2, asked(0, num_groups=0))
    assert (decision.num_after, decision.reason) == (2, "no target group is there")


def test_the_peak_is_the_highest_of_the_last_seconds() -> None:
    peak = Peak(10.0)
    seen = [(0.0, 1.0), (1.0, 3.0), (2.0, 2.0), (5.0, 2.0), (11.0, 0.5), (11.1, 0.5), (15.0, 0.0), (15.1, 0.0), (26, 0)]
    assert [peak.note(demand, now_s) for now_s, demand in seen] == [1.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 0.5, 0.0]


def test_the_peak_is_that_of_all_that_was_noted() -> None:
    peak, noted = Peak(7.0), []
    for step in range(200):
        noted.append((step * 1.5, (step * step * 31 % 17) / 4))
        now_s = noted[-1][0]
        assert peak.note(noted[-1][1], now_s) == max(demand for at_s, demand in noted if at_s >= now_s - 7.0)
