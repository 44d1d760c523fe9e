"""Who is served under which id, and what becomes of a call that another one takes over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from outrider.errors import Cancelled, InvalidRequest, OutriderError, ServerUnavailable
from outrider.v1.inference_pb2 import GenerateRequest, TokenIds
from scheduler.calls import Calls
from scheduler.tenants import tenant

FIRST = GenerateRequest(request_id="mine")
RESUMED = GenerateRequest(request_id="mine", resume_from=TokenIds())


class Ended:
    """Takes the place of the core: the numbers that were ended, and with what."""

    def __init__(self) -> None:
        self.errors: dict[int, OutriderError] = {}

    def __call__(self, number: int, error: OutriderError) -> None:
        self.errors[number] = error


@contextmanager
def of_tenant(name: str) -> Iterator[None]:
    token = tenant.set(name)
    yield
    tenant.reset(token)


def test_an_id_that_runs_is_refused_unless_it_is_resumed() -> None:
    calls = Calls(Ended())
    with calls.entered(FIRST), pytest.raises(InvalidRequest, match="request_id is 'mine'"), calls.entered(FIRST):
        pass
    with calls.entered(FIRST):
        assert len(calls) == 1


def test_a_call_that_is_resumed_is_ended_and_whichever_leaves_first_the_id_is_free_then() -> None:
    for is_new_first in (True, False):
        ended = Ended()
        calls = Calls(ended)
        old, new = calls.entered(FIRST), calls.entered(RESUMED)
        calls.start(old.__enter__(), [7, 8])
        calls.start(new.__enter__(), [9])
        assert {number: type(error) for number, error in ended.errors.items()} == {7: Cancelled, 8: Cancelled}
        for each in (new, old) if is_new_first else (old, new):
            assert len(calls) == (0 if is_new_first and each is old else 1)
            each.__exit__(None, None, None)
        assert len(calls) == 0


def test_a_call_that_resumes_ends_nothing_until_it_starts() -> None:
    """It may be refused."""
    ended = Ended()
    calls = Calls(ended)
    with calls.entered(FIRST) as old:
        calls.start(old, [7, 8])
        with calls.entered(RESUMED) as new:
            assert list(calls.taken_over_by(new)) == [7, 8]
        assert not ended.errors
        with pytest.raises(InvalidRequest, match="request_id is 'mine'"), calls.entered(FIRST):
            pass
    assert len(calls) == 0


def test_an_id_is_the_tenants_own() -> None:
    ended = Ended()
    calls = Calls(ended)
    with of_tenant("one"), calls.entered(FIRST) as old:
        calls.start(old, [7])
        for request in (RESUMED, FIRST):
            with of_tenant("two"), calls.entered(request) as other:
                assert not calls.taken_over_by(other)
                calls.start(other, [8])
        assert not ended.errors
        with of_tenant("one"), calls.entered(RESUMED) as new:
            calls.start(new, [9])
    assert list(ended.errors) == [7]


def test_of_two_calls_that_resume_the_later_one_goes_on_whichever_starts_first() -> None:
    for is_later_first in (True, False):
        ended = Ended()
        calls = Calls(ended)
        with calls.entered(FIRST) as old, calls.entered(RESUMED) as earlier, calls.entered(RESUMED) as later:
            calls.start(old, [7])
            if is_later_first:
                calls.start(later, [9])
                with pytest.raises(Cancelled, match="another call"):
                    calls.start(earlier, [8])
            else:
                calls.start(earlier, [8])
                calls.start(later, [9])
            assert list(ended.errors) == ([7] if is_later_first else [7, 8])


def test_a_call_that_is_ended_before_it_has_answers_gets_none() -> None:
    calls = Calls(Ended())
    with calls.entered(FIRST) as call:
        calls.end_all(ServerUnavailable("draining"))
        with pytest.raises(ServerUnavailable, match="draining"):
            calls.start(call, [1])


async def test_it_is_idle_when_the_last_call_has_left() -> None:
    calls = Calls(Ended())
    await calls.wait_idle()
    with calls.entered(GenerateRequest()), calls.entered(GenerateRequest()):
        assert len(calls) == 2
    await calls.wait_idle()
