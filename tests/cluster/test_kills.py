"""Every process of a cell killed in turn, one every few seconds, under 32 streams: each brings its undisturbed answer.

Nobody waits until what was killed is back: a part may be killed while another one is being started.

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
from tests.cluster.conftest import MakeConfig, running
from tests.cluster.streams import Streams
from tests.ports import free_address

NUM_STREAMS = 32
NUM_TOKENS = 300
KILL_EVERY_S = 4.0
RESTARTS = {"max_restarts": 1000, "first_backoff_s": 0.0}
DRAFTERS = [{"kind": "ngram"}, {"kind": "suffix"}]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


class Killer:
    """Takes the parts of a cell in turn; every fifth time the target and the scheduler at once."""

    def __init__(self, cell: Cell) -> None:
        assert cell.target is not None
        assert cell.scheduler is not None
        ngram, suffix = cell.drafters
        turns: list[list[Part]] = [[ngram], [cell.target], [cell.scheduler], [suffix], [cell.target, cell.scheduler]]
        self._turns = itertools.cycle(turns)
        self.kills: Counter[str] = Counter()

    def next(self) -> None:
        """What is down already is left to its restart."""
        for victim in next(self._turns):
            for process_id in victim.process_ids if victim.address is not None else ():  # type: ignore[attr-defined]
                self.kills[victim.name] += 1
                os.kill(process_id, signal.SIGKILL)


async def test_every_stream_outlives_every_process(cell_config: MakeConfig, pytestconfig: pytest.Config) -> None:
    now = asyncio.get_running_loop().time
    kill_seconds: float = pytestconfig.getoption("--kill-seconds")
    config = cell_config(restarts=RESTARTS, drafters=DRAFTERS, scheduler={"listen": free_address()})
    async with running(config) as cell:
        streams, killer = Streams(cell.endpoint, NUM_STREAMS, NUM_TOKENS), Killer(cell)
        await streams.learn()
        async with streams.running():
            until_s = now() + kill_seconds
            while now() < until_s or len(killer.kills) < len(DRAFTERS) + 2:
                await asyncio.sleep(KILL_EVERY_S)
                killer.next()
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
