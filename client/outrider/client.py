"""The clients. Requests are built in `convert`, answers are put together in `fold`; here are only the calls.

`Client` blocks, `AsyncClient` awaits; apart from that they are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

import grpc
import grpc.aio

from outrider import convert, rpc
from outrider.convert import Prompt
from outrider.errors import Cancelled, DeadlineExceeded, InvalidRequest, error_from_rpc
from outrider.fold import Fold, Folds
from outrider.types import Answer, ModelInfo, SamplingParams, ServerInfo, Speculation, Started, Token
from outrider.v1 import inference_pb2 as pb
from outrider.v1 import inference_pb2_grpc

DEFAULT_SERVER = f"localhost:{rpc.DEFAULT_PORT}"
GENERATE_TIMEOUT_S = 300.0
INFO_TIMEOUT_S = 10.0

_SERVER_SAMPLING = SamplingParams()  # all unset: the server's documented defaults
_SERVER_SPECULATION = Speculation()


class _Call(Protocol):
    def cancel(self) -> bool: ...


class _AnswerInProgress:
    """What both kinds of generation know of their answer."""

    def __init__(self, call: _Call) -> None:
        self._fold = Fold()
        self._cancellable = call

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

    def cancel(self) -> None:
        """Ends the call; the server releases everything that it holds. Nothing happens when it has ended."""
        self._cancellable.cancel()


class Generation(_AnswerInProgress):
    """One answer on its way: iterate over it for the tokens as they come, or take `result()`.

    Leaving the loop early, however it is left, cancels the call.
    """

    def __init__(self, call: grpc.CallIterator[pb.GenerateResponse]) -> None:
        super().__init__(call)
        self._call = call

    def __iter__(self) -> Iterator[Token]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Iterator[tuple[Token, ...]]:
        """The tokens by message, as the passes of the target committed them.

        The first message and the last bring no token, and so an empty tuple; from the first one on
        `started` is known.
        """
        try:
            with _typed_errors():
                for response in self._call:
                    yield self._fold.add(response)
            self._fold.end()
        finally:
            self.cancel()

    def result(self) -> Answer:
        """Reads on to the end and returns the whole answer."""
        for _ in self.chunks():
            pass
        return self.answer


class AsyncGeneration(_AnswerInProgress):
    """One answer on its way, as `Generation`, for `async for` and `await generation.result()`.

    A loop that is left early cancels the call as soon as the event loop finalises the iterator, which
    is at once in CPython; `cancel()` does not depend on that.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]) -> None:
        super().__init__(call)
        self._call = call

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
            with _typed_errors():
                async for response in self._call:
                    yield self._fold.add(response)
            if self._call.cancelled():
                raise Cancelled("the call was cancelled here")
            self._fold.end()
        finally:
            self.cancel()

    async def result(self) -> Answer:
        """Reads on to the end and returns the whole answer."""
        async for _ in self.chunks():
            pass
        return self.answer


class Client:
    """A blocking client. Safe to share between threads; use it in a `with`, or close it.

    `server` is "host:port". With `credentials` the channel is encrypted, without it is not.
    A call that could not reach the server is repeated a few times, but only while nothing of its answer
    has arrived; all other failures are raised as the errors of `outrider.errors`.
    """

    def __init__(self, server: str = DEFAULT_SERVER, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = rpc.client_options()
        self._channel = (
            grpc.insecure_channel(server, options)
            if credentials is None
            else grpc.secure_channel(server, credentials, options)
        )
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams = _SERVER_SAMPLING,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> Generation:
        """Starts an answer to a text, to token ids or to a chat (dicts with role and content).

        Returns at once; errors of the server come out of the iteration. `timeout_s` is for the whole
        answer, None for no limit. An empty `model` is the one that the server serves, an empty
        `request_id` lets it draw one.
        """
        _check_one_answer(sampling)
        request = convert.request_to_proto(prompt, sampling, speculation, model=model, request_id=request_id)
        return Generation(self._stub.Generate(request, timeout=_checked(timeout_s)))

    def generate_all(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> list[Answer]:
        """`sampling.n` answers to one prompt, whose tokens are computed once. Waits for all of them.

        Each has its own seed, with which it can be had again alone. An error of one ends all.
        """
        request = convert.request_to_proto(prompt, sampling, speculation, model=model, request_id=request_id)
        folds = Folds(sampling.n or 1)
        call: grpc.CallIterator[pb.GenerateResponse] = self._stub.Generate(request, timeout=_checked(timeout_s))
        try:
            with _typed_errors():
                for response in call:
                    folds.add(response)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]
        return folds.end()

    def model_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ModelInfo:
        with _typed_errors():
            info = self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=_checked(timeout_s))
        return convert.model_info_from_proto(info)

    def server_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ServerInfo:
        with _typed_errors():
            info = self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_checked(timeout_s))
        return convert.server_info_from_proto(info)

    def close(self) -> None:
        """Cancels what is still running and closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same as `Client`, for asyncio. Make it inside the event loop that uses it."""

    def __init__(self, server: str = DEFAULT_SERVER, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = rpc.client_options()
        self._channel = (
            grpc.aio.insecure_channel(server, options)
            if credentials is None
            else grpc.aio.secure_channel(server, credentials, options)
        )
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams = _SERVER_SAMPLING,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> AsyncGeneration:
        """Starts an answer, as `Client.generate`; there is nothing to await before the iteration."""
        _check_one_answer(sampling)
        request = convert.request_to_proto(prompt, sampling, speculation, model=model, request_id=request_id)
        return AsyncGeneration(self._stub.Generate(request, timeout=_checked(timeout_s)))

    async def generate_all(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> list[Answer]:
        """`sampling.n` answers to one prompt, as `Client.generate_all`."""
        request = convert.request_to_proto(prompt, sampling, speculation, model=model, request_id=request_id)
        folds = Folds(sampling.n or 1)
        call = self._stub.Generate(request, timeout=_checked(timeout_s))
        try:
            with _typed_errors():
                async for response in call:
                    folds.add(response)
        finally:
            call.cancel()
        return folds.end()

    async def model_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ModelInfo:
        with _typed_errors():
            info = await self._stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=_checked(timeout_s))
        return convert.model_info_from_proto(info)

    async def server_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ServerInfo:
        with _typed_errors():
            info = await self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_checked(timeout_s))
        return convert.server_info_from_proto(info)

    async def close(self) -> None:
        """Cancels what is still running and closes the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


@contextmanager
def _typed_errors() -> Iterator[None]:
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


def _check_one_answer(sampling: SamplingParams) -> None:
    if sampling.n is not None and sampling.n > 1:
        raise InvalidRequest.of("sampling.n", sampling.n, "generate reads one answer; generate_all reads n of them")


def _checked(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not timeout_s > 0:
        raise DeadlineExceeded(f"timeout_s is {timeout_s}: there must be some time for an answer; None is no limit")
    return timeout_s
