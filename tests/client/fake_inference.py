"""A server that says what a test tells it to: real gRPC on a real socket, and no model behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from outrider import rpc
from outrider.v1 import inference_pb2 as pb
from outrider.v1 import inference_pb2_grpc

WAIT_S = 60.0  # for events that are sure to come: a test that waits this long has failed

TARGET = pb.TOKEN_SOURCE_TARGET
DRAFT = pb.TOKEN_SOURCE_DRAFT

# The standard answer, a list of (id, text, source) for each pass. Token 14 ends inside a character.
CHUNKS: tuple[tuple[tuple[int, str, pb.TokenSource], ...], ...] = (
    ((11, "The", TARGET),),
    ((12, " sky", DRAFT), (13, " is", DRAFT), (14, "", TARGET)),
    ((15, " été", DRAFT), (16, ".", TARGET)),
)
TEXT = "The sky is été."
TOKEN_IDS = (11, 12, 13, 14, 15, 16)
DRAWN_SEED = 4_242_424_242_424_242_424  # above 2**53: a seed must not pass through a float

MODEL_INFO = pb.GetModelInfoResponse(
    model="tiny", vocab_size=49_152, max_context=2_048, end_token_ids=[0, 2], dtype="float32", has_chat_template=True
)
SERVER_INFO = pb.GetServerInfoResponse(
    version="0.1.0",
    state=pb.SERVER_STATE_DEGRADED,
    limits=pb.Limits(
        max_running_requests=64, max_queued_requests=256, max_message_bytes=16_777_216, max_nodes_per_pass=8
    ),
    load=pb.Load(
        num_running_requests=3,
        num_queued_requests=1,
        num_free_kv_blocks=90,
        num_kv_blocks=100,
        num_passes=9,
        busy_s=1.5,
        bubble_s=0.5,
    ),
    targets=[
        pb.WorkerInfo(
            name="target-0",
            kind="target",
            model="tiny",
            state=pb.WORKER_STATE_READY,
            num_ranks=4,
            address="10.0.0.1:7",
            num_running_requests=3,
            num_free_kv_blocks=90,
            num_kv_blocks=100,
        )
    ],
    drafters=[
        pb.WorkerInfo(name="ngram-0", kind="ngram", state=pb.WORKER_STATE_LATE, num_ranks=1),
        pb.WorkerInfo(name="odd-0", kind="model", state=pb.WORKER_STATE_REFUSED, detail="another vocabulary"),
    ],
)


@dataclass
class Call:
    """One call as the server sees it."""

    request: pb.GenerateRequest
    context: grpc.ServicerContext
    attempt: int  # 1 for the first call that the server got
    gone: threading.Event = field(default_factory=threading.Event)  # the call has ended, in whatever way
    is_answered: bool = False  # the script ran to its end


Script = Callable[[Call], Iterator[pb.GenerateResponse]]


def started(call: Call, index: int = 0) -> pb.GenerateResponse:
    seed = call.request.sampling.seed if call.request.sampling.HasField("seed") else DRAWN_SEED
    message = pb.Started(
        request_id=call.request.request_id or "drawn", model="tiny", seed=seed + index, num_prompt_tokens=7
    )
    return pb.GenerateResponse(index=index, started=message)


def tokens(
    chunk: Sequence[tuple[int, str, pb.TokenSource]], index: int = 0, num_top: int | None = None
) -> pb.GenerateResponse:
    """With log-probabilities where num_top is a number."""
    return pb.GenerateResponse(
        index=index,
        tokens=pb.Tokens(
            ids=[token_id for token_id, _, _ in chunk],
            texts=[text for _, text, _ in chunk],
            sources=[source for _, _, source in chunk],
            logprobs=[] if num_top is None else [logprobs_of(token_id, num_top) for token_id, _, _ in chunk],
        ),
    )


def logprobs_of(token_id: int, num_top: int) -> pb.TokenLogprobs:
    """The token itself is the likeliest, the ids after it are less and less so. All are floats to the last bit."""
    top_logprobs = [-0.25 - 0.5 * rank for rank in range(num_top)]
    return pb.TokenLogprobs(
        logprob=-0.25, top_ids=[token_id + rank for rank in range(num_top)], top_logprobs=top_logprobs
    )


def finished(
    num_completion_tokens: int = len(TOKEN_IDS), index: int = 0, rule: pb.AcceptanceRule = pb.ACCEPTANCE_RULE_COUPLED
) -> pb.GenerateResponse:
    usage = pb.Usage(
        num_prompt_tokens=7,
        num_cached_prompt_tokens=4,
        num_completion_tokens=num_completion_tokens,
        queue_s=0.25,
        time_to_first_token_s=0.5,
        duration_s=2.0,
    )
    speculation = pb.SpeculationStats(
        mode=pb.SPECULATION_MODE_AUTO,
        acceptance_rule=rule,
        is_lossy=rule == pb.ACCEPTANCE_RULE_TYPICAL,
        num_passes=3,
        num_drafted_nodes=8,
        num_accepted_tokens=3,
        drafters=[pb.DrafterStats(name="ngram", num_drafted_nodes=8, num_accepted_tokens=3)],
    )
    message = pb.Finished(reason=pb.FINISH_REASON_STOP, matched_stop="END", usage=usage, speculation=speculation)
    return pb.GenerateResponse(index=index, finished=message)


def whole_answer(call: Call) -> Iterator[pb.GenerateResponse]:
    """As many answers as were asked for, all of the same tokens, pass by pass; with log-probabilities on request."""
    sampling = call.request.sampling
    indexes = range(sampling.n if sampling.HasField("n") else 1)
    num_top = sampling.logprobs if sampling.HasField("logprobs") else None
    rule = call.request.speculation.acceptance_rule or pb.ACCEPTANCE_RULE_COUPLED
    yield from (started(call, index) for index in indexes)
    for chunk in CHUNKS:
        yield from (tokens(chunk, index, num_top) for index in reversed(indexes))
    yield from (finished(index=index, rule=rule) for index in reversed(indexes))


def truncated_answer(call: Call) -> Iterator[pb.GenerateResponse]:
    yield started(call)
    yield tokens(CHUNKS[0])
    yield tokens(CHUNKS[1])


def endless_answer(call: Call) -> Iterator[pb.GenerateResponse]:
    """Two chunks, and then nothing until the client has left."""
    yield from truncated_answer(call)
    call.gone.wait(WAIT_S)


def silence(call: Call) -> Iterator[pb.GenerateResponse]:
    call.gone.wait(WAIT_S)
    yield from ()


def refusal(code: grpc.StatusCode, message: str, *, retry_pushback_ms: str | None = None) -> Script:
    def script(call: Call) -> Iterator[pb.GenerateResponse]:
        if retry_pushback_ms is not None:
            call.context.set_trailing_metadata((("grpc-retry-pushback-ms", retry_pushback_ms),))
        call.context.abort(code, message)
        yield from ()

    return script


class FakeInference(inference_pb2_grpc.InferenceServicer):
    """Answers by `script`, which a test may replace, as it may what the server says of itself. Remembers every call."""

    def __init__(self) -> None:
        self.script: Script = whole_answer
        self.model_info = MODEL_INFO
        self.server_info = SERVER_INFO
        self.info_refusal: grpc.StatusCode | None = None
        self.calls: list[Call] = []
        self.has_call = threading.Event()
        self.client_left = threading.Event()  # before the script came to its end, or its deadline passed

    @property
    def requests(self) -> list[pb.GenerateRequest]:
        return [call.request for call in self.calls]

    def Generate(  # noqa: N802 - gRPC's name
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        call = Call(request, context, attempt=len(self.calls) + 1)
        self.calls.append(call)
        self.has_call.set()

        def end() -> None:
            call.gone.set()
            if not call.is_answered:
                self.client_left.set()

        context.add_callback(end)
        try:
            yield from self.script(call)
        except Exception:  # an abort, or a test's own defect; not the GeneratorExit that follows a cancellation
            call.is_answered = True
            raise
        call.is_answered = True

    def GetModelInfo(  # noqa: N802
        self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetModelInfoResponse:
        if self.info_refusal is not None:
            context.abort(self.info_refusal, "no such thing")
        return self.model_info

    def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        if self.info_refusal is not None:
            context.abort(self.info_refusal, "no such thing")
        return self.server_info


@contextmanager
def serving(fake: FakeInference) -> Iterator[str]:
    """Serves the fake on a free port of the loopback; yields its address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8), options=rpc.server_options())
    inference_pb2_grpc.add_InferenceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        assert server.stop(grace=None).wait(WAIT_S), "the fake server did not stop"
