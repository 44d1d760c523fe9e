"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


async def merged(streams: Sequence[AsyncIterator[_Item]]) -> AsyncGenerator[_Item, None]:
    """The items of all streams, each stream's in its own order, as they come. The first error ends all of them."""
    places = asyncio.Semaphore(len(streams))  # items that wait for the reader; ends need no place
    waiting: asyncio.Queue[tuple[int, _Item | None]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[_Item]) -> None:
        try:
            async for item in stream:
                await places.acquire()
                waiting.put_nowait((index, item))
        finally:
            waiting.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        num_open = len(streams)
        while num_open:
            index, item = await waiting.get()
            if item is not None:
                places.release()
                yield item
            else:
                num_open -= 1
                await tasks[index]  # it has ended: this raises what it ended with
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
