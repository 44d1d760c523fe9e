"""A constraint becomes a grammar, or is refused with a reason."""

from __future__ import annotations

import pytest

from outrider.errors import InvalidRequest
from outrider.v1 import inference_pb2 as pb
from scheduler.constraints import grammar_of

DEEP = '{"properties":{"a":' * 300 + "{}" + "}}" * 300


def test_without_a_constraint_there_is_no_grammar() -> None:
    assert grammar_of(pb.SamplingParams(stop=["x"])) == ""


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (pb.SamplingParams(json_schema="nope"), ["sampling.json_schema"]),
        (pb.SamplingParams(json_schema='{"type": 3}'), ["sampling.json_schema", "type"]),
        (pb.SamplingParams(json_schema='{"not": {}}'), ["sampling.json_schema", "not"]),
        (pb.SamplingParams(json_schema=DEEP), ["sampling.json_schema", "recursion"]),
        (pb.SamplingParams(json_schema=" " * 65_537), ["sampling.json_schema", "65537", "65536"]),
        (pb.SamplingParams(regex="(a"), ["sampling.regex", "unclosed"]),
        (pb.SamplingParams(grammar="start: foo"), ["sampling.grammar", "foo"]),
        (pb.SamplingParams(choice=pb.Choices()), ["sampling.choice", "1 to 1024"]),
        (pb.SamplingParams(choice={"values": [""] * 1025}), ["sampling.choice has 1025 values", "1024"]),
        (pb.SamplingParams(choice=pb.Choices(values=["a", ""])), ["sampling.choice", "empty"]),
    ],
)
def test_what_can_not_be_followed_is_refused_by_name(sampling: pb.SamplingParams, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar_of(sampling)
    assert all(word in caught.value.message for word in words), caught.value.message
