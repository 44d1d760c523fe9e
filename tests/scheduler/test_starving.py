"""A drafter that is never right is asked now and then, and comes back by itself."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace

from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.drafting import MIN_VERDICTS, TRIED_EVERY
from scheduler.events import (
    DrafterUp,
    Event,
    Grown,
    Growth,
    PassDone,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetUp,
)
from scheduler.policy.payoff import TRIED_AFTER_AT_MOST
from scheduler.simulation.target import behind
from tests.scheduler.world import FACTS, new_request

RIGHT, WRONG = 3, 4
LENGTH = 3
FAR = 100_000


class OneRow:
    """A request without end on a core with drafters, which answer each order with a chain of guesses, and a target
    whose choice is always RIGHT."""

    def __init__(self) -> None:
        self.core, self.now_s, self.num_orders, self.guess = Core(CoreConfig()), 0.0, 0, RIGHT
        self.drafting_s = 0.0  # that a pass takes longer when something was ordered since the last one
        self.min_survivals: list[float] = []
        self._sent: deque[SendPass] = deque()
        self._known_len = 0
        self._next_node = 1
        self._take(TargetUp(replace(FACTS, num_kv_blocks=10**6)))
        self._take(DrafterUp("w", ["a"]))
        new = new_request(1, random.Random(0))
        opening = OpenRequest(sampling=SamplingParams(temperature=0))
        self._take(Submitted(replace(new, max_tokens=FAR, opening=opening, speculates=True, max_nodes=4)))

    def commit(self, num_passes: int) -> int:
        """Returns the number of orders meanwhile."""
        before = num_orders = self.num_orders
        for _ in range(num_passes):
            while not self._sent:
                self.now_s = max(self.now_s, self.core.next_wakeup_s() or 0.0)
                self._take(Grown([]))
            sent = self._sent.popleft()
            row = behind(sent.rows[0], [RIGHT] * self._known_len)
            known_len = max(row.tokens_start + len(row.tokens), self._known_len)
            is_whole = known_len >= row.committed_len
            tokens = [RIGHT] * (1 + list(row.node_tokens).count(RIGHT)) if is_whole else []
            self._known_len = known_len + len(tokens)
            outcome = RowOutcome(1, row.epoch, row.committed_len, "ok", tokens, self._known_len)
            pass_s = 0.02 + (self.drafting_s if self.num_orders > num_orders else 0.0)
            num_orders = self.num_orders
            self._take(PassDone(sent.pass_id, [outcome], 10**6, pass_s=pass_s, num_tokens=1 + len(row.node_tokens)))
        return self.num_orders - before

    def come(self, worker: str, drafter: str) -> None:
        self._take(DrafterUp(worker, [drafter]))

    def _take(self, event: Event) -> None:
        self.now_s += 0.02
        commands = self.core.handle(event, self.now_s)
        self._sent += [command for command in commands if isinstance(command, SendPass)]
        for command in commands:
            if isinstance(command, SendOrder):
                self._answer(command)

    def _answer(self, order: SendOrder) -> None:
        self.num_orders += 1
        self.min_survivals.append(order.min_survival)
        growth = Growth(
            worker=order.worker,
            drafter=order.drafter,
            request=1,
            epoch=order.epoch,
            committed_len=order.committed_len,
            first_node=self._next_node,
            tokens=[self.guess] * LENGTH,
            parents=[0, *range(self._next_node, self._next_node + LENGTH - 1)],
            scores=[2.0] * LENGTH,
            is_done=True,
            is_prefix_missing=False,
        )
        self._next_node += LENGTH
        self._take(Grown([growth]))


def test_a_drafter_that_is_always_wrong_is_asked_once_in_a_while_and_all_it_has_is_welcome() -> None:
    row = OneRow()
    row.guess = WRONG
    row.commit(MIN_VERDICTS + 200)
    assert row.core.is_starved("w", "a")
    assert row.commit(10 * TRIED_EVERY) == 10
    assert set(row.min_survivals[-10:]) == {0.0}


def test_it_comes_back_when_it_is_right_again() -> None:
    row = OneRow()
    row.guess = WRONG
    row.commit(MIN_VERDICTS + 200)
    row.guess = RIGHT
    row.commit(12 * TRIED_EVERY)
    assert not row.core.is_starved("w", "a")
    row.commit(100)  # it may be left for a trial once more (payoff.py): it brought nothing for so long
    assert row.commit(50) == 50
    assert row.min_survivals[-1] > 0


def test_a_drafter_that_is_right_is_never_starved() -> None:
    row = OneRow()
    row.commit(10)
    assert row.commit(300) == 300
    assert row.core.health("w", "a").acceptance > 0.9


def test_drafters_that_slow_the_target_down_are_left_alone_and_come_back_when_they_do_not() -> None:
    """Four tokens in 120 ms at most, where plain decoding has one in 20."""
    row = OneRow()
    row.drafting_s = 0.1
    row.commit(300)
    assert row.core.is_starved("w", "a")
    assert row.commit(50) == 0
    assert row.core.health("w", "a").num_orders_skipped > 200
    row.drafting_s = 0.0
    row.commit(4 * TRIED_AFTER_AT_MOST)
    assert not row.core.is_starved("w", "a")
    assert row.commit(50) == 50


def test_a_drafter_that_comes_is_asked_whatever_others_did() -> None:
    row = OneRow()
    row.drafting_s = 0.1
    row.commit(300)
    row.drafting_s = 0.0
    row.come("v", "b")
    assert not row.core.is_starved("v", "b")
    assert row.commit(20) == 40, "both are asked"
