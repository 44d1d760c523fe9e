"""The clients. Requests are built in `convert`, answers are put together in `fold`; here are only the calls.

`Client` blocks, `AsyncClient` awaits; apart from that they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from outrider import convert, rpc
from outrider.connection import Connection
from outrider.convert import Prompt
from outrider.errors import DeadlineExceeded, InvalidRequest
from outrider.generation import AllAnswers, AsyncGeneration, Generation, OpenAsyncCall, OpenCall, typed_errors
from outrider.resume import Resuming
from outrider.tls import Tls
from outrider.types import Answer, ModelInfo, SamplingParams, ServerInfo, ServiceClass, Speculation
from outrider.v1 import inference_pb2 as pb

DEFAULT_SERVER = f"localhost:{rpc.DEFAULT_PORT}"
GENERATE_TIMEOUT_S = 300.0
INFO_TIMEOUT_S = 10.0

_SERVER_SAMPLING = SamplingParams()  # all unset: the server's documented defaults
_SERVER_SPECULATION = Speculation()
_RESUMING = Resuming()


class Client:
    """A blocking client. Safe to share between threads; use it in a `with`, or close it.

    `server` is "host:port". With `tls` the channel is encrypted, by files that may be replaced meanwhile; `credentials`
    are gRPC's own, for what `tls` can't say; with neither it is not. `token` is what the server's owner gave you.
    A call that could not reach the server is repeated a few times while nothing of its answer has arrived. A stream
    that breaks after that is resumed, as `resuming` says (None: never): its answer is what it would have been. All
    other failures are raised as the errors of `outrider.errors`.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        tls: Tls | None = None,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        resuming: Resuming | None = _RESUMING,
    ) -> None:
        self._resuming = resuming
        self._connection = Connection(server, tls, credentials, token, grpc.insecure_channel, grpc.secure_channel)
        self._generate: OpenCall = partial(self._connection.call, "Generate")

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams = _SERVER_SAMPLING,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        service_class: ServiceClass | None = None,
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> Generation:
        """Starts an answer to a text, to token ids or to a chat (dicts with role and content).

        Returns at once; errors of the server come out of the iteration. `timeout_s` is for the whole
        answer, None for no limit. An empty `model` is the one that the server serves, an empty
        `request_id` lets it draw one. `service_class` says how urgent the answer is, None: standard.
        """
        request = convert.request_to_proto(
            prompt, sampling, speculation, model=model, request_id=request_id, service_class=service_class
        )
        _check_one_answer(sampling)
        return Generation(self._generate, request, _checked(timeout_s), self._resuming)

    def generate_all(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        service_class: ServiceClass | None = None,
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> list[Answer]:
        """`sampling.n` answers to one prompt, whose tokens are computed once. Waits for all of them.

        Each has its own seed, with which it can be had again alone. An error of one ends all.
        """
        request = convert.request_to_proto(
            prompt, sampling, speculation, model=model, request_id=request_id, service_class=service_class
        )
        return AllAnswers(request, sampling.n or 1, _checked(timeout_s), self._resuming).read(self._generate)

    def model_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ModelInfo:
        with _info_errors(timeout_s):
            info = self._connection.call("GetModelInfo", pb.GetModelInfoRequest(), timeout=_checked(timeout_s))
        return convert.model_info_from_proto(info)

    def server_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ServerInfo:
        with _info_errors(timeout_s):
            info = self._connection.call("GetServerInfo", pb.GetServerInfoRequest(), timeout=_checked(timeout_s))
        return convert.server_info_from_proto(info)

    def close(self) -> None:
        """Cancels what is still running and closes the connection."""
        self._connection.is_closed = True
        for channel in self._connection.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same as `Client`, for asyncio. Make it inside the event loop that uses it."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        tls: Tls | None = None,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        resuming: Resuming | None = _RESUMING,
    ) -> None:
        self._resuming = resuming
        self._connection = Connection(
            server, tls, credentials, token, grpc.aio.insecure_channel, grpc.aio.secure_channel
        )
        self._generate: OpenAsyncCall = partial(self._connection.call, "Generate")

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams = _SERVER_SAMPLING,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        service_class: ServiceClass | None = None,
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> AsyncGeneration:
        """Starts an answer, as `Client.generate`; there is nothing to await before the iteration."""
        request = convert.request_to_proto(
            prompt, sampling, speculation, model=model, request_id=request_id, service_class=service_class
        )
        _check_one_answer(sampling)
        return AsyncGeneration(self._generate, request, _checked(timeout_s), self._resuming)

    async def generate_all(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams,
        speculation: Speculation = _SERVER_SPECULATION,
        model: str = "",
        request_id: str = "",
        service_class: ServiceClass | None = None,
        timeout_s: float | None = GENERATE_TIMEOUT_S,
    ) -> list[Answer]:
        """`sampling.n` answers to one prompt, as `Client.generate_all`."""
        request = convert.request_to_proto(
            prompt, sampling, speculation, model=model, request_id=request_id, service_class=service_class
        )
        answers = AllAnswers(request, sampling.n or 1, _checked(timeout_s), self._resuming)
        return await answers.read_async(self._generate)

    async def model_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ModelInfo:
        with _info_errors(timeout_s):
            info = await self._connection.call("GetModelInfo", pb.GetModelInfoRequest(), timeout=_checked(timeout_s))
        return convert.model_info_from_proto(info)

    async def server_info(self, *, timeout_s: float | None = INFO_TIMEOUT_S) -> ServerInfo:
        with _info_errors(timeout_s):
            info = await self._connection.call("GetServerInfo", pb.GetServerInfoRequest(), timeout=_checked(timeout_s))
        return convert.server_info_from_proto(info)

    async def close(self) -> None:
        """Cancels what is still running and closes the connection."""
        self._connection.is_closed = True
        for channel in self._connection.channels:
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _check_one_answer(sampling: SamplingParams) -> None:
    if sampling.n is not None and sampling.n > 1:
        raise InvalidRequest.of("sampling.n", sampling.n, "generate reads one answer; generate_all reads n of them")


@contextmanager
def _info_errors(timeout_s: float | None) -> Iterator[None]:
    try:
        with typed_errors():
            yield
    except DeadlineExceeded as err:
        assert timeout_s is not None
        what = "it passed before the server answered; a larger timeout_s (--timeout) would do"
        raise DeadlineExceeded.of(timeout_s, what) from err.__cause__


def _checked(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not isinstance(timeout_s, int | float):
        raise TypeError(f"timeout_s is {timeout_s!r}: it must be a number of seconds, or None for no limit")
    if timeout_s is not None and not timeout_s > 0:
        raise DeadlineExceeded.of(timeout_s, "there must be some time for an answer; None is no limit")
    return timeout_s
