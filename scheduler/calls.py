"""The calls that are being served, by request id: taken over by a client whose connection broke, ended by a drain."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from outrider.errors import Cancelled, InvalidRequest, OutriderError
from outrider.v1 import inference_pb2 as pb

MAX_REQUEST_ID_CHARS = 128

EndAnswer = Callable[[int, OutriderError], None]  # ends an answer in the core, by its number, with an error


class Call:
    """A request that is being served: one or more answers in the core."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._numbers: Sequence[int] = ()
        self._error: OutriderError | None = None

    def note_answers(self, numbers: Sequence[int]) -> None:
        """To be called before they go into the core. Raises what the call was ended with meanwhile."""
        if self._error is not None:
            raise self._error
        self._numbers = numbers

    def end(self, error: OutriderError, end_answer: EndAnswer) -> None:
        self._error = error
        for number in self._numbers:
            end_answer(number, error)


class Calls:
    def __init__(self, end_answer: EndAnswer) -> None:
        self._end_answer = end_answer
        self._running: dict[str, Call] = {}
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def entered(self, request: pb.GenerateRequest) -> Iterator[Call]:
        """The request is served within. Raises InvalidRequest for an id that is none, or that another call has.

        A client that resumes takes its own request over: this server may not know yet that the connection is lost.
        """
        _check_request_id(request.request_id)
        running = self._running.get(request.request_id)
        if running is not None:
            if not request.HasField("resume_from"):
                raise InvalidRequest.of("request_id", request.request_id, "a running request has this id")
            running.end(Cancelled("another call with this request_id resumes the request"), self._end_answer)
        call = Call(request.request_id or secrets.token_hex(8))
        self._running[call.request_id] = call
        self._is_idle.clear()
        try:
            yield call
        finally:
            if self._running.get(call.request_id) is call:  # not one that has taken over
                del self._running[call.request_id]
            if not self._running:
                self._is_idle.set()

    async def wait_idle(self) -> None:
        """Returns once no call is being served."""
        await self._is_idle.wait()

    def end_all(self, error: OutriderError) -> None:
        for call in list(self._running.values()):
            call.end(error, self._end_answer)


def _check_request_id(request_id: str) -> None:
    """It travels in the trailing metadata, which takes printable ASCII only."""
    if len(request_id) > MAX_REQUEST_ID_CHARS or not (request_id.isascii() and request_id.isprintable()):
        limit = f"it must be at most {MAX_REQUEST_ID_CHARS} printable ASCII characters"
        raise InvalidRequest.of("request_id", request_id, limit)
