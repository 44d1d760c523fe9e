"""The asyncio client: the same claims as the blocking one's, where the two could differ."""

from __future__ import annotations

import asyncio
import gc

import grpc
import pytest

from outrider import AsyncClient, AsyncGeneration, SamplingParams, Speculation
from outrider.convert import request_to_proto
from outrider.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    OutriderError,
    Overloaded,
    ServerUnavailable,
    error_from_rpc,
)
from outrider.types import Started
from tests.client.fake_inference import (
    DRAWN_SEED,
    TEXT,
    TOKEN_IDS,
    WAIT_S,
    FakeInference,
    endless_answer,
    refusal,
    silence,
    truncated_answer,
)
from tests.client.test_client import STATUSES
from tests.ports import free_address


async def has_left(fake: FakeInference) -> bool:
    return await asyncio.to_thread(fake.client_left.wait, WAIT_S)


async def test_tokens_come_in_order_and_the_answer_after_them(async_client: AsyncClient) -> None:
    generation = async_client.generate("Why?")
    assert tuple([token.id async for token in generation]) == TOKEN_IDS
    assert generation.answer.text == TEXT
    assert await generation.result() is generation.answer


async def test_the_first_chunk_makes_the_start_known(async_client: AsyncClient) -> None:
    generation = async_client.generate("Why?", request_id="mine")
    assert generation.started is None
    chunks = [(chunk, generation.started) async for chunk in generation.chunks()]
    assert chunks[0] == ((), Started("mine", "tiny", DRAWN_SEED, 7))
    assert [[token.id for token in chunk] for chunk, _ in chunks[1:]] == [[11], [12, 13, 14], [15, 16], []]


async def test_the_request_arrives_as_it_was_said(async_client: AsyncClient, fake: FakeInference) -> None:
    sampling, speculation = SamplingParams(seed=1, top_k=5), Speculation(mode="auto")
    prompt = [{"role": "user", "content": "Hi"}]
    await async_client.generate(prompt, sampling=sampling, speculation=speculation, model="tiny").result()
    assert fake.requests == [request_to_proto(prompt, sampling, speculation, model="tiny")]


async def leave_by_break(generation: AsyncGeneration) -> None:
    async for _ in generation:
        break


async def leave_by_exception(generation: AsyncGeneration) -> None:
    async def read() -> None:
        async for token in generation:
            raise LookupError(token.text)

    with pytest.raises(LookupError, match="The"):
        await read()


async def leave_the_chunks(generation: AsyncGeneration) -> None:
    async for chunk in generation.chunks():
        if chunk:
            break


async def leave_by_cancel(generation: AsyncGeneration) -> None:
    async def read() -> None:
        async for _ in generation:
            generation.cancel()

    with pytest.raises(Cancelled):
        await read()


async def leave_by_cancelled_task(generation: AsyncGeneration) -> None:
    has_begun = asyncio.Event()

    async def read() -> None:
        async for _ in generation:
            has_begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(has_begun.wait(), WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_exception, leave_the_chunks, leave_by_cancel, leave_by_cancelled_task]
)
async def test_leaving_early_cancels_the_call_on_the_server(
    async_client: AsyncClient, fake: FakeInference, leave: object
) -> None:
    assert callable(leave)
    fake.script = endless_answer
    generation = async_client.generate("Why?")
    await leave(generation)
    assert await has_left(fake)
    with pytest.raises(Cancelled):
        await generation.result()


async def test_a_generation_that_is_dropped_cancels_the_call(async_client: AsyncClient, fake: FakeInference) -> None:
    fake.script = endless_answer
    came = aiter(async_client.generate("Why?"))
    await anext(came)
    del came
    gc.collect()
    assert await has_left(fake)


async def test_a_generation_that_waits_can_be_cancelled_from_beside(
    async_client: AsyncClient, fake: FakeInference
) -> None:
    fake.script = endless_answer
    generation = async_client.generate("Why?")
    has_begun = asyncio.Event()

    async def read() -> None:
        async for _ in generation:
            has_begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(has_begun.wait(), WAIT_S)
    generation.cancel()
    with pytest.raises(Cancelled):
        await task
    assert await has_left(fake)


async def test_a_timeout_around_the_loop_is_still_a_timeout(async_client: AsyncClient, fake: FakeInference) -> None:
    fake.script = silence
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await async_client.generate("Why?").result()
    assert await has_left(fake)


async def test_closing_the_client_cancels_what_is_running(server: str, fake: FakeInference) -> None:
    fake.script = endless_answer
    async with AsyncClient(server) as client:
        came = aiter(client.generate("Why?"))
        await anext(came)
    assert await has_left(fake)


async def test_a_closed_client_says_that_it_is_closed(server: str) -> None:
    client = AsyncClient(server)
    await client.close()
    with pytest.raises(Cancelled, match="the client was closed: a new call needs a new client"):
        client.generate("Why?")
    with pytest.raises(Cancelled, match="the client was closed"):
        await client.server_info()


async def test_the_deadline_ends_the_call_on_both_sides(async_client: AsyncClient, fake: FakeInference) -> None:
    fake.script = silence
    with pytest.raises(DeadlineExceeded, match=r"^timeout_s is 0\.2: it passed after 0 tokens; "):
        await async_client.generate("Why?", timeout_s=0.2).result()
    assert await has_left(fake)
    with pytest.raises(DeadlineExceeded, match="timeout_s is 0"):
        async_client.generate("Why?", timeout_s=0)


@pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
async def test_every_status_becomes_its_error_with_message_and_cause(
    async_client: AsyncClient, fake: FakeInference, code: grpc.StatusCode
) -> None:
    fake.script = refusal(code, "because", retry_pushback_ms="-1")
    expected = type(error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())))
    with pytest.raises(OutriderError, match="because") as caught:
        await async_client.generate("Why?").result()
    assert type(caught.value) is expected
    assert caught.value.__cause__ is not None


async def test_an_overloaded_server_says_when_to_come_back(async_client: AsyncClient, fake: FakeInference) -> None:
    fake.script = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_pushback_ms="250")
    with pytest.raises(Overloaded) as caught:
        await async_client.generate("Why?").result()
    assert caught.value.retry_after_s == 0.25


async def test_where_nobody_listens_the_server_is_unavailable() -> None:
    async with AsyncClient(free_address()) as client:
        with pytest.raises(ServerUnavailable, match="failed to connect"):
            await client.generate("Why?").result()
        with pytest.raises(ServerUnavailable, match="failed to connect"):
            await client.model_info()


async def test_a_stream_that_stops_short_is_an_error(async_client: AsyncClient, fake: FakeInference) -> None:
    fake.script = truncated_answer
    with pytest.raises(InternalError, match="ended after 4 tokens"):
        await async_client.generate("Why?").result()


async def test_information_is_read(async_client: AsyncClient) -> None:
    assert (await async_client.model_info()).model == "tiny"
    assert (await async_client.server_info()).num_kv_blocks == 100


async def test_many_answers_at_once(async_client: AsyncClient) -> None:
    answers = await asyncio.gather(*(async_client.generate("Why?").result() for _ in range(6)))
    assert [answer.text for answer in answers] == [TEXT] * 6
