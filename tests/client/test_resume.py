"""A stream that breaks is gone on with: what is asked for, how often, and when it is given up; with both clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio

from outrider import Answer, AsyncClient, Client, Resuming, SamplingParams
from outrider.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    OutriderError,
    Overloaded,
    ServerUnavailable,
    error_from_rpc,
)
from outrider.resume import Patience
from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import (
    CHUNKS,
    DRAWN_SEED,
    TEXT,
    TOKEN_IDS,
    WAIT_S,
    Call,
    FakeInference,
    Script,
    finished,
    logprobs_of,
    started,
    tokens,
    whole_answer,
)

AT_ONCE = Resuming(max_tries=3, first_backoff_s=0.001)
BREAK = grpc.StatusCode.UNAVAILABLE

Ask = Callable[..., Awaitable[Answer]]


@pytest_asyncio.fixture(params=["Client", "AsyncClient"])
async def clients(request: pytest.FixtureRequest, server: str) -> AsyncIterator[dict[str, Callable[..., Any]]]:
    """`generate` and `generate_all` of either client, to the end; the blocking one's in a thread."""
    if request.param == "AsyncClient":
        async with AsyncClient(server, resuming=AT_ONCE) as client:

            async def generate(*args: Any, **keywords: Any) -> Answer:
                return await client.generate(*args, **keywords).result()

            yield {"generate": generate, "generate_all": client.generate_all}
        return
    with Client(server, resuming=AT_ONCE) as blocking:

        async def in_thread(*args: Any, **keywords: Any) -> Answer:
            return await asyncio.to_thread(lambda: blocking.generate(*args, **keywords).result())

        async def all_in_thread(*args: Any, **keywords: Any) -> list[Answer]:
            return await asyncio.to_thread(lambda: blocking.generate_all(*args, **keywords))

        yield {"generate": in_thread, "generate_all": all_in_thread}


@pytest.fixture
def ask(clients: dict[str, Callable[..., Any]]) -> Ask:
    return clients["generate"]


@pytest.fixture
def ask_all(clients: dict[str, Callable[..., Any]]) -> Callable[..., Awaitable[list[Answer]]]:
    return clients["generate_all"]


def rest_of(call: Call) -> list[list[tuple[int, str, pb.TokenSource]]]:
    """What is left of the standard answer behind the tokens that the client holds."""
    held = list(call.request.resume_from.ids)
    assert held == list(TOKEN_IDS[: len(held)]), "it holds the answer's first tokens"
    left: list[list[tuple[int, str, pb.TokenSource]]] = []
    for chunk in CHUNKS:
        left.append(list(chunk[len(held) :]))
        held = held[len(chunk) :]
    return [chunk for chunk in left if chunk]


def breaks(after: Sequence[int], code: grpc.StatusCode = BREAK, **hint: str) -> Script:
    """The standard answer; call number i breaks after `after[i]` more chunks, those after them do not."""

    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        num_chunks = after[call.attempt - 1] if call.attempt <= len(after) else None
        num_top = call.request.sampling.logprobs if call.request.sampling.HasField("logprobs") else None
        yield started(call)
        for number, chunk in enumerate(rest_of(call)):
            if number == num_chunks:
                break
            yield tokens(chunk, num_top=num_top)
        if num_chunks is None:
            yield finished()
        else:
            call.context.set_trailing_metadata(tuple(("grpc-retry-pushback-ms", ms) for ms in hint.values()))
            call.context.abort(code, "broken")

    return script


async def test_a_broken_stream_goes_on_with_its_seed_its_id_and_its_tokens(ask: Ask, fake: FakeInference) -> None:
    fake.script = breaks([2])
    answer = await ask("Why?", request_id="mine", sampling=SamplingParams(max_tokens=6, n=1))
    assert (answer.text, answer.token_ids, answer.seed) == (TEXT, TOKEN_IDS, DRAWN_SEED)
    assert answer.texts == tuple(text for chunk in CHUNKS for _, text, _ in chunk)
    assert answer.num_resumed_tokens == 4
    first, second = fake.requests
    assert not first.HasField("resume_from")
    expected = pb.GenerateRequest()
    expected.CopyFrom(first)
    expected.model, expected.sampling.seed = "tiny", DRAWN_SEED
    expected.sampling.ClearField("n")
    expected.resume_from.ids[:] = TOKEN_IDS[:4]
    assert second == expected


@pytest.mark.parametrize(
    ("asked", "told", "expected"),
    [(None, 30, 30), (None, 0, None), (8, 8, 8)],
    ids=["the default", "an older server", "as asked"],
)
async def test_a_broken_stream_goes_on_to_the_limit_that_it_began_with(
    ask: Ask, fake: FakeInference, asked: int | None, told: int, expected: int | None
) -> None:
    """The default depends on the KV cache, which may be another one by now."""

    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        for response in breaks([1])(call):
            if response.HasField("started"):
                response.started.max_tokens = told
            yield response

    fake.script = script
    await ask("Why?", sampling=SamplingParams(max_tokens=asked))
    sampling = fake.requests[1].sampling
    assert (sampling.max_tokens if sampling.HasField("max_tokens") else None) == expected


