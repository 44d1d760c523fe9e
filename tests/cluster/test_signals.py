"""A step of a command that a signal, or a cancellation, can end."""

from __future__ import annotations

import asyncio

import pytest

from cluster.signals import _unless_asked


class Step:
    """Takes for ever, and a few turns to end when it is cancelled."""

    def __init__(self) -> None:
        self.has_begun, self.has_ended = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.has_ended.set()


async def test_a_step_has_ended_when_a_stop_that_was_asked_for_goes_on() -> None:
    step, asked = Step(), asyncio.Event()
    waiting = asyncio.create_task(_unless_asked(asked, step.run()))
    await step.has_begun.wait()
    asked.set()
    assert not await waiting
    assert step.has_ended.is_set()


async def test_a_step_has_ended_when_whoever_waits_for_it_is_cancelled() -> None:
    step = Step()
    waiting = asyncio.create_task(_unless_asked(asyncio.Event(), step.run()))
    await step.has_begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert step.has_ended.is_set()


async def test_a_step_that_fails_says_so() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await _unless_asked(asyncio.Event(), fail())
