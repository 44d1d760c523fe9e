"""A drafter that is renewed, or has moved, ends only when its requests have left it; so does a target group. Scripted
parts in a real cell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.config import load_config
from cluster.errors import WorkerFailed
from cluster.launch import Cell
from cluster.parts import DrafterPart, TargetGroup


class Drafter(DrafterPart):
    def __init__(self, address: str, log: list[str]) -> None:
        self.name, self.address, self._log, self._life = f"drafter {address}", address, log, 1

    @property
    def process_ids(self) -> list[int]:
        return [self._life]

    async def stop(self, grace_s: float) -> None:
        self._log.append(f"stop {self.address}")
        self.start_anew()  # as its keeper does

    def start_anew(self) -> None:
        self._life += 1


class Scheduler:
    address = "the scheduler"

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.may_leave = asyncio.Event()  # the drafter that is drained
        self.may_leave.set()
        self.is_lost = False

    async def set_workers(
        self, targets: Sequence[str], drafters: Sequence[str], num_missing: int, timeout_s: float
    ) -> None:
        missing = [f"and {num_missing} that are missing"] if num_missing else []
        used = drafters if targets == ["the target"] else ["targets", *targets, *missing]
        self._log.append(f"use {' '.join(used)}")

    async def drain_worker(self, address: str, limit_s: float) -> None:
        self._log.append(f"drain {address} for {limit_s:g} s")
        await self.may_leave.wait()
        if self.is_lost:
            raise WorkerFailed("the scheduler fell")
        self._log.append(f"drained {address}")


class Target:
    address = "the target"


class World:
    def __init__(self, *addresses: str) -> None:
        self.log: list[str] = []
        config: dict[str, Any] = {"target": {"model": "m"}, "autoscale": {"drain_s": 7.0}}
        self.cell = Cell(load_config(None, config))
        self.scheduler = Scheduler(self.log)
        self.cell.scheduler, self.cell.targets = self.scheduler, [Target()]  # type: ignore[assignment]
        self.cell.drafters = [Drafter(address, self.log) for address in addresses]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_drafter_that_is_renewed_is_stopped_once_it_is_drained_and_left() -> None:
    world = World("a", "b")
    world.scheduler.may_leave.clear()
    renewal = asyncio.create_task(world.cell.renew_drafters())
    await settle()
    assert world.log == ["drain a for 7 s"]
    world.scheduler.may_leave.set()
    await renewal
    assert world.log[1:4] == ["drained a", "use b", "stop a"]
    assert world.log[4:] == ["drain b for 7 s", "drained b", "use a", "stop b"]


async def test_a_drafter_that_was_started_anew_while_it_was_drained_is_not_stopped() -> None:
    world = World("a")
    world.scheduler.may_leave.clear()
    renewal = asyncio.create_task(world.cell.renew_drafters())
    await settle()
    [drafter] = world.cell.drafters
    assert isinstance(drafter, Drafter)
    drafter.start_anew()
    world.scheduler.may_leave.set()
    await renewal
    assert world.log == ["drain a for 7 s", "drained a"]


async def test_a_renewal_does_not_wait_for_a_drafter_that_is_let_go_meanwhile() -> None:
    world = World("a", "b")
    [going, _] = world.cell.drafters
    world.scheduler.may_leave.clear()
    renewal = asyncio.create_task(world.cell.renew_drafters())
    await settle()
    going.start_anew = lambda: None  # type: ignore[attr-defined]
    world.cell.drafters.remove(going)
    world.scheduler.may_leave.set()
    async with asyncio.timeout(10):
        await renewal
    assert world.log[-1] == "stop b"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_drafter_that_has_moved_is_used_where_it_is_now_and_left_where_it_was(is_lost: bool) -> None:
    world = World("new")
    world.scheduler.may_leave.clear()
    world.scheduler.is_lost = is_lost
    moved = asyncio.create_task(world.cell._hand_over(Drafter("old", world.log)))
    await settle()
    assert world.log == ["use new old", "drain old for 7 s"]
    world.scheduler.may_leave.set()
    await moved
    assert world.log[2:] == (["use new"] if is_lost else ["drained old", "use new"])
    assert [drafter.address for drafter in world.cell.drafters] == ["new"]


async def test_a_stop_in_the_middle_of_that_forgets_the_old_life() -> None:
    world = World("new")
    world.scheduler.may_leave.clear()
    moved = asyncio.create_task(world.cell._hand_over(Drafter("old", world.log)))
    await settle()
    moved.cancel()
    await asyncio.gather(moved, return_exceptions=True)
    assert [drafter.address for drafter in world.cell.drafters] == ["new"]


async def test_who_is_cancelled_while_a_drafter_is_let_go_leaves_no_stop_behind() -> None:
    class Slow(Drafter):
        async def stop(self, grace_s: float) -> None:
            self._log.append("stopping")
            await asyncio.Event().wait()

        def kill(self) -> None:
            self._log.append("killed")

    world = World()
    drafter = Slow("a", world.log)
    world.cell.drafters.append(drafter)
    letting_go = asyncio.create_task(world.cell._let_go(drafter))
    await settle()
    assert world.log[-1] == "stopping"
    letting_go.cancel()
    await asyncio.gather(letting_go, return_exceptions=True)
    await settle()
    assert world.log[-1] == "killed"
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ── target groups ───────────────────────────────────────────────────────────────────────────────────


class Group(TargetGroup):
    def __init__(self, address: str, log: list[str]) -> None:
        self.name, self.address, self._log, self._reservation = f"target group {address}", address, log, None

    async def stop(self, grace_s: float) -> None:
        self._log.append(f"stop {self.address}")

    def kill(self) -> None:
        self._log.append(f"kill {self.address}")

    def release(self) -> None:
        self._log.append(f"free the place of {self.address}")


def world_of_groups(*addresses: str) -> World:
    world = World()
    world.cell.targets = [Group(address, world.log) for address in addresses]
    return world


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_group_that_is_let_go_is_drained_and_left_before_it_ends_and_gives_its_place_back(
    is_lost: bool,
) -> None:
    world = world_of_groups("a", "b")
    world.scheduler.may_leave.clear()
    world.scheduler.is_lost = is_lost
    letting_go = asyncio.create_task(world.cell._let_go(world.cell.targets[1]))
    await settle()
    assert world.log == ["drain b for 7 s"]
    assert [group.address for group in world.cell.targets] == ["a", "b"], "a scheduler that is new is told of it too"
    world.scheduler.may_leave.set()
    await letting_go
    drained = [] if is_lost else ["drained b"]
    assert world.log[1:] == [*drained, "use targets a", "stop b", "kill b", "free the place of b"]


async def test_a_group_that_has_moved_serves_until_its_requests_are_where_it_is_now() -> None:
    world = world_of_groups("new")
    world.scheduler.may_leave.clear()
    moved = asyncio.create_task(world.cell._hand_over(Group("old", world.log)))
    await settle()
    assert world.log == ["use targets new old", "drain old for 7 s"]
    world.scheduler.may_leave.set()
    await moved
    assert world.log[2:] == ["drained old", "use targets new"]


async def test_a_cell_whose_last_group_is_given_up_while_the_other_one_goes_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def give_up(part: Group, *_: object) -> None:
        raise WorkerFailed(f"{part.name} is given up")

    monkeypatch.setattr("cluster.launch.keep_alive", give_up)
    world = world_of_groups("a", "b")
    world.scheduler.may_leave.clear()
    letting_go = asyncio.create_task(world.cell._let_go(world.cell.targets[1]))
    await settle()
    with pytest.raises(WorkerFailed, match="target group a is given up"):
        await world.cell._keep(world.cell.targets[0])
    letting_go.cancel()
    await asyncio.gather(letting_go, return_exceptions=True)
    assert world.log[-2:] == ["kill b", "free the place of b"]


async def test_the_scheduler_is_told_how_many_groups_are_missing_but_for_those_that_are_given_up() -> None:
    world = world_of_groups("a", "b", "c")
    _, lost, given_up = world.cell.targets
    lost.address = given_up.address = None
    world.cell._given_up.add(given_up)
    await world.cell._tell_scheduler()
    assert world.log == ["use targets a and 1 that are missing"]
