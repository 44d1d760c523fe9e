"""What waits to be written to a worker. Bounded by what the core has running, however slow the worker is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from outrider.v1.drafter_pb2 import DrafterCommand
from outrider.v1.target_pb2 import TargetCommand
from scheduler.draft_stream import DraftStream
from scheduler.events import ReleaseDrafter, ReleaseTarget, SendOrder, SendPass
from scheduler.messages import pass_message, target_release_message

MAX_MESSAGE_TOKENS = 1 << 18  # of the orders in one message: up to 1 MiB


class Outbox(Protocol):
    """Filled and emptied on one event loop."""

    async def take(self) -> object:
        """The next message; waits until there is one."""


class TargetOutbox:
    """Everything in order. The core has two passes under way at most, and a release for each request."""

    def __init__(self) -> None:
        self._waiting: deque[SendPass | ReleaseTarget] = deque()
        self._is_filled = asyncio.Event()

    def put(self, command: SendPass | ReleaseTarget) -> None:
        self._waiting.append(command)
        self._is_filled.set()

    async def take(self) -> TargetCommand:
        await self._is_filled.wait()
        command = self._waiting.popleft()
        if not self._waiting:
            self._is_filled.clear()
        return pass_message(command) if isinstance(command, SendPass) else target_release_message(command)


class OrderOutbox:
    """All that waits goes in one message. A drafter that falls behind finds one order for each request: the newest,
    with all that it was not told yet."""

    def __init__(self, stream: DraftStream) -> None:
        self._stream = stream
        self._orders: dict[tuple[int, str], SendOrder] = {}  # by request and drafter
        self._releases: list[ReleaseDrafter] = []
        self._is_filled = asyncio.Event()

    def put(self, command: SendOrder | ReleaseDrafter) -> None:
        key = command.request, command.drafter
        older = self._orders.pop(key, None)
        if isinstance(command, SendOrder):
            self._orders[key] = command if older is None else _joined(older, command)
        elif self._stream.is_open(*key):
            self._releases.append(command)
        self._is_filled.set()

    async def take(self) -> DrafterCommand:
        while not (self._orders or self._releases):
            self._is_filled.clear()
            await self._is_filled.wait()
        releases, self._releases = self._releases, []
        return self._stream.command(releases, [self._orders.pop(key) for key in list(self._next_keys())])

    def _next_keys(self) -> Iterator[tuple[int, str]]:
        """Of the orders that go into the next message: one at least."""
        num_tokens = 0
        for key, order in self._orders.items():
            num_tokens += len(order.tokens)
            if num_tokens > MAX_MESSAGE_TOKENS and num_tokens > len(order.tokens):
                return
            yield key


def _joined(older: SendOrder, newer: SendOrder) -> SendOrder:
    """One order for two, of which the older was not sent. A new epoch brings everything itself."""
    if older.epoch != newer.epoch:
        return newer
    tokens = [*older.tokens[: newer.tokens_start - older.tokens_start], *newer.tokens]
    return replace(newer, opening=older.opening, tokens_start=older.tokens_start, tokens=tokens)
