"""Answers on their way: reading their streams, and going on where one breaks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias, TypeVar

import grpc
import grpc.aio

from outrider.errors import Cancelled, OutriderError, ServerUnavailable, error_from_rpc
from outrider.fold import Fold, Folds
from outrider.resume import Patience, Resuming, all_continued, continued
from outrider.types import Answer, Started, Token
from outrider.v1 import inference_pb2 as pb

# As text: these are generic for the type checker alone.
BlockingCall: TypeAlias = "grpc.CallIterator[pb.GenerateResponse]"
AsyncCall: TypeAlias = "grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]"
AnyCall = TypeVar("AnyCall", "BlockingCall", "AsyncCall")


class OpenCall(Protocol):
    """InferenceStub.Generate."""

    def __call__(self, request: pb.GenerateRequest, *, timeout: float | None) -> BlockingCall: ...


class OpenAsyncCall(Protocol):
    """The same of grpc.aio."""

    def __call__(self, request: pb.GenerateRequest, *, timeout: float | None) -> AsyncCall: ...


class _AnswerInProgress:
    """What both kinds of generation know of their answer."""

    def __init__(self, request: pb.GenerateRequest, timeout_s: float | None, resuming: Resuming | None) -> None:
        self._request = request
        self._fold = Fold()
        self._patience = Patience(resuming, timeout_s, time.monotonic())

    @property
    def started(self) -> Started | None:
        """The request's id, model, seed and prompt length; None until the server's first message."""
        return self._fold.started

    @property
    def answer(self) -> Answer:
        """The whole answer, once the last token was read. RuntimeError before."""
        if self._fold.answer is None:
            raise RuntimeError("the answer is not finished: read the tokens to the end, or call result()")
        return self._fold.answer

    def _take(self, response: pb.GenerateResponse) -> tuple[Token, ...]:
        chunk = self._fold.add(response)
        if chunk:
            self._patience.note_progress(len(chunk), time.monotonic())
        return chunk

    def _is_whole(self, error: OutriderError) -> bool:
        """Whether the connection broke behind the answer: nothing but the stream's own end was lost."""
        return self._fold.answer is not None and isinstance(error, ServerUnavailable)

    def _delay_s(self, error: OutriderError) -> float:
        """Until the next try to go on. Raises the error where there is to be none: also before anything has come,
        when gRPC has repeated the call itself."""
        if self._fold.started is None:
            raise self._patience.named(error, time.monotonic())
        return self._patience.delay_s(error, time.monotonic())

    def _rest(self) -> tuple[pb.GenerateRequest, float | None]:
        """The request for what has not come yet, and the time that it may take."""
        assert self._fold.started is not None
        time_left_s = self._patience.time_left_s(time.monotonic())
        return continued(self._request, self._fold.started, self._fold.resume()), time_left_s


class Generation(_AnswerInProgress):
    """One answer on its way: iterate over it for the tokens as they come, or take `result()`.

    Leaving the loop early, however it is left, cancels the call.
    """

    def __init__(
        self, open_call: OpenCall, request: pb.GenerateRequest, timeout_s: float | None, resuming: Resuming | None
    ) -> None:
        super().__init__(request, timeout_s, resuming)
        self._open_call = open_call
        self._is_cancelled = threading.Event()
        self._call = open_call(request, timeout=timeout_s)

    def __iter__(self) -> Iterator[Token]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Iterator[tuple[Token, ...]]:
        """The tokens by message, as the passes of the target committed them.

        A message without a token gives an empty tuple: the first one, from which on `started` is known, the last one,
        and the first one after the stream was resumed.
        """
        try:
            while True:
                try:
                    with typed_errors():
                        for response in self._call:
                            yield self._take(response)
                    self._fold.end()
                    return
                except OutriderError as error:
                    if self._is_whole(error):
                        return
                    self._go_on(self._delay_s(error))
        finally:
            self.cancel()

    def result(self) -> Answer:
        """Reads on to the end and returns the whole answer."""
        for _ in self.chunks():
            pass
        return self.answer

    def cancel(self) -> None:
        """Ends the call; the server releases everything that it holds. Nothing happens when it has ended."""
        self._is_cancelled.set()
        self._call.cancel()  # type: ignore[no-untyped-call]

    def _go_on(self, delay_s: float) -> None:
        if not self._is_cancelled.wait(delay_s):
            request, time_left_s = self._rest()
            self._call = self._open_call(request, timeout=time_left_s)
        if self._is_cancelled.is_set():
            self.cancel()
            raise Cancelled("the call was cancelled here")


