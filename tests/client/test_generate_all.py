"""Several answers to one prompt: all of them, in order, or one error; with both clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from outrider import Answer, AsyncClient, Client, SamplingParams, Speculation
from outrider.convert import request_to_proto
from outrider.errors import Cancelled, DeadlineExceeded, InternalError, InvalidRequest, NoTokenLeft
from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import (
    CHUNKS,
    TEXT,
    TOKEN_IDS,
    WAIT_S,
    Call,
    FakeInference,
    finished,
    silence,
    started,
    tokens,
    whole_answer,
)

THREE = SamplingParams(n=3, seed=7)
GenerateAll = Callable[..., Awaitable[list[Answer]]]


@pytest_asyncio.fixture(params=["Client", "AsyncClient"])
async def generate_all(request: pytest.FixtureRequest, server: str) -> AsyncIterator[GenerateAll]:
    """That of either client; the blocking one's in a thread."""
    if request.param == "AsyncClient":
        async with AsyncClient(server) as client:
            yield client.generate_all
        return
    with Client(server) as client:

        async def in_thread(*args: Any, **keywords: Any) -> list[Answer]:
            return await asyncio.to_thread(client.generate_all, *args, **keywords)

        yield in_thread


async def has_left(fake: FakeInference) -> bool:
    return await asyncio.to_thread(fake.client_left.wait, WAIT_S)


async def test_answers_come_by_index_whatever_order_they_end_in(generate_all: GenerateAll) -> None:
    answers = await generate_all("Why?", sampling=THREE)  # the fake ends the last one first
    assert [answer.seed for answer in answers] == [7, 8, 9]
    assert [(answer.text, answer.token_ids) for answer in answers] == [(TEXT, TOKEN_IDS)] * 3


async def test_the_request_arrives_as_it_was_said(generate_all: GenerateAll, fake: FakeInference) -> None:
    speculation = Speculation(acceptance_rule="rejection")
    await generate_all([5, 6], sampling=THREE, speculation=speculation, model="tiny", request_id="r")
    assert fake.requests == [request_to_proto([5, 6], THREE, speculation, model="tiny", request_id="r")]


async def test_one_answer_is_a_list_of_one(generate_all: GenerateAll) -> None:
    assert [answer.text for answer in await generate_all("Why?", sampling=SamplingParams())] == [TEXT]


async def test_each_answer_has_its_log_probabilities(generate_all: GenerateAll) -> None:
    for answer in await generate_all("Why?", sampling=SamplingParams(n=2, logprobs=1)):
        assert answer.logprobs is not None
        assert [entry.top_ids for entry in answer.logprobs] == [(token_id,) for token_id in TOKEN_IDS]


async def test_an_error_after_a_whole_answer_is_an_error_of_all(generate_all: GenerateAll, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield from (message for message in whole_answer(call) if message.index == 1)
        call.context.abort(grpc.StatusCode.FAILED_PRECONDITION, "answer 2 has no token left")

    fake.script = script
    with pytest.raises(NoTokenLeft, match="answer 2 has no token left"):
        await generate_all("Why?", sampling=THREE)


async def test_a_stream_that_ends_before_the_last_answer_is_the_servers_fault(
    generate_all: GenerateAll, fake: FakeInference
) -> None:
    fake.script = lambda call: (m for m in whole_answer(call) if not (m.index == 2 and m.HasField("finished")))
    with pytest.raises(InternalError, match="ended after 6 tokens"):
        await generate_all("Why?", sampling=THREE)


async def test_an_answer_that_was_not_asked_for_ends_the_call(generate_all: GenerateAll, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield started(call, index=3)
        call.gone.wait(WAIT_S)

    fake.script = script
    with pytest.raises(InternalError, match="answer 3: 3 were asked for"):
        await generate_all("Why?", sampling=THREE)
    assert await has_left(fake)


async def test_the_deadline_is_for_all_answers_and_ends_the_call_on_both_sides(
    generate_all: GenerateAll, fake: FakeInference
) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield from (started(call), tokens(CHUNKS[0]), finished(1))
        call.gone.wait(WAIT_S)

    fake.script = script
    with pytest.raises(DeadlineExceeded, match=r"^timeout_s is 0\.2: it passed after 1 tokens; "):
        await generate_all("Why?", sampling=THREE, timeout_s=0.2)
    assert await has_left(fake)
    with pytest.raises(DeadlineExceeded, match="timeout_s is 0"):
        await generate_all("Why?", sampling=THREE, timeout_s=0)
    assert len(fake.calls) == 1


async def test_a_task_that_is_cancelled_cancels_the_call(async_client: AsyncClient, fake: FakeInference) -> None:
    fake.script = silence
    task = asyncio.create_task(async_client.generate_all("Why?", sampling=THREE))
    assert await asyncio.to_thread(fake.has_call.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await has_left(fake)


def test_closing_the_client_cancels_the_call(server: str, fake: FakeInference) -> None:
    fake.script = silence
    caught: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(Cancelled) as error:
            client.generate_all("Why?", sampling=THREE)
        caught.append(error.value)

    with Client(server) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        assert fake.has_call.wait(WAIT_S)
    thread.join(WAIT_S)
    assert len(caught) == 1
    assert fake.client_left.wait(WAIT_S)


def test_generate_reads_one_answer_and_says_who_reads_more(client: Client, fake: FakeInference) -> None:
    with pytest.raises(InvalidRequest, match=r"sampling\.n is 3: .*generate_all"):
        client.generate("Why?", sampling=THREE)
    assert fake.calls == []
