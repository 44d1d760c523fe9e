"""What a request's sampling parameters mean to those who choose, or guess, its tokens. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from outrider.errors import InvalidRequest, Unsupported
from outrider.v1 import inference_pb2, worker_pb2

Rule = Literal["coupled", "rejection", "typical"]

_RULES: dict[int, Rule] = {
    inference_pb2.ACCEPTANCE_RULE_UNSPECIFIED: "coupled",
    inference_pb2.ACCEPTANCE_RULE_COUPLED: "coupled",
    inference_pb2.ACCEPTANCE_RULE_REJECTION: "rejection",
    inference_pb2.ACCEPTANCE_RULE_TYPICAL: "typical",
}
_CHOICE_FIELDS = {
    "temperature",
    "seed",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "allowed_token_ids",
    "logprobs",
}
# The scheduler acts on these by itself: they decide when an answer ends and how it is shown, not which token comes.
_SCHEDULERS_FIELDS = {
    "max_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop",
    "n",
    "skip_special_tokens",
}


@dataclass(frozen=True, slots=True)
class ChoiceParams:
    """All that the choice of a token depends on, besides the logits, the path before it and its position."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that are never completed
    min_tokens: int = 0  # tokens before one of end_token_ids may come
    end_token_ids: tuple[int, ...] = ()  # one of them ends the answer
    num_prompt_tokens: int = 0
    grammar: str = ""  # for llguidance; empty: none
    seed: int = 0  # 64 bits, unsigned
    rule: Rule = "coupled"
    num_logprobs: int | None = None  # top alternatives a token; None: no log-probabilities

    @property
    def is_drawn_for(self) -> bool:
        """Whether a draft's nodes are to be drawn from the drafter's law; otherwise they guess the target's choice."""
        return self.rule == "rejection" and self.temperature > 0

    @property
    def depends_on_path(self) -> bool:
        """Whether what may be chosen depends on more than the logits."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.allowed_token_ids
            or self.bad_words
            or self.min_tokens
            or self.grammar
        )

    def within(self, vocab_size: int) -> ChoiceParams | None:
        """What of it a smaller vocabulary can follow, for a guess at the choice. None: no token that is allowed is in
        it."""
        allowed = tuple(token for token in self.allowed_token_ids if token < vocab_size)
        if self.allowed_token_ids and not allowed:
            return None
        return replace(
            self,
            allowed_token_ids=allowed,
            logit_bias=tuple((token, bias) for token, bias in self.logit_bias if token < vocab_size),
            bad_words=tuple(word for word in self.bad_words if max(word) < vocab_size),
            end_token_ids=tuple(token for token in self.end_token_ids if token < vocab_size),
        )


def choice_params(opened: worker_pb2.OpenRequest) -> ChoiceParams:
    """The parameters of a request that can be honoured in full.

    Raises Unsupported for a field, or an acceptance rule, that the choice does not know: it is never ignored.
    Raises InvalidRequest for a value out of range.
    """
    if opened.acceptance_rule not in _RULES:
        raise Unsupported(f"acceptance_rule is {opened.acceptance_rule}: this target knows {sorted(_RULES)}")
    for descriptor, _ in opened.sampling.ListFields():
        if descriptor.name not in _CHOICE_FIELDS | _SCHEDULERS_FIELDS:
            raise Unsupported(f"sampling.{descriptor.name} is set: a target honours no text, only tokens and grammars")
    params = guess_params(opened)
    _check_range("temperature", params.temperature, params.temperature >= 0, "it must be a finite number >= 0")
    _check_range("top_p", params.top_p, 0 < params.top_p <= 1, "it must be in (0, 1]")
    _check_range("min_p", params.min_p, 0 <= params.min_p <= 1, "it must be in [0, 1]")
    _check_range("typical_p", params.typical_p, 0 < params.typical_p <= 1, "it must be in (0, 1]")
    penalty = params.repetition_penalty
    _check_range("repetition_penalty", penalty, penalty > 0, "it must be a finite number > 0")
    _check_range("presence_penalty", params.presence_penalty, True, "it must be a finite number")
    _check_range("frequency_penalty", params.frequency_penalty, True, "it must be a finite number")
    for token, bias in params.logit_bias:
        _check_range("logit_bias", bias, True, f"of token {token} it must be a finite number")
    if not all(params.bad_words):
        raise InvalidRequest.of("bad_words", [list(word) for word in params.bad_words], "each has at least one token")
    if params.temperature > 0 and not opened.sampling.HasField("seed"):
        raise InvalidRequest("seed is not set: a temperature above 0 needs one")
    return params


def guess_params(opened: worker_pb2.OpenRequest) -> ChoiceParams:
    """The same for a drafter, unchecked: a wrong guess is only a slow one."""
    sampling = opened.sampling
    return ChoiceParams(
        temperature=_or(sampling, "temperature", 1.0),
        top_k=sampling.top_k,
        top_p=_or(sampling, "top_p", 1.0),
        min_p=sampling.min_p,
        typical_p=_or(sampling, "typical_p", 1.0),
        repetition_penalty=_or(sampling, "repetition_penalty", 1.0),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=tuple((entry.token_id, entry.bias) for entry in sampling.logit_bias),
        allowed_token_ids=tuple(sampling.allowed_token_ids),
        bad_words=tuple(tuple(word.ids) for word in opened.bad_words),
        min_tokens=sampling.min_tokens,
        end_token_ids=tuple(opened.end_token_ids),
        num_prompt_tokens=opened.num_prompt_tokens,
        grammar=opened.grammar,
        seed=sampling.seed,
        rule=_RULES.get(opened.acceptance_rule, "coupled"),
        num_logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
    )


def check_tokens(params: ChoiceParams, vocab_size: int) -> None:
    """Raises InvalidRequest for a token that the vocabulary does not have."""
    named: Sequence[tuple[str, Sequence[int]]] = (
        ("sampling.logit_bias", [token for token, _ in params.logit_bias]),
        ("sampling.allowed_token_ids", params.allowed_token_ids),
        ("end_token_ids", params.end_token_ids),
        ("bad_words", [token for word in params.bad_words for token in word]),
    )
    for field, tokens in named:
        for token in tokens:
            if token >= vocab_size:
                raise InvalidRequest.of(field, token, f"the vocabulary has {vocab_size} tokens")


def _or(sampling: inference_pb2.SamplingParams, field: str, default: float) -> float:
    value: float = getattr(sampling, field)
    return value if sampling.HasField(field) else default


def _check_range(field: str, value: float, is_within: bool, limit: str) -> None:
    if not (is_within and math.isfinite(value)):
        raise InvalidRequest.of(f"sampling.{field}", value, limit)
