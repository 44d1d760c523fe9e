"""Typical acceptance: LOSSY. A node is as good as any other that is not too surprising.

Medusa (Cai et al., arXiv 2401.10774, section 3.3): a token is accepted where the target's probability of it exceeds
min(epsilon, delta · exp(-entropy)). The answers do not follow the target's law.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from outrider.tree import ROOT, check_parents
from workers.target.rules.laws import Array
from workers.target.walk import Walk, check_choice

EPSILON = 0.09
DELTA = 0.3


def walk_if_typical(
    laws: Array,  # [1 + num_nodes, vocab] f64; the target's law after the root, then after each node
    chosen: Sequence[int],  # [1 + num_nodes]; the target's own choice there
    tokens: Sequence[int],  # [num_nodes]
    parents: Sequence[int],  # [num_nodes]; -1 is the root, otherwise parents[i] < i
    ends: Collection[int] = (),  # tokens that end the answer
) -> Walk:
    """The deepest accepted path, of equals the first, and then the target's own choice."""
    check_parents(parents)
    depths = {ROOT: 0}  # of the accepted nodes
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        is_open = parent in depths and (parent == ROOT or tokens[parent] not in ends)
        if is_open and laws[parent + 1][token] > threshold(laws[parent + 1]):
            depths[node] = depths[parent] + 1
    here = max(depths, key=lambda node: depths[node])
    path: list[int] = []
    while here != ROOT:
        path.insert(0, here)
        here = parents[here]
    if path and tokens[path[-1]] in ends:
        return Walk(tuple(path[:-1]), tuple(tokens[node] for node in path))
    choice = chosen[path[-1] + 1 if path else 0]
    check_choice(choice)
    return Walk(tuple(path), (*(tokens[node] for node in path), choice))


def threshold(law: Array) -> float:
    """The probability that a token must exceed."""
    positive = law[law > 0]
    entropy = -float((positive * np.log(positive)).sum())
    return min(EPSILON, DELTA * float(np.exp(-entropy)))
