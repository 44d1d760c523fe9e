"""A row that was sent before its verdict counts only where that verdict did."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest

from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Command,
    Emit,
    Event,
    PassDone,
    ResetTarget,
    RowOutcome,
    RowStatus,
    SendPass,
    Submitted,
    TargetLeaving,
    TargetUp,
    Tick,
)
from scheduler.policy.ahead import Ahead
from scheduler.policy.price import Price
from tests.scheduler.world import FACTS, new_request


class Always(Ahead):
    """Whatever it costs."""

    may_pay = True  # type: ignore[assignment]

    def pays(self, num_choosing: int, num_running: int, saved_s: float, usual_s: float) -> bool:
        return True


class TwoPasses:
    """A core with one request: its first row is under way, and one that is ahead of its verdict."""

    def __init__(self) -> None:
        policy = Price()
        self._core, self._now_s = Core(CoreConfig(), policy), 0.0
        self.handle(TargetUp(FACTS))
        policy._aheads = defaultdict(Always)
        new = replace(new_request(1, random.Random(0)), prompt=[1, 2, 3], max_tokens=9, end_token_ids=frozenset())
        [self.first] = passes(self.handle(Submitted(new)))
        [self.second] = passes(self.next_tick())
        assert [row.is_ahead for sent in (self.first, self.second) for row in sent.rows] == [False, True]

    def handle(self, event: Event) -> Sequence[Command]:
        return self._core.handle(event, self._now_s)

    def next_tick(self) -> Sequence[Command]:
        self._now_s = self._core.next_wakeup_s() or self._now_s
        return self.handle(Tick())

    def answer(
        self,
        sent: SendPass,
        committed_len: int,
        tokens: Sequence[int],
        status: RowStatus = "ok",
        epoch: int | None = None,
    ) -> Sequence[Command]:
        epoch = sent.rows[0].epoch if epoch is None else epoch
        outcome = RowOutcome(1, epoch, committed_len, status, tokens, committed_len + len(tokens))
        return self.handle(PassDone(sent.pass_id, [outcome], 100))


def passes(commands: Sequence[Command]) -> list[SendPass]:
    return [command for command in commands if isinstance(command, SendPass)]


def emitted(commands: Sequence[Command]) -> list[int]:
    return [token for command in commands if isinstance(command, Emit) for token in command.tokens]


def test_both_count_where_both_are_answered_in_their_order() -> None:
    two = TwoPasses()
    assert emitted(two.answer(two.first, 3, [5])) == [5]
    assert emitted(two.answer(two.second, 4, [6])) == [6]


@pytest.mark.parametrize(("committed_len", "epoch"), [(4, None), (3, 99)])
def test_what_follows_a_verdict_that_is_lost_is_lost_too_and_asked_for_anew(
    committed_len: int, epoch: int | None
) -> None:
    """Also where it says that it begins here: nobody knows what the target had chosen before."""
    two = TwoPasses()
    assert emitted(two.answer(two.first, committed_len, [5], epoch=epoch)) == []
    commands = two.answer(two.second, 3, [6])
    assert emitted(commands) == []
    [again] = passes(commands)
    assert (again.rows[0].tokens, again.rows[0].is_ahead) == ([1, 2, 3], False)
    assert again.rows[0].epoch > two.first.rows[0].epoch


def test_one_that_is_refused_changes_nothing_and_the_next_one_is_sent_as_usual() -> None:
    two = TwoPasses()
    two.answer(two.first, 3, [5])
    commands = two.answer(two.second, 4, [], status="no_capacity")
    [row] = passes(commands)[0].rows
    assert (row.committed_len, row.is_ahead, row.epoch) == (4, False, two.first.rows[0].epoch)


def test_what_is_ahead_of_one_that_is_refused_is_lost_with_it() -> None:
    """Also where it says that it begins here."""
    two = TwoPasses()
    two.answer(two.first, 3, [5])
    [third] = passes(two.next_tick())
    assert third.rows[0].is_ahead
    two.answer(two.second, 4, [], status="failed")
    commands = two.answer(third, 4, [7])
    assert emitted(commands) == []
    [again] = passes(commands)
    assert (again.rows[0].tokens, again.rows[0].is_ahead) == ([1, 2, 3, 5], False)


def test_a_target_that_answers_the_second_one_first_has_lost_its_place() -> None:
    two = TwoPasses()
    [reset] = two.answer(two.second, 4, [6])
    assert reset == ResetTarget(f"pass {two.second.pass_id} was answered before pass {two.first.pass_id}")
    assert emitted(two.answer(two.first, 3, [5])) == []


def test_one_that_moves_leaves_the_row_behind_that_was_ahead_of_its_verdict() -> None:
    two = TwoPasses()
    two.handle(TargetUp(FACTS, "elsewhere"))
    assert two.handle(TargetLeaving("")) == []
    commands = two.answer(two.first, 3, [5])
    assert emitted(commands) == [5]
    [there] = passes(commands)
    [row] = there.rows
    assert (there.target, row.tokens, row.is_ahead) == ("elsewhere", [1, 2, 3, 5], False)
    assert row.epoch > two.first.rows[0].epoch
    assert emitted(two.answer(two.second, 4, [6])) == []
