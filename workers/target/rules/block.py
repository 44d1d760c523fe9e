"""Block verification of a chain: rejection that looks at all of it before it decides how far to go.

Sun et al., "Block verification accelerates speculative decoding" (arXiv 2403.10444), algorithm 2. With w(0) = 1,

    w(i) = min(1, w(i-1) · target(x_i) / draft(x_i))
    s(i) = Σ_x max(w(i) · target(x | x_1..x_i) - draft(x | x_1..x_i), 0)
    h(i) = s(i) / (s(i) + 1 - w(i)) before the last node, h(last) = w(last)

the longest i whose coin of probability h(i) shows heads is taken (0 if none does), and the next token is drawn from
max(w(i) · target - draft, 0), or from the target's own law behind the last node. It accepts at least as much as
rejection token by token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from outrider.draft_law import DraftLaw
from workers.target.rules.draws import Draws
from workers.target.rules.laws import Array, dense
from workers.target.walk import Walk


def is_chain(parents: Sequence[int]) -> bool:
    return list(parents) == list(range(-1, len(parents) - 1))


def walk_by_blocks(
    laws: Array,  # [1 + num_nodes, vocab]; the target's law after the root, then after each node
    tokens: Sequence[int],  # [num_nodes]; each the child of the one before it
    drawn_from: Sequence[DraftLaw],  # [num_nodes]
    draws: Draws,
    ends: Collection[int] = (),  # tokens that end the answer: what was drafted after one is left out
) -> Walk:
    """The tokens follow the target's law, if each node was drawn from the law that is given."""
    end = next((i for i, token in enumerate(tokens, 1) if token in ends), None)
    tokens = tokens[:end]
    num_taken, rest = 0, _rest(laws, drawn_from, 0, 1, len(tokens))
    weight = 1
    for i, token in enumerate(tokens, 1):
        weight = min(1, weight * laws[i - 1][token] / drawn_from[i - 1].probability(token))
        rest_here = _rest(laws, drawn_from, i, weight, len(tokens))
        mass = rest_here.sum()
        # 0 / 0: both laws are the same, up to rounding, so the next node is taken as surely as this one.
        share = weight if i == len(tokens) else mass / (mass + 1 - weight) if mass + 1 - weight > 0 else 1
        if draws.accepts(share):
            num_taken, rest = i, rest_here
    if end is not None and num_taken == end:
        return Walk(tuple(range(end - 1)), tuple(tokens))
    if not rest.sum() > 0:
        rest = laws[num_taken]  # has probability 0, as above; only rounding leads here
    return Walk(tuple(range(num_taken)), (*tokens[:num_taken], draws.pick(rest)))


def _rest(laws: Array, drawn_from: Sequence[DraftLaw], i: int, weight: float, num_nodes: int) -> Array:
    """What the next token is drawn from where i nodes are taken, not scaled: [vocab]."""
    of_target: Array = laws[i]
    if i == num_nodes:
        return of_target
    rest: Array = np.maximum(weight * of_target - dense(drawn_from[i], of_target), 0)
    return rest
