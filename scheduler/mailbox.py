"""What the core has for each request's stream, and whose turn it is to fetch it.

A pass brings something for every row in it. Making texts and messages of it takes longer than all else that is done
between two passes, so streams are woken a few at a time, and the event loop comes to the workers' reports in between:
the next pass does not wait for the texts of the one before. A stream that falls behind finds what several passes have
brought, and sends it in one message.

Where the event loop has no time left to idle, all streams are made to fall behind a little: a message costs the same
however many tokens it has, and whatever is saved there goes into passes. Readers get more tokens, a moment later.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice

from outrider.types import TokenLogprobs, TokenSource
from scheduler.answer_times import Pace
from scheduler.busy_share import BusyShare
from scheduler.events import Emit, Finish

NUM_AT_ONCE = 16  # streams that are woken in one turn of the event loop: a millisecond
SATURATED = 0.9  # of the time the loop's thread was computing
LATE_S = 0.05  # that streams are made to wait then


@dataclass(slots=True, eq=False)
class Mailbox:
    """Of one request. Bounded by its own max_tokens."""

    tokens: list[int] = field(default_factory=list)
    sources: list[TokenSource] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish: Finish | None = None
    pace: Pace = field(default_factory=Pace)
    _is_filled: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, command: Emit | Finish) -> None:
        """The stream hears of it when it is woken."""
        if isinstance(command, Finish):
            self.finish = command
        else:
            self.tokens.extend(command.tokens)
            self.sources.extend(command.sources)
            self.logprobs.extend(command.logprobs)

    def wake(self) -> None:
        self._is_filled.set()

    async def take(self) -> tuple[list[int], list[TokenSource], list[TokenLogprobs | None], Finish | None]:
        """All that has come since the last call; waits until something has. The core bounds the wait:
        a request that is lost, or past its deadline, finishes with an error."""
        await self._is_filled.wait()
        self._is_filled.clear()
        taken = self.tokens, self.sources, self.logprobs, self.finish
        self.tokens, self.sources, self.logprobs = [], [], []
        return taken


class Turns:
    """Streams with something in their mailboxes, in line."""

    def __init__(self, busy_share: BusyShare | None = None) -> None:
        self._waiting: dict[Mailbox, None] = {}
        self._busy_share = busy_share or BusyShare()

    def line_up(self, mailbox: Mailbox) -> None:
        if not self._waiting:
            late_s = LATE_S if self._busy_share.since_last() > SATURATED else 0.0
            asyncio.get_running_loop().call_later(late_s, self._wake_some)
        self._waiting[mailbox] = None

    def _wake_some(self) -> None:
        for mailbox in [*islice(self._waiting, NUM_AT_ONCE)]:
            del self._waiting[mailbox]
            mailbox.wake()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._wake_some)
