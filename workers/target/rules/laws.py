"""What a draft's nodes were drawn from, as it came over the wire.

A drafter draws from its own law, truncated and then rounded to the float32s that it sends: what arrives is the law
itself, once it is scaled to a sum of 1 in float64, as the drafter does before it draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outrider.errors import InvalidRequest
from outrider.packing import unpack_f32, unpack_i32
from outrider.v1 import worker_pb2

Array = npt.NDArray[Any]  # of float64; of Fractions in the exact tests

_MAX_DEFECT = 1e-3  # by which a law's sum may differ from 1


@dataclass(frozen=True, slots=True)
class DraftLaw:
    """A law over a few tokens; the others can't be drawn."""

    ids: tuple[int, ...]  # distinct
    probabilities: tuple[Any, ...]  # > 0, with a sum of 1

    def without(self, taken: Sequence[int]) -> DraftLaw:
        """The law of one more draw without replacement: of what is left, scaled to a sum of 1."""
        left = [(token, share) for token, share in zip(self.ids, self.probabilities, strict=True) if token not in taken]
        total = sum(share for _, share in left)
        return DraftLaw(tuple(token for token, _ in left), tuple(share / total for _, share in left))

    def dense(self, like: Array) -> Array:
        """[vocab], of the type of `like`."""
        dense = np.zeros_like(like)
        dense[list(self.ids)] = self.probabilities
        return dense


def point_mass(token: int) -> DraftLaw:
    """Of a node that was not drawn: a deterministic drafter could have proposed nothing else."""
    return DraftLaw((token,), (1,))


def parse_laws(
    packed: worker_pb2.SparseLaws,
    node_tokens: Sequence[int],  # [num_nodes]
    node_parents: Sequence[int],  # [num_nodes]
    vocab_size: int,
) -> list[DraftLaw]:
    """The law that each node was drawn from, what its earlier siblings have taken left out; [num_nodes].

    Raises InvalidRequest where the lists make no laws, or a node could not have been drawn from its own.
    """
    counts = _field("laws.counts", unpack_i32, packed.counts) or [0] * len(node_tokens)
    ids = _field("laws.ids", unpack_i32, packed.ids)
    probabilities = _field("laws.probabilities", unpack_f32, packed.probabilities)
    if len(counts) != len(node_tokens) or min(counts, default=0) < 0:
        raise InvalidRequest.of("laws.counts", counts, f"there is one for each of {len(node_tokens)} nodes, >= 0")
    if not sum(counts) == len(ids) == len(probabilities):
        limit = f"laws.counts add up to {sum(counts)}, and there are {len(probabilities)} probabilities"
        raise InvalidRequest.of("laws.ids", len(ids), limit)
    shared: dict[int, DraftLaw] = {}  # by parent: what is left of the law of its children
    laws: list[DraftLaw] = []
    start = 0
    for count, token, parent in zip(counts, node_tokens, node_parents, strict=True):
        if count:
            shared[parent] = _law(ids[start : start + count], probabilities[start : start + count], vocab_size)
            start += count
        law = shared.get(parent, point_mass(token))
        if token not in law.ids:
            raise InvalidRequest.of("laws.ids", list(law.ids), f"a node drawn from it has token {token}")
        laws.append(law)
        if parent in shared:
            shared[parent] = law.without([token])
    return laws


def _law(ids: Sequence[int], probabilities: Sequence[float], vocab_size: int) -> DraftLaw:
    if len(set(ids)) < len(ids) or not all(0 <= token < vocab_size for token in ids):
        raise InvalidRequest.of("laws.ids", list(ids), f"those of one law are distinct and below {vocab_size}")
    total = math.fsum(probabilities)
    if not (all(share > 0 for share in probabilities) and abs(total - 1) <= _MAX_DEFECT):
        raise InvalidRequest.of("laws.probabilities", list(probabilities), "those of one law are > 0 and sum to 1")
    return DraftLaw(tuple(ids), tuple(share / total for share in probabilities))


def _field(name: str, unpack: Any, data: bytes) -> Any:
    try:
        return unpack(data)
    except InvalidRequest as err:
        raise InvalidRequest(f"{name}: {err.message}") from err
