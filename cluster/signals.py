"""A cell in the foreground: it runs until its work is done, or until the user says stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from cluster.errors import ClusterError
from cluster.launch import Cell, Report

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RENEW_SIGNAL = signal.SIGUSR1  # not SIGHUP: a closed terminal is to end the cell


async def run_until_signal(cell: Cell, work: Callable[[], Awaitable[None]], report: Report) -> bool:
    """Start the cell, do the work, stop the cell. False when SIGINT or SIGTERM came before the work was done.

    The first signal drains, the second one ends the cell at once. Whatever happens, no process of it is left.
    SIGUSR1 renews the drafters, one after the other.
    """
    asked = asyncio.Event()
    hurries: list[asyncio.Task[None]] = []
    renewals: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if asked.is_set():
            hurries.append(asyncio.create_task(cell.stop(at_once=True)))
        asked.set()

    def on_renew() -> None:
        if all(renewal.done() for renewal in renewals):
            renewals[:] = [asyncio.create_task(_renew(cell, report))]

    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(_RENEW_SIGNAL, on_renew)
    try:
        is_done = await _unless_asked(asked, cell.start(report)) and await _unless_asked(asked, work())
        if not is_done:
            report("Stopping: running requests may finish; once more to end at once")
        await cell.stop()
    finally:
        for renewal in renewals:
            renewal.cancel()
        await cell.stop(at_once=True)
        for number in (*_STOP_SIGNALS, _RENEW_SIGNAL):
            loop.remove_signal_handler(number)
    return is_done


async def _renew(cell: Cell, report: Report) -> None:
    try:
        await cell.renew_drafters()
        report("All drafters are new")
    except ClusterError as error:
        report(f"Not all drafters are new: {error.message}")


async def _unless_asked(asked: asyncio.Event, step: Awaitable[None]) -> bool:
    """True when the step came to its end; False, with the step cancelled, when a stop was asked for before."""
    task = asyncio.ensure_future(step)
    stop = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        stop.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
