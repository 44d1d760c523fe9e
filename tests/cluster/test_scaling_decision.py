"""How many drafters are wanted, from figures that can be checked by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from cluster.config import AutoscaleSection, CellConfig, DrafterSection, load_config
from cluster.errors import ConfigError
from cluster.scaling_decision import Decision, PoolState, decide
from scheduler.policy.worth import Lack, Worth

NOW_S = 1000.0
RULES = AutoscaleSection(
    enabled=True, min_gain=0.02, hysteresis=0.2, up_cool_down_s=15, down_cool_down_s=120, give_up_s=60
)
TARGET_PRICE = 10.0


def decided(
    goodputs: tuple[float, ...] | Lack,
    number: int,
    *,
    price: float = 1.0,
    least: int = 0,
    most: int = 4,
    **state: Any,
) -> Decision:
    section = DrafterSection(kind="ngram", name="d", min_workers=least, max_workers=most, price_per_hour=price)
    known: dict[str, Any] = {"starting_since_s": (), "changed_s": 0.0, **state}
    worth = goodputs if isinstance(goodputs, Lack) else Worth(number, goodputs)
    return decide(RULES, section, PoolState(number, **known), worth, TARGET_PRICE, NOW_S)


def test_one_more_is_added_from_a_fifth_above_break_even_on() -> None:
    # Of a target for 10 and a drafter for 1, a second one is 1/11 of the cost: 9.1 %, and with hysteresis 10.9 %.
    assert decided((100, 200, 222), 1, most=2).num_after == 2
    assert decided((100, 200, 221), 1, most=2).num_after == 1


def test_the_last_one_goes_when_it_brings_a_fifth_less_than_its_price() -> None:
    # The first is a tenth of the target's price: it stays down to 8 %.
    assert decided((100, 108.1, 108.1), 1, most=1).num_after == 1
    assert decided((100, 107.9, 107.9), 1, most=1).num_after == 0


def test_between_the_two_bars_nothing_happens_in_either_direction() -> None:
    assert not decided((100, 109, 109), 1, most=1).is_change
    assert not decided((100, 109), 0, most=1).is_change


def test_drafters_that_are_worth_something_only_together_come_together() -> None:
    decision = decided((100, 100, 100, 160, 170), 0)
    assert (decision.num_before, decision.num_after) == (0, 3)
    assert decision.reason == "3 more add 60.0 %; they pay from 36.0 % on"


def test_a_free_drafter_has_to_add_something_all_the_same() -> None:
    assert decided((100, 102.5), 0, price=0.0, most=1).num_after == 1
    assert decided((100, 102.3), 0, price=0.0, most=1).num_after == 0
    assert decided((100, 101.5, 101.5), 1, price=0.0, most=1).num_after == 0


def test_each_of_several_has_to_add_as_much_as_one() -> None:
    assert decided((100, 104.7, 104.7), 0, price=0.0, most=2).num_after == 1
    assert decided((100, 101.0, 104.9), 0, price=0.0, most=2).num_after == 2
    assert decided((100, 101.0, 104.7), 0, price=0.0, most=2).num_after == 0


@pytest.mark.parametrize("price", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("share", [0.005, 0.01, 0.013, 0.018, 0.025, 0.05, 0.1, 0.2])
def test_where_nothing_changes_what_was_added_stays_and_what_has_gone_stays_away(price: float, share: float) -> None:
    goodputs = tuple(100 * (1 + share * number) for number in range(5))
    for start in range(5):
        numbers = [start]
        for _ in range(10):
            numbers.append(decided(goodputs, numbers[-1], price=price).num_after)
        steps = [after - before for before, after in pairwise(numbers)]
        assert all(step >= 0 for step in steps) or all(step <= 0 for step in steps), numbers


def test_bounds_are_kept() -> None:
    rising, flat = (100.0, 200.0, 300.0, 400.0, 500.0), (100.0,) * 5
    assert decided(rising, 2, most=2).num_after == 2
    assert decided(flat, 2, least=2).num_after == 2
    assert decided(flat, 2, least=1).num_after == 1


def test_when_nothing_runs_all_but_the_fewest_go_at_once() -> None:
    idle = (0.0,) * 5
    assert decided(idle, 3).num_after == 0
    assert decided(idle, 3, least=1).num_after == 1
    assert not decided(idle, 0).is_change


def test_what_is_not_known_is_learned_with_one() -> None:
    assert decided(Lack.NO_DRAFTS, 0).num_after == 1
    assert decided(Lack.NO_DRAFTS, 1).num_after == 1, "it has not drafted yet, or never will"
    assert decided(Lack.NEVER_IN_TIME, 1).num_after == 2, "it has more rows than it can serve"
    assert decided(Lack.NEVER_IN_TIME, 4).num_after == 4
    assert decided(Lack.NO_PRICE, 0).num_after == 0


@pytest.mark.parametrize(("ago_s", "number"), [(14.0, 1), (16.0, 2)])
def test_after_a_change_more_are_added_only_later(ago_s: float, number: int) -> None:
    assert decided((100, 200, 300), 1, most=2, changed_s=NOW_S - ago_s).num_after == number


@pytest.mark.parametrize(("ago_s", "number"), [(119.0, 1), (121.0, 0)])
def test_and_removed_later_still(ago_s: float, number: int) -> None:
    decision = decided((100, 100, 100), 1, most=2, changed_s=NOW_S - ago_s)
    assert decision.num_after == number
    assert "the last adds 0.0 %" in decision.reason


def test_those_that_do_not_start_are_not_wanted_any_more() -> None:
    rising = (100.0, 200.0, 300.0, 400.0, 500.0)
    since_s = NOW_S - RULES.give_up_s
    late = {"starting_since_s": (since_s, since_s), "changed_s": NOW_S}
    assert decided(rising, 3, **late).num_after == 1
    assert decided(rising, 3, least=2, **late).num_after == 2
    assert not decided(rising, 3, **late | {"starting_since_s": (NOW_S - 1, NOW_S - 1)}).is_change


def test_one_that_was_lost_a_moment_ago_is_not_given_up_with_one_that_has_tried_for_long() -> None:
    rising = (100.0, 200.0, 300.0, 400.0, 500.0)
    decision = decided(rising, 3, starting_since_s=(NOW_S - RULES.give_up_s, NOW_S - 1), changed_s=NOW_S)
    assert (decision.num_after, decision.reason) == (2, "1 did not start within 60 s")


def of(**sections: Any) -> CellConfig:
    return load_config(None, {"target": {"model": "m"}, **sections})


def test_bounds_without_an_autoscaler_and_bounds_that_cross_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"autoscale\.enabled"):
        of(drafters=[{"kind": "ngram", "max_workers": 3}])
    with pytest.raises(ConfigError, match="must not exceed"):
        of(autoscale={"enabled": True}, drafters=[{"kind": "ngram", "min_workers": 2}])
    with pytest.raises(ConfigError, match="draft_wait_s"):
        of(autoscale={"enabled": True}, scheduler={"draft_wait_s": 0.1})
    assert of(autoscale={"enabled": True}, drafters=[{"kind": "ngram", "max_workers": 3}]).drafters[0].max_workers == 3
