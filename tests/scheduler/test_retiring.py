"""Drafters that are drained, and requests that move when drafters come: nothing is asked twice, nothing is cut off."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Command,
    DrafterDown,
    DrafterLeaving,
    DrafterUp,
    Event,
    Grown,
    Growth,
    PassDone,
    ReleaseDrafter,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetUp,
)
from tests.scheduler.world import FACTS, new_request

TOKEN, GUESS = 3, 4


class Rows:
    """Requests without end, on a core whose passes are answered when the test says so."""

    def __init__(self, num_requests: int, *workers: str) -> None:
        self.core, self.now_s = Core(CoreConfig()), 0.0
        self._sent: list[SendPass] = []
        self.orders: dict[int, SendOrder] = {}  # the newest, by request
        self.take(TargetUp(replace(FACTS, num_kv_blocks=10**6, max_pass_tokens=256)))
        for worker in workers:
            self.take(DrafterUp(worker, ["d"]))
        opening = OpenRequest(sampling=SamplingParams(temperature=0))
        for number in range(1, num_requests + 1):
            new = replace(new_request(number, random.Random(0)), max_tokens=1000, opening=opening, speculates=True)
            self.take(Submitted(replace(new, prompt=[1], max_nodes=4)))

    def take(self, event: Event) -> list[Command]:
        commands = self.core.handle(event, self.now_s)
        self._sent += [each for each in commands if isinstance(each, SendPass)]
        self.orders |= {each.request: each for each in commands if isinstance(each, SendOrder)}
        return commands

    def pass_done(self) -> list[Command]:
        """The target's answer to the oldest pass: one token for each of its rows."""
        self.now_s += 0.02
        sent = self._sent.pop(0)
        rows = [RowOutcome(r.request, r.epoch, r.committed_len, "ok", [TOKEN], r.committed_len) for r in sent.rows]
        return self.take(PassDone(sent.pass_id, rows, 10**6, pass_s=0.02, num_tokens=len(rows)))

    def all_commit(self) -> list[Command]:
        """Each request at least once."""
        commands: list[Command] = []
        for _ in range(8):
            while not self._sent:
                self.now_s = max(self.now_s, self.core.next_wakeup_s() or 0.0)
                commands += self.take(Grown([]))
            commands += self.pass_done()
        return commands

    def grown(self, request: int) -> list[Command]:
        order = self.orders[request]
        growth = Growth(
            order.worker, "d", request, order.epoch, order.committed_len, 1, [GUESS], [0], [1.0], True, False
        )
        return self.take(Grown([growth]))

    def workers(self) -> list[str]:
        return [self.orders[number].worker for number in sorted(self.orders)]


def test_a_drafter_that_leaves_gets_no_new_order_and_its_requests_move_at_their_next_verdict() -> None:
    rows = Rows(2, "a", "b")
    assert sorted(rows.workers()) == ["a", "b"]
    assert rows.take(DrafterLeaving("a")) == [], "what it was asked goes on"
    assert rows.core.num_requests_on("a") == 1
    commands = rows.all_commit()
    assert {each.worker for each in commands if isinstance(each, SendOrder)} == {"b"}
    assert [each.worker for each in commands if isinstance(each, ReleaseDrafter)] == ["a"]
    assert (rows.core.num_requests_on("a"), rows.core.num_requests_on("b")) == (0, 2)


def test_what_a_leaving_drafter_still_sends_is_verified() -> None:
    rows = Rows(1, "a")
    rows.pass_done()  # the prompt's
    rows.take(DrafterLeaving("a"))
    rows.grown(1)
    assert [node.votes.keys() for node in rows.core._running[1].tree] == [{"d"}]


def test_the_last_drafter_may_leave_too() -> None:
    rows = Rows(2, "a")
    rows.take(DrafterLeaving("a"))
    commands = rows.all_commit()
    assert not any(isinstance(each, SendOrder) for each in commands)
    assert rows.core.num_requests_on("a") == 0
    assert rows.take(DrafterDown("a")) == []


def test_one_that_left_may_come_again() -> None:
    rows = Rows(1, "a")
    rows.take(DrafterLeaving("a"))
    rows.all_commit()
    rows.take(DrafterDown("a"))
    [order] = [each for each in rows.take(DrafterUp("a", ["d"])) if isinstance(each, SendOrder)]
    assert (order.worker, order.tokens_start) == ("a", 0)


@pytest.mark.parametrize(("num_requests", "moved"), [(1, 0), (2, 1), (8, 4)])
def test_a_drafter_that_comes_takes_its_share_of_the_requests_that_run(num_requests: int, moved: int) -> None:
    rows = Rows(num_requests, "a")
    rows.take(DrafterUp("b", ["d"]))
    rows.all_commit()
    assert rows.workers().count("b") == moved
    assert rows.core.num_requests_on("b") == moved
    rows.all_commit()
    assert rows.workers().count("b") == moved, "and then they stay"
