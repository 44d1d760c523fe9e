"""What stands before a server's calls: who may make them, and how errors of ours leave a call."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, contextmanager
from itertools import accumulate
from typing import Any

import grpc
import grpc.aio

from outrider.errors import RETRY_PUSHBACK_KEY, OutriderError, PermissionDenied, status_of

MAX_ERROR_BYTES = 4000  # gRPC sends a status in at most 8 KiB of headers, and drops the call where it is longer

Context = grpc.aio.ServicerContext[Any, Any]
Enter = Callable[[Context], AbstractContextManager[None]]
Handler = Any  # grpc.RpcMethodHandler, which is generic for the type checker alone

# Kubernetes and balancers ask without showing who they are, and learn nothing but whether there is a target.
_OPEN = "/grpc.health.v1.Health/"
_HANDLERS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Every call but those of the health service runs within `enter(context)`; an OutriderError of it ends the call."""

    def __init__(self, enter: Enter) -> None:
        self._enter = enter

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        name, make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        return make(
            _around(getattr(handler, name), self._enter),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def members_only(name: str) -> Guard:
    """For a worker: its peer's certificate must bear the cell's name. That `ca` has signed it is TLS's own check."""

    @contextmanager
    def enter(context: Context) -> Any:
        if name.encode() not in context.auth_context().get("peer_dns", ()):
            raise PermissionDenied(f"this is a worker, for the scheduler alone: your certificate is not for {name!r}")
        yield

    return Guard(enter)


async def abort(context: Context, error: OutriderError) -> None:
    """End the call with the error's own status; raises always."""
    trailing = tuple(context.trailing_metadata() or ())
    if error.retry_after_s is not None:
        trailing = (*trailing, (RETRY_PUSHBACK_KEY, str(round(error.retry_after_s * 1000))))
    await context.abort(status_of(error), _cut(error.message), trailing_metadata=trailing)


def _cut(message: str) -> str:
    """As much of it as gRPC sends in MAX_ERROR_BYTES."""
    num_bytes = accumulate(_num_bytes(letter) for letter in message[:MAX_ERROR_BYTES])
    return message[: sum(up_to_here <= MAX_ERROR_BYTES for up_to_here in num_bytes)]


def _num_bytes(letter: str) -> int:
    """gRPC writes each byte that is not printable ASCII, and the percent sign, as a percent sign and two digits."""
    return 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode())


def _around(behaviour: Any, enter: Enter) -> Any:
    """gRPC tells a generator from a coroutine that writes itself by its kind, so the kind stays."""

    async def stream(request: Any, context: Context) -> Any:
        try:
            with enter(context):
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
        except OutriderError as err:
            await abort(context, err)

    async def call(request: Any, context: Context) -> Any:
        try:
            with enter(context):
                return await behaviour(request, context)
        except OutriderError as err:
            await abort(context, err)

    return stream if inspect.isasyncgenfunction(behaviour) else call
