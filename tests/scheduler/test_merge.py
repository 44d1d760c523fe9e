"""Several streams as one: all items, each stream's in order, and no task left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from scheduler.merge import merged


async def counting(name: str, num: int, error: Exception | None = None) -> AsyncIterator[tuple[str, int]]:
    for i in range(num):
        await asyncio.sleep(0)
        yield name, i
    if error is not None:
        raise error


async def test_all_items_come_and_each_streams_in_order() -> None:
    items = [item async for item in merged([counting("a", 5), counting("b", 9), counting("c", 0)])]

    assert [i for name, i in items if name == "a"] == list(range(5))
    assert [i for name, i in items if name == "b"] == list(range(9))
    assert len(items) == 14


async def test_the_first_error_ends_all() -> None:
    before = len(asyncio.all_tasks())

    with pytest.raises(KeyError):
        async for _ in merged([counting("a", 10_000), counting("b", 3, KeyError("b"))]):
            pass

    assert len(asyncio.all_tasks()) == before


async def test_a_reader_that_leaves_ends_all() -> None:
    before = len(asyncio.all_tasks())
    stream = merged([counting("a", 10_000), counting("b", 10_000)])

    async for _ in stream:
        break
    await stream.aclose()

    assert len(asyncio.all_tasks()) == before
