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
from scheduler.simulation.target import behind
from tests.scheduler.world import FACTS, new_request

RIGHT, WRONG = 3, 4
FAR = 4000


class OneRow:
    """A request without end on a core with a drafter, which answers each order with one guess, and a target whose
    choice is always RIGHT."""

    def __init__(self) -> None:
        self.core, self.now_s, self.num_orders, self.guess = Core(CoreConfig()), 0.0, 0, RIGHT
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
        before = self.num_orders
        for _ in range(num_passes):
            while not self._sent:
                self.now_s = max(self.now_s, self.core.next_wakeup_s() or 0.0)
                self._take(Grown([]))
            sent = self._sent.popleft()
            row = behind(sent.rows[0], [RIGHT] * self._known_len)
            known_len = max(row.tokens_start + len(row.tokens), self._known_len)
            is_whole = known_len >= row.committed_len
            tokens = [RIGHT, *([RIGHT] if RIGHT in row.node_tokens else [])] if is_whole else []
            self._known_len = known_len + len(tokens)
            outcome = RowOutcome(1, row.epoch, row.committed_len, "ok", tokens, self._known_len)
            self._take(PassDone(sent.pass_id, [outcome], 10**6, pass_s=0.02, num_tokens=1 + len(row.node_tokens)))
        return self.num_orders - before

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
            worker="w",
            drafter="a",
            request=1,
            epoch=order.epoch,
            committed_len=order.committed_len,
            first_node=self._next_node,
            tokens=[self.guess],
            parents=[0],
            scores=[2.0],
            is_done=True,
            is_prefix_missing=False,
        )
        self._next_node += 1
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
    assert row.commit(50) == 50
    assert row.min_survivals[-1] > 0


def test_a_drafter_that_is_right_is_never_starved() -> None:
    row = OneRow()
    row.commit(10)
    assert row.commit(300) == 300
    assert row.core.health("w", "a").acceptance > 0.9
