"""Asking the deployment: every call has a deadline, and only so many run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from outrider import AsyncClient
from outrider.convert import Prompt
from outrider.errors import Overloaded
from outrider.types import Answer, SamplingParams, Speculation

Result = TypeVar("Result")

OFF = Speculation(mode="off")
AUTO = Speculation(mode="auto")

_MAX_ATTEMPTS = 8  # of a call that an overloaded server sends away: others may be using it too
_RETRY_AFTER_S = 1.0  # where the server does not say when to come back


class Asker:
    """`on_answers` is called with the number of answers of every call that has ended, well or not."""

    def __init__(
        self, client: AsyncClient, *, concurrency: int, timeout_s: float, on_answers: Callable[[int], None]
    ) -> None:
        self.client = client
        self._places = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._on_answers = on_answers

    async def ask(self, prompt: Prompt, sampling: SamplingParams, speculation: Speculation) -> list[Answer]:
        """All `sampling.n` answers. Raises OutriderError; an overloaded server is asked again, a few times."""
        async with self._places:
            try:
                return await self._ask(prompt, sampling, speculation)
            finally:
                self._on_answers(sampling.n or 1)

    async def _ask(self, prompt: Prompt, sampling: SamplingParams, speculation: Speculation) -> list[Answer]:
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return await self.client.generate_all(
                    prompt, sampling=sampling, speculation=speculation, timeout_s=self._timeout_s
                )
            except Overloaded as err:
                if attempt == _MAX_ATTEMPTS:
                    raise
                await asyncio.sleep(err.retry_after_s or _RETRY_AFTER_S)
        raise AssertionError("unreachable: the last attempt returns or raises")


async def together(steps: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in order. The first error cancels the other steps, waits for them, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
