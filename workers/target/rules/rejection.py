"""Rejection along a tree: lossless in law, whatever the drafter's law was.

At a node, its children are tried in the order in which they were drawn. A child is accepted with probability
min(1, residual(token) / law(token)), where the residual begins as the target's law; each rejection leaves
max(residual - law, 0), scaled to 1, to those who come after. With one child this is speculative sampling (Leviathan
et al., arXiv 2211.17192; Chen et al., 2302.01318); with several, drawn without replacement, recursive rejection
(SpecInfer, arXiv 2305.09781, with the law of each draw as in Jeon et al., 2402.14160).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from outrider.draft_law import DraftLaw
from outrider.tree import ROOT, check_parents
from workers.target.rules.draws import Draws
from workers.target.rules.laws import Array, dense
from workers.target.walk import Walk


def walk_by_rejection(
    laws: Array,  # [1 + num_nodes, vocab]; the target's law after the root, then after each node
    tokens: Sequence[int],  # [num_nodes]
    parents: Sequence[int],  # [num_nodes]; -1 is the root, otherwise parents[i] < i; siblings in drawing order
    drawn_from: Sequence[DraftLaw],  # [num_nodes]; what each node was drawn from, given its earlier siblings
    draws: Draws,
    ends: Collection[int] = (),  # tokens that end the answer: nothing is drawn after one
) -> Walk:
    """The tokens follow the target's law, if the children of each node were drawn from the laws that are given, and
    nothing but their order decided which of them are here."""
    check_parents(parents)
    path: list[int] = []
    here = ROOT
    while True:
        residual = laws[here + 1]
        accepted = None
        for node in (node for node, parent in enumerate(parents) if parent == here):
            law = dense(drawn_from[node], residual)
            share = residual[tokens[node]] / law[tokens[node]]
            rest = np.maximum(residual - law, 0)
            # A rest of 0: both laws are the same, up to rounding, and rejecting has probability 0.
            if draws.accepts(min(share, 1)) or not rest.sum() > 0:
                accepted = node
                break
            residual = rest / rest.sum()
        if accepted is None:
            return Walk(tuple(path), (*(tokens[node] for node in path), draws.pick(residual)))
        if tokens[accepted] in ends:
            return Walk(tuple(path), (*(tokens[node] for node in path), tokens[accepted]))
        path.append(accepted)
        here = accepted
