"""One tree a request: what several drafters say, what verdicts have overtaken, and what makes no sense."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from outrider.types import FinishReason
from scheduler.core import Core, CoreConfig
from scheduler.drafting import MAX_TREE_NODES, RUN_AHEAD
from scheduler.events import (
    Command,
    DrafterUp,
    Event,
    Finish,
    Grown,
    Growth,
    PassDone,
    PlannedRow,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetDown,
    TargetUp,
    Tick,
)
from tests.scheduler.world import FACTS, new_request


class Running:
    """A core with one request that has its first token, 5, behind a prompt of one token."""

    def __init__(self, *drafters: str, max_nodes: int = 4, max_tokens: int = 20) -> None:
        self.core = Core(CoreConfig(draft_wait_s=1.0))
        self.now_s = 0.0
        self.commands: list[Command] = []
        self.handle(TargetUp(FACTS))
        for name in drafters:
            self.handle(DrafterUp(f"worker of {name}", [name]))
        new = new_request(1, random.Random(0))
        changes = {"prompt": [1], "max_tokens": max_tokens, "max_nodes": max_nodes, "speculates": True}
        values = {name: getattr(new, name) for name in new.__dataclass_fields__} | changes
        self.handle(Submitted(type(new)(**values)))
        self.answer([5])

    def handle(self, event: Event) -> None:
        self.now_s += 0.001
        self.commands += self.core.handle(event, self.now_s)

    def answer(self, tokens: list[int]) -> None:
        row = self.row
        outcome = RowOutcome(row.request, row.epoch, row.committed_len, "ok", tokens, row.committed_len + len(tokens))
        [sent] = [c for c in self.commands if isinstance(c, SendPass)][-1:]
        self.handle(PassDone(sent.pass_id, [outcome], FACTS.num_kv_blocks))

    def grow(self, tokens: Sequence[int], parents: Sequence[int], **about: Any) -> None:
        self.handle(Grown([self.growth(tokens, parents, **about)]))

    def growth(
        self,
        tokens: Sequence[int],
        parents: Sequence[int],
        *,
        drafter: str = "a",
        first: int = 1,
        committed_len: int = 2,
        scores: Sequence[float] | None = None,
        is_done: bool = True,
    ) -> Growth:
        [order] = [c for c in self.commands if isinstance(c, SendOrder) and c.drafter == drafter][-1:]
        return Growth(
            worker=order.worker,
            drafter=drafter,
            request=1,
            epoch=order.epoch,
            committed_len=committed_len,
            first_node=first,
            tokens=tokens,
            parents=parents,
            scores=scores or [1.0] * len(tokens),
            is_done=is_done,
            is_prefix_missing=False,
        )

    @property
    def row(self) -> PlannedRow:
        return [c for c in self.commands if isinstance(c, SendPass)][-1].rows[0]

    @property
    def order(self) -> SendOrder:
        return [c for c in self.commands if isinstance(c, SendOrder)][-1]

    def drafted(self) -> list[tuple[int, ...]]:
        """The paths of the last row's nodes."""
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(self.row.node_tokens, self.row.node_parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        return paths


def test_a_drafter_is_asked_for_more_than_one_pass_takes() -> None:
    assert Running("a", max_nodes=4).order.max_nodes == RUN_AHEAD * 4


def test_nodes_of_two_drafters_become_one_tree() -> None:
    running = Running("a", "b")
    running.grow([2, 3], [0, 1], drafter="a")
    running.grow([2, 4], [0, 1], drafter="b")
    assert set(running.drafted()) == {(2,), (2, 3), (2, 4)}


def test_a_second_vote_on_the_first_node_of_the_longest_chain() -> None:
    running = Running("a", "b")
    running.grow([2] * (MAX_TREE_NODES - 1), range(MAX_TREE_NODES - 1), drafter="a")
    running.grow([2], [0], drafter="b")
    assert set(running.drafted()) == {(2,) * depth for depth in range(1, 5)}


def test_what_survives_a_verdict_goes_into_the_next_pass_without_being_told_again() -> None:
    running = Running("a", max_nodes=2)
    running.grow([2, 3, 4, 6], [0, 1, 2, 3], scores=[4.0] * 4)
    assert running.drafted() == [(2,), (2, 3)]
    running.answer([2, 3, 4])
    running.grow([], [], first=5, committed_len=5)
    assert running.drafted() == [(6,)]


def test_a_growth_that_a_verdict_has_overtaken_finds_its_place() -> None:
    running = Running("a")
    running.grow([2], [0])
    running.answer([2, 3])  # now [1, 5, 2, 3]
    running.grow([3, 4, 6], [1, 2, 2], first=2, committed_len=2, is_done=False)  # below the node that was accepted
    running.grow([], [], first=5, committed_len=4)
    assert set(running.drafted()) == {(4,), (6,)}


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        pytest.param([4, 6], [1, 2], id="beside what was committed"),
        pytest.param([4, 6], [0, 2], id="a sibling of what was committed"),
        pytest.param([3, 3], [99, 2], id="below a node that nobody knows"),
        pytest.param([3, FACTS.vocab_size], [1, 2], id="outside the vocabulary"),
    ],
)
def test_what_has_no_place_any_more_is_dropped(tokens: list[int], parents: list[int]) -> None:
    running = Running("a")
    running.grow([2], [0])
    running.answer([2, 3])
    running.grow(tokens, parents, first=2, committed_len=2, is_done=False)
    running.grow([], [], first=4, committed_len=4)
    assert running.drafted() == []


