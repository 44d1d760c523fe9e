"""Every process of a cell killed in turn, again and again, under 32 streams: each brings what it brings undisturbed.

`make kills` goes on for three minutes (`--kill-seconds 180`) and prints what happened, as a line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections import Counter

import pytest

from cluster.launch import Cell
from cluster.supervise import Part
from tests.cluster.conftest import MakeConfig, Returns, running
from tests.cluster.streams import Streams
from tests.ports import free_address

NUM_STREAMS = 32
NUM_TOKENS = 300
TOKENS_BETWEEN_KILLS = 600  # of all streams together, once what was killed is back
RESTARTS = {"max_restarts": 1000, "first_backoff_s": 0.0}
DRAFTERS = [{"kind": "ngram"}, {"kind": "suffix"}]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


class Killer:
    """Takes the parts of a cell in turn; every fifth time the target and the scheduler at once."""

    def __init__(self, cell: Cell, returns: Returns) -> None:
        assert cell.target is not None
        assert cell.scheduler is not None
        ngram, suffix = cell.drafters
        turns: list[list[Part]] = [[ngram], [cell.target], [cell.scheduler], [suffix], [cell.target, cell.scheduler]]
        self._turns = itertools.cycle(turns)
        self._returns = returns
        self.kills: Counter[str] = Counter()

    async def next(self) -> None:
        """Returns when what was killed is back."""
        victims = next(self._turns)
        for victim in victims:
            self.kills[victim.name] += 1
            for process_id in victim.process_ids:  # type: ignore[attr-defined]
                os.kill(process_id, signal.SIGKILL)
        for _ in victims:
            await self._returns.next()


async def test_every_stream_outlives_every_process(
    cell_config: MakeConfig, returns: Returns, pytestconfig: pytest.Config
) -> None:
    now = asyncio.get_running_loop().time
    kill_seconds: float = pytestconfig.getoption("--kill-seconds")
    config = cell_config(restarts=RESTARTS, drafters=DRAFTERS, scheduler={"listen": free_address()})
    async with running(config) as cell:
        streams, killer = Streams(cell.endpoint, NUM_STREAMS, NUM_TOKENS), Killer(cell, returns)
        await streams.learn()
        async with streams.running():
            until_s = now() + kill_seconds
            while now() < until_s or len(killer.kills) < len(DRAFTERS) + 2:
                await streams.wait_tokens(TOKENS_BETWEEN_KILLS)
                await killer.next()
    report = {
        "kills": dict(killer.kills),
        "answers": streams.num_answers,
        "resumed_answers": streams.num_resumed,
        "tokens": streams.num_tokens,
        "wrong_answers": len(streams.wrong),
    }
    print(json.dumps(report))  # noqa: T201 - for make kills
    assert streams.wrong == []
    assert streams.num_answers >= NUM_STREAMS
    assert streams.num_resumed > 0, "the scheduler was killed under its streams"
