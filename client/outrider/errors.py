"""Every error that Outrider raises on purpose.

    OutriderError
    ├── InvalidRequest       the request itself is wrong; the message names field, value and limit
    ├── ModelNotFound        the server serves another model
    ├── Unsupported          the server knows the field and does not do it
    ├── NoTokenLeft          the request's own parameters leave no token to go on with
    ├── Overloaded           refused before any work was done; `retry_after_s` says when to come back
    ├── DeadlineExceeded     the time the caller gave has passed
    ├── Cancelled            the caller, or its connection, went away
    ├── ServerUnavailable    nobody answers there, or the server is starting or stopping
    ├── Unauthenticated      the caller did not show who it is
    ├── PermissionDenied     the caller may not do this
    └── InternalError        a defect of ours, or of the model

One table maps each class to its gRPC status, in both directions: `status_of`, `error_from_rpc`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

import grpc

RETRY_PUSHBACK_KEY = "grpc-retry-pushback-ms"  # gRPC's own name for a retry hint (gRFC A6)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def shown(value: object) -> str:
    """A value as a message shows it: a caller may have sent a book where a name was wanted."""
    return _SHORT.repr(value)


class OutriderError(Exception):
    """Base of all. `can_retry`: the same call may succeed later, unchanged."""

    status = grpc.StatusCode.UNKNOWN
    can_retry = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(OutriderError):
    status = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def of(cls, field: str, value: object, limit: str) -> InvalidRequest:
        """The one form of such a message: which field, what it held, what it may hold."""
        return cls(f"{field} is {shown(value)}: {limit}")


class ModelNotFound(OutriderError):
    status = grpc.StatusCode.NOT_FOUND


class Unsupported(OutriderError):
    status = grpc.StatusCode.UNIMPLEMENTED


class NoTokenLeft(OutriderError):
    status = grpc.StatusCode.FAILED_PRECONDITION


class Overloaded(OutriderError):
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    can_retry = True


class DeadlineExceeded(OutriderError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED

    @classmethod
    def of(cls, timeout_s: float, what: str) -> DeadlineExceeded:
        """The one form of such a message: how much time there was, and what became of it."""
        return cls(f"timeout_s is {timeout_s}: {what}")


class Cancelled(OutriderError):
    status = grpc.StatusCode.CANCELLED


class ServerUnavailable(OutriderError):
    status = grpc.StatusCode.UNAVAILABLE
    can_retry = True


class Unauthenticated(OutriderError):
    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(OutriderError):
    status = grpc.StatusCode.PERMISSION_DENIED


class InternalError(OutriderError):
    status = grpc.StatusCode.INTERNAL


_BY_STATUS: dict[grpc.StatusCode, type[OutriderError]] = {
    cls.status: cls
    for cls in (
        InvalidRequest,
        ModelNotFound,
        Unsupported,
        NoTokenLeft,
        Overloaded,
        DeadlineExceeded,
        Cancelled,
        ServerUnavailable,
        Unauthenticated,
        PermissionDenied,
        InternalError,
    )
}


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status under which an error leaves a server."""
    return error.status if isinstance(error, OutriderError) else grpc.StatusCode.INTERNAL


def error_from_rpc(error: grpc.RpcError) -> OutriderError:
    """The typed error for a failed call, with the server's message and its retry hint."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return InternalError(str(error))
    cls = _BY_STATUS.get(error.code(), InternalError)
    message = error.details() or f"the call ended with {error.code().name}"
    return cls(message, retry_after_s=_retry_after_s(error.trailing_metadata() or ()))


def _retry_after_s(metadata: Iterable[Any]) -> float | None:  # (key, value) pairs; gRPC's stubs say otherwise
    for key, value in metadata:
        if key == RETRY_PUSHBACK_KEY:
            # gRFC A6: a negative value, or one that is no number, means "do not retry".
            is_milliseconds = isinstance(value, str) and value.isascii() and value.isdigit()
            return int(value) / 1000 if is_milliseconds else None
    return None
