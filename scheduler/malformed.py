"""Requests that are no valid protobuf: found before protobuf turns them into an INTERNAL error.

gRPC answers bytes that don't parse with INTERNAL and a stack trace's worth of nothing. Here they become a value,
`Malformed`, which names the field, so that the service can refuse them like any other bad input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

AnyMessage = TypeVar("AnyMessage", bound=Message)

_LENGTH_DELIMITED = 2


@dataclass(frozen=True, slots=True)
class Malformed:
    reason: str


def parser(message_type: type[AnyMessage]) -> Callable[[bytes], AnyMessage | Malformed]:
    """A deserializer for gRPC that never raises."""

    def parse(data: bytes) -> AnyMessage | Malformed:
        try:
            return message_type.FromString(data)
        except DecodeError:
            descriptor = cast("Descriptor", message_type.DESCRIPTOR)
            return Malformed(_first_bad_string(descriptor, data) or "the message is no valid protobuf")

    return parse


def _first_bad_string(descriptor: Descriptor, data: bytes, prefix: str = "") -> str | None:
    """Where the first string that is not UTF-8 stands; None where there is none."""
    try:
        # Every field is unknown to Empty: this splits a message into fields without judging them.
        found_fields: Any = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    for unknown in found_fields:
        field = descriptor.fields_by_number.get(unknown.field_number)
        if field is None or unknown.wire_type != _LENGTH_DELIMITED:
            continue
        name = f"{prefix}{field.name}"
        if field.message_type is not None:
            found = _first_bad_string(field.message_type, unknown.data, f"{name}.")
        else:
            found = _utf8_fault(name, unknown.data) if field.type == FieldDescriptor.TYPE_STRING else None
        if found:
            return found
    return None


def _utf8_fault(name: str, data: bytes) -> str | None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as err:
        byte = data[err.start]
        return f"{name} holds byte 0x{byte:02x} at offset {err.start}: it must be valid UTF-8 ({err.reason})"
    return None
