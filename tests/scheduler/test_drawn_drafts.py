"""Requests whose rule asks for drawn nodes: one drafter, laws that travel along, and nothing kept across a verdict."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from outrider.draft_law import DraftLaw
from outrider.v1.inference_pb2 import ACCEPTANCE_RULE_COUPLED, ACCEPTANCE_RULE_REJECTION, SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Command,
    DrafterDown,
    DrafterUp,
    Grown,
    Growth,
    PassDone,
    PlannedRow,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetUp,
    Tick,
)
from scheduler.messages import pass_message
from tests.scheduler.world import FACTS, new_request

OPENING = OpenRequest(
    sampling=SamplingParams(temperature=1, seed=1), acceptance_rule=ACCEPTANCE_RULE_REJECTION, num_prompt_tokens=1
)
C = TypeVar("C")
LAW = DraftLaw((2, 3, 4), (0.5, 0.25, 0.25))


class Running:
    """A core with one request that has its first token, and the commands that it has given."""

    def __init__(
        self, opening: OpenRequest = OPENING, drafters: frozenset[str] = frozenset(), max_tokens: int = 10
    ) -> None:
        self._core = Core(CoreConfig(draft_wait_s=1.0))
        self._now_s = 0.0
        self.commands: list[Command] = []
        self.handle(TargetUp(replace(FACTS, num_kv_blocks=2000)))
        self.handle(DrafterUp("a", ["grams"]))
        self.handle(DrafterUp("m", ["model"], frozenset(["model"])))
        new = new_request(1, random.Random(0))
        changes = {
            "prompt": [1],
            "max_tokens": max_tokens,
            "opening": opening,
            "speculates": True,
            "drafters": drafters,
        }
        values = {name: getattr(new, name) for name in new.__dataclass_fields__} | changes
        self.handle(Submitted(type(new)(**values)))
        self.answer([5])

    def handle(self, event: object) -> None:
        self._now_s += 0.001
        self.commands += self._core.handle(event, self._now_s)  # type: ignore[arg-type]

    def answer(self, tokens: list[int]) -> None:
        sent = self._last(SendPass)
        row = sent.rows[0]
        known_len = row.committed_len + len(tokens)
        outcome = RowOutcome(row.request, row.epoch, row.committed_len, "ok", tokens, known_len)
        self.handle(PassDone(sent.pass_id, [outcome], FACTS.num_kv_blocks))

    def grow(
        self,
        tokens: Sequence[int],
        parents: Sequence[int],
        laws: Sequence[DraftLaw | None],
        is_done: bool = True,
        first_node: int = 1,
    ) -> None:
        order = self._last(SendOrder)
        self.handle(
            Grown(
                [
                    Growth(
                        worker=order.worker,
                        drafter=order.drafter,
                        request=1,
                        epoch=order.epoch,
                        committed_len=order.committed_len,
                        first_node=first_node,
                        tokens=tokens,
                        parents=parents,
                        scores=[0.0] * len(tokens),
                        is_done=is_done,
                        is_prefix_missing=False,
                        laws=laws,
                    )
                ]
            )
        )

    def wait(self) -> None:
        self._now_s += 10
        self.handle(Tick())

    @property
    def row(self) -> PlannedRow:
        return self._last(SendPass).rows[0]

    def drafters_asked(self) -> list[str]:
        return [command.drafter for command in self.commands if isinstance(command, SendOrder)]

    def _last(self, kind: type[C]) -> C:
        return [command for command in self.commands if isinstance(command, kind)][-1]


def test_one_drafter_is_asked_and_rather_one_that_draws() -> None:
    assert set(Running().drafters_asked()) == {"model"}
    assert set(Running(drafters=frozenset(["grams"])).drafters_asked()) == {"grams"}


@pytest.mark.parametrize(
    "opening",
    [
        OpenRequest(sampling=SamplingParams(temperature=1, seed=1), acceptance_rule=ACCEPTANCE_RULE_COUPLED),
        OpenRequest(sampling=SamplingParams(temperature=0), acceptance_rule=ACCEPTANCE_RULE_REJECTION),
    ],
    ids=["coupled", "greedy"],
)
def test_where_nothing_is_drawn_all_drafters_are_asked_and_no_law_is_sent(opening: OpenRequest) -> None:
    running = Running(opening)
    assert set(running.drafters_asked()) == {"grams", "model"}
    running.grow([2], [0], [LAW])
    running.wait()
    assert (running.row.node_tokens, running.row.laws) == ([2], ())


def test_the_laws_of_the_nodes_go_to_the_target() -> None:
    running = Running()
    running.grow([2, 3, 4], [0, 0, 1], [LAW, None, LAW])

    row = running.row
    assert (row.node_tokens, row.node_parents, row.laws) == ([2, 3, 4], [-1, -1, 0], [LAW, None, LAW])
    sent = getattr(pass_message(SendPass(1, [row])), "pass").rows[0]
    assert len(sent.laws.ids) == 2 * 3 * 4


def test_a_node_that_is_told_again_is_the_one_that_is_there() -> None:
    """A drafter whose cache was full has drawn the same anew, under new numbers."""
    running = Running()
    running.grow([2], [0], [LAW], is_done=False)
    running.grow([2, 4], [0, 2], [DraftLaw((2, 3), (0.625, 0.375)), LAW], first_node=2)

    assert (running.row.node_tokens, running.row.node_parents, running.row.laws) == ([2, 4], [-1, 0], [LAW, LAW])


def test_nothing_that_was_drawn_is_kept_across_a_verdict() -> None:
    running = Running()
    running.grow([2, 3, 4, 6], [0, 1, 2, 3], [LAW, LAW, LAW, DraftLaw((6,), (1.0,))])
    running.answer([2, 3])
    running.grow([], [], [])

    assert running.row.committed_len == 4
    assert running.row.node_tokens == []


def test_a_long_answer_never_runs_out_of_room_for_drawn_nodes() -> None:
    running = Running(max_tokens=2500)
    for first in range(1, 2200, 2):
        running.grow([2, 3], [0, first], [LAW, LAW], first_node=first)
        assert running.row.node_tokens == [2, 3], first
        running.answer([5])


def test_nodes_of_a_lost_drafter_are_not_mixed_with_those_of_the_next() -> None:
    running = Running()
    running.grow([2], [0], [LAW], is_done=False)
    running.handle(DrafterDown("m"))
    assert running.drafters_asked()[-1] == "grams"
    running.grow([6], [0], [])
    assert running.row.node_tokens == [6]
    assert running.row.laws == [None]


@pytest.mark.parametrize(
    ("tokens", "parents", "laws", "kept"),
    [
        pytest.param([6], [0], [LAW], [], id="a token that its law does not have"),
        pytest.param([2], [0], [DraftLaw((2, FACTS.vocab_size), (0.5, 0.5))], [], id="a law beyond the vocabulary"),
        pytest.param([2, 3], [0, 0], [LAW, LAW], [2], id="a second law for the same siblings"),
        pytest.param([2, 6], [0, 0], [LAW, None], [2], id="a sibling that the law does not have"),
        pytest.param([6, 4], [0, 1], [LAW, LAW], [], id="what is below a node that was dropped"),
    ],
)
def test_a_node_that_the_target_would_refuse_is_dropped(
    tokens: list[int], parents: list[int], laws: list[DraftLaw | None], kept: list[int]
) -> None:
    running = Running()
    running.grow(tokens, parents, laws)
    assert running.row.node_tokens == kept
