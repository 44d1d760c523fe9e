"""Who is served under which id, and what becomes of a call that another one takes over."""

from __future__ import annotations

import pytest

from outrider.errors import Cancelled, InvalidRequest, OutriderError, ServerUnavailable
from outrider.v1.inference_pb2 import GenerateRequest, TokenIds
from scheduler.calls import Calls

FIRST = GenerateRequest(request_id="mine")
RESUMED = GenerateRequest(request_id="mine", resume_from=TokenIds())


class Ended:
    """Takes the place of the core: the numbers that were ended, and with what."""

    def __init__(self) -> None:
        self.errors: dict[int, OutriderError] = {}

    def __call__(self, number: int, error: OutriderError) -> None:
        self.errors[number] = error


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
        old.__enter__().note_answers([7, 8])
        new.__enter__().note_answers([9])
        assert {number: type(error) for number, error in ended.errors.items()} == {7: Cancelled, 8: Cancelled}
        for each in (new, old) if is_new_first else (old, new):
            assert len(calls) == (0 if is_new_first and each is old else 1)
            each.__exit__(None, None, None)
        assert len(calls) == 0


def test_a_call_that_is_ended_before_it_has_answers_gets_none() -> None:
    calls = Calls(Ended())
    with calls.entered(FIRST) as call:
        calls.end_all(ServerUnavailable("draining"))
        with pytest.raises(ServerUnavailable, match="draining"):
            call.note_answers([1])


async def test_it_is_idle_when_the_last_call_has_left() -> None:
    calls = Calls(Ended())
    await calls.wait_idle()
    with calls.entered(GenerateRequest()), calls.entered(GenerateRequest()):
        assert len(calls) == 2
    await calls.wait_idle()
