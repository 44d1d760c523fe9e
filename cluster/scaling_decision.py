"""How many drafters of a pool are wanted: a decision with its reason, from numbers alone. No I/O. Target groups:
group_decision.py.

The measure is the worth that the scheduler tells (scheduler/policy/worth.py), and the bar is the price: j more drafters
pay if the share that they add to the cell's goodput is at least the share that they add to its cost, and something at
all for each of them,

    G(k + j) / G(k) - 1  >=  j · max(price / C(k), min_gain)

C(k) being the hourly price of the target and of all drafters. The last one is kept if it still pays, by the same rule
from k - 1 on. Hysteresis moves the bar, up for a new one and down for one that is there; after any change nothing
happens for a while. More than one is looked at because the first ones may be worth nothing alone: see worth.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import AutoscaleSection, DrafterSection
from scheduler.policy.worth import Lack, Worth


@dataclass(frozen=True)
class PoolState:
    """A pool as the autoscaler sees it. Times are on its clock."""

    num_wanted: int
    starting_since_s: tuple[float, ...]  # those of them that do not serve: since when each has tried to
    changed_s: float  # when the number was last changed

    @property
    def num_starting(self) -> int:
        return len(self.starting_since_s)


@dataclass(frozen=True)
class Decision:
    num_before: int
    num_after: int
    reason: str

    @property
    def is_change(self) -> bool:
        return self.num_before != self.num_after


def decide(
    rules: AutoscaleSection,
    section: DrafterSection,
    state: PoolState,
    worth: Worth | Lack,
    other_cost: float,  # per hour, of all but this pool
    now_s: float,
) -> Decision:
    """`worth`: with as many drafters as are wanted, looked at up to the pool's most."""
    late = withdrawn(rules, state, section.min_workers, now_s)
    if late is not None:
        return late
    number = state.num_wanted
    if isinstance(worth, Lack):
        wish = _to_learn(section, number, worth)
    elif worth.goodput == 0.0:
        wish = Decision(number, section.min_workers, "nothing runs")
    else:
        wish = _by_price(rules, section, worth, other_cost)
    return unless_cooling(rules, state, wish, now_s)


def withdrawn(rules: AutoscaleSection, state: PoolState, least: int, now_s: float) -> Decision | None:
    """What has tried to start for too long is not wanted any more, down to `least`. None where nothing has."""
    num_late = sum(now_s - since_s >= rules.give_up_s for since_s in state.starting_since_s)
    after = max(state.num_wanted - num_late, least)
    if after >= state.num_wanted:
        return None
    return Decision(state.num_wanted, after, f"{num_late} did not start within {rules.give_up_s:g} s")


def unless_cooling(rules: AutoscaleSection, state: PoolState, wish: Decision, now_s: float) -> Decision:
    """The wish, if the last change is long enough ago; else to stay, with the reason and the time that is left."""
    is_up = wish.num_after > wish.num_before
    wait_s = state.changed_s + (rules.up_cool_down_s if is_up else rules.down_cool_down_s) - now_s
    if not wish.is_change or wait_s <= 0:
        return wish
    goal = f"{wish.num_after} in {wait_s:.0f} s, if it stays so"
    return Decision(wish.num_before, wish.num_before, f"{wish.reason}: {goal}")


def _to_learn(section: DrafterSection, number: int, lack: Lack) -> Decision:
    """One to learn from; and more of them where one has more rows than it can ever serve in time."""
    wants_more = number == 0 if lack is Lack.NO_DRAFTS else lack is Lack.NEVER_IN_TIME
    if wants_more and number < section.max_workers:
        return Decision(number, number + 1, f"{lack.value}: one more, to learn what it is worth")
    return Decision(number, number, lack.value)


def _by_price(rules: AutoscaleSection, section: DrafterSection, worth: Worth, other_cost: float) -> Decision:
    number, goodputs, price = worth.num_drafters, worth.goodputs, section.price_per_hour
    for after in range(number + 1, section.max_workers + 1):
        gain = goodputs[after] / worth.goodput - 1
        bar = (after - number) * _bar(rules, price, other_cost + price * number, 1 + rules.hysteresis)
        if gain >= bar:
            return Decision(
                number, after, f"{after - number} more add {_percent(gain)}; they pay from {_percent(bar)} on"
            )
    if number > section.min_workers:
        loss = worth.goodput / goodputs[number - 1] - 1
        bar = _bar(rules, price, other_cost + price * (number - 1), 1 - rules.hysteresis)
        if loss < bar:
            return Decision(number, number - 1, f"the last adds {_percent(loss)}; it stays from {_percent(bar)} on")
    return Decision(number, number, _why_it_stays(section, worth))


def _bar(rules: AutoscaleSection, price: float, cost: float, slack: float) -> float:
    """The share of goodput from which on a drafter is worth its price."""
    share = price / cost if cost > 0 else float("inf") if price > 0 else 0.0
    return max(share, rules.min_gain) * slack


def _why_it_stays(section: DrafterSection, worth: Worth) -> str:
    last = f"the last adds {_percent(worth.of_the_last / max(worth.goodput - worth.of_the_last, 1e-9))}"
    if worth.num_drafters == section.max_workers:
        return f"{last}, and there may be no more" if worth.num_drafters else "there may be none"
    more = f"one more would add {_percent(worth.of_one_more / worth.goodput)}"
    return f"{last}, {more}" if worth.num_drafters else more


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