async def test_a_drawn_request_id_is_kept(ask: Ask, fake: FakeInference) -> None:
    fake.script = breaks([1])
    await ask("Why?")
    assert fake.requests[1].request_id == "drawn"


async def test_log_probabilities_go_on_too(ask: Ask, fake: FakeInference) -> None:
    fake.script = breaks([1])
    answer = await ask("Why?", sampling=SamplingParams(logprobs=1))
    assert answer.logprobs is not None
    assert [entry.top_ids for entry in answer.logprobs] == [(logprobs_of(i, 1).top_ids[0],) for i in TOKEN_IDS]


async def test_every_token_that_comes_renews_the_tries(ask: Ask, fake: FakeInference) -> None:
    fake.script = breaks([1, 0, 0, 1, 0, 0])
    assert (await ask("Why?")).text == TEXT
    assert len(fake.calls) == 7


async def test_without_a_token_the_tries_are_counted(ask: Ask, fake: FakeInference) -> None:
    fake.script = breaks([1, *[0] * 20])
    with pytest.raises(ServerUnavailable, match="broken"):
        await ask("Why?")
    assert len(fake.calls) == 1 + AT_ONCE.max_tries


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code not in (BREAK, grpc.StatusCode.OK)], ids=lambda code: code.name
)
async def test_what_a_retry_can_not_help_is_raised(ask: Ask, fake: FakeInference, code: grpc.StatusCode) -> None:
    fake.script = breaks([1], code)
    expected = type(error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())))
    with pytest.raises(OutriderError, match="broken") as caught:
        await ask("Why?")
    assert type(caught.value) is expected
    assert len(fake.calls) == 1


async def test_an_overload_that_says_when_to_come_back_is_waited_for(ask: Ask, fake: FakeInference) -> None:
    fake.script = breaks([1], grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="5")
    assert (await ask("Why?")).text == TEXT
    assert len(fake.calls) == 2


