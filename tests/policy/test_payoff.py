"""Drafting is left where plain decoding is faster, and only there."""

from __future__ import annotations

from itertools import pairwise

import pytest

from scheduler.events import PassCost, TargetFacts
from scheduler.policy.payoff import NOT_URGENT, NUM_TRIED, SETTLING, TRIED_AFTER, Measured, Payoff
from scheduler.policy.policy import Expected, PassInFlight, PassReport
from scheduler.policy.price import Price

TOKEN_S = 0.01  # of plain decoding, of one row


class Group:
    """A target group all of whose rows are in each pass."""

    def __init__(self, *, pass_s: float, gain: float, num_rows: int = 1) -> None:
        self.pass_s, self.gain, self.num_rows = pass_s, gain, num_rows  # with drafts; each row's gain
        self.truth = 1.0  # share of that which comes
        self.drafts_come_after = 0  # passes of drafting
        self.payoff = Payoff()
        self.asked: list[bool] = []
        self.seconds = 0.0
        self._num_asked = 0

    def run(self, num_passes: int) -> list[bool]:
        """Whether drafters were asked, by pass."""
        before = len(self.asked)
        for _ in range(num_passes):
            self._run_pass()
        return self.asked[before:]

    def _run_pass(self) -> None:
        is_asked = self.payoff.drafts_pay
        self.asked.append(is_asked)
        self._num_asked = self._num_asked + 1 if is_asked else 0
        gain = self.gain * self.num_rows * (self._num_asked > self.drafts_come_after)
        alone_s = TOKEN_S * self.num_rows
        seconds = self.pass_s * self.num_rows if is_asked else alone_s
        self.seconds += seconds
        expected = Expected(self.num_rows, self.num_rows, gain, gain, has_drafts=gain > 0)
        num_chosen = round(self.num_rows + self.truth * gain)
        self.payoff.note_pass(Measured(expected, num_chosen, self.num_rows, seconds, alone_s, TOKEN_S))


@pytest.mark.parametrize("pass_s", [0.011, 0.015])
def test_drafts_that_are_clearly_worth_it_are_never_left(pass_s: float) -> None:
    assert all(Group(pass_s=pass_s, gain=1.0).run(5000))


@pytest.mark.parametrize(("pass_s", "pays"), [(0.0175, True), (0.0205, False), (0.03, False)])
def test_what_is_faster_goes_on(pass_s: float, pays: bool) -> None:
    """Two tokens a pass, where plain decoding has one in 10 ms."""
    asked = Group(pass_s=pass_s, gain=1.0).run(5000)
    assert sum(asked) / len(asked) == pytest.approx(float(pays), abs=0.06)


@pytest.mark.parametrize("pass_s", [0.0165, 0.019])
def test_what_looks_better_is_tried_against_plain_decoding_only_once_there_is_time_for_it(pass_s: float) -> None:
    group = Group(pass_s=pass_s, gain=1.0)
    assert all(group.run(NOT_URGENT))
    assert not all(group.run(2 * TRIED_AFTER)), "the profile may be wrong"


def test_what_is_too_near_to_tell_stays() -> None:
    asked = Group(pass_s=0.0201, gain=1.0).run(5000)
    assert sum(asked) / len(asked) > 0.94


@pytest.mark.parametrize("pass_s", [0.022, 0.03, 0.05])
def test_over_time_little_is_lost_to_trials(pass_s: float) -> None:
    """Four rows, each with two tokens a pass, in the time of up to five plain ones."""
    group = Group(pass_s=pass_s, gain=1.0, num_rows=4)
    asked = group.run(20_000)
    tokens = group.num_rows * (len(asked) + sum(asked))
    assert tokens / group.seconds > 0.985 / TOKEN_S
    group.payoff = Payoff()
    group.seconds, first = 0.0, sum(group.run(TRIED_AFTER + 2 * SETTLING))
    assert first <= TRIED_AFTER + SETTLING, "it is left as soon as it can be known"


