"""The law that a draft's nodes were drawn from, and how it travels: what the rejection rule needs.

A drafter draws from its own law, cut to its likeliest tokens and rounded to the float32 weights that it sends. Both
ends scale these weights in the same way, so what arrives is the very law that was drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from outrider.errors import InvalidRequest
from outrider.packing import pack_f32, pack_i32, unpack_f32, unpack_i32
from outrider.v1 import worker_pb2

_MAX_DEFECT = 1e-3  # by which the sum of a law's weights may differ from 1 on the wire


@dataclass(frozen=True, slots=True)
class DraftLaw:
    """A law over a few tokens; the others can't be drawn."""

    ids: tuple[int, ...]  # distinct
    weights: tuple[Any, ...]  # > 0; the probabilities, up to one factor. Floats; exact numbers in tests

    @property
    def probabilities(self) -> tuple[Any, ...]:
        """[len(ids)]"""
        total = sum(self.weights)
        return self.weights if total == 1 else tuple(weight / total for weight in self.weights)

    def probability(self, token: int) -> Any:
        """Raises ValueError for a token that can't be drawn."""
        return self.probabilities[self.ids.index(token)]

    def without(self, taken: Collection[int]) -> DraftLaw:
        """The law of one more draw without replacement: of what is left."""
        left = [(token, weight) for token, weight in zip(self.ids, self.weights, strict=True) if token not in taken]
        return DraftLaw(tuple(token for token, _ in left), tuple(weight for _, weight in left))


def as_sent(ids: Sequence[int], probabilities: Sequence[float]) -> DraftLaw:
    """The law that the other end will read; tokens whose probability is 0 in float32 are left out."""
    weights = unpack_f32(pack_f32(probabilities))
    kept = [(token, weight) for token, weight in zip(ids, weights, strict=True) if weight > 0]
    total = math.fsum(weight for _, weight in kept)
    scaled = unpack_f32(pack_f32(weight / total for _, weight in kept))
    return DraftLaw(tuple(token for token, _ in kept), tuple(scaled))


def pack_laws(laws: Sequence[DraftLaw | None]) -> worker_pb2.SparseLaws | None:
    """Of nodes, in their order; None for a node that brings none. None where no node brings one."""
    brought = [law for law in laws if law is not None]
    if not brought:
        return None
    return worker_pb2.SparseLaws(
        counts=pack_i32(len(law.ids) if law is not None else 0 for law in laws),
        ids=pack_i32(token for law in brought for token in law.ids),
        probabilities=pack_f32(weight for law in brought for weight in law.weights),
    )


def unpack_laws(packed: worker_pb2.SparseLaws, num_nodes: int) -> list[DraftLaw | None]:
    """The law that comes with each node, [num_nodes]. Raises InvalidRequest where the lists make no laws."""
    counts = _field("laws.counts", unpack_i32, packed.counts) or [0] * num_nodes
    ids = _field("laws.ids", unpack_i32, packed.ids)
    weights = _field("laws.probabilities", unpack_f32, packed.probabilities)
    if len(counts) != num_nodes or min(counts, default=0) < 0:
        raise InvalidRequest.of("laws.counts", counts, f"there is one for each of {num_nodes} nodes, >= 0")
    if not sum(counts) == len(ids) == len(weights):
        limit = f"laws.counts add up to {sum(counts)}, and there are {len(weights)} probabilities"
        raise InvalidRequest.of("laws.ids", len(ids), limit)
    laws: list[DraftLaw | None] = []
    start = 0
    for count in counts:
        end = start + count
        laws.append(_law(ids[start:end], weights[start:end]) if count else None)
        start = end
    return laws


def _law(ids: Sequence[int], weights: Sequence[float]) -> DraftLaw:
    if len(set(ids)) < len(ids):
        raise InvalidRequest.of("laws.ids", list(ids), "those of one law are distinct")
    if not (all(weight > 0 for weight in weights) and abs(math.fsum(weights) - 1) <= _MAX_DEFECT):
        raise InvalidRequest.of("laws.probabilities", list(weights), "those of one law are > 0 and sum to 1")
    return DraftLaw(tuple(ids), tuple(weights))


def _field(name: str, unpack: Any, data: bytes) -> Any:
    try:
        return unpack(data)
    except InvalidRequest as err:
        raise InvalidRequest(f"{name}: {err.message}") from err
