"""Bulk numbers as packed bytes: the layouts that `worker.proto` names "i32" and "f32"."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from typing import TypeVar

from outrider.errors import InvalidRequest

_T = TypeVar("_T", int, float)

_IS_LITTLE_ENDIAN = struct.pack("=i", 1) == struct.pack("<i", 1)


def pack_i32(values: Iterable[int]) -> bytes:
    return _to_little_endian(array("i", values))


def pack_f32(values: Iterable[float]) -> bytes:
    return _to_little_endian(array("f", values))


def unpack_i32(data: bytes) -> list[int]:
    return _from_little_endian(array("i"), data).tolist()


def unpack_f32(data: bytes) -> list[float]:
    return _from_little_endian(array("f"), data).tolist()


def _to_little_endian(values: array[int] | array[float]) -> bytes:
    if not _IS_LITTLE_ENDIAN:
        values.byteswap()
    return values.tobytes()


def _from_little_endian(values: array[_T], data: bytes) -> array[_T]:
    if len(data) % values.itemsize:
        raise InvalidRequest(f"{len(data)} bytes are no whole number of {values.itemsize}-byte values")
    values.frombytes(data)
    if not _IS_LITTLE_ENDIAN:
        values.byteswap()
    return values
