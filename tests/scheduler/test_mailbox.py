"""How streams come to what the core has for them."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from scheduler.busy_share import BusyShare
from scheduler.events import Emit
from scheduler.mailbox import LATE_S, NUM_AT_ONCE, SATURATED, Mailbox, Turns

TIMEOUT_S = 30.0


async def test_other_work_on_the_loop_comes_between_the_streams() -> None:
    boxes, turns, done = [Mailbox() for _ in range(4 * NUM_AT_ONCE)], Turns(), list[str]()

    async def fetch(box: Mailbox) -> None:
        await box.take()
        done.append("stream")

    streams = [asyncio.create_task(fetch(box)) for box in boxes]
    await asyncio.sleep(0)  # they wait
    for box in boxes:
        box.put(Emit(1, [5], ["target"], [None]))
        turns.line_up(box)
    asyncio.get_running_loop().call_soon(done.append, "report")
    await asyncio.wait_for(asyncio.gather(*streams), TIMEOUT_S)

    assert done.count("stream") == len(boxes)
    assert done.index("report") <= NUM_AT_ONCE


async def test_streams_come_in_line_and_once_however_much_there_is_for_them() -> None:
    first, second, turns, done = Mailbox(), Mailbox(), Turns(), list[list[int]]()

    async def fetch(box: Mailbox) -> None:
        done.append((await box.take())[0])

    streams = [asyncio.create_task(fetch(box)) for box in (second, first)]
    await asyncio.sleep(0)
    for box, token in ((first, 1), (second, 2), (first, 3)):
        box.put(Emit(1, [token], ["target"], [None]))
        turns.line_up(box)
    await asyncio.wait_for(asyncio.gather(*streams), TIMEOUT_S)

    assert done == [[1, 3], [2]]


@pytest.mark.parametrize(("share", "messages"), [(SATURATED - 0.1, [[1], [2]]), (SATURATED + 0.1, [[1, 2]])])
async def test_streams_fall_behind_only_where_the_loop_has_no_time_left(
    share: float, messages: list[list[int]]
) -> None:
    box, done = Mailbox(), list[list[int]]()
    seconds = count()
    turns = Turns(BusyShare(clock=lambda: float(next(seconds)), computed=lambda: share * next(seconds)))

    async def fetch() -> None:
        while True:
            done.append((await box.take())[0])

    stream = asyncio.create_task(fetch())
    for token in (1, 2):
        box.put(Emit(1, [token], ["target"], [None]))
        turns.line_up(box)
        await asyncio.sleep(LATE_S / 5)  # the next pass comes sooner than a stream that is made to wait
    await asyncio.sleep(2 * LATE_S)
    stream.cancel()

    assert done == messages


def test_the_busy_share_is_that_of_the_time_since_it_was_last_asked() -> None:
    clock, computed = iter([10.0, 12.0, 12.0, 16.0]), iter([5.0, 6.5, 6.5, 7.5])
    share = BusyShare(lambda: next(clock), lambda: next(computed))

    assert [share.since_last() for _ in range(3)] == [0.75, 0.0, 0.25]
