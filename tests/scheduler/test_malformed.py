from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.v1 import inference_pb2 as pb
from scheduler.malformed import Malformed, parser

parse = parser(pb.GenerateRequest)


def broken(request: pb.GenerateRequest) -> bytes:
    """The message with every `?` replaced by a byte that UTF-8 does not know."""
    return request.SerializeToString().replace(b"?", b"\xff")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(text="ab?"), "text holds byte 0xff at offset 2"),
        (pb.GenerateRequest(chat={"messages": [{"role": "user", "content": "?"}]}), "chat.messages.content"),
        (pb.GenerateRequest(text="fine", sampling={"stop": ["a?"]}), "sampling.stop"),
        (pb.GenerateRequest(model="?"), "model"),
    ],
)
def test_broken_utf8_is_named_by_its_field(request_: pb.GenerateRequest, field: str) -> None:
    found = parse(broken(request_))
    assert isinstance(found, Malformed)
    assert field in found.reason


def test_a_good_message_is_parsed() -> None:
    request = pb.GenerateRequest(text="naïve 🦊", sampling={"stop": ["é"]})
    assert parse(request.SerializeToString()) == request


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(data: bytes) -> None:
    assert isinstance(parse(data), pb.GenerateRequest | Malformed)