class AsyncGeneration(_AnswerInProgress):
    """One answer on its way, as `Generation`, for `async for` and `await generation.result()`.

    A loop that is left early cancels the call as soon as the event loop finalises the iterator, which
    is at once in CPython; `cancel()` does not depend on that.
    """

    def __init__(
        self, open_call: OpenAsyncCall, request: pb.GenerateRequest, timeout_s: float | None, resuming: Resuming | None
    ) -> None:
        super().__init__(request, timeout_s, resuming)
        self._open_call = open_call
        self._is_cancelled = asyncio.Event()
        self._call = open_call(request, timeout=timeout_s)

    async def __aiter__(self) -> AsyncIterator[Token]:
        try:
            async for chunk in self.chunks():
                for token in chunk:
                    yield token
        finally:
            self.cancel()

    async def chunks(self) -> AsyncIterator[tuple[Token, ...]]:
        """The tokens by message, as `Generation.chunks`."""
        try:
            while True:
                try:
                    with typed_errors():
                        async for response in self._call:
                            yield self._take(response)
                    if self._call.cancelled():
                        raise Cancelled("the call was cancelled here")
                    self._fold.end()
                    return
                except OutriderError as error:
                    if self._is_whole(error):
                        return
                    delay_s = self._delay_s(error)
                await self._go_on(delay_s)
        finally:
            self.cancel()

    async def result(self) -> Answer:
        """Reads on to the end and returns the whole answer."""
        async for _ in self.chunks():
            pass
        return self.answer

    def cancel(self) -> None:
        """Ends the call, as `Generation.cancel`."""
        self._is_cancelled.set()
        self._call.cancel()

    async def _go_on(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._is_cancelled.wait()
        except TimeoutError:
            request, time_left_s = self._rest()
            self._call = self._open_call(request, timeout=time_left_s)
        else:
            raise Cancelled("the call was cancelled here")


class AllAnswers:
    """Several answers to one request: what has come of them, and what is still to be asked for."""

    def __init__(
        self, request: pb.GenerateRequest, num_answers: int, timeout_s: float | None, resuming: Resuming | None
    ) -> None:
        self._request = request
        self._folds = Folds(num_answers)
        self._patience = Patience(resuming, timeout_s, time.monotonic())
        self._parts = [(0, request)]

    def read(self, open_call: OpenCall) -> list[Answer]:
        while True:
            calls: list[tuple[int, BlockingCall]] = []
            try:
                with typed_errors():
                    calls = self._opened(open_call)
                    for index, call in calls:
                        for response in call:
                            self._take(index, response)
                return self._folds.end()
            except OutriderError as error:
                if self._is_whole(error):
                    return self._folds.end()
                delay_s = self._delay_s(error)
            finally:
                for _, call in calls:
                    call.cancel()  # type: ignore[no-untyped-call]
            time.sleep(delay_s)

    async def read_async(self, open_call: OpenAsyncCall) -> list[Answer]:
        while True:
            calls: list[tuple[int, AsyncCall]] = []
            try:
                with typed_errors():
                    calls = self._opened(open_call)
                    for index, call in calls:
                        async for response in call:
                            self._take(index, response)
                return self._folds.end()
            except OutriderError as error:
                if self._is_whole(error):
                    return self._folds.end()
                delay_s = self._delay_s(error)
            finally:
                for _, call in calls:
                    call.cancel()
            await asyncio.sleep(delay_s)

    def _opened(self, open_call: Callable[..., AnyCall]) -> list[tuple[int, AnyCall]]:
        time_left_s = self._patience.time_left_s(time.monotonic())
        return [(index, open_call(part, timeout=time_left_s)) for index, part in self._parts]

    def _take(self, index: int, response: pb.GenerateResponse) -> None:
        if chunk := self._folds.add(response, index):
            self._patience.note_progress(len(chunk), time.monotonic())

    def _is_whole(self, error: OutriderError) -> bool:
        """As that of one answer."""
        return self._folds.are_whole and isinstance(error, ServerUnavailable)

    def _delay_s(self, error: OutriderError) -> float:
        if not self._folds.has_started:
            raise self._patience.named(error, time.monotonic())
        delay_s = self._patience.delay_s(error, time.monotonic())
        self._parts = all_continued(self._request, self._folds)
        return delay_s


@contextmanager
def typed_errors() -> Iterator[None]:
    """The border: every gRPC error leaves it as one of ours."""
    try:
        yield
    except grpc.RpcError as err:
        raise error_from_rpc(err) from err
    except asyncio.CancelledError as err:
        # grpc.aio ends a call that was cancelled here in the same way as a task that is being cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Cancelled("the call was cancelled here") from err
