"""The blocking client against a real server on a real socket."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from outrider import AsyncClient, Client, Generation, SamplingParams, Speculation, Token
from outrider.convert import request_to_proto
from outrider.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    OutriderError,
    Overloaded,
    ServerUnavailable,
    error_from_rpc,
)
from outrider.types import Started
from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import (
    CHUNKS,
    DRAWN_SEED,
    TEXT,
    TOKEN_IDS,
    WAIT_S,
    Call,
    FakeInference,
    endless_answer,
    refusal,
    silence,
    started,
    tokens,
    truncated_answer,
    whole_answer,
)
from tests.ports import free_address

STATUSES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
NOT_REPEATED = [code for code in STATUSES if code is not grpc.StatusCode.UNAVAILABLE]


def test_tokens_come_in_order_with_text_and_source(client: Client) -> None:
    came = list(client.generate("Why?"))
    assert came == [
        Token(token_id, text, "draft" if source == pb.TOKEN_SOURCE_DRAFT else "target")
        for chunk in CHUNKS
        for token_id, text, source in chunk
    ]


def test_a_token_is_there_before_the_answer_is_finished(client: Client, fake: FakeInference) -> None:
    may_go_on = threading.Event()

    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield started(call)
        yield tokens(CHUNKS[0])
        assert may_go_on.wait(WAIT_S)
        yield from list(whole_answer(call))[2:]

    fake.script = script
    generation = client.generate("Why?")
    came = iter(generation)
    assert next(came).text == "The"
    may_go_on.set()
    assert "".join(token.text for token in came) == TEXT.removeprefix("The")


def test_chunks_are_the_messages_and_the_first_one_makes_the_start_known(client: Client) -> None:
    generation = client.generate("Why?", request_id="mine")
    assert generation.started is None
    chunks = generation.chunks()
    assert next(chunks) == ()
    assert generation.started == Started("mine", "tiny", DRAWN_SEED, 7)
    assert [[token.id for token in chunk] for chunk in chunks] == [[11], [12, 13, 14], [15, 16], []]


def test_result_reads_to_the_end(client: Client) -> None:
    answer = client.generate("Why?", sampling=SamplingParams(seed=9)).result()
    assert (answer.text, answer.token_ids, answer.seed) == (TEXT, TOKEN_IDS, 9)


def test_the_answer_is_there_after_the_loop_and_result_gives_it_again(client: Client) -> None:
    generation = client.generate("Why?")
    with pytest.raises(RuntimeError, match="not finished"):
        _ = generation.answer
    assert "".join(token.text for token in generation) == generation.answer.text == TEXT
    assert generation.result() is generation.answer


def test_the_request_arrives_as_it_was_said(client: Client, fake: FakeInference) -> None:
    sampling = SamplingParams(temperature=0.0, seed=1, stop=["END"], logit_bias={4: -1.0})
    speculation = Speculation(mode="off", drafters=["ngram"], max_nodes=3)
    client.generate([5, 6], sampling=sampling, speculation=speculation, model="tiny", request_id="r").result()
    client.generate([{"role": "user", "content": "Hi"}]).result()
    first, second = fake.requests
    assert first == request_to_proto([5, 6], sampling, speculation, model="tiny", request_id="r")
    assert first.sampling.HasField("temperature")
    assert not first.sampling.HasField("max_tokens")
    assert not first.speculation.HasField("acceptance_rule")
    assert second.chat.messages[0].content == "Hi"
    assert second.sampling == pb.SamplingParams()


def test_a_wrong_type_is_refused_before_any_call(client: Client, fake: FakeInference) -> None:
    with pytest.raises(TypeError, match="prompt is a int"):
        client.generate(7)  # type: ignore[arg-type]
    assert fake.calls == []


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("sampling", {"max_tokens": 1}, "sampling is {'max_tokens': 1}: it must be a SamplingParams"),
        ("timeout_s", "1", "timeout_s is '1': it must be a number of seconds, or None for no limit"),
    ],
)
def test_an_argument_of_the_wrong_type_says_what_it_must_be(
    client: Client, fake: FakeInference, argument: str, value: Any, message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        client.generate("Why?", **{argument: value})
    assert str(caught.value) == message
    assert fake.calls == []


def test_tls_of_the_wrong_type_says_what_it_must_be() -> None:
    with pytest.raises(TypeError, match=r"^tls is True: it must be a Tls, as in tls=Tls\(\), or None$"):
        Client(tls=True)  # type: ignore[arg-type]


def test_a_closed_client_says_that_it_is_closed(server: str) -> None:
    client = Client(server)
    client.close()
    with pytest.raises(Cancelled, match="the client was closed: a new call needs a new client"):
        client.generate("Why?")
    with pytest.raises(Cancelled, match="the client was closed"):
        client.server_info()


def leave_by_break(generation: Generation) -> None:
    for _ in generation:
        break


def leave_by_exception(generation: Generation) -> None:
    def read() -> None:
        for token in generation:
            raise LookupError(token.text)

    with pytest.raises(LookupError, match="The"):
        read()


def leave_by_cancel(generation: Generation) -> None:
    came = iter(generation)
    next(came)
    generation.cancel()
    with pytest.raises(Cancelled):
        list(came)


def leave_the_chunks(generation: Generation) -> None:
    for chunk in generation.chunks():
        if chunk:
            break


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_exception, leave_by_cancel, leave_the_chunks])
def test_leaving_early_cancels_the_call_on_the_server(client: Client, fake: FakeInference, leave: object) -> None:
    assert callable(leave)
    fake.script = endless_answer
    generation = client.generate("Why?")
    leave(generation)
    assert fake.client_left.wait(WAIT_S)
    with pytest.raises(Cancelled):
        generation.result()


def test_a_generation_that_is_dropped_cancels_the_call(client: Client, fake: FakeInference) -> None:
    fake.script = endless_answer
    came = iter(client.generate("Why?"))
    next(came)
    del came
    gc.collect()
    assert fake.client_left.wait(WAIT_S)


def test_closing_the_client_cancels_what_is_running(server: str, fake: FakeInference) -> None:
    fake.script = endless_answer
    with Client(server) as client:
        came = iter(client.generate("Why?"))
        next(came)
    assert fake.client_left.wait(WAIT_S)
    with pytest.raises(Cancelled):
        list(came)


def test_an_answer_that_was_read_to_its_end_was_not_cancelled(client: Client, fake: FakeInference) -> None:
    client.generate("Why?").result()
    client.server_info()  # a later call: the first one's handler has run to its end by now
    assert not fake.client_left.is_set()


def test_the_deadline_ends_the_call_on_both_sides(client: Client, fake: FakeInference) -> None:
    fake.script = silence
    with pytest.raises(DeadlineExceeded, match=r"^timeout_s is 0\.2: it passed after 0 tokens; a larger .* would do$"):
        client.generate("Why?", timeout_s=0.2).result()
    assert fake.client_left.wait(WAIT_S)


def test_the_deadline_has_the_same_words_whichever_side_notices_it(client: Client, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield from truncated_answer(call)
        call.gone.wait(WAIT_S)
        call.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed after 4 tokens")

    messages = []
    for each in (endless_answer, script):
        fake.script = each
        with pytest.raises(DeadlineExceeded) as caught:
            client.generate("Why?", timeout_s=0.3).result()
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        messages.append(caught.value.message)
    way_out = "a larger timeout_s (--timeout) or a smaller max_tokens (--max-tokens) would do"
    assert messages == [f"timeout_s is 0.3: it passed after 4 tokens; {way_out}"] * 2


def test_information_that_takes_too_long_names_the_time(client: Client, fake: FakeInference) -> None:
    fake.info_refusal = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(DeadlineExceeded, match=r"^timeout_s is 10\.0: it passed before the server") as caught:
        client.server_info()
    assert isinstance(caught.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize("timeout_s", [0, -1.5, float("nan")])
def test_no_time_at_all_is_refused_with_the_value(client: Client, fake: FakeInference, timeout_s: float) -> None:
    with pytest.raises(DeadlineExceeded, match=f"timeout_s is {timeout_s}"):
        client.generate("Why?", timeout_s=timeout_s)
    with pytest.raises(DeadlineExceeded, match=f"timeout_s is {timeout_s}"):
        client.model_info(timeout_s=timeout_s)
    assert fake.calls == []


def test_every_call_carries_a_deadline_unless_none_is_wanted(client: Client, fake: FakeInference) -> None:
    remaining: list[float | None] = []

    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        remaining.append(call.context.time_remaining())
        yield from whole_answer(call)

    fake.script = script
    client.generate("Why?").result()
    client.generate("Why?", timeout_s=None).result()
    by_default, unlimited = remaining
    assert by_default is not None
    assert 200 < by_default <= 301  # 300, which gRPC sends in whole seconds, rounded up
    assert unlimited is None or unlimited > 1e6


@pytest.mark.parametrize("code", STATUSES, ids=lambda code: code.name)
def test_every_status_becomes_its_error_with_message_and_cause(
    client: Client, fake: FakeInference, code: grpc.StatusCode
) -> None:
    # -1 forbids gRPC to repeat the call, which it would do for UNAVAILABLE.
    fake.script = refusal(code, "because", retry_pushback_ms="-1")
    expected = type(error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())))
    with pytest.raises(OutriderError, match="because") as caught:
        client.generate("Why?").result()
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert len(fake.calls) == 1


def test_an_overloaded_server_says_when_to_come_back(client: Client, fake: FakeInference) -> None:
    fake.script = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_pushback_ms="1500")
    with pytest.raises(Overloaded) as caught:
        client.generate("Why?").result()
    assert caught.value.retry_after_s == 1.5
    assert len(fake.calls) == 1


@pytest.mark.parametrize("prompt", ["Why?", "long " * 300_000], ids=["short", "1.5 MB"])
def test_a_call_that_reached_nobody_is_repeated_until_it_does(client: Client, fake: FakeInference, prompt: str) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        if call.attempt < 3:
            call.context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        yield from whole_answer(call)

    fake.script = script
    assert client.generate(prompt, request_id="r").result().text == TEXT
    assert len(fake.calls) == 3
    assert fake.requests[0] == fake.requests[2]


def test_a_call_is_not_repeated_once_a_message_has_arrived(server: str, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        yield started(call)
        yield tokens(CHUNKS[0])
        call.context.abort(grpc.StatusCode.UNAVAILABLE, "the target is gone")

    fake.script = script
    came: list[Token] = []
    with Client(server, resuming=None) as client, pytest.raises(ServerUnavailable, match="the target is gone"):
        came.extend(client.generate("Why?"))
    assert len(fake.calls) == 1


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "server",
    ["", "localhost", "localhost:", ":50051", "localhost:http", "localhost:99999", "localhost:-1", "10.0.0.1", "::1",
     "2001:db8::1:50051", "dns:///localhost", 50051, None],
)  # fmt: skip
def test_an_address_without_a_port_is_refused_with_the_form(kind: type[Client | AsyncClient], server: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        kind(server)
    assert caught.value.message == f"server is {server!r}: it must be HOST:PORT, such as localhost:50051"


@pytest.mark.parametrize(
    "server", ["localhost:1", "10.0.0.1:1", "[::1]:1", "dns:///a.b:1", "ipv4:10.0.0.1:1", "unix:a"]
)
def test_an_address_with_a_port_is_taken(server: str) -> None:
    Client(server).close()


def test_where_nobody_listens_the_server_is_unavailable() -> None:
    with Client(free_address()) as client:
        with pytest.raises(ServerUnavailable, match="failed to connect"):
            client.generate("Why?").result()
        with pytest.raises(ServerUnavailable, match="failed to connect"):
            client.server_info()


def test_a_stream_that_stops_short_is_an_error_after_its_tokens(client: Client, fake: FakeInference) -> None:
    fake.script = truncated_answer
    generation = client.generate("Why?")
    came: list[Token] = []
    with pytest.raises(InternalError, match="ended after 4 tokens"):
        came.extend(generation)
    assert [token.id for token in came] == [11, 12, 13, 14]


def test_a_defect_of_the_server_is_an_internal_error(client: Client, fake: FakeInference) -> None:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        raise LookupError("a defect")
        yield

    fake.script = script
    with pytest.raises(InternalError, match="a defect"):
        client.generate("Why?").result()


def test_information_is_read(client: Client) -> None:
    assert client.model_info().max_context == 2_048
    assert client.server_info().state == "degraded"


def test_a_refused_question_is_a_typed_error(client: Client, fake: FakeInference) -> None:
    fake.info_refusal = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(OutriderError, match="no such thing") as caught:
        client.model_info()
    assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED


def test_with_credentials_the_channel_is_encrypted(server: str) -> None:
    with (
        Client(server, credentials=grpc.ssl_channel_credentials()) as client,
        pytest.raises(ServerUnavailable, match=r"(?i)ssl|handshake"),
    ):
        client.model_info()  # the fake server speaks no TLS


def test_threads_share_a_client(client: Client) -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(client.generate("Why?").result().text)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert answers == [TEXT] * 6
