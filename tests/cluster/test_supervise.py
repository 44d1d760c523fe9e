"""Restarting what is lost: how often, how soon, and what is told to whom. Parts are scripted, nothing is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

import pytest

from cluster.config import RestartSection
from cluster.errors import WorkerFailed
from cluster.supervise import Part, RestartBudget, keep_alive

AT_ONCE = RestartSection(max_restarts=3, first_backoff_s=0.0)


class ScriptedPart(Part):
    """Is lost whenever `lose` is called, and has to move once `announce_end` was; its starts fail as often as told."""

    name = "part"

    def __init__(self, failing_starts: int = 0) -> None:
        self.calls: list[str] = []
        self.address: str | None = "first"
        self.next: ScriptedPart | None = None  # what it moves to, or goes on as
        self.has_room = asyncio.Event()
        self.has_room.set()
        self._failing_starts = failing_starts
        self._reasons: asyncio.Queue[str] = asyncio.Queue()
        self._is_leaving = asyncio.Event()

    def lose(self, reason: str) -> None:
        self._reasons.put_nowait(reason)

    async def start(self) -> None:
        self.calls.append("start")
        await self.has_room.wait()
        if self._failing_starts > 0:
            self._failing_starts -= 1
            raise WorkerFailed("no luck")
        self.address = "next"

    async def lost(self) -> str:
        return await self._reasons.get()

    async def stop(self, grace_s: float) -> None:
        assert self.address is None or self.address == "first", "only the old life of one that has moved is stopped"
        self.calls.append("stop")

    def kill(self) -> None:
        self.calls.append("kill")
        self.address = None

    def announce_end(self) -> None:
        self._is_leaving.set()

    async def leaving(self) -> None:
        await self._is_leaving.wait()

    def successor(self) -> ScriptedPart:
        assert self.next is not None
        self.next.address = None
        return self.next

    def change_places(self, other: Self) -> None:
        mine = dict(vars(self))
        vars(self).update(vars(other))
        vars(other).update(mine)

    def release(self) -> None:
        self.calls.append("release")


class Ups:
    """Counts the starts and moves that were announced."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[None] = asyncio.Queue()
        self.old: ScriptedPart | None = None  # the life that was left in the last move
        self.may_end = asyncio.Event()  # an old life
        self.may_end.set()

    async def __call__(self) -> None:
        self.queue.put_nowait(None)

    async def hand_over(self, old: Part) -> None:
        assert isinstance(old, ScriptedPart)
        self.old = old
        self.queue.put_nowait(None)
        await self.may_end.wait()

    async def next(self) -> None:
        async with asyncio.timeout(10):
            await self.queue.get()


def keeping(part: Part, ups: Ups, limits: RestartSection = AT_ONCE) -> asyncio.Task[None]:
    return asyncio.create_task(keep_alive(part, limits, ups, ups.hand_over))


