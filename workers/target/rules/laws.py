"""Laws as the rules compute with them, and the law of each node of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outrider.draft_law import DraftLaw, unpack_laws
from outrider.errors import InvalidRequest
from outrider.v1 import worker_pb2

Array = npt.NDArray[Any]  # of float64; of Fractions in the exact tests


def dense(law: DraftLaw, like: Array) -> Array:
    """[vocab], of the type of `like`."""
    probabilities = np.zeros_like(like)
    probabilities[list(law.ids)] = law.probabilities
    return probabilities


def point_mass(token: int) -> DraftLaw:
    """Of a node that was not drawn: a deterministic drafter could have proposed nothing else."""
    return DraftLaw((token,), (1,))


def laws_of_nodes(
    packed: worker_pb2.SparseLaws,
    node_tokens: Sequence[int],  # [num_nodes]
    node_parents: Sequence[int],  # [num_nodes]
    vocab_size: int,
) -> list[DraftLaw]:
    """The law that each node was drawn from, what its earlier siblings have taken left out; [num_nodes].

    Raises InvalidRequest where the lists make no laws, or a node could not have been drawn from its own.
    """
    shared: dict[int, DraftLaw] = {}  # by parent: what is left of the law of its children
    laws: list[DraftLaw] = []
    for brought, token, parent in zip(unpack_laws(packed, len(node_tokens)), node_tokens, node_parents, strict=True):
        if brought is not None:
            if not all(0 <= each < vocab_size for each in brought.ids):
                raise InvalidRequest.of("laws.ids", list(brought.ids), f"the vocabulary has {vocab_size} tokens")
            shared[parent] = brought
        law = shared.get(parent, point_mass(token))
        if token not in law.ids:
            raise InvalidRequest.of("laws.ids", list(law.ids), f"a node drawn from it has token {token}")
        laws.append(law)
        if parent in shared:
            shared[parent] = law.without([token])
    return laws
