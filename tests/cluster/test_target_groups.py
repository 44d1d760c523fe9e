"""A real cell with two target groups: one is lost under load, and one is given up."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from cluster.errors import WorkerFailed
from cluster.launch import Cell
from cluster.parts import TargetGroup
from outrider import AsyncClient
from outrider.types import ServerInfo
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, Returns, running
from tests.cluster.streams import Streams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_STREAMS = 8
NUM_TOKENS = 300
TOKENS_BETWEEN = 400  # of all streams together
TWO = {"groups": 2}


def kill(group: TargetGroup) -> None:
    for process_id in group.process_ids:
        os.kill(process_id, signal.SIGKILL)


async def info_with(cell: Cell, num_ready: int) -> ServerInfo:
    """Once so many target groups serve, and no other is known."""
    async with AsyncClient(cell.endpoint) as client, asyncio.timeout(TIMEOUT_S):
        while True:
            info = await client.server_info()
            if [target.state for target in info.targets] == ["ready"] * num_ready:
                return info
            await asyncio.sleep(0.05)


async def test_each_group_is_killed_in_turn_and_no_stream_notices(cell_config: MakeConfig, returns: Returns) -> None:
    restarts = {"max_restarts": 1000, "first_backoff_s": 0.0}
    async with running(cell_config(target=TWO, restarts=restarts)) as cell:
        assert [target.name for target in cell.targets] == ["target group 1", "target group 2"]
        streams = Streams(cell.endpoint, NUM_STREAMS, NUM_TOKENS)
        await streams.learn()
        async with streams.running():
            for victim in cell.targets:
                await info_with(cell, 2)
                await streams.wait_tokens(TOKENS_BETWEEN)
                kill(victim)
                assert await returns.next() == victim.name
            await streams.wait_tokens(TOKENS_BETWEEN)
        info = await info_with(cell, 2)
    assert streams.wrong == []
    assert streams.num_answers >= NUM_STREAMS
    assert streams.num_resumed == 0, "their clients saw nothing of it"
    assert info.max_running_requests == 2 * cell.config.scheduler.max_running_requests


async def test_a_cell_goes_on_with_the_groups_that_it_has_and_ends_with_the_last(
    cell_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(cell_config(target=TWO, drafters=[], restarts={"max_restarts": 0})) as cell:
        streams = Streams(cell.endpoint, 2, 50)
        await streams.learn()
        async with streams.running():
            kill(cell.targets[0])
            info = await info_with(cell, 1)
            await streams.wait_tokens(100)
        assert info.targets[0].address == cell.targets[1].address
        assert "target group 1 is given up" in caplog.text
        assert streams.wrong == []
        kill(cell.targets[1])
        with pytest.raises(WorkerFailed, match=r"target group 2 is given up.*rank 0 of target group 2 failed"):
            async with asyncio.timeout(TIMEOUT_S):
                await cell.wait()
