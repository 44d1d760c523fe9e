"""The calls that are being served, by request id: unique, and taken over by a client whose connection broke."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from outrider.errors import Cancelled, InvalidRequest, OutriderError
from outrider.v1 import inference_pb2 as pb

MAX_REQUEST_ID_CHARS = 128


class Call:
    """A request that is being served: one or more answers in the core."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.is_taken_over = False
        self._numbers: Sequence[int] = ()

    def note_answers(self, numbers: Sequence[int]) -> None:
        """To be called before they go into the core. Raises Cancelled when another call has come for them."""
        if self.is_taken_over:
            raise _taken_over()
        self._numbers = numbers

    def give_up(self, end: Callable[[int, OutriderError], None]) -> None:
        self.is_taken_over = True
        for number in self._numbers:
            end(number, _taken_over())


class Calls:
    """`end` ends an answer in the core, by its number, with an error."""

    def __init__(self, end: Callable[[int, OutriderError], None]) -> None:
        self._end = end
        self._running: dict[str, Call] = {}

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
            running.give_up(self._end)
        call = Call(request.request_id or secrets.token_hex(8))
        self._running[call.request_id] = call
        try:
            yield call
        finally:
            if self._running[call.request_id] is call:
                del self._running[call.request_id]


def _check_request_id(request_id: str) -> None:
    """It travels in the trailing metadata, which takes printable ASCII only."""
    if len(request_id) > MAX_REQUEST_ID_CHARS or not (request_id.isascii() and request_id.isprintable()):
        limit = f"it must be at most {MAX_REQUEST_ID_CHARS} printable ASCII characters"
        raise InvalidRequest.of("request_id", request_id, limit)


def _taken_over() -> Cancelled:
    return Cancelled("another call with this request_id resumes the request")
