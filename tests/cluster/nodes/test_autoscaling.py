"""Load rises and falls: drafters and target groups come and go with it, and Ray's own autoscaler adds and removes their
nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from outrider import AsyncClient
from outrider.types import DrafterPool, Scaling
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, running
from tests.cluster.nodes.autoscaled_ray import AUTOSCALED, AutoscaledRay, autoscaled_cell
from tests.cluster.streams import Streams

pytestmark = [pytest.mark.cluster, pytest.mark.nodes, pytest.mark.timeout(900)]

MAX_DRAFTERS = 1  # one that starts takes time from those that serve, on two cores, and what is learned then is noise


@pytest_asyncio.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AutoscaledRay]:
    async with autoscaled(AutoscaledRay(MAX_DRAFTERS, tmp_path), monkeypatch) as nodes:
        yield nodes


@asynccontextmanager
async def autoscaled(nodes: AutoscaledRay, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AutoscaledRay]:
    before = set(psutil.Process().children(recursive=True))
    for name, value in AUTOSCALED.items():
        monkeypatch.setenv(name, value)
    try:
        await nodes.start()
        yield nodes
    finally:
        await nodes.end()
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    assert psutil.wait_procs(left, timeout=30)[1] == []


class Watch:
    """What the cell and Ray say of the drafters and their nodes."""

    def __init__(self, client: AsyncClient, nodes: AutoscaledRay) -> None:
        self._client, self._nodes = client, nodes

    async def until(self, is_so: Callable[[DrafterPool, int], bool]) -> Scaling:
        """Asks again and again, until it is so of the pool and the number of drafters' nodes."""
        async with asyncio.timeout(2 * TIMEOUT_S):
            while True:
                scaling, num_nodes = (await self._client.server_info()).scaling, await self._nodes.num_nodes()
                if scaling.pools and is_so(scaling.pools[0], num_nodes["draft"]):
                    assert num_nodes["target"] == 1
                    return scaling
                await asyncio.sleep(0.2)


def one_is_worth_its_price(pool: DrafterPool, num_nodes: int) -> bool:
    """Several times: it adds half of what there is without it."""
    if pool.goodput is None or pool.worth_of_the_last is None:
        return False
    adds_half = pool.worth_of_the_last > 0.5 * (pool.goodput - pool.worth_of_the_last)
    return pool.num_present > 0 and num_nodes > 0 and adds_half


def none_is_left(pool: DrafterPool, num_nodes: int) -> bool:
    numbers = (pool.num_wanted, pool.num_present, pool.num_draining, num_nodes)
    return numbers == (0, 0, 0, 0) and pool.reason == "nothing runs"


async def test_load_brings_a_drafter_and_a_node_for_it_and_its_end_takes_both_away(
    nodes: AutoscaledRay, tmp_path: Path
) -> None:
    config = autoscaled_cell(nodes.address, MAX_DRAFTERS, tmp_path)
    async with running(config) as cell, AsyncClient(cell.endpoint) as client:
        watch, streams = Watch(client, nodes), Streams(cell.endpoint, num_streams=8, num_tokens_each=200)
        await streams.learn()
        await watch.until(none_is_left)

        async with streams.running():
            await streams.wait_tokens(1000)
            scaling = await watch.until(one_is_worth_its_price)
        assert "to learn what it is worth" in scaling.decisions[-1].reason

        scaling = await watch.until(none_is_left)
        num_decisions = len(scaling.decisions)

        async with streams.running():
            scaling = await watch.until(one_is_worth_its_price)
            await streams.wait_tokens(1000)
        new = scaling.decisions[:-num_decisions]
        assert any("they pay from" in decision.reason for decision in new), "what was learned is known"
        assert streams.wrong == []
        assert streams.num_resumed == 0


async def test_load_brings_a_target_group_and_a_node_for_it_and_its_end_takes_both_away(
    cell_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with autoscaled(AutoscaledRay(0, tmp_path, max_groups=2), monkeypatch) as nodes:
        config = cell_config(
            ray={"address": nodes.address, "autoscaled": True, "machines_timeout_s": 60.0},
            scheduler={"max_running_requests": 4},
            target={"max_groups": 2},
            drafters=[],
            autoscale={"enabled": True, "period_s": 1.0, "up_cool_down_s": 2.0, "down_cool_down_s": 5.0},
        )
        async with running(config) as cell, AsyncClient(cell.endpoint) as client:

            async def until(num_present: int, num_nodes: int) -> None:
                async with asyncio.timeout(2 * TIMEOUT_S):
                    while True:
                        pool = (await client.server_info()).scaling.target
                        there = (await nodes.num_nodes())["target"]
                        if pool is not None and (pool.num_present, pool.num_draining, there) == (
                            num_present,
                            0,
                            num_nodes,
                        ):
                            return
                        await asyncio.sleep(0.2)

            await until(1, 1)
            streams = Streams(cell.endpoint, num_streams=8, num_tokens_each=100)
            await streams.learn()
            async with streams.running():
                await until(2, 2)
                await streams.wait_tokens(200)
            await until(1, 1)
            assert streams.wrong == []
            assert streams.num_resumed == 0
