"""The autoscaler's rounds, with a scheduler that says what it is told to. Parts are scripted, nothing is started."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from cluster.autoscale import TARGET_GROUPS, Autoscaler
from cluster.config import load_config
from cluster.errors import WorkerFailed
from cluster.pool import Crew, Pool
from outrider.v1 import inference_pb2 as pb
from scheduler.policy.worth import Worth
from scheduler.pressure import Pressure

GOOD, USELESS = (100.0, 150.0, 200.0, 250.0), (100.0, 100.0, 100.0, 100.0)


class Part:
    def __init__(self, name: str) -> None:
        self.name = name
        self.address: str | None = None


class World:
    """A cell of scripted parts, and the scheduler's word on what they are worth."""

    def __init__(self, *, dry_run: bool = False) -> None:
        rules = {"enabled": True, "dry_run": dry_run, "up_cool_down_s": 0.0, "down_cool_down_s": 0.0, "give_up_s": 60.0}
        drafters = [{"kind": "ngram", "name": "d", "min_workers": 0, "max_workers": 3}]
        target = {"model": "m", "groups": 1, "max_groups": 3}
        ray = {"start_timeout_s": 90.0}
        config = load_config(None, {"target": target, "ray": ray, "autoscale": rules, "drafters": drafters})
        self.time_s = 0.0
        self.pool = self._pool("d")
        self.groups = self._pool(TARGET_GROUPS)
        self.goodputs = GOOD
        self.num_requests, self.waited_s = 0, 0.0
        self.given_up: set[str] = set()
        self.log: list[str] = []
        self.shown = pb.Scaling()
        self.may_drain = asyncio.Event()
        self._rounds: asyncio.Queue[None] = asyncio.Queue()
        self.scaler = Autoscaler(config, [self.pool], self.groups, self)
        self.parts: list[Part] = []

    async def __aenter__(self) -> World:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self.pool.adopt([], self._tasks)
        first = Part("first")
        first.address = "somewhere"
        self.groups.adopt([first], self._tasks)
        await self.settle()
        self.log.clear()
        return self

    def _pool(self, name: str) -> Pool[Any]:
        crew: Crew[Any] = Crew(lambda number: self._new(f"{name[0]}{number}"), self._keep, self._let_go)
        return Pool(name, crew, lambda: self.time_s)

    async def __aexit__(self, *failure: Any) -> None:
        self.may_drain.set()
        for part in self.parts:
            self.log.append(f"end {part.name}")
        for task in (*self.pool._keepers.values(), *self.groups._keepers.values()):
            task.cancel()
        await self._tasks.__aexit__(*failure)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def worth(self, numbers: Mapping[str, int], most: int) -> dict[str, Worth]:
        assert most == (3 if numbers else 0)
        return {name: Worth(number, (*self.goodputs, self.goodputs[-1])) for name, number in numbers.items()}

    async def pressure(self) -> Pressure:
        """Groups have four places each, and no request needs a block."""
        num_running = min(self.num_requests, 4 * self.groups.num_present)
        num_waiting = self.num_requests - num_running
        return Pressure(1, 4, 100, num_running, num_waiting, 0, self.waited_s, float("inf"))

    async def show_scaling(self, scaling: pb.Scaling) -> None:
        self.shown = scaling

    def _new(self, name: str) -> Part:
        self.parts.append(Part(name))
        return self.parts[-1]

    async def _keep(self, part: Part) -> None:
        self.log.append(f"keep {part.name}")
        try:
            if part.name not in self.given_up:
                await asyncio.Event().wait()
        finally:
            self.log.append(f"leave {part.name}")

    async def _let_go(self, part: Part) -> None:
        await self.may_drain.wait()
        self.log.append(f"gone {part.name}")


async def test_drafters_are_added_one_by_one_and_kept() -> None:
    async with World() as world:
        for _ in range(4):
            await world.scaler.step()
            await world.settle()
        assert world.log == ["keep d1", "keep d2", "keep d3"]
        [pool] = world.shown.pools
        assert (pool.num_wanted, pool.num_present, pool.num_starting) == (3, 0, 3)
        assert [each.num_after for each in world.shown.decisions] == [3, 2, 1], "the newest first"


async def test_one_that_goes_is_left_by_its_keeper_and_drained_before_it_is_gone() -> None:
    async with World() as world:
        for _ in range(3):
            await world.scaler.step()
        for part in world.parts:
            part.address = "somewhere"
        await world.settle()
        world.goodputs = USELESS
        await world.scaler.step()
        await world.settle()
        [pool] = world.shown.pools
        assert (pool.num_wanted, pool.num_present, pool.num_draining) == (2, 2, 1)
        assert world.log[-1] == "leave d3"
        world.may_drain.set()
        await world.settle()
        assert world.log[-1] == "gone d3"


async def test_one_that_has_not_come_yet_goes_first() -> None:
    async with World() as world:
        for _ in range(3):
            await world.scaler.step()
        await world.settle()
        world.parts[0].address = world.parts[2].address = "somewhere"
        world.pool.scale_to(2)
        await world.settle()
        assert world.log[-1] == "leave d2"


