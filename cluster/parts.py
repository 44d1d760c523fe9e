"""The three kinds of part that a cell is made of, each a few actor processes and their order of starting."""

from __future__ import annotations

import asyncio
import copy
from abc import abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from cluster.actors import DrafterActor, FollowerActor, SchedulerActor, TargetActor
from cluster.config import CellConfig, DrafterSection
from cluster.errors import WorkerFailed
from cluster.health import wait_until_serving
from cluster.leaving import LeavingNodes
from cluster.placement import DRAFT, TARGET, bundle_of, free_target, reserve_target
from cluster.process import WorkerProcess
from cluster.supervise import Part
from cluster.threads import ThreadPlan
from outrider.tls import CellChannels
from outrider.v1 import inference_pb2 as pb
from scheduler.policy.worth import Lack, Worth
from scheduler.pressure import Pressure

T = TypeVar("T")

_ANSWER_S = 2.0  # beyond the grace of a stop, for its answer to arrive


@dataclass(frozen=True)
class Surroundings:
    """What every part of a cell is told."""

    config: CellConfig
    threads: ThreadPlan
    leaving: LeavingNodes
    log_dir: Path | None  # of this machine's Ray; None where the processes run elsewhere
    channels: CellChannels  # to ask servers how they are


class ActorPart(Part):
    """What the three have in common: a serving process, and perhaps others that it can't do without."""

    _is_healthy_alone = True  # whether its health depends on no other part

    def __init__(self, name: str, surroundings: Surroundings) -> None:
        self.name = name
        self._surroundings = surroundings
        self._processes: list[WorkerProcess] = []  # of the present life, the serving one first
        self._watches: list[asyncio.Task[str]] = []  # one a process, done when it is lost

    @property
    def process_ids(self) -> list[int]:
        return [process.process_id for process in self._processes if process.process_id is not None]

    @abstractmethod
    async def _spawn(self) -> list[WorkerProcess]:
        """The processes of a new life, the serving one first."""

    async def start(self) -> None:
        timeout_s = self._surroundings.config.ray.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                self._processes = await self._spawn()
                await asyncio.gather(*(process.start(timeout_s) for process in self._processes))
                address = await self._serve()
                if self._is_healthy_alone:
                    channels = self._surroundings.channels
                    await self._unless_lost(wait_until_serving(self.name, address, channels, timeout_s))
        except TimeoutError:
            raise WorkerFailed(f"{self.name} was not healthy within {timeout_s:g} s") from None
        self.address = address

    async def _serve(self) -> str:
        """Start the serving process's server; from here on all processes are watched."""
        address: str = await self._unless_lost(self._processes[0].call("start", timeout_s=None))
        self._watches.append(asyncio.create_task(self._processes[0].watch()))
        return address

    async def _unless_lost(self, step: Coroutine[Any, Any, T]) -> T:
        """The step's result; gives it up, with the reason, as soon as a process of the part is lost."""
        task = asyncio.create_task(step)
        try:
            await asyncio.wait([task, *self._watches], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise WorkerFailed(await self.lost())
            return await task
        finally:
            task.cancel()

    async def lost(self) -> str:
        await asyncio.wait(self._watches, return_when=asyncio.FIRST_COMPLETED)
        return next(watch.result() for watch in self._watches if watch.done())

    async def stop(self, grace_s: float) -> None:
        if self.address is not None:
            await self._processes[0].call("stop", grace_s, timeout_s=grace_s + _ANSWER_S)

    def kill(self) -> None:
        self.address = None
        for watch in self._watches:
            watch.cancel()
        for process in self._processes:
            process.kill()
        self._watches, self._processes = [], []

    async def leaving(self) -> None:
        await self._surroundings.leaving.wait_for({process.node_id for process in self._processes})

    def successor(self) -> Self:
        other = copy.copy(self)
        other.address, other._watches, other._processes = None, [], []
        return other

    def change_places(self, other: Self) -> None:
        mine = dict(vars(self))
        vars(self).update(vars(other))
        vars(other).update(mine)

    def release(self) -> None:
        """The place of an actor is its own."""


class SchedulerPart(ActorPart):
    """Kept on the machine that launched the cell, and on one address for as long as the cell lives."""

    _is_healthy_alone = False  # it is once it has been told of a target, and has reached it

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__("the scheduler", surroundings)
        self._listen = surroundings.config.scheduler.listen
        self.metrics_address: str | None = None  # of the present life, where metrics are served

    async def _spawn(self) -> list[WorkerProcess]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        config, log_dir = self._surroundings.config, self._surroundings.log_dir
        return [WorkerProcess(self.name, SchedulerActor, config, self._listen, strategy=here, log_dir=log_dir)]

    async def start(self) -> None:
        await super().start()
        assert self.address is not None
        self._listen = self.address  # a port that was picked the first time is kept
        self.metrics_address = await self._call("metrics_address", timeout_s=_ANSWER_S)

    async def leaving(self) -> None:
        """Never: it can't be elsewhere than its launcher, and ends with it."""
        await asyncio.Event().wait()

    async def set_workers(
        self, targets: Sequence[str], drafters: Sequence[str], num_missing: int, timeout_s: float
    ) -> None:
        """`num_missing`: target groups that are to come, or to come back."""
        await self._processes[0].call("set_workers", list(targets), list(drafters), num_missing, timeout_s=timeout_s)

    async def drain_worker(self, address: str, limit_s: float) -> None:
        """Returns when no request is on this drafter, or target group, any more, or after the limit."""
        await self._call("drain_worker", address, limit_s, timeout_s=limit_s + _ANSWER_S)

    async def worth(self, num_drafters: Mapping[str, int], most: int) -> dict[str, Worth | Lack]:
        """What drafters are worth, by name, if there were so many; looked at up to `most` of them."""
        worth: dict[str, Worth | Lack] = await self._call("worth", dict(num_drafters), most, timeout_s=_ANSWER_S)
        return worth

    async def pressure(self) -> Pressure:
        """What is asked of the target groups, and what they have."""
        pressure: Pressure = await self._call("pressure", timeout_s=_ANSWER_S)
        return pressure

    async def show_scaling(self, scaling: pb.Scaling) -> None:
        """For those who ask the scheduler."""
        await self._call("show_scaling", scaling.SerializeToString(), timeout_s=_ANSWER_S)

    async def _call(self, method: str, *args: object, timeout_s: float) -> Any:
        if self.address is None:
            raise WorkerFailed(f"{self.name} does not run")
        return await self._processes[0].call(method, *args, timeout_s=timeout_s)


class TargetGroup(ActorPart):
    """All ranks of a target group. A rank can't be replaced alone: the others wait in a collective for the lost one."""

    def __init__(self, surroundings: Surroundings, number: int = 1) -> None:
        is_only_one = surroundings.config.target.max_groups == 1
        super().__init__("the target" if is_only_one else f"target group {number}", surroundings)
        self._reservation: Any = None

    async def _spawn(self) -> list[WorkerProcess]:
        config, threads = self._surroundings.config, self._surroundings.threads.target
        if self._reservation is None:
            self._reservation = await reserve_target(config, config.ray.start_timeout_s)
        common = (config, threads)
        leader = self._rank(0, TargetActor, *common)
        followers = range(1, config.target.tensor_parallel)
        return [leader, *(self._rank(rank, FollowerActor, *common, rank) for rank in followers)]

    def _rank(self, rank: int, actor: type, *args: object) -> WorkerProcess:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return WorkerProcess(
            f"rank {rank} of {self.name}",
            actor,
            *args,
            resources=bundle_of(TARGET, self._surroundings.config.target.device),
            strategy=PlacementGroupSchedulingStrategy(self._reservation, placement_group_bundle_index=rank),
            log_dir=self._surroundings.log_dir,
        )

    def successor(self) -> Self:
        other = super().successor()
        other._reservation = None
        return other

    def release(self) -> None:
        if self._reservation is not None:
            free_target(self._reservation)
            self._reservation = None

    async def _serve(self) -> str:
        leader, *followers = self._processes
        group_address = await leader.call("pick_group_address", timeout_s=None) if followers else None
        self._watches = [asyncio.create_task(follower.watch("follow", group_address)) for follower in followers]
        address: str = await self._unless_lost(leader.call("start", group_address, timeout_s=None))
        self._watches.insert(0, asyncio.create_task(leader.watch()))
        return address


class DrafterPart(ActorPart):
    def __init__(self, surroundings: Surroundings, section: DrafterSection, threads: int, number: int = 1) -> None:
        """`number`: among those of its name."""
        super().__init__(f"drafter {section.name}" + (f", number {number}" if number > 1 else ""), surroundings)
        self._section, self._threads = section, threads

    async def _spawn(self) -> list[WorkerProcess]:
        return [
            WorkerProcess(
                self.name,
                DrafterActor,
                self._surroundings.config,
                self._section,
                self._threads,
                resources=bundle_of(DRAFT, self._section.device),
                log_dir=self._surroundings.log_dir,
            )
        ]
