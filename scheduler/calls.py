"""The calls that are being served, by tenant and request id.

A client whose connection broke takes its own over; a drain ends them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from outrider.errors import Cancelled, InvalidRequest, OutriderError
from outrider.v1 import inference_pb2 as pb
from scheduler.tenants import tenant

MAX_REQUEST_ID_CHARS = 128

EndAnswer = Callable[[int, OutriderError], None]  # ends an answer in the core, by its number, with an error


class Call:
    """A request that is being served: one or more answers in the core."""

    def __init__(self, request_id: str, place: int) -> None:
        self.request_id = request_id
        self.key = (tenant.get(), request_id)  # an id means nothing beyond the tenant that chose it
        self.place = place  # in the order in which they came
        self.numbers: Sequence[int] = ()  # of the answers
        self.error: OutriderError | None = None  # that it was ended with

    def end(self, error: OutriderError, end_answer: EndAnswer) -> None:
        self.error = error
        for number in self.numbers:
            end_answer(number, error)


class Calls:
    def __init__(self, end_answer: EndAnswer) -> None:
        self._end_answer = end_answer
        self._running: set[Call] = set()
        self._by_id: dict[tuple[str, str], Call] = {}  # by `key`; one that is to take over comes in with `start`
        self._places = count()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def entered(self, request: pb.GenerateRequest) -> Iterator[Call]:
        """The request is served within. Raises InvalidRequest for an id that is none, or that another call has.

        A client that resumes may use its own id again: this server may not know yet that the connection is lost.
        """
        _check_request_id(request.request_id)
        call = Call(request.request_id or secrets.token_hex(8), next(self._places))
        if self._by_id.setdefault(call.key, call) is not call and not request.HasField("resume_from"):
            raise InvalidRequest.of("request_id", request.request_id, "a running request has this id")
        self._running.add(call)
        self._is_idle.clear()
        try:
            yield call
        finally:
            if self._by_id.get(call.key) is call:  # not one that has taken over
                del self._by_id[call.key]
            self._leave(call)

    def taken_over_by(self, call: Call) -> Sequence[int]:
        """The numbers of the answers that `start` will end."""
        other = self._by_id.get(call.key, call)
        return () if other is call else other.numbers

    def start(self, call: Call, numbers: Sequence[int]) -> None:
        """To be called before its answers go into the core, when nothing can refuse them any more: an earlier call with
        its id ends here. Raises what the call itself was ended with meanwhile.
        """
        if call.error is not None:
            raise call.error
        other = self._by_id.get(call.key, call)
        if other.place > call.place:
            raise _resumed()
        if other is not call:
            other.end(_resumed(), self._end_answer)
            self._leave(other)
        self._by_id[call.key] = call
        call.numbers = numbers

    def _leave(self, call: Call) -> None:
        self._running.discard(call)
        if not self._running:
            self._is_idle.set()

    async def wait_idle(self) -> None:
        """Returns once no call is being served."""
        await self._is_idle.wait()

    def end_all(self, error: OutriderError) -> None:
        for call in list(self._running):
            call.end(error, self._end_answer)


def _resumed() -> Cancelled:
    return Cancelled("another call with this request_id resumes the request")


def _check_request_id(request_id: str) -> None:
    """It travels in the trailing metadata, which takes printable ASCII only."""
    if len(request_id) > MAX_REQUEST_ID_CHARS or not (request_id.isascii() and request_id.isprintable()):
        limit = f"it must be at most {MAX_REQUEST_ID_CHARS} printable ASCII characters"
        raise InvalidRequest.of("request_id", request_id, limit)
