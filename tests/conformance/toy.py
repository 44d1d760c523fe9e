"""A tiny deployment with a known law, behind a real gRPC server, and the ways in which it can be wrong.

Its model's logits are a function of the last two tokens. It drafts every token but the first of each answer. Coupled
answers take argmax(logits / temperature + noise); by the rejection rule each token is drawn from the opposite of the
target's law and accepted or replaced as Leviathan and others have it (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import grpc
import numpy as np
from numpy.typing import NDArray

from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import Call, FakeInference

VOCAB = 12
END = 0
_DEFAULT_TOKENS = 16
_REJECTION = pb.ACCEPTANCE_RULE_REJECTION
_TYPICAL = pb.ACCEPTANCE_RULE_TYPICAL

Array = NDArray[np.float64]


@cache
def logits_after(context: tuple[int, ...]) -> Array:
    """[VOCAB] f64"""
    return np.random.default_rng(context[-2:]).normal(size=VOCAB) * 1.2


def log_law(context: tuple[int, ...]) -> Array:
    """[VOCAB] f64: log-probabilities before any sampling parameter."""
    logits = logits_after(context)
    return logits - np.log(np.exp(logits).sum())


@dataclass
class Toy:
    """Right as it stands; each field is one way to be wrong, or at least different."""

    other_token_with_drafts: bool = False  # in one place of each long answer
    shares_streams: bool = False  # the rejection rule accepts by the number that the draft was drawn with
    drafts: bool = True
    refuses: str = ""  # a field of the sampling parameters
    forgets_seeds: bool = False
    allows_lossy: bool = False
    hides_lossy: bool = False  # does not say that an answer is lossy
    has_no_token: bool = False  # under a JSON schema, as a model without letters
    is_gone: bool = False  # as soon as it has described itself
    drafters: tuple[str, ...] = ("ngram",)
    idle_drafters: Mapping[str, tuple[pb.WorkerState, str]] = field(default_factory=dict)  # state and detail, by name
    dtype: str = "float32"
    _num_calls: int = field(default=0, init=False)

    def serve(self) -> FakeInference:
        fake = FakeInference()
        fake.script = self.answer
        fake.model_info = pb.GetModelInfoResponse(
            model="toy", vocab_size=VOCAB, max_context=512, end_token_ids=[END], dtype=self.dtype
        )
        fake.server_info = pb.GetServerInfoResponse(
            state=pb.SERVER_STATE_READY,
            limits=pb.Limits(max_running_requests=8, max_nodes_per_pass=8),
            targets=[pb.WorkerInfo(name="target", kind="target", state=pb.WORKER_STATE_READY)],
            drafters=[
                *(pb.WorkerInfo(name=name, state=pb.WORKER_STATE_READY) for name in self.drafters),
                *(
                    pb.WorkerInfo(name=name, state=state, detail=detail)
                    for name, (state, detail) in self.idle_drafters.items()
                ),
            ],
        )
        return fake

    def answer(self, call: Call) -> Iterator[pb.GenerateResponse]:
        sampling, speculation = call.request.sampling, call.request.speculation
        self._num_calls += 1
        if self.is_gone:
            call.context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        if self.refuses in {descriptor.name for descriptor, _ in sampling.ListFields()}:
            call.context.abort(grpc.StatusCode.UNIMPLEMENTED, f"sampling.{self.refuses} is set: it can't be done")
        if speculation.acceptance_rule == _TYPICAL and not self.allows_lossy:
            call.context.abort(grpc.StatusCode.PERMISSION_DENIED, "speculation.acceptance_rule is TYPICAL: not here")
        if self.has_no_token and sampling.json_schema:
            call.context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no token is left")
        for index in range(sampling.n or 1):
            yield from self._one(call, index)

    def _one(self, call: Call, index: int) -> Iterator[pb.GenerateResponse]:
        sampling, speculation = call.request.sampling, call.request.speculation
        seed = sampling.seed + index * 1_000_003 + (self._num_calls if self.forgets_seeds else 0)
        prompt = _prompt(call.request)
        drafted = self.drafts and speculation.mode != pb.SPECULATION_MODE_OFF
        tokens: list[int] = []
        for i in range(sampling.max_tokens or _DEFAULT_TOKENS):
            by_rejection = drafted and i > 0 and speculation.acceptance_rule == _REJECTION
            tokens.append(self._choose((*prompt, *tokens), sampling, seed, by_rejection=by_rejection))
            if drafted and self.other_token_with_drafts and i == 5:
                tokens[-1] = tokens[-1] % (VOCAB - 1) + 1
            if tokens[-1] == END and not sampling.ignore_eos:
                break
        started = pb.Started(request_id="toy", model="toy", seed=seed, num_prompt_tokens=len(prompt))
        yield pb.GenerateResponse(index=index, started=started)
        yield pb.GenerateResponse(index=index, tokens=_told(prompt, tokens, sampling, drafted=drafted))
        yield pb.GenerateResponse(index=index, finished=self._finished(speculation, prompt, tokens, drafted=drafted))

    def _choose(self, context: tuple[int, ...], sampling: pb.SamplingParams, seed: int, *, by_rejection: bool) -> int:
        temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
        logits = np.full(VOCAB, -np.inf)
        allowed = list(sampling.allowed_token_ids) or list(range(VOCAB))
        logits[allowed] = logits_after(context)[allowed]
        if temperature == 0:
            return int(logits.argmax())
        random = np.random.default_rng([seed, len(context)])
        if not by_rejection:
            return int((logits / temperature + random.gumbel(size=VOCAB)).argmax())
        law, draft_law = _softmax(logits / temperature), _softmax(np.where(np.isinf(logits), logits, -logits))
        drawn_with, accepted_with, replaced_with = random.random(3)
        if self.shares_streams:
            accepted_with = drawn_with
        token = int(np.searchsorted(draft_law.cumsum(), drawn_with))
        if accepted_with * draft_law[token] < law[token]:
            return token
        residual = np.maximum(law - draft_law, 0)
        return int(np.searchsorted((residual / residual.sum()).cumsum(), replaced_with))

    def _finished(
        self, speculation: pb.SpeculationParams, prompt: tuple[int, ...], tokens: list[int], *, drafted: bool
    ) -> pb.Finished:
        num_accepted = len(tokens) - 1 if drafted else 0
        is_off = speculation.mode == pb.SPECULATION_MODE_OFF
        return pb.Finished(
            reason=pb.FINISH_REASON_LENGTH,
            usage=pb.Usage(num_prompt_tokens=len(prompt), num_completion_tokens=len(tokens)),
            speculation=pb.SpeculationStats(
                mode=pb.SPECULATION_MODE_OFF if is_off else pb.SPECULATION_MODE_AUTO,
                acceptance_rule=speculation.acceptance_rule or pb.ACCEPTANCE_RULE_COUPLED,
                is_lossy=speculation.acceptance_rule == _TYPICAL and not self.hides_lossy,
                num_passes=len(tokens),
                num_drafted_nodes=num_accepted,
                num_accepted_tokens=num_accepted,
            ),
        )


def _prompt(request: pb.GenerateRequest) -> tuple[int, ...]:
    if request.WhichOneof("prompt") == "token_ids":
        return tuple(request.token_ids.ids)
    return tuple(letter % (VOCAB - 1) + 1 for letter in request.text.encode())


def _told(prompt: tuple[int, ...], tokens: list[int], sampling: pb.SamplingParams, *, drafted: bool) -> pb.Tokens:
    told = pb.Tokens(ids=tokens, texts=[f" w{token}" for token in tokens])
    for i, token in enumerate(tokens):
        told.sources.append(pb.TOKEN_SOURCE_DRAFT if drafted and i > 0 else pb.TOKEN_SOURCE_TARGET)
        if sampling.HasField("logprobs"):
            law = log_law((*prompt, *tokens[:i]))
            top = np.argsort(-law, kind="stable")[: sampling.logprobs]
            told.logprobs.append(pb.TokenLogprobs(logprob=law[token], top_ids=top, top_logprobs=law[top]))
    return told


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
