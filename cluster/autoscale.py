"""The autoscaler: every few seconds it asks the scheduler what drafters are worth, decides, and says so.

The decision is scaling_decision.py's; what it comes to is pool.py's. Ray sees actors that wait for a place, and its own
autoscaler adds a machine for them; it removes one that has been empty for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cluster.config import CellConfig
from cluster.errors import WorkerFailed
from cluster.parts import DrafterPart
from cluster.pool import DrafterPool
from cluster.scaling_decision import Decision, decide
from outrider.v1 import inference_pb2 as pb
from scheduler.policy.worth import Lack, Worth

log = logging.getLogger(__name__)

NUM_SHOWN = 20  # decisions

AskWorth = Callable[[Mapping[str, int], int], Awaitable[dict[str, Worth | Lack]]]
Show = Callable[[pb.Scaling], Awaitable[None]]


class Autoscaler:
    def __init__(self, config: CellConfig, pools: Sequence[DrafterPool], ask_worth: AskWorth, show: Show) -> None:
        self._config = config
        self._pools = pools
        self._ask_worth = ask_worth
        self._show = show
        self._decisions: deque[pb.ScalingDecision] = deque(maxlen=NUM_SHOWN)
        self._last: dict[str, Decision] = {}

    async def run(self, parts: Mapping[str, list[DrafterPart]]) -> None:
        """Keep these drafters, by the name of their pool, and decide until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for pool in self._pools:
                pool.adopt(parts[pool.section.name], tasks)
            while True:
                try:
                    await self.step()
                except WorkerFailed as error:  # of the scheduler, which is being restarted
                    log.warning("nothing is decided about drafters now: %s", error)
                await asyncio.sleep(self._config.autoscale.period_s)

    async def step(self) -> None:
        """One round of decisions. Raises WorkerFailed when the scheduler does not answer."""
        numbers = {pool.section.name: pool.state.num_wanted for pool in self._pools}
        worths = await self._ask_worth(numbers, max(pool.section.max_workers for pool in self._pools))
        for pool in self._pools:
            self._take(pool, self._decide(pool, worths[pool.section.name]))
        await self._show(self._shown(worths))

    def _decide(self, pool: DrafterPool, worth: Worth | Lack) -> Decision:
        others = sum(each.state.num_wanted * each.section.price_per_hour for each in self._pools if each is not pool)
        cost = self._config.target.price_per_hour + others
        return decide(self._config.autoscale, pool.section, pool.state, worth, cost, pool.now_s())

    def _take(self, pool: DrafterPool, decision: Decision) -> None:
        name, before = pool.section.name, self._last.get(pool.section.name)
        self._last[name] = decision
        if not decision.is_change:
            return
        is_repeated = before is not None and (before.num_before, before.num_after) == (
            decision.num_before,
            decision.num_after,
        )
        if not is_repeated:  # as it is every time in a dry run
            self._note(name, decision)
        if not self._config.autoscale.dry_run:
            pool.scale_to(decision.num_after)

    def _note(self, name: str, decision: Decision) -> None:
        would = "would go" if self._config.autoscale.dry_run else "goes"
        log.warning(
            "drafter %s %s from %d to %d: %s", name, would, decision.num_before, decision.num_after, decision.reason
        )
        self._decisions.appendleft(
            pb.ScalingDecision(
                pool=name,
                time_s=time.time(),
                num_before=decision.num_before,
                num_after=decision.num_after,
                reason=decision.reason,
            )
        )

    def _shown(self, worths: Mapping[str, Worth | Lack]) -> pb.Scaling:
        pools = [self._pool_shown(pool, worths[pool.section.name]) for pool in self._pools]
        return pb.Scaling(is_dry_run=self._config.autoscale.dry_run, pools=pools, decisions=self._decisions)

    def _pool_shown(self, pool: DrafterPool, worth: Worth | Lack) -> pb.DrafterPool:
        state, section = pool.state, pool.section
        shown = pb.DrafterPool(
            name=section.name,
            num_wanted=state.num_wanted,
            num_present=pool.num_present,
            num_starting=state.num_starting,
            num_draining=pool.num_draining,
            min_workers=section.min_workers,
            max_workers=section.max_workers,
            reason=self._last[section.name].reason,
        )
        if isinstance(worth, Worth):
            shown.goodput = worth.goodput
            shown.worth_of_one_more = worth.of_one_more
            shown.worth_of_the_last = worth.of_the_last
        return shown
