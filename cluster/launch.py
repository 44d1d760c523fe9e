"""A cell: one scheduler, its target groups and its drafters, started, watched and stopped as a whole.

start: Ray → target groups, drafters and scheduler at once → the scheduler is told of the workers → healthy
watch: what is lost is restarted, what is on a machine that is going away is moved (supervise.py), and the scheduler
       is told of the new addresses
stop:  the scheduler drains → workers → Ray; afterwards no process of the cell is left
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from cluster.autoscale import TARGET_GROUPS, Autoscaler
from cluster.config import CellConfig, DrafterSection
from cluster.errors import ClusterError, WorkerFailed
from cluster.health import wait_until_serving
from cluster.leaving import LeavingNodes, draining_nodes
from cluster.parts import DrafterPart, SchedulerPart, Surroundings, TargetGroup
from cluster.placement import cores_of, groups_at_once, groups_together, local_resources, machines_with_room
from cluster.pool import Crew, Pool
from cluster.preconditions import check_preconditions
from cluster.ray_runtime import RayRuntime, RayThread, start_ray, stop_ray, watch_node
from cluster.server_configs import cell_tls
from cluster.supervise import Part, keep_alive
from cluster.threads import available_cores, plan_threads
from outrider.tls import CellChannels

log = logging.getLogger(__name__)

_TELL_TIMEOUT_S = 30.0  # for the scheduler to take note of its workers
_NEWS_EVERY_S = 10.0  # so that a long start is seen to go on
_WORKER_GRACE_S = 1.0  # once the scheduler has drained, nothing runs on a worker any more

Report = Callable[[str], None]  # takes one line of progress


class Cell:
    """Runs a cell from this process, which must outlive it: Ray and all workers end with their launcher.

    One at a time, since a process has one connection to Ray.
    """

    def __init__(self, config: CellConfig) -> None:
        assert config.target.model is not None, "the entry point puts the default model in place"
        self.config = config
        self._ray_thread = RayThread()
        self._ray: asyncio.Task[RayRuntime] | None = None
        self.scheduler: SchedulerPart | None = None
        self.targets: list[TargetGroup] = []  # those that drain among them
        self.drafters: list[DrafterPart] = []  # likewise
        self._surroundings: Surroundings | None = None  # once it is known where the cell runs
        self._keepers: list[asyncio.Task[None]] = []
        self._given_up: set[Part] = set()  # and target groups that are let go
        self._told = asyncio.Condition()
        self._stopping: asyncio.Task[None] | None = None
        self._must_hurry = asyncio.Event()

    @property
    def endpoint(self) -> str:
        """The "host:port" for clients; it stays the same when the scheduler is restarted."""
        if self.scheduler is None or self.scheduler.address is None:
            raise ClusterError("the cell has no endpoint now: its scheduler does not run")
        return self.scheduler.address

    @property
    def metrics_address(self) -> str | None:
        """The "host:port" for Prometheus, where metrics are served."""
        return self.scheduler.metrics_address if self.scheduler is not None else None

    @property
    def target(self) -> TargetGroup | None:
        """The first target group."""
        return self.targets[0] if self.targets else None

    async def start(self, report: Report = log.info) -> None:
        """Returns when clients can be served. Raises ClusterError when that is not to be; nothing is left then."""
        try:
            await self._start(report)
        except BaseException:
            await self.stop(at_once=True)
            raise

    async def wait(self) -> None:
        """Returns once the cell was stopped. Raises ClusterError when it lost a part, or the Ray, that it needs."""
        ended, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_EXCEPTION)
        for keeper in ended:
            if not keeper.cancelled():
                keeper.result()

    async def stop(self, *, at_once: bool = False) -> None:
        """Let running requests finish, for the configured time, and end every process of the cell.

        May be called again, also meanwhile: all calls return together, and one with `at_once` ends the waiting.
        """
        if at_once:
            self._must_hurry.set()
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def renew_drafters(self) -> None:
        """Each drafter in turn is drained, ends and is started anew, and the next one only when it is back.

        Those that are down are left to their restarts. Raises WorkerFailed when one does not come back.
        """
        for drafter in [drafter for drafter in self.drafters if drafter.address is not None]:
            before = drafter.process_ids
            await self._drain(drafter)
            if drafter.process_ids == before:  # else it was lost meanwhile, and started
                await self._tell_scheduler(but=drafter)
                await drafter.stop(_WORKER_GRACE_S)  # its keeper starts what has ended
            await self._wait_for_another(drafter, before)

    async def _wait_for_another(self, drafter: DrafterPart, before: Sequence[int]) -> None:
        """Returns when another life of it serves, or none is wanted. Its keeper says when there will be none."""

        def is_decided() -> bool:
            is_back = drafter.address is not None and drafter.process_ids != before
            return is_back or drafter in self._given_up or drafter not in self.drafters

        async with self._told:
            await self._told.wait_for(is_decided)
        if drafter in self._given_up:
            raise WorkerFailed(f"{drafter.name} did not come back")

    async def _start(self, report: Report) -> None:
        address = self.config.ray.address
        await asyncio.to_thread(check_preconditions, self.config)
        channels = CellChannels(cell_tls(self.config))  # before anything is started with files that are no good
        report("Starting Ray" if address is None else f"Connecting to Ray at {address}")
        self._ray = asyncio.create_task(self._ray_thread.run(lambda: start_ray(local_resources(self.config), address)))
        ray = await asyncio.shield(self._ray)  # a start that is given up still has to be stopped
        machines = await machines_with_room(self.config)
        cores = available_cores() if ray.is_local else cores_of(self.config, machines)
        threads = plan_threads(self.config, cores, groups_together(self.config, machines))
        leaving = LeavingNodes()
        surroundings = Surroundings(self.config, threads, leaving, ray.log_dir, channels)
        self.scheduler = SchedulerPart(surroundings)
        self._surroundings = surroundings
        groups = [self._new_group(i + 1) for i in range(self.config.target.groups)]
        first = {
            each.name: [self._new_drafter(each, i + 1) for i in range(each.min_workers)]
            for each in self.config.drafters
        }
        needed: list[Part] = [self.scheduler, *groups[: groups_at_once(self.config)]]
        needed += [] if self.config.ray.autoscaled else self.drafters
        await _together([self._bring_up(part, report) for part in needed])
        await self._tell_scheduler()
        await wait_until_serving("the scheduler", self.endpoint, channels, self.config.ray.start_timeout_s)
        steps: list[Coroutine[None, None, None]] = [watch_node(ray)]
        if self.config.autoscale.enabled:
            autoscaler = self._autoscaler()
            steps += [self._keep(self.scheduler), autoscaler.run(first, groups)]
        else:
            steps += map(self._keep, self._parts)
        if not ray.is_local:
            steps.append(leaving.watch(draining_nodes()))
        self._keepers = [asyncio.create_task(step) for step in steps]
        report("The cell is healthy")

    @property
    def _parts(self) -> list[Part]:
        return [part for part in (*self.targets, self.scheduler, *self.drafters) if part is not None]

    async def _bring_up(self, part: Part, report: Report) -> None:
        report(f"Starting {part.name}")
        start = asyncio.create_task(part.start())
        try:
            waited_s = 0.0
            while not (await asyncio.wait([start], timeout=_NEWS_EVERY_S))[0]:
                waited_s += _NEWS_EVERY_S
                report(f"Still starting {part.name}: {waited_s:.0f} s; a first start converts and compiles")
            start.result()
        finally:
            start.cancel()
        report(f"Ready: {part.name} on {part.address}")

    def _autoscaler(self) -> Autoscaler:
        assert self.scheduler is not None
        crews = [Crew(partial(self._new_drafter, each), self._keep, self._let_go) for each in self.config.drafters]
        pools = [Pool(each.name, crew, time.monotonic) for each, crew in zip(self.config.drafters, crews, strict=True)]
        groups = Pool(TARGET_GROUPS, Crew(self._new_group, self._keep, self._let_go), time.monotonic)
        return Autoscaler(self.config, pools, groups, self.scheduler)

    def _new_group(self, number: int) -> TargetGroup:
        """One that has not been started."""
        assert self._surroundings is not None
        self.targets.append(TargetGroup(self._surroundings, number))
        return self.targets[-1]

    def _new_drafter(self, section: DrafterSection, number: int) -> DrafterPart:
        """One that has not been started: the first of its name, the second, …"""
        assert self._surroundings is not None
        threads = self._surroundings.threads.drafters[self.config.drafters.index(section)]
        self.drafters.append(DrafterPart(self._surroundings, section, threads, number))
        return self.drafters[-1]

    async def _drain(self, part: DrafterPart | TargetGroup) -> None:
        """Its requests leave it, in their own time, within what is configured for that. Of a drafter they have what it
        still sends; for those that a target group still has then it is as if it were lost."""
        assert self.scheduler is not None
        try:
            if part.address is not None:
                await self.scheduler.drain_worker(part.address, self.config.autoscale.drain_s)
        except WorkerFailed as error:
            log.warning("%s was not drained: %s", part.name, error)

    async def _hand_over(self, old: Part) -> None:
        """A part serves elsewhere: the scheduler turns to it, and leaves its old life, which is drained."""
        assert isinstance(old, (DrafterPart, TargetGroup)), "the scheduler never moves"
        self._siblings(old).append(old)
        try:
            await self._tell_scheduler()
            await self._drain(old)
        finally:
            self._siblings(old).remove(old)
        await self._tell_scheduler()

    async def _let_go(self, part: DrafterPart | TargetGroup) -> None:
        """Drain a drafter, or a target group, that nobody keeps any more, and end it."""
        if isinstance(part, TargetGroup):
            self._given_up.add(part)
        try:
            await self._drain(part)
            self._siblings(part).remove(part)
            await self._tell_scheduler()
            await self._orderly([part], _WORKER_GRACE_S)
        finally:
            part.kill()
            part.release()

    def _siblings(self, part: DrafterPart | TargetGroup) -> list[Any]:
        return self.targets if isinstance(part, TargetGroup) else self.drafters

    async def _keep(self, part: Part) -> None:
        try:
            await keep_alive(part, self.config.restarts, self._tell_scheduler, self._hand_over)
        except WorkerFailed as error:
            self._given_up.add(part)
            if isinstance(part, SchedulerPart) or self._given_up.issuperset(self.targets):
                raise
            log.error("%s\nThe cell goes on without it: the same tokens, less speed.", error)
            await self._tell_scheduler()

    async def _tell_scheduler(self, but: Part | None = None) -> None:
        """Give the scheduler the addresses of all workers that are up. One that is down is told when it is back."""
        assert self.scheduler is not None
        async with self._told:
            self._told.notify_all()
            targets = [target.address for target in self.targets if target.address is not None]
            num_missing = sum(target.address is None and target not in self._given_up for target in self.targets)
            if self.scheduler.address is None or not targets:
                return
            up = [drafter for drafter in self.drafters if drafter is not but]
            drafters = [drafter.address for drafter in up if drafter.address is not None]
            try:
                await self.scheduler.set_workers(targets, drafters, num_missing, _TELL_TIMEOUT_S)
            except WorkerFailed as error:
                if not self._keepers:
                    raise
                log.warning("the scheduler could not be told of its workers: %s", error)

    async def _stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self.scheduler is not None:
            await self._orderly([self.scheduler], self.config.ray.drain_s)
        await self._orderly([part for part in self._parts if part is not self.scheduler], _WORKER_GRACE_S)
        for part in self._parts:
            part.kill()
        if self._ray is not None:
            [ray] = await asyncio.gather(self._ray, return_exceptions=True)
            if isinstance(ray, RayRuntime):
                await self._ray_thread.run(lambda: stop_ray(ray))
        self._ray_thread.close()

    async def _orderly(self, parts: Sequence[Part], grace_s: float) -> None:
        """Stop parts the friendly way, unless there is a hurry; what does not listen is killed afterwards anyway."""
        stops = [asyncio.create_task(part.stop(grace_s)) for part in parts]
        hurry = asyncio.create_task(self._must_hurry.wait())
        try:
            while not hurry.done() and (running := [stop for stop in stops if not stop.done()]):
                await asyncio.wait([hurry, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (hurry, *stops):
                task.cancel()
        for part, outcome in zip(parts, await asyncio.gather(*stops, return_exceptions=True), strict=True):
            if isinstance(outcome, Exception):
                log.warning("%s did not stop in an orderly way: %s", part.name, outcome)


async def _together(steps: Sequence[Coroutine[None, None, None]]) -> None:
    """Run all steps at once; the first error cancels the others, waits for them, and is raised."""
    tasks = [asyncio.create_task(step) for step in steps]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
