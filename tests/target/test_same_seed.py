"""Same seed, same tokens: whatever is drafted, at every temperature, with each sampling parameter in turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from outrider.packing import pack_i32, unpack_i32
from outrider.v1 import target_pb2, worker_pb2
from outrider.v1.inference_pb2 import LogitBias, SamplingParams
from tests.target_link import Reference, random_tree
from workers.choice.grammar import Grammars
from workers.choice.noise import NoiseCache
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine
from workers.target.passes import Passes, Session

VOCAB = 97
NUM_TOKENS = 20
PROMPT = [5, 6, 7, 8, 9, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
TEMPERATURES = [0.2, 0.7, 1.0, 1.5]
PARAMETERS: dict[str, SamplingParams] = {
    "none": SamplingParams(),
    "top_k": SamplingParams(top_k=12),
    "top_p": SamplingParams(top_p=0.9),
    "min_p": SamplingParams(min_p=0.1),
    "typical_p": SamplingParams(typical_p=0.8),
    "repetition_penalty": SamplingParams(repetition_penalty=2.5),
    "presence_penalty": SamplingParams(presence_penalty=1.2),
    "frequency_penalty": SamplingParams(frequency_penalty=0.9),
    "logit_bias": SamplingParams(logit_bias=[LogitBias(token_id=t, bias=3.0) for t in range(20, 30)]),
    "allowed_token_ids": SamplingParams(allowed_token_ids=range(3, 60)),
    "bad_words": SamplingParams(),
    "min_tokens": SamplingParams(min_tokens=12, logit_bias=[LogitBias(token_id=0, bias=9.0)]),
    "logprobs": SamplingParams(logprobs=3, presence_penalty=1.5),
    "all": SamplingParams(
        top_k=60, top_p=0.98, min_p=0.001, typical_p=0.97, repetition_penalty=1.1, presence_penalty=0.3,
        frequency_penalty=0.2, min_tokens=4, logit_bias=[LogitBias(token_id=30, bias=2.0)],
    ),
}  # fmt: skip
MODES = ("chain", "tree", "wrong", "swapped", "preempted")


def opening(sampling: SamplingParams, temperature: float, name: str) -> worker_pb2.OpenRequest:
    opened = worker_pb2.OpenRequest(sampling=sampling, num_prompt_tokens=len(PROMPT), end_token_ids=[0])
    opened.sampling.temperature = temperature
    opened.sampling.seed = 4711
    if name in ("bad_words", "all"):
        for word in ([40], *([first, second] for first in range(97) for second in range(1, 97, 4))):
            opened.bad_words.add(ids=word)
    return opened


@pytest.fixture(scope="module", params=["kernels", "torch"])
def passes(tiny: Path, request: pytest.FixtureRequest) -> Passes:
    """Over the CPU's forward, and over the one of every other device."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr("workers.engine.forward.load_kernels", lambda cache_dir: False)
        engine = Engine(prepare_checkpoint(str(tiny)), dtype="float32", kv_cache_bytes=1 << 20)
    return Passes(engine, NoiseCache(VOCAB), Grammars(tiny, VOCAB, [0]), max_pass_tokens=512)


@dataclass
class Decoding:
    """One request in one mode, decoded against a known future."""

    number: int
    mode: str
    opened: worker_pb2.OpenRequest
    future: Sequence[int]  # what comes after the prompt; empty: not known
    epoch: int = 1
    is_open: bool = False
    num_accepted: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(PROMPT)
        self.rng = random.Random(f"{self.mode}")

    @property
    def num_left(self) -> int:
        return len(PROMPT) + NUM_TOKENS - len(self.tokens)

    def row(self) -> target_pb2.Row:
        if self.mode == "preempted" and self.rng.random() < 0.3:
            self.is_open, self.epoch = False, self.epoch + 1
        nodes, parents = self.nodes()
        start = len(self.tokens) if self.is_open else 0
        row = target_pb2.Row(
            ref=worker_pb2.RequestRef(request=self.number, epoch=self.epoch),
            committed_len=len(self.tokens),
            tokens=worker_pb2.TokenSpan(start=start, ids=pack_i32(self.tokens[start:])),
            node_tokens=pack_i32(nodes),
            node_parents=pack_i32(parents),
        )
        if not self.is_open:
            row.open.CopyFrom(self.opened)
            self.is_open = True
        return row

    def nodes(self) -> tuple[list[int], list[int]]:
        future = list(self.future[len(self.tokens) - len(PROMPT) :])
        mode = self.rng.choice(["off", "chain", "tree", "wrong"]) if self.mode == "swapped" else self.mode
        match mode:
            case "chain":
                chain = future[:4]
                return chain, list(range(-1, len(chain) - 1))
            case "wrong":
                wrong = [(token + 1) % VOCAB for token in future[:3]]
                return wrong, list(range(-1, len(wrong) - 1))
            case "tree" | "preempted":
                return random_tree(self.rng, future, VOCAB, 7)
        return [], []

    def take(self, result: target_pb2.RowResult) -> None:
        assert result.status == target_pb2.ROW_STATUS_OK, result.detail
        committed = unpack_i32(result.tokens)
        assert len(result.logprobs) == (len(committed) if self.opened.sampling.HasField("logprobs") else 0)
        self.num_accepted += len(committed) - 1
        self.tokens += committed


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return count(1)


def decode(passes: Passes, decodings: Sequence[Decoding]) -> list[list[int]]:
    """All at once, as rows of the same passes."""
    session = Session()
    for number in count():
        running = [decoding for decoding in decodings if decoding.num_left > 0]
        if not running:
            break
        result = passes.run(session, target_pb2.Pass(pass_id=number, rows=[decoding.row() for decoding in running]))
        for decoding, row in zip(running, result.rows, strict=True):
            decoding.take(row)
    passes.close(session)
    return [decoding.tokens[len(PROMPT) :][:NUM_TOKENS] for decoding in decodings]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_same_seed_gives_the_same_tokens(
    passes: Passes, numbers: Iterator[int], temperature: float, name: str
) -> None:
    opened = opening(PARAMETERS[name], temperature, name)
    [plain] = decode(passes, [Decoding(next(numbers), "off", opened, [])])
    decodings = [Decoding(next(numbers), mode, opened, plain) for mode in MODES]

    drafted = decode(passes, decodings)

    assert drafted == [plain] * len(MODES)
    accepted = {decoding.mode: decoding.num_accepted for decoding in decodings}
    assert accepted["chain"] >= NUM_TOKENS // 2, "a chain of the future is accepted"
    assert accepted["wrong"] < accepted["tree"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_tokens_are_those_of_transformers_forward(
    passes: Passes, numbers: Iterator[int], reference: Reference, name: str
) -> None:
    opened = opening(PARAMETERS[name], 0.7, name)

    [plain] = decode(passes, [Decoding(next(numbers), "off", opened, [])])

    assert plain == reference.decode_opened(PROMPT, NUM_TOKENS, opened)


def test_each_parameter_makes_a_difference(passes: Passes, numbers: Iterator[int]) -> None:
    """Where a parameter changed nothing, the tests above would say nothing of it."""
    answers = {}
    for name, sampling in PARAMETERS.items():
        opened = opening(sampling, 1.5, name)
        answers[name] = decode(passes, [Decoding(next(numbers), "off", opened, [])])[0]

    same = [name for name, answer in answers.items() if name != "none" and answer == answers["none"]]

    assert same == []
