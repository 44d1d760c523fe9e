"""The engine's one thread: jobs in order, and no job after a failure."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from workers.engine_thread import EngineFailed, EngineThread, wait_any_failed

TIMEOUT_S = 30.0


class Broken(Exception):
    pass


def fail() -> None:
    raise Broken


def wait_for(event: threading.Event) -> None:
    assert event.wait(TIMEOUT_S)


async def test_jobs_run_in_order_on_one_thread() -> None:
    thread = EngineThread("test")
    ran: list[int] = []
    for number in range(20):
        thread.post(partial(ran.append, number))

    assert await asyncio.wait_for(thread.run(threading.get_ident), TIMEOUT_S) != threading.get_ident()
    assert ran == list(range(20))
    await thread.close()


async def test_after_a_failure_no_job_runs_whether_it_waits_or_comes_later() -> None:
    thread = EngineThread("test")
    may_fail = threading.Event()
    ran: list[int] = []
    thread.post(partial(wait_for, may_fail))
    failing = thread.submit(fail)
    waiting = thread.submit(partial(ran.append, 1))
    may_fail.set()

    with pytest.raises(Broken):
        await asyncio.wait_for(failing, TIMEOUT_S)
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(waiting, TIMEOUT_S)
    with pytest.raises(EngineFailed):
        await thread.run(partial(ran.append, 2))
    thread.post(partial(ran.append, 3))
    with pytest.raises(Broken):
        await asyncio.wait_for(thread.wait_failed(), TIMEOUT_S)
    await thread.close()
    assert ran == []


async def test_a_job_that_nobody_waits_for_any_more_is_carried_out() -> None:
    thread = EngineThread("test")
    may_go = threading.Event()
    ran: list[int] = []
    thread.post(partial(wait_for, may_go))
    thread.submit(partial(ran.append, 1)).cancel()
    may_go.set()

    await thread.close()

    assert ran == [1]


async def test_a_closed_thread_takes_no_jobs_and_has_not_failed() -> None:
    thread = EngineThread("test")

    await thread.close()
    await thread.close()

    with pytest.raises(EngineFailed):
        await thread.run(fail)
    await asyncio.wait_for(thread.wait_failed(), TIMEOUT_S)


async def test_of_several_threads_the_first_failure_is_seen() -> None:
    threads = [EngineThread("one"), EngineThread("other")]
    threads[1].post(fail)

    with pytest.raises(Broken):
        await asyncio.wait_for(wait_any_failed(threads), TIMEOUT_S)
    for thread in threads:
        await thread.close()
