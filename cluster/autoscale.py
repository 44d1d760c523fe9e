"""The autoscaler: every few seconds it asks the scheduler what drafters are worth and what target groups are asked for,
decides, and says so.

The decisions are scaling_decision.py's and group_decision.py's; what they come to is pool.py's. Ray sees actors, and
placement groups, that wait for a place, and its own autoscaler adds a machine for them; it removes one that has been
empty for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cluster.config import CellConfig
from cluster.errors import WorkerFailed
from cluster.group_decision import Peak, TooFew, decide_groups
from cluster.parts import DrafterPart, TargetGroup
from cluster.pool import Pool
from cluster.scaling_decision import Decision, decide
from outrider.v1 import inference_pb2 as pb
from scheduler.policy.worth import Lack, Worth
from scheduler.pressure import Pressure

log = logging.getLogger(__name__)

NUM_SHOWN = 20  # decisions
TARGET_GROUPS = "target groups"  # the name of their pool; no drafter's has a blank


class Scheduler(Protocol):
    """What is asked of it, and told to it. All of it raises WorkerFailed when it does not answer."""

    async def worth(self, num_drafters: Mapping[str, int], most: int) -> dict[str, Worth | Lack]: ...
    async def pressure(self) -> Pressure: ...
    async def show_scaling(self, scaling: pb.Scaling) -> None: ...


class Autoscaler:
    def __init__(
        self,
        config: CellConfig,
        pools: Sequence[Pool[DrafterPart]],  # one a [[drafters]] section, in their order
        groups: Pool[TargetGroup],
        scheduler: Scheduler,
    ) -> None:
        self._config = config
        self._rules = config.autoscale
        # A group may take as long as any start does: to be given up and begun anew would be never to come.
        give_up_s = max(config.autoscale.give_up_s, config.ray.start_timeout_s)
        self._rules_of_groups = config.autoscale.model_copy(update={"give_up_s": give_up_s})
        self._pools = [*zip(config.drafters, pools, strict=True)]
        self._groups = groups
        self._scheduler = scheduler
        self._peak = Peak(config.autoscale.down_cool_down_s)
        self._too_few = TooFew()
        self._decisions: deque[pb.ScalingDecision] = deque(maxlen=NUM_SHOWN)
        self._last: dict[str, Decision] = {}

    async def run(self, drafters: Mapping[str, list[DrafterPart]], groups: list[TargetGroup]) -> None:
        """Keep these drafters, by the name of their pool, and these groups, and decide until cancelled. Raises
        WorkerFailed when the cell can't go on without a group that is given up."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._groups.adopt(groups, tasks)
                for section, pool in self._pools:
                    pool.adopt(drafters[section.name], tasks)
                while True:
                    try:
                        await self.step()
                    except WorkerFailed as error:  # of the scheduler, which is being restarted
                        log.warning("nothing is decided about numbers now: %s", error)
                    await asyncio.sleep(self._rules.period_s)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def step(self) -> None:
        """One round of decisions. Raises WorkerFailed when the scheduler does not answer."""
        numbers = {section.name: pool.num_wanted for section, pool in self._pools}
        most = max((section.max_workers for section, _ in self._pools), default=0)
        worths = await self._scheduler.worth(numbers, most)
        for section, pool in self._pools:
            cost = self._cost_without(pool)
            self._take(pool, decide(self._rules, section, pool.look(), worths[section.name], cost, pool.now_s()))
        pressure, groups, now_s = await self._scheduler.pressure(), self._groups, self._groups.now_s()
        peak = self._peak.note(pressure.demand, now_s)
        too_few = self._too_few.note(self._rules, pressure, peak)
        rules, target = self._rules_of_groups, self._config.target
        self._take(groups, decide_groups(rules, target, groups.look(), pressure, peak, too_few, now_s))
        await self._scheduler.show_scaling(self._shown(worths, pressure))

    def _cost_without(self, without: Pool[DrafterPart]) -> float:
        """Of an hour, of all but one pool."""
        target = self._config.target
        cost = target.price_per_hour * self._groups.num_wanted / target.groups
        others = [(section, pool) for section, pool in self._pools if pool is not without]
        return cost + sum(pool.num_wanted * section.price_per_hour for section, pool in others)

    def _take(self, pool: Pool[Any], decision: Decision) -> None:
        before = self._last.get(pool.name)
        self._last[pool.name] = decision
        if not decision.is_change:
            return
        is_repeated = before is not None and (before.num_before, before.num_after) == (
            decision.num_before,
            decision.num_after,
        )
        if not is_repeated:  # as it is every time in a dry run
            self._note(pool.name, decision)
        if not self._rules.dry_run:
            pool.scale_to(decision.num_after)

    def _note(self, name: str, decision: Decision) -> None:
        would = "would go" if self._rules.dry_run else "go"
        what = name if name == TARGET_GROUPS else f"drafters {name}"
        log.warning("%s %s from %d to %d: %s", what, would, decision.num_before, decision.num_after, decision.reason)
        self._decisions.appendleft(
            pb.ScalingDecision(
                pool=name,
                time_s=time.time(),
                num_before=decision.num_before,
                num_after=decision.num_after,
                reason=decision.reason,
            )
        )

    # ── what is shown ───────────────────────────────────────────────────────────────────────────────

    def _shown(self, worths: Mapping[str, Worth | Lack], pressure: Pressure) -> pb.Scaling:
        return pb.Scaling(
            is_dry_run=self._rules.dry_run,
            pools=[self._pool_shown(index, worths) for index in range(len(self._pools))],
            decisions=self._decisions,
            target=self._groups_shown(pressure),
        )

    def _pool_shown(self, index: int, worths: Mapping[str, Worth | Lack]) -> pb.DrafterPool:
        section, pool = self._pools[index]
        shown = pb.DrafterPool(
            name=section.name,
            min_workers=section.min_workers,
            max_workers=section.max_workers,
            **self._counts(pool),
        )
        worth = worths[section.name]
        if isinstance(worth, Worth):
            shown.goodput = worth.goodput
            shown.worth_of_one_more = worth.of_one_more
            shown.worth_of_the_last = worth.of_the_last
        return shown

    def _groups_shown(self, pressure: Pressure) -> pb.TargetPool:
        return pb.TargetPool(
            min_groups=self._config.target.min_groups,
            max_groups=self._config.target.max_groups,
            num_waiting=pressure.num_waiting,
            demand=pressure.demand,
            **self._counts(self._groups),
        )

    def _counts(self, pool: Pool[Any]) -> dict[str, Any]:
        state = pool.look()
        return {
            "num_wanted": state.num_wanted,
            "num_present": pool.num_present,
            "num_starting": state.num_starting,
            "num_draining": pool.num_draining,
            "reason": self._last[pool.name].reason,
        }
