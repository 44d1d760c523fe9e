"""A node's score on the wire: one byte, in eighths. What a score is worth is learned, so coarse ones serve as well."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_STEPS = 8
_LEAST, _MOST = -128, 127


def pack_scores(scores: Iterable[float]) -> bytes:
    return array("b", (max(_LEAST, min(_MOST, round(score * _STEPS))) for score in scores)).tobytes()


def unpack_scores(data: bytes) -> list[float]:
    return [value / _STEPS for value in array("b", data)]