def test_trials_are_the_rarer_the_more_often_they_change_nothing() -> None:
    asked = Group(pass_s=0.022, gain=1.0).run(5000)
    changes = [place for place in range(1, len(asked)) if asked[place] != asked[place - 1]]
    left, between = changes[::2], [later - earlier for earlier, later in zip(changes[::2], changes[1::2], strict=False)]
    assert len(left) > 4
    assert all(later > earlier for earlier, later in pairwise(between[1:]))


def test_drafting_comes_back_where_it_pays_again() -> None:
    group = Group(pass_s=0.022, gain=1.0)
    assert not any(group.run(300)[-NUM_TRIED:])
    group.pass_s = 0.012
    assert all(group.run(1000)[-NUM_TRIED:])


def test_a_trial_lasts_until_drafts_have_come() -> None:
    """Whoever was left has much text to read first."""
    group = Group(pass_s=0.022, gain=1.0)
    group.run(300)
    group.pass_s, group.drafts_come_after = 0.012, 100
    assert all(group.run(2000)[-NUM_TRIED:])


def test_what_counts_is_what_comes_true() -> None:
    """16 rows that expect 12 tokens more: by that it would be 1.4 times plain decoding, and nothing to try."""
    group = Group(pass_s=0.0125, gain=0.75, num_rows=16)
    assert all(group.run(2000))
    group.truth = 0.0
    assert not any(group.run(4000)[-NUM_TRIED:])


@pytest.mark.parametrize("gain", [0.0, 1e-6, 1.0])
def test_a_target_all_of_whose_rows_fail_is_a_slow_one_and_no_error(gain: float) -> None:
    """A pass that comes to no token: by what it brings less than was expected, it took away all there was."""
    group = Group(pass_s=0.022, gain=gain)
    group.truth = -1 / gain if gain else 0.0
    assert not any(group.run(300)[-NUM_TRIED:])


def test_each_load_is_known_by_itself() -> None:
    group = Group(pass_s=0.012, gain=1.0)
    group.run(200)
    group.num_rows, group.pass_s = 16, 0.022
    assert not group.run(300)[-1]
    group.num_rows, group.pass_s = 1, 0.012
    assert all(group.run(100)[1:])
    group.num_rows, group.pass_s = 16, 0.022
    assert not any(group.run(20)[1:])


def test_a_load_at_a_border_is_on_one_side_of_it() -> None:
    group = Group(pass_s=0.022, gain=1.0)
    for _ in range(300):
        for group.num_rows in (15, 16):
            group.run(1)
    assert not any(group.asked[-NUM_TRIED:]), "it would never settle"


def test_a_prompt_that_the_target_had_already_is_no_time_that_plain_decoding_would_take() -> None:
    """Four rows and a fifth whose prompt of 1,000 tokens is in the prefix cache: two tokens a row, in three times the
    time of a plain pass."""
    price, costs = Price(), [PassCost(1, 0, TOKEN_S), PassCost(4096, 0, 400 * TOKEN_S)]
    price.note_target(
        TargetFacts(vocab_size=97, block_size=16, num_kv_blocks=1000, max_pass_tokens=4096, pass_costs=costs)
    )
    for number in range(300):
        is_drafting = price.drafts_pay
        gain = 4.0 * is_drafting
        sent = PassInFlight(
            pass_id=number,
            requests=range(5),
            num_tokens=1004 + 4 * is_drafting,
            context_len=0,
            sent_s=0.0,
            deadline_s=1.0,
            expected_s=0.0,
            free_since_s=None,
            expected=Expected(1004, 4, gain, gain, has_drafts=is_drafting),
        )
        pass_s = 3 * TOKEN_S if is_drafting else TOKEN_S
        price.note_pass(sent, PassReport(pass_s, 0.0, 5 + 4 * is_drafting, 4 + round(gain), 5, was_wanted=True), 0.0)
    assert not price.drafts_pay
