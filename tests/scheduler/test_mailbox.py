"""How streams come to what the core has for them."""

from __future__ import annotations

import asyncio

from scheduler.events import Emit
from scheduler.mailbox import NUM_AT_ONCE, Mailbox, Turns

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
