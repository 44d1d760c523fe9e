"""Sampling parameters: what is refused before any work is done, naming field, value and limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from outrider.errors import InvalidRequest
from outrider.v1 import inference_pb2 as pb

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 256
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 1000.0  # outweighs any model's logits, and can't overflow with them
MAX_PENALTY = 100.0  # of presence and frequency, either way
MAX_REPETITION_PENALTY = 1000.0
MAX_LOGPROBS = 20
MAX_ANSWERS = 16


def check_sampling(sampling: pb.SamplingParams, vocab_size: int) -> None:
    """Raises InvalidRequest."""
    _check_ranges(sampling)
    _check_strings("stop", sampling.stop, MAX_STOP_STRINGS, MAX_STOP_CHARS)
    _check_strings("bad_words", sampling.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
    vocabulary = f"the vocabulary has {vocab_size} tokens"
    check_num_ids("sampling.stop_token_ids", sampling.stop_token_ids, vocab_size, vocabulary)
    check_token_ids("sampling.stop_token_ids", sampling.stop_token_ids, vocab_size)
    check_num_ids("sampling.allowed_token_ids", sampling.allowed_token_ids, vocab_size, vocabulary)
    check_token_ids("sampling.allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    _check_logit_bias(sampling, vocab_size)
    _check_contradictions(sampling)


def check_num_ids(field: str, ids: Sequence[int], max_ids: int, reason: str) -> None:
    """To be called before anything looks at the ids: a message has room for millions."""
    if len(ids) > max_ids:
        raise InvalidRequest(f"{field} has {len(ids)} ids: {reason}, so at most {max_ids} are allowed")


def check_token_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    for i, token_id in enumerate(ids):
        if token_id >= vocab_size:
            raise InvalidRequest.of(f"{field}[{i}]", token_id, f"the vocabulary has {vocab_size} tokens")


def _check_ranges(sampling: pb.SamplingParams) -> None:
    _check(sampling, "max_tokens", "it must be at least 1", lambda value: value >= 1)
    _check(sampling, "temperature", "it must be a number >= 0", lambda value: value >= 0)
    _check(sampling, "top_p", "it must be above 0 and at most 1", lambda value: 0 < value <= 1)
    _check(sampling, "min_p", "it must be from 0 to 1", lambda value: 0 <= value <= 1)
    _check(sampling, "typical_p", "it must be above 0 and at most 1", lambda value: 0 < value <= 1)
    limit = f"it must be from 1/{MAX_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}"
    largest = MAX_REPETITION_PENALTY
    _check(sampling, "repetition_penalty", limit, lambda value: 1 / largest <= value <= largest)
    for field in ("presence_penalty", "frequency_penalty"):
        limit = f"it must be from -{MAX_PENALTY:g} to {MAX_PENALTY:g}"
        _check(sampling, field, limit, lambda value: abs(value) <= MAX_PENALTY)
    _check(sampling, "n", f"it must be from 1 to {MAX_ANSWERS}", lambda value: 1 <= value <= MAX_ANSWERS)
    _check(sampling, "logprobs", f"it must be at most {MAX_LOGPROBS}", lambda value: value <= MAX_LOGPROBS)


def _check(sampling: pb.SamplingParams, field: str, limit: str, is_good: Callable[[float], bool]) -> None:
    value: float = getattr(sampling, field)
    if sampling.HasField(field) and not (math.isfinite(value) and is_good(value)):
        raise InvalidRequest.of(f"sampling.{field}", value, limit)


def _check_strings(field: str, strings: Sequence[str], max_strings: int, max_chars: int) -> None:
    if len(strings) > max_strings:
        raise InvalidRequest(f"sampling.{field} has {len(strings)} strings: at most {max_strings} are allowed")
    for i, string in enumerate(strings):
        if not 1 <= len(string) <= max_chars:
            raise InvalidRequest(f"sampling.{field}[{i}] has {len(string)} characters: it must have 1 to {max_chars}")


def _check_logit_bias(sampling: pb.SamplingParams, vocab_size: int) -> None:
    entries = sampling.logit_bias
    if len(entries) > MAX_LOGIT_BIASES:
        raise InvalidRequest(f"sampling.logit_bias has {len(entries)} entries: at most {MAX_LOGIT_BIASES} are allowed")
    check_token_ids("sampling.logit_bias", [entry.token_id for entry in entries], vocab_size)
    seen = set()
    for i, entry in enumerate(entries):
        if not abs(entry.bias) <= MAX_LOGIT_BIAS:
            limit = f"it must be from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
            raise InvalidRequest.of(f"sampling.logit_bias[{i}].bias", entry.bias, limit)
        if entry.token_id in seen:
            raise InvalidRequest.of(f"sampling.logit_bias[{i}].token_id", entry.token_id, "an earlier entry has it")
        seen.add(entry.token_id)


def _check_contradictions(sampling: pb.SamplingParams) -> None:
    if sampling.HasField("max_tokens") and sampling.min_tokens > sampling.max_tokens:
        limit = f"sampling.max_tokens is {sampling.max_tokens}, and it can't be above that"
        raise InvalidRequest.of("sampling.min_tokens", sampling.min_tokens, limit)
    constraint = sampling.WhichOneof("constraint")
    if constraint is not None and sampling.min_tokens:
        text = f"sampling.{constraint} says when the answer is complete, so it can't be set with it"
        raise InvalidRequest.of("sampling.min_tokens", sampling.min_tokens, text)
    if constraint is not None and sampling.ignore_eos:
        text = f"sampling.{constraint} leaves nothing after a complete answer, so it can't be set with it"
        raise InvalidRequest.of("sampling.ignore_eos", True, text)
