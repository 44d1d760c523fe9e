"""What a request's sampling parameters mean to those who choose, or guess, its tokens. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from outrider.errors import InvalidRequest, Unsupported
from outrider.v1 import inference_pb2, worker_pb2

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
_CHOICE_FIELDS = {"temperature", "seed", "top_k", "top_p", "min_p"}
_NEUTRAL_VALUES = {
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
}


@dataclass(frozen=True, slots=True)
class ChoiceParams:
    """All that the choice of a token depends on, besides the logits and the position."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0  # 64 bits, unsigned


def choice_params(opened: worker_pb2.OpenRequest) -> ChoiceParams:
    """The parameters of a request that can be honoured in full.

    Raises Unsupported for a field, or an acceptance rule, that the choice does not know: it is never ignored.
    Raises InvalidRequest for a value out of range.
    """
    rule = opened.acceptance_rule
    if rule not in (inference_pb2.ACCEPTANCE_RULE_UNSPECIFIED, inference_pb2.ACCEPTANCE_RULE_COUPLED):
        raise Unsupported(f"acceptance_rule is {_rule_name(rule)}: this target knows ACCEPTANCE_RULE_COUPLED")
    _refuse_unknown_fields(opened.sampling)
    params = guess_params(opened)
    _check_range("temperature", params.temperature, params.temperature >= 0, "it must be a finite number >= 0")
    _check_range("top_p", params.top_p, 0 < params.top_p <= 1, "it must be in (0, 1]")
    _check_range("min_p", params.min_p, 0 <= params.min_p <= 1, "it must be in [0, 1]")
    if params.temperature > 0 and not opened.sampling.HasField("seed"):
        raise InvalidRequest("seed is not set: a temperature above 0 needs one")
    return params


def guess_params(opened: worker_pb2.OpenRequest) -> ChoiceParams:
    """The same for a drafter, which may leave out what it doesn't know: a worse guess is only a slower one."""
    sampling = opened.sampling
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    return ChoiceParams(
        temperature=temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )


def _refuse_unknown_fields(sampling: inference_pb2.SamplingParams) -> None:
    for descriptor, value in sampling.ListFields():
        name = descriptor.name
        is_neutral = name in _NEUTRAL_VALUES and value == _NEUTRAL_VALUES[name]
        if not (is_neutral or name in _CHOICE_FIELDS or name in _SCHEDULERS_FIELDS):
            raise Unsupported(f"sampling.{name} is set: this target cannot honour it")


def _check_range(field: str, value: float, is_within: bool, limit: str) -> None:
    if not (is_within and math.isfinite(value)):
        raise InvalidRequest.of(f"sampling.{field}", value, limit)


def _rule_name(rule: int) -> str:
    known = inference_pb2.AcceptanceRule.DESCRIPTOR.values_by_number.get(rule)
    return known.name if known is not None else str(rule)