async def test_a_dry_run_says_what_it_would_do_once_and_does_nothing() -> None:
    async with World(dry_run=True) as world:
        for _ in range(3):
            await world.scaler.step()
        assert world.parts == []
        assert world.shown.is_dry_run
        [decision] = world.shown.decisions
        assert (decision.num_before, decision.num_after) == (0, 1)


async def test_those_that_never_start_are_withdrawn() -> None:
    async with World() as world:
        await world.scaler.step()
        await world.settle()
        world.time_s += 60.0
        await world.scaler.step()
        assert world.pool.num_wanted == 0
        assert "did not start within 60 s" in world.shown.pools[0].reason


async def test_one_that_is_started_again_has_as_long_for_it_as_a_new_one() -> None:
    async with World() as world:
        await world.scaler.step()
        world.parts[0].address = "somewhere"
        world.goodputs = (100.0, 150.0, 150.0, 150.0)
        world.time_s += 1000.0
        await world.scaler.step()
        world.parts[0].address = None  # lost
        for seconds, number in ((0.0, 1), (59.0, 1), (1.0, 0)):
            world.time_s += seconds
            await world.scaler.step()
            assert world.pool.num_wanted == number


async def test_of_those_that_are_missing_the_one_goes_that_was_for_longest() -> None:
    async with World() as world:
        for _ in range(3):
            await world.scaler.step()
        await world.settle()
        world.parts[1].address = world.parts[2].address = "somewhere"
        world.time_s += 59.0
        await world.scaler.step()
        world.parts[2].address = None  # lost
        world.time_s += 1.0
        await world.scaler.step()
        await world.settle()
        assert "1 did not start within 60 s" in world.shown.pools[0].reason
        assert world.log[-1] == "leave d1"
        assert world.pool.num_wanted == 2


# ── target groups ───────────────────────────────────────────────────────────────────────────────────


async def test_groups_are_added_for_what_waits_and_go_when_it_is_over() -> None:
    async with World() as world:
        world.goodputs = USELESS
        world.num_requests, world.waited_s = 11, 60.0
        await world.scaler.step()
        await world.settle()
        assert world.log == ["keep t2", "keep t3"]
        shown = world.shown.target
        assert (shown.num_wanted, shown.num_present, shown.num_starting, shown.num_draining) == (3, 1, 2, 0)
        assert (shown.min_groups, shown.max_groups, shown.num_waiting, shown.demand) == (1, 3, 7, 2.75)
        for part in world.parts:
            part.address = "somewhere"
        world.num_requests, world.waited_s, world.time_s = 2, 0.0, 1.0
        await world.scaler.step()
        await world.settle()
        assert world.log[2:] == ["leave t3", "leave t2"]
        assert world.shown.target.num_draining == 2
        world.may_drain.set()
        await world.settle()
        assert world.log[4:] == ["gone t3", "gone t2"]
        changes = [(each.pool, each.num_before, each.num_after) for each in world.shown.decisions]
        assert changes == [(TARGET_GROUPS, 3, 1), (TARGET_GROUPS, 1, 3)]


async def test_a_dry_run_adds_no_group_and_says_that_it_would() -> None:
    async with World(dry_run=True) as world:
        world.goodputs = USELESS
        world.num_requests, world.waited_s = 5, 60.0
        for _ in range(3):
            await world.scaler.step()
        assert world.parts == []
        [decision] = world.shown.decisions
        assert (decision.pool, decision.num_before, decision.num_after) == (TARGET_GROUPS, 1, 2)


async def test_a_group_may_take_as_long_as_any_start_and_one_that_is_given_up_goes_first() -> None:
    async with World() as world:
        world.goodputs = USELESS
        world.num_requests, world.waited_s = 12, 60.0
        world.given_up.add("t2")
        await world.scaler.step()
        await world.settle()
        world.parts[1].address = "somewhere"
        world.log.clear()
        world.time_s = 89.0
        await world.scaler.step()
        assert world.groups.num_wanted == 3
        world.time_s = 90.0
        await world.scaler.step()
        assert (world.groups.num_wanted, world.groups.num_present) == (2, 2)
        assert world.shown.target.reason == "1 did not start within 90 s"


async def test_what_ends_the_cell_ends_the_autoscaler_with_its_reason() -> None:
    async def give_up(part: Part) -> None:
        raise WorkerFailed(f"{part.name} is given up")

    world = World()
    world.groups._crew = Crew(world._new, give_up, world._let_go)  # type: ignore[arg-type]
    with pytest.raises(WorkerFailed, match="first is given up"):
        await world.scaler.run({"d": []}, [Part("first")])  # type: ignore[list-item]


async def test_a_cell_without_drafters_scales_its_groups() -> None:
    async with World() as world:
        world.scaler._pools = []
        world.num_requests, world.waited_s = 5, 60.0
        await world.scaler.step()
        assert world.groups.num_wanted == 2
