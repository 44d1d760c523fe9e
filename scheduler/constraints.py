"""Structured output: a request's constraint as a grammar that workers read, checked before any work is done."""

from __future__ import annotations

import json

from llguidance import LLMatcher

from outrider.errors import InvalidRequest
from outrider.v1 import inference_pb2 as pb

MAX_CONSTRAINT_CHARS = 65_536
MAX_CHOICES = 1024
_MAX_REASON_CHARS = 500


def grammar_of(sampling: pb.SamplingParams) -> str:
    """For llguidance; empty without a constraint. CPU work, up to a second for the largest: call it in a thread.

    Raises InvalidRequest with llguidance's own reason; that goes for parts of a schema that it does not know, too.
    """
    kind = sampling.WhichOneof("constraint")
    if kind is None:
        return ""
    num_choices = len(sampling.choice.values)
    if num_choices > MAX_CHOICES:
        raise InvalidRequest(f"sampling.choice has {num_choices} values: at most {MAX_CHOICES} are allowed")
    values = list(sampling.choice.values) if kind == "choice" else [getattr(sampling, kind)]
    num_chars = sum(map(len, values))
    if num_chars > MAX_CONSTRAINT_CHARS:
        raise InvalidRequest(f"sampling.{kind} has {num_chars} characters: at most {MAX_CONSTRAINT_CHARS} are allowed")
    try:
        grammar = _grammar(kind, values)
    except (ValueError, RecursionError) as err:
        raise InvalidRequest(f"sampling.{kind} can't be followed: {str(err)[:_MAX_REASON_CHARS]}") from err
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise InvalidRequest(f"sampling.{kind} can't be followed: {messages[0][:_MAX_REASON_CHARS]}")
    return grammar


def _grammar(kind: str, values: list[str]) -> str:
    match kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(values[0])
        case "regex":
            return LLMatcher.grammar_from_regex(values[0])
        case "choice":
            return _grammar_of_choices(values)
        case _:
            return LLMatcher.grammar_from_lark(values[0])


def _grammar_of_choices(values: list[str]) -> str:
    """One of these texts, letter by letter. JSON's escapes are Lark's."""
    if not values or not all(values):
        raise ValueError(f"there must be 1 to {MAX_CHOICES} choices, none of them empty")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(value) for value in values))
