"""Bad input over the real path: the right status, a message that helps, and nobody else notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from outrider import Client, SamplingParams, Speculation
from outrider.rpc import MAX_MESSAGE_BYTES
from outrider.v1 import inference_pb2 as pb
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import NUM_LETTER_TOKENS, save_letter_tokenizer, save_tiny_llama
from workers.target.server import TargetConfig

GENERATE = "/outrider.v1.Inference/Generate"
Code = grpc.StatusCode
GREEDY = {"temperature": 0.0, "max_tokens": 1}


@pytest.fixture(scope="module")
def busy_cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """Another user asks all the while, and each time must have the tokens that it would have had alone."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_llama(folder, vocab=NUM_LETTER_TOKENS, num_layers=1, max_context=8192, with_tokenizer=False)
    save_letter_tokenizer(folder)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    drafters = [drafter_config("ngram"), drafter_config(f"itself=model:{folder}")]
    sampling = SamplingParams(temperature=0.8, seed=11, max_tokens=64, ignore_eos=True)
    beside: list[object] = []
    is_over = threading.Event()

    def ask_on() -> None:
        while not is_over.is_set():
            beside.append(client.generate("Once upon a time", sampling=sampling).result().token_ids)

    with local_cell(target, drafters) as cell, Client(cell.endpoint) as client:
        alone = client.generate("Once upon a time", sampling=sampling, speculation=Speculation(mode="off")).result()
        with ThreadPoolExecutor(1) as other:
            asking = other.submit(ask_on)
            yield cell
            is_over.set()
            asking.result()
    assert set(beside) == {alone.token_ids}


def refusal(cell: LocalCell, request: pb.GenerateRequest | bytes, timeout_s: float = 60.0) -> tuple[Code, str]:
    """How a request ends, sent without the client's own checks."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(cell.endpoint, options=options) as channel:
        call: Callable[..., Iterator[bytes]] = channel.unary_stream(GENERATE)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            list(call(data, timeout=timeout_s))
    return caught.value.code(), caught.value.details()


BAD = {
    "empty prompt": (pb.GenerateRequest(text=""), Code.INVALID_ARGUMENT, ["text", "''", "at least one token"]),
    "prompt longer than the context": (
        pb.GenerateRequest(token_ids={"ids": [5] * 9000}),
        Code.INVALID_ARGUMENT,
        ["token_ids", "9000 tokens", "8191"],
    ),
    "negative temperature": (
        pb.GenerateRequest(text="a", sampling={"temperature": -1.0}),
        Code.INVALID_ARGUMENT,
        ["sampling.temperature", "-1.0", ">= 0"],
    ),
    "top_p of 0": (
        pb.GenerateRequest(text="a", sampling={"top_p": 0.0}),
        Code.INVALID_ARGUMENT,
        ["sampling.top_p", "0.0", "above 0 and at most 1"],
    ),
    "unknown model": (pb.GenerateRequest(text="a", model="gpt-17"), Code.NOT_FOUND, ["model", "'gpt-17'"]),
    "max_tokens beyond the context": (
        pb.GenerateRequest(text="a", sampling={"max_tokens": 8192}),
        Code.INVALID_ARGUMENT,
        ["sampling.max_tokens", "8192", "at most 8191"],
    ),
    "token id out of range": (
        pb.GenerateRequest(token_ids={"ids": [1, 257]}),
        Code.INVALID_ARGUMENT,
        ["token_ids.ids[1]", "257", "257 tokens"],
    ),
    "malformed UTF-8": (
        pb.GenerateRequest(text="caf?").SerializeToString().replace(b"?", b"\xc3"),
        Code.INVALID_ARGUMENT,
        ["text", "0xc3", "offset 3", "UTF-8"],
    ),
    "no protobuf at all": (b"\xff\xff\xff", Code.INVALID_ARGUMENT, ["protobuf"]),
    "a request id that no header can carry": (
        pb.GenerateRequest(text="a", request_id="é\n"),
        Code.INVALID_ARGUMENT,
        ["request_id", "128 printable ASCII"],
    ),
    "a book for a model's name": (pb.GenerateRequest(text="a", model="m" * 20_000), Code.NOT_FOUND, ["model", "..."]),
    "unknown drafter": (
        pb.GenerateRequest(text="a", speculation={"drafters": ["oracle"]}),
        Code.INVALID_ARGUMENT,
        ["speculation.drafters[0]", "'oracle'", "itself, ngram"],
    ),
    "a service class that there is none of": (
        pb.GenerateRequest(text="a", service_class=7),  # type: ignore[arg-type]
        Code.INVALID_ARGUMENT,
        ["service_class is 7", "BATCH (3)"],
    ),
    "held tokens without their seed": (
        pb.GenerateRequest(text="a", resume_from={"ids": [1]}),
        Code.INVALID_ARGUMENT,
        ["sampling.seed", "resume_from"],
    ),
    "held tokens behind the answer's end": (
        pb.GenerateRequest(text="a", resume_from={"ids": [65] * 3}, sampling={"seed": 1, "max_tokens": 2}),
        Code.INVALID_ARGUMENT,
        ["resume_from has 3 tokens", "max_tokens"],
    ),
    "parameters that contradict each other": (
        pb.GenerateRequest(text="a", sampling={"min_tokens": 9, "max_tokens": 8}),
        Code.INVALID_ARGUMENT,
        ["sampling.min_tokens is 9", "sampling.max_tokens is 8"],
    ),
    "a schema that can't be followed": (
        pb.GenerateRequest(text="a", sampling={"json_schema": '{"not": {}}'}),
        Code.INVALID_ARGUMENT,
        ["sampling.json_schema", "not"],
    ),
    "a lossy rule where none is allowed": (
        pb.GenerateRequest(text="a", speculation={"acceptance_rule": "ACCEPTANCE_RULE_TYPICAL"}),
        Code.PERMISSION_DENIED,
        ["acceptance_rule", "allow_lossy"],
    ),
    "parameters that leave no token": (
        pb.GenerateRequest(text="a", sampling={"allowed_token_ids": [81], "regex": "[0-9]+"}),
        Code.FAILED_PRECONDITION,
        ["leave no token to choose"],
    ),
    "held tokens that the grammar does not allow": (
        pb.GenerateRequest(text="a", resume_from={"ids": [81, 82]}, sampling={"seed": 1, "regex": "[0-9]+"}),
        Code.INVALID_ARGUMENT,
        ["resume_from", "81", "grammar does not allow it"],
    ),
    "a message over the size limit": (
        pb.GenerateRequest(text="a" * (MAX_MESSAGE_BYTES + 1)),
        Code.RESOURCE_EXHAUSTED,
        [str(MAX_MESSAGE_BYTES), "larger than max"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_while_others_go_on(name: str, busy_cell: LocalCell) -> None:
    request, code, words = BAD[name]
    got_code, message = refusal(busy_cell, request)
    assert got_code == code
    for word in words:
        assert word in message


def test_a_deadline_in_the_past_is_refused(busy_cell: LocalCell) -> None:
    request = pb.GenerateRequest(text="a", sampling=pb.SamplingParams(**GREEDY))
    assert refusal(busy_cell, request, timeout_s=-1.0)[0] == Code.DEADLINE_EXCEEDED