async def until(is_so: Callable[[], bool]) -> None:
    """Within a thousand turns of the event loop; nothing here waits for anything else."""
    for _ in range(1000):
        if is_so():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def test_the_wait_doubles_with_every_restart_in_the_window_up_to_the_limit() -> None:
    budget = RestartBudget(RestartSection(max_restarts=5, first_backoff_s=1.0, max_backoff_s=5.0))
    assert [budget.next_delay_s(0.0) for _ in range(6)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_however_often_it_doubles_the_wait_is_the_limit() -> None:
    budget = RestartBudget(RestartSection(max_restarts=1100, first_backoff_s=1.0, max_backoff_s=5.0))
    assert [budget.next_delay_s(0.0) for _ in range(1101)] == [1.0, 2.0, 4.0, *[5.0] * 1097, None]


def test_restarts_before_the_window_are_forgotten() -> None:
    budget = RestartBudget(RestartSection(max_restarts=1, window_s=10.0, first_backoff_s=1.0))
    assert budget.next_delay_s(0.0) == 1.0
    assert budget.next_delay_s(9.9) is None
    assert budget.next_delay_s(10.0) == 1.0


async def test_a_part_that_has_not_been_started_is_started_as_often_as_it_takes() -> None:
    part, ups = ScriptedPart(failing_starts=2), Ups()
    part.address = None
    keeper = keeping(part, ups)
    await ups.next()
    assert part.calls == ["kill", "start"] * 3
    assert part.address == "next"
    keeper.cancel()


async def test_a_lost_part_is_killed_started_anew_and_announced() -> None:
    part, ups = ScriptedPart(), Ups()
    keeper = keeping(part, ups)
    part.lose("it fell")
    await ups.next()
    assert part.calls == ["kill", "start"]
    assert part.address == "next"
    keeper.cancel()


async def test_a_restart_that_fails_is_tried_again_and_announced_only_when_it_worked() -> None:
    part, ups = ScriptedPart(failing_starts=2), Ups()
    keeper = keeping(part, ups)
    part.lose("it fell")
    await ups.next()
    assert part.calls == ["kill", "start"] * 3
    assert ups.queue.empty()
    keeper.cancel()


async def test_a_part_that_falls_too_often_is_killed_and_given_up_with_the_last_reason() -> None:
    part, ups = ScriptedPart(), Ups()
    keeper = keeping(part, ups)
    for time in range(3):
        part.lose(f"fall {time}")
        await ups.next()
    part.lose("the last fall")
    with pytest.raises(WorkerFailed, match=r"part is given up.*the last fall"):
        async with asyncio.timeout(10):
            await keeper
    assert part.calls == ["kill", "start"] * 3 + ["kill"]
    assert part.address is None


async def test_a_part_whose_machine_is_going_away_serves_until_its_next_life_does_and_only_then_ends() -> None:
    part, ups = ScriptedPart(), Ups()
    after, before = ScriptedPart(), part.calls
    after.has_room.clear()
    part.next = after
    keeper = keeping(part, ups)
    part.announce_end()
    await until(lambda: after.calls == ["start"])
    assert (part.address, before) == ("first", [])
    after.has_room.set()
    await ups.next()
    assert part.address == "next"
    await until(lambda: before == ["stop", "kill", "release"])
    keeper.cancel()


async def test_the_old_life_of_a_part_that_has_moved_serves_until_it_is_handed_over() -> None:
    part, ups = ScriptedPart(), Ups()
    before, part.next = part.calls, ScriptedPart()
    ups.may_end.clear()
    keeper = keeping(part, ups)
    part.announce_end()
    await ups.next()
    assert ups.old is not None
    assert (part.address, ups.old.address, before) == ("next", "first", [])
    ups.may_end.set()
    await until(lambda: before == ["stop", "kill", "release"])
    keeper.cancel()


async def test_a_stop_while_a_part_is_handed_over_ends_its_old_life() -> None:
    part, ups = ScriptedPart(), Ups()
    before, part.next = part.calls, ScriptedPart()
    ups.may_end.clear()
    keeper = keeping(part, ups)
    part.announce_end()
    await ups.next()
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert before == ["kill", "release"]
    assert part.address == "next"


async def test_a_part_that_is_lost_before_it_could_move_goes_on_with_the_start_that_was_begun() -> None:
    part, ups = ScriptedPart(), Ups()
    after, before = ScriptedPart(), part.calls
    after.has_room.clear()
    part.next = after
    keeper = keeping(part, ups, RestartSection(max_restarts=0))
    part.announce_end()
    await until(lambda: after.calls == ["start"])
    part.lose("its machine is gone")
    await until(lambda: before == ["kill", "release"])
    assert part.address is None
    after.has_room.set()
    await ups.next()
    assert (part.address, part.calls) == ("next", ["start"])
    keeper.cancel()


async def test_a_move_that_fails_leaves_the_part_where_it_is_and_its_loss_is_an_ordinary_one() -> None:
    part, ups = ScriptedPart(), Ups()
    part.next = after = ScriptedPart(failing_starts=1)
    keeper = keeping(part, ups)
    part.announce_end()
    await until(lambda: after.calls == ["start", "kill", "release"])
    assert (part.address, part.calls) == ("first", [])
    part.lose("its machine is gone")
    await ups.next()
    assert (part.address, part.calls) == ("next", ["kill", "start"])
    keeper.cancel()


async def test_a_stop_in_the_middle_of_a_move_leaves_neither_life_unattended() -> None:
    part, ups = ScriptedPart(), Ups()
    part.next = after = ScriptedPart()
    after.has_room.clear()
    keeper = keeping(part, ups)
    part.announce_end()
    await until(lambda: after.calls == ["start"])
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert after.calls == ["start", "kill", "release"]
    assert (part.address, part.calls) == ("first", [])