async def test_a_stream_that_goes_on_with_another_seed_is_refused(ask: Ask, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        if call.attempt == 2:
            call.request.sampling.seed = 1
        yield from breaks([1])(call)

    fake.script = script
    with pytest.raises(InternalError, match="went on with another request"):
        await ask("Why?")


async def test_a_stream_that_breaks_behind_its_answer_has_brought_it(ask: Ask, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield from breaks([])(call)
        call.context.abort(BREAK, "broken")

    fake.script = script
    assert (await ask("Why?")).text == TEXT
    assert len(fake.calls) == 1


async def test_answers_that_are_all_whole_are_there_whatever_breaks_behind_the_last(
    server: str, fake: FakeInference
) -> None:
    """Nothing is left to ask for, so this needs no resuming."""

    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield from whole_answer(call)
        call.context.abort(BREAK, "broken")

    fake.script = script
    sampling = SamplingParams(n=2)
    async with AsyncClient(server, resuming=None) as client:
        assert [answer.text for answer in await client.generate_all("Why?", sampling=sampling)] == [TEXT] * 2
    with Client(server, resuming=None) as blocking:
        answers = await asyncio.to_thread(blocking.generate_all, "Why?", sampling=sampling)
        assert [answer.text for answer in answers] == [TEXT] * 2
    assert len(fake.calls) == 2


async def test_the_deadline_is_for_all_tries_together(ask: Ask, fake: FakeInference) -> None:
    remaining: list[float] = []

    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        remaining.append(call.context.time_remaining() or 0.0)
        yield from breaks([1], pushback="500")(call)

    fake.script = script
    await ask("Why?", timeout_s=9.0)  # gRPC rounds what is above 10 s
    assert remaining[1] < 8.75


async def test_only_the_unfinished_of_several_answers_go_on_each_with_its_seed(
    ask_all: Callable[..., Awaitable[list[Answer]]], fake: FakeInference
) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        if call.attempt > 1:
            yield from breaks([])(call)
            return
        yield from (started(call, index) for index in range(3))
        for chunk in CHUNKS:
            yield tokens(chunk, 1)
        yield tokens(CHUNKS[0], 2)
        yield finished(index=1)
        call.context.abort(BREAK, "broken")

    fake.script = script
    answers = await ask_all("Why?", sampling=SamplingParams(n=3, seed=7), request_id="mine")
    assert [(answer.text, answer.seed, answer.request_id) for answer in answers] == [
        (TEXT, 7, "mine"),
        (TEXT, 8, "mine"),
        (TEXT, 9, "mine"),
    ]
    asked = sorted((r.sampling.seed, list(r.resume_from.ids), r.sampling.HasField("n")) for r in fake.requests[1:])
    assert asked == [(7, [], False), (9, [11], False)]
    assert {request.request_id for request in fake.requests[1:]} == {""}


async def test_answers_that_had_not_all_started_are_asked_for_once_more(
    ask_all: Callable[..., Awaitable[list[Answer]]], fake: FakeInference
) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        if call.attempt == 1:
            yield started(call)
            call.context.abort(BREAK, "broken")
        yield from (started(call, index) for index in range(2))
        yield from (finished(0, index) for index in range(2))

    fake.script = script
    assert len(await ask_all("Why?", sampling=SamplingParams(n=2), request_id="mine")) == 2
    assert (fake.requests[1].sampling.n, fake.requests[1].request_id) == (2, "mine")
    assert fake.requests[1].HasField("resume_from")


async def test_where_it_is_turned_off_nothing_goes_on(server: str, fake: FakeInference) -> None:
    fake.script = breaks([1, 1])
    async with AsyncClient(server, resuming=None) as client:
        with pytest.raises(ServerUnavailable, match="broken"):
            await client.generate("Why?").result()
        with pytest.raises(ServerUnavailable, match="broken"):
            await client.generate_all("Why?", sampling=SamplingParams())


PATIENT = Resuming(max_wait_s=10_000, first_backoff_s=10_000, max_backoff_s=10_000)


def test_a_wait_for_the_next_try_ends_with_cancel(server: str, fake: FakeInference) -> None:
    fake.script = breaks([1, 0])
    caught: list[BaseException] = []
    with Client(server, resuming=PATIENT) as client:
        generation = client.generate("Why?", timeout_s=None)
        has_token = threading.Event()

        def read() -> None:
            try:
                for _ in generation:
                    has_token.set()
            except Cancelled as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert has_token.wait(WAIT_S)
        generation.cancel()
        thread.join(WAIT_S)
    assert len(caught) == 1


async def test_a_wait_for_the_next_try_ends_with_cancel_from_beside(server: str, fake: FakeInference) -> None:
    fake.script = breaks([1, 0])
    async with AsyncClient(server, resuming=PATIENT) as client:
        generation = client.generate("Why?", timeout_s=None)
        has_token = asyncio.Event()

        async def read() -> None:
            async for _ in generation:
                has_token.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(has_token.wait(), WAIT_S)
        generation.cancel()
        with pytest.raises(Cancelled):
            await asyncio.wait_for(task, WAIT_S)


async def test_a_client_that_is_closed_meanwhile_has_cancelled_it(server: str, fake: FakeInference) -> None:
    client = AsyncClient(server, resuming=Resuming(first_backoff_s=0.05))
    fake.script = breaks([1])
    chunks = client.generate("Why?").chunks()
    await anext(chunks)
    await anext(chunks)
    await client.close()
    with pytest.raises(Cancelled):
        [chunk async for chunk in chunks]


# ── when, and how often ─────────────────────────────────────────────────────────────────────────────

LOST = ServerUnavailable("lost")
NINE_TRIES = Resuming(max_tries=9, max_wait_s=20.0, first_backoff_s=1.0, max_backoff_s=4.0)


def test_pauses_grow_to_their_limit_and_are_spread() -> None:
    patience = Patience(NINE_TRIES, None, 0.0)
    for longest_s in (1.0, 2.0, 4.0, 4.0):
        assert longest_s / 2 <= patience.delay_s(LOST, 0.0) <= longest_s


def test_the_servers_hint_is_the_least_pause() -> None:
    assert Patience(NINE_TRIES, None, 0.0).delay_s(ServerUnavailable("drains", retry_after_s=7.0), 0.0) == 7.0
    assert Patience(NINE_TRIES, None, 0.0).delay_s(Overloaded("full", retry_after_s=8.0), 0.0) == 8.0


def test_an_overload_without_a_hint_is_the_requests_own_size() -> None:
    with pytest.raises(Overloaded):
        Patience(NINE_TRIES, None, 0.0).delay_s(Overloaded("too large"), 0.0)


def test_time_counts_from_the_last_token() -> None:
    patience = Patience(NINE_TRIES, None, 0.0)
    patience.note_progress(1, 100.0)
    patience.delay_s(LOST, 119.0)
    with pytest.raises(ServerUnavailable):
        patience.delay_s(LOST, 119.9)
    patience.note_progress(3, 119.9)
    patience.delay_s(LOST, 120.0)


def test_what_would_come_after_the_deadline_is_not_waited_for() -> None:
    patience = Patience(NINE_TRIES, 5.0, 0.0)
    assert patience.time_left_s(2.0) == 3.0
    patience.delay_s(LOST, 2.0)
    with pytest.raises(ServerUnavailable):
        patience.delay_s(ServerUnavailable("drains", retry_after_s=4.0), 2.0)
    with pytest.raises(DeadlineExceeded, match=r"^timeout_s is 5\.0: it passed after 0 tokens; "):
        patience.time_left_s(5.0)


def test_a_deadline_of_the_servers_own_keeps_its_words_while_the_callers_time_lasts() -> None:
    patience = Patience(NINE_TRIES, 5.0, 0.0)
    patience.note_progress(3, 1.0)
    with pytest.raises(DeadlineExceeded, match=r"^too slow$"):
        patience.delay_s(DeadlineExceeded("too slow"), 4.0)
    with pytest.raises(DeadlineExceeded, match=r"^timeout_s is 5\.0: it passed after 3 tokens; "):
        patience.delay_s(DeadlineExceeded("too slow"), 5.0)
