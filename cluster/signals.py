"""A cell in the foreground: it runs until its work is done, or until the user says stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from cluster.launch import Cell, Report

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def run_until_signal(cell: Cell, work: Callable[[], Awaitable[None]], report: Report) -> bool:
    """Start the cell, do the work, stop the cell. False when SIGINT or SIGTERM came before the work was done.

    The first signal drains, the second one ends the cell at once. Whatever happens, no process of it is left.
    """
    asked = asyncio.Event()
    hurries: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if asked.is_set():
            hurries.append(asyncio.create_task(cell.stop(at_once=True)))
        asked.set()

    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        is_done = await _unless_asked(asked, cell.start(report)) and await _unless_asked(asked, work())
        if not is_done:
            report("Stopping: running requests may finish; once more to end at once")
        await cell.stop()
    finally:
        await cell.stop(at_once=True)
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
    return is_done


async def _unless_asked(asked: asyncio.Event, step: Awaitable[None]) -> bool:
    """True when the step came to its end; False, with the step cancelled, when a stop was asked for before."""
    task = asyncio.ensure_future(step)
    stop = asyncio.create_task(asked.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.wait([task])
    return False
