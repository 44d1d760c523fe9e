"""Clients of a cell under fire: what each of them is answered is the same as undisturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from outrider import AsyncClient, Resuming
from outrider.errors import ServerUnavailable
from outrider.types import Answer, SamplingParams, Speculation
from tests.cluster.conftest import TIMEOUT_S

STUBBORN = Resuming(max_tries=10_000, max_wait_s=2 * TIMEOUT_S)
_DRAFTED = Speculation()


class Streams:
    """Clients that ask for the same answers over and over; each compares what comes with the undisturbed one."""

    def __init__(self, endpoint: str, num_streams: int, num_tokens_each: int) -> None:
        self.num_tokens = self.num_answers = self.num_resumed = 0
        self.wrong: list[tuple[int, Answer]] = []
        self._endpoint = endpoint
        self._num_streams = num_streams
        self._num_tokens_each = num_tokens_each
        self._undisturbed: Sequence[Answer] = ()
        self._has_more = asyncio.Event()
        self._last_token_s = 0.0
        self._longest_pause_s = 0.0

    async def learn(self) -> None:
        """Each answer as the target alone gives it."""
        alone = Speculation(mode="off")
        self._undisturbed = await asyncio.gather(*(self._answer(number, alone) for number in range(self._num_streams)))
        self.num_tokens = self.num_answers = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of them ask, until the body is done and their last answers have ended. Raises what any ends with."""
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(self._num_streams):
                group.create_task(self._ask_again(number, is_over))
            yield
            is_over.set()

    async def wait_tokens(self, num_tokens: int) -> None:
        """Of all streams together."""
        goal = self.num_tokens + num_tokens
        async with asyncio.timeout(2 * TIMEOUT_S):
            while self.num_tokens < goal:
                self._has_more.clear()
                await self._has_more.wait()

    def take_longest_pause_s(self) -> float:
        """The longest time without a token in any of the streams, since this was asked before."""
        longest_s, self._longest_pause_s = self._longest_pause_s, 0.0
        return longest_s

    async def _ask_again(self, number: int, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            answer = await self._answer(number)
            self.num_resumed += answer.num_resumed_tokens > 0
            expected = self._undisturbed[number]
            if (answer.token_ids, answer.text) != (expected.token_ids, expected.text):
                self.wrong.append((number, answer))

    async def _answer(self, number: int, speculation: Speculation = _DRAFTED) -> Answer:
        sampling = SamplingParams(max_tokens=self._num_tokens_each, temperature=0.2, seed=number, ignore_eos=True)
        prompt = [5, 6, 7, 8, number + 1, 5, 6, 7]
        async with AsyncClient(self._endpoint, resuming=STUBBORN) as client, asyncio.timeout(2 * TIMEOUT_S):
            while True:
                generation = client.generate(prompt, sampling=sampling, speculation=speculation, timeout_s=None)
                try:
                    async for _ in generation:
                        self._note_token()
                    break
                except ServerUnavailable:  # the scheduler is being started: it can't have accepted the request
                    if generation.started is not None:
                        raise
        self.num_answers += 1
        return generation.answer

    def _note_token(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._last_token_s:
            self._longest_pause_s = max(self._longest_pause_s, now_s - self._last_token_s)
        self._last_token_s = now_s
        self.num_tokens += 1
        self._has_more.set()