def test_nodes_that_come_while_the_target_restarts_are_there_when_it_is_back() -> None:
    running = Running("a")
    running.handle(TargetDown())
    running.grow([2, 3], [0, 1])
    running.handle(TargetUp(FACTS))
    assert running.drafted() == [(2,), (2, 3)]


def test_a_growth_from_the_future_is_dropped() -> None:
    running = Running("a")
    running.grow([2], [0], committed_len=9)
    running.now_s += 10
    running.handle(Tick())
    assert running.drafted() == []


def test_a_million_nodes_leave_a_bounded_tree_and_the_request_completes() -> None:
    running = Running("a", max_tokens=2)
    num = 100_000
    running.grow([2] * num, list(range(num)))
    running.grow([i % 6 for i in range(num)], [i // 3 for i in range(num)], first=num + 1)
    request = running.core._running[1]
    assert len(request.tree) <= MAX_TREE_NODES
    assert sum(len(view.places) for view in request.drafters.values()) <= 2 * MAX_TREE_NODES
    running.answer([3])
    [finish] = [c for c in running.commands if isinstance(c, Finish)]
    expected: FinishReason = "length"
    assert finish.reason == expected


def test_the_likeliest_nodes_go_first_and_verdicts_teach_which_these_are() -> None:
    running = Running("a", "b", max_nodes=1)
    place, numbers = 2, {"a": 1, "b": 1}
    for _ in range(12):  # "b" is always right, and "a" never, whatever it says of itself
        right = running.growth([3], [0], drafter="b", first=numbers["b"], committed_len=place, scores=[0.1])
        wrong = running.growth([2], [0], drafter="a", first=numbers["a"], committed_len=place, scores=[6.0])
        running.handle(Grown([wrong, right]))
        last = running.drafted()
        running.answer([3, 4] if last == [(3,)] else [3])
        place += len([3, 4] if last == [(3,)] else [3])
        numbers = {name: number + 1 for name, number in numbers.items()}
        if place > 16:
            break
    assert last == [(3,)]


def test_hits_are_counted_with_their_depth() -> None:
    running = Running("a", max_nodes=2, max_tokens=4)
    running.grow([2, 3, 4, 6], [0, 1, 2, 3], scores=[4.0] * 4)
    running.answer([2, 3, 4])
    [finish] = [c for c in running.commands if isinstance(c, Finish)]
    assert (finish.stats.num_hits, finish.stats.hit_depth) == (1, 1)
