"""Restarting what is lost: how often, how soon, and what is told to whom. Parts are scripted, nothing is started."""

from __future__ import annotations

import asyncio

import pytest

from cluster.config import RestartSection
from cluster.errors import WorkerFailed
from cluster.supervise import Part, RestartBudget, keep_alive

AT_ONCE = RestartSection(max_restarts=3, first_backoff_s=0.0)


class ScriptedPart(Part):
    """Is lost whenever `lose` is called; its starts fail as often as told."""

    name = "part"

    def __init__(self, failing_starts: int = 0) -> None:
        self.calls: list[str] = []
        self.address: str | None = "first"
        self._failing_starts = failing_starts
        self._reasons: asyncio.Queue[str] = asyncio.Queue()

    def lose(self, reason: str) -> None:
        self._reasons.put_nowait(reason)

    async def start(self) -> None:
        self.calls.append("start")
        if self._failing_starts > 0:
            self._failing_starts -= 1
            raise WorkerFailed("no luck")
        self.address = "next"

    async def lost(self) -> str:
        return await self._reasons.get()

    async def stop(self, grace_s: float) -> None:
        raise AssertionError("a lost part is killed, not stopped")

    def kill(self) -> None:
        self.calls.append("kill")
        self.address = None


class Ups:
    """Counts the restarts that were announced."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self) -> None:
        self.queue.put_nowait(None)

    async def next(self) -> None:
        await asyncio.wait_for(self.queue.get(), 10)


def test_the_wait_doubles_with_every_restart_in_the_window_up_to_the_limit() -> None:
    budget = RestartBudget(RestartSection(max_restarts=5, first_backoff_s=1.0, max_backoff_s=5.0))
    assert [budget.next_delay_s(0.0) for _ in range(6)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_restarts_before_the_window_are_forgotten() -> None:
    budget = RestartBudget(RestartSection(max_restarts=1, window_s=10.0, first_backoff_s=1.0))
    assert budget.next_delay_s(0.0) == 1.0
    assert budget.next_delay_s(9.9) is None
    assert budget.next_delay_s(10.0) == 1.0


async def test_a_part_that_has_not_been_started_is_started_as_often_as_it_takes() -> None:
    part, ups = ScriptedPart(failing_starts=2), Ups()
    part.address = None
    keeper = asyncio.create_task(keep_alive(part, AT_ONCE, ups))
    await ups.next()
    assert part.calls == ["kill", "start"] * 3
    assert part.address == "next"
    keeper.cancel()


async def test_a_lost_part_is_killed_started_anew_and_announced() -> None:
    part, ups = ScriptedPart(), Ups()
    keeper = asyncio.create_task(keep_alive(part, AT_ONCE, ups))
    part.lose("it fell")
    await ups.next()
    assert part.calls == ["kill", "start"]
    assert part.address == "next"
    keeper.cancel()


async def test_a_restart_that_fails_is_tried_again_and_announced_only_when_it_worked() -> None:
    part, ups = ScriptedPart(failing_starts=2), Ups()
    keeper = asyncio.create_task(keep_alive(part, AT_ONCE, ups))
    part.lose("it fell")
    await ups.next()
    assert part.calls == ["kill", "start"] * 3
    assert ups.queue.empty()
    keeper.cancel()


async def test_a_part_that_falls_too_often_is_killed_and_given_up_with_the_last_reason() -> None:
    part, ups = ScriptedPart(), Ups()
    keeper = asyncio.create_task(keep_alive(part, AT_ONCE, ups))
    for time in range(3):
        part.lose(f"fall {time}")
        await ups.next()
    part.lose("the last fall")
    with pytest.raises(WorkerFailed, match=r"part is given up.*the last fall"):
        await asyncio.wait_for(keeper, 10)
    assert part.calls == ["kill", "start"] * 3 + ["kill"]
    assert part.address is None
