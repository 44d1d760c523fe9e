"""The error tree: one table, read in both directions."""

from __future__ import annotations

import grpc
import pytest

from outrider import errors
from outrider.errors import InternalError, InvalidRequest, OutriderError, error_from_rpc, status_of

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, OutriderError) and value is not OutriderError
]


def failure(
    code: grpc.StatusCode, details: str | None = "why", trailing: tuple[tuple[str, str], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_crosses_the_wire_and_comes_back_as_itself(cls: type[OutriderError]) -> None:
    came = error_from_rpc(failure(status_of(cls("why"))))
    assert type(came) is cls
    assert came.message == str(came) == "why"


def test_the_statuses_of_the_classes_differ() -> None:
    assert len({cls.status for cls in CLASSES}) == len(CLASSES) == 11


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.ABORTED])
def test_a_status_that_no_class_has_is_an_internal_error(code: grpc.StatusCode) -> None:
    assert type(error_from_rpc(failure(code))) is InternalError


def test_an_rpc_error_without_a_status_is_an_internal_error() -> None:
    assert type(error_from_rpc(grpc.RpcError("odd"))) is InternalError


def test_an_error_without_details_names_its_status() -> None:
    assert "UNAVAILABLE" in error_from_rpc(failure(grpc.StatusCode.UNAVAILABLE, details="")).message


@pytest.mark.parametrize(
    ("pushback", "retry_after_s"), [("1500", 1.5), ("0", 0.0), ("-1", None), ("soon", None), ("", None), ("²", None)]
)
def test_the_retry_hint_is_read_as_grpc_defines_it(pushback: str, retry_after_s: float | None) -> None:
    error = error_from_rpc(
        failure(grpc.StatusCode.RESOURCE_EXHAUSTED, trailing=(("other", "7"), ("grpc-retry-pushback-ms", pushback)))
    )
    assert error.retry_after_s == retry_after_s


def test_without_a_hint_there_is_no_retry_after() -> None:
    assert error_from_rpc(failure(grpc.StatusCode.RESOURCE_EXHAUSTED)).retry_after_s is None


def test_only_overload_and_absence_are_worth_a_retry() -> None:
    assert {cls.__name__ for cls in CLASSES if cls.can_retry} == {"Overloaded", "ServerUnavailable"}


def test_a_bad_value_is_named_with_its_field_and_limit() -> None:
    error = InvalidRequest.of("sampling.top_p", 1.5, "it must be in (0, 1]")
    assert str(error) == "sampling.top_p is 1.5: it must be in (0, 1]"


def test_a_foreign_exception_leaves_a_server_as_internal() -> None:
    assert status_of(KeyError("x")) is grpc.StatusCode.INTERNAL
