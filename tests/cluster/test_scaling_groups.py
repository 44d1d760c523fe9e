"""A real cell that scales its target groups: load rises, and one is added; it falls, and one goes under the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cluster.launch import Cell
from outrider import AsyncClient
from outrider.types import ServerInfo, TargetPool
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, running
from tests.cluster.streams import Streams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_PLACES = 4  # of a group
BUSY, QUIET = 6, 2  # streams
NUM_TOKENS = 120
RULES = {"enabled": True, "period_s": 0.2, "up_cool_down_s": 0.5, "down_cool_down_s": 2.0}


async def info_when(cell: Cell, is_so: Callable[[TargetPool, ServerInfo], bool]) -> ServerInfo:
    async with AsyncClient(cell.endpoint) as client, asyncio.timeout(TIMEOUT_S):
        while True:
            info = await client.server_info()
            if info.scaling.target is not None and is_so(info.scaling.target, info):
                return info
            await asyncio.sleep(0.05)


def has_two(pool: TargetPool, info: ServerInfo) -> bool:
    return pool.num_present == 2 and [target.state for target in info.targets] == ["ready"] * 2


def has_one(pool: TargetPool, info: ServerInfo) -> bool:
    return (pool.num_wanted, pool.num_present, pool.num_draining, len(info.targets)) == (1, 1, 0, 1)


async def num_placed() -> int:
    """Placement groups that hold a place."""
    import ray

    table = await asyncio.to_thread(ray.util.placement_group_table)
    return sum(each["state"] != "REMOVED" for each in table.values())


async def until_placed(number: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if await num_placed() == number:
                return
            await asyncio.sleep(0.05)


async def test_a_group_comes_with_the_load_and_goes_with_it_and_no_stream_notices(cell_config: MakeConfig) -> None:
    target = {"max_groups": 2}
    scheduler = {"max_running_requests": NUM_PLACES}
    async with running(cell_config(target=target, scheduler=scheduler, autoscale=RULES)) as cell:
        busy, quiet = Streams(cell.endpoint, BUSY, NUM_TOKENS), Streams(cell.endpoint, QUIET, NUM_TOKENS)
        await quiet.learn()
        await info_when(cell, has_one)
        assert await num_placed() == 1
        first = cell.targets[0].process_ids

        async with quiet.running():
            await busy.learn()
            async with busy.running():
                info = await info_when(cell, has_two)
                assert await num_placed() == 2
                await info_when(cell, lambda _, info: all(each.num_running_requests for each in info.targets))
                await busy.wait_tokens(200)
            change = info.scaling.decisions[0]
            assert (change.pool, change.num_before, change.num_after) == ("target groups", 1, 2)
            assert "wait for room" in change.reason

            info = await info_when(cell, has_one)
            await until_placed(1)
            assert "1 would do" in info.scaling.decisions[0].reason
            assert cell.targets[0].process_ids == first, "the newest one goes"
            await quiet.wait_tokens(200)

    for streams, number in ((busy, BUSY), (quiet, QUIET)):
        assert streams.wrong == []
        assert streams.num_answers >= number
        assert streams.num_resumed == 0
