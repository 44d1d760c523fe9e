"""The autoscaler's rounds, with a scheduler that says what it is told to. Parts are scripted, nothing is started."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cluster.autoscale import Autoscaler
from cluster.config import DrafterSection, load_config
from cluster.pool import Crew, DrafterPool
from outrider.v1 import inference_pb2 as pb
from scheduler.policy.worth import Worth

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
        config = load_config(None, {"target": {"model": "m"}, "autoscale": rules, "drafters": drafters})
        crew = Crew(self._new, self._keep, self._let_go)  # type: ignore[arg-type]
        self.time_s = 0.0
        self.pool = DrafterPool(config.drafters[0], crew, lambda: self.time_s)
        self.goodputs = GOOD
        self.log: list[str] = []
        self.shown = pb.Scaling()
        self.may_drain = asyncio.Event()
        self._rounds: asyncio.Queue[None] = asyncio.Queue()
        self.scaler = Autoscaler(config, [self.pool], self._worth, self._show)
        self.parts: list[Part] = []

    async def __aenter__(self) -> World:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self.pool.adopt([], self._tasks)
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self.may_drain.set()
        for part in self.parts:
            self.log.append(f"end {part.name}")
        for task in self.pool._keepers.values():
            task.cancel()
        await self._tasks.__aexit__(*failure)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def _worth(self, numbers: Mapping[str, int], most: int) -> dict[str, Worth]:
        assert most == 3
        return {name: Worth(number, (*self.goodputs, self.goodputs[-1])) for name, number in numbers.items()}

    async def _show(self, scaling: pb.Scaling) -> None:
        self.shown = scaling

    def _new(self, section: DrafterSection, number: int) -> Part:
        self.parts.append(Part(f"{section.name}{number}"))
        return self.parts[-1]

    async def _keep(self, part: Part) -> None:
        self.log.append(f"keep {part.name}")
        try:
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
        await world.scaler._show(world.scaler._shown(await world._worth({"d": 2}, 3)))
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
        assert world.pool.state.num_wanted == 0
        assert "did not start within 60 s" in world.shown.pools[0].reason
