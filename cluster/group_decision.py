"""How many target groups are wanted: a decision with its reason, from numbers alone. No I/O.

The measure is the demand that the scheduler tells (scheduler/pressure.py): how many groups all requests that run or
wait would fill, with their places or with the KV blocks that they can come to need. Prices do not count: a request that
waits has no tokens at all, and the bounds say what may be spent.

    more     once requests have waited for room for a period, or one gave way: as many as have room for all; at least
             one more, unless some are starting
    fewer    down to the fewest in which the highest demand of late leaves a share free:
             peak <= (1 - hysteresis) · groups
             and not to as many as have been too few for it: what requests need may not add up to whole groups

Late is the cool-down before anything is removed. After any change nothing happens for a while, as with drafters.
"""

from __future__ import annotations

from collections import deque
from math import ceil

from cluster.config import AutoscaleSection, TargetSection
from cluster.scaling_decision import Decision, PoolState, unless_cooling, withdrawn
from scheduler.pressure import Pressure


class Peak:
    """The highest demand of late."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._falling: deque[tuple[float, float]] = deque()  # times, and demands that no later one came up to

    def note(self, demand: float, now_s: float) -> float:
        """What it is with this one."""
        while self._falling and self._falling[-1][1] <= demand:
            self._falling.pop()
        self._falling.append((now_s, demand))
        while self._falling[0][0] < now_s - self._window_s:
            self._falling.popleft()
        return self._falling[0][1]


class TooFew:
    """The number of groups in which requests last waited for room, until demand stays below what it was then."""

    def __init__(self) -> None:
        self._num_groups = 0
        self._demand = 0.0

    def note(self, rules: AutoscaleSection, pressure: Pressure, peak: float) -> int:
        """What it is with this one; 0: none are known to be too few."""
        if _is_short(rules, pressure):
            self._num_groups, self._demand = pressure.num_groups, pressure.demand
        elif peak < self._demand:
            self._num_groups = 0
        return self._num_groups


def decide_groups(
    rules: AutoscaleSection,
    section: TargetSection,
    state: PoolState,
    pressure: Pressure,
    peak: float,  # the highest demand within the cool-down before one is removed, that of now included
    num_too_few: int,  # groups that have had no room for as much; 0: none are known to
    now_s: float,
) -> Decision:
    late = withdrawn(rules, state, section.min_groups, now_s)
    if late is not None:
        return late
    number = state.num_wanted
    if not pressure.num_groups:
        return Decision(number, number, "no target group is there")
    if _is_short(rules, pressure):
        wish = _up(section, state, pressure)
    else:
        wish = _down(rules, section, number, pressure, peak, num_too_few)
    return unless_cooling(rules, state, wish, now_s)


def _is_short(rules: AutoscaleSection, pressure: Pressure) -> bool:
    """Whether room has been missing, and still is."""
    has_lasted = pressure.waited_s >= rules.period_s or pressure.preempted_s <= rules.period_s
    return pressure.num_waiting > 0 and has_lasted


def _up(section: TargetSection, state: PoolState, pressure: Pressure) -> Decision:
    number, needed = state.num_wanted, ceil(pressure.demand)
    if not state.num_starting:
        needed = max(needed, number + 1)
    reason = f"{pressure.num_waiting} requests wait for room; {_demand(pressure)}"
    if needed > number >= section.max_groups:
        return Decision(number, number, f"{reason}, and there may be no more")
    return Decision(number, max(number, min(needed, section.max_groups)), reason)


def _down(
    rules: AutoscaleSection, section: TargetSection, number: int, pressure: Pressure, peak: float, num_too_few: int
) -> Decision:
    fewest = max(ceil(peak / (1 - rules.hysteresis)), section.min_groups, num_too_few + 1)
    if fewest < number:
        reason = f"for {rules.down_cool_down_s:g} s requests have filled at most {peak:.2f} groups"
        return Decision(number, fewest, f"{reason}: {fewest} would do")
    too_few = f", for which {num_too_few} have been too few" if num_too_few else ""
    return Decision(number, number, f"{_demand(pressure)}{too_few}")


def _demand(pressure: Pressure) -> str:
    return f"all that run or wait would fill {pressure.demand:.2f} groups"
