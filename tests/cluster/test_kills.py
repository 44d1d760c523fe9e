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
from collections.abc import Sequence

import pytest

from cluster.launch import Cell
from cluster.supervise import Part
from outrider import AsyncClient, Resuming
from outrider.types import Answer, SamplingParams
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, Returns, running
from tests.ports import free_address

NUM_STREAMS = 32
NUM_TOKENS = 300
TOKENS_BETWEEN_KILLS = 600  # of all streams together, once what was killed is back
RESTARTS = {"max_restarts": 1000, "first_backoff_s": 0.0}
DRAFTERS = [{"kind": "ngram"}, {"kind": "suffix"}]
STUBBORN = Resuming(max_tries=10_000, max_wait_s=2 * TIMEOUT_S)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


class Streams:
    """Clients that ask for the same answers over and over; each compares what comes with the undisturbed one."""

    def __init__(self, endpoint: str) -> None:
        self.num_tokens = self.num_answers = self.num_resumed = 0
        self.wrong: list[tuple[int, Answer]] = []
        self._endpoint = endpoint
        self._undisturbed: Sequence[Answer] = ()
        self._has_more = asyncio.Event()

    async def learn(self) -> None:
        self._undisturbed = await asyncio.gather(*(self._answer(number) for number in range(NUM_STREAMS)))
        self.num_tokens = self.num_answers = 0

    async def ask_until(self, is_over: asyncio.Event) -> None:
        """Raises what any of them ends with."""
        async with asyncio.TaskGroup() as group:
            for number in range(NUM_STREAMS):
                group.create_task(self._ask_again(number, is_over))

    async def wait_tokens(self, num_tokens: int) -> None:
        goal = self.num_tokens + num_tokens
        async with asyncio.timeout(2 * TIMEOUT_S):
            while self.num_tokens < goal:
                self._has_more.clear()
                await self._has_more.wait()

    async def _ask_again(self, number: int, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            answer = await self._answer(number)
            self.num_resumed += answer.num_resumed_tokens > 0
            expected = self._undisturbed[number]
            if (answer.token_ids, answer.text) != (expected.token_ids, expected.text):
                self.wrong.append((number, answer))

    async def _answer(self, number: int) -> Answer:
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.2, seed=number, ignore_eos=True)
        async with AsyncClient(self._endpoint, resuming=STUBBORN) as client:
            generation = client.generate([5, 6, 7, 8, number + 1, 5, 6, 7], sampling=sampling, timeout_s=None)
            async for _ in generation:
                self.num_tokens += 1
                self._has_more.set()
        self.num_answers += 1
        return generation.answer


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
        streams, killer, is_over = Streams(cell.endpoint), Killer(cell, returns), asyncio.Event()
        await streams.learn()
        async with asyncio.TaskGroup() as group:
            group.create_task(streams.ask_until(is_over))
            until_s = now() + kill_seconds
            while now() < until_s or len(killer.kills) < len(DRAFTERS) + 2:
                await streams.wait_tokens(TOKENS_BETWEEN_KILLS)
                await killer.next()
            is_over.set()
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
