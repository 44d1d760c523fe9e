"""Verification: follow the draft for as long as it says what the target chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.tree import ROOT, check_parents


@dataclass(frozen=True, slots=True)
class Walk:
    """How far the target's choices agree with a draft tree."""

    path: tuple[int, ...]  # accepted nodes, from the root's child down
    tokens: tuple[int, ...]  # [len(path) + 1]; theirs, then the next token: the target's own choice behind them


def walk(
    chosen: Sequence[int],  # [1 + num_nodes]; the target's own choice after the root, then after each node
    tokens: Sequence[int],  # [num_nodes]; the token that each node proposes
    parents: Sequence[int],  # [num_nodes]; -1 is the root, otherwise parents[i] < i
) -> Walk:
    """Follow the draft tree from the root for as long as a child proposes the chosen token.

    The result's tokens are exactly what decoding one token at a time would have produced,
    whatever the tree holds: the tree decides only how many of them come at once.
    Raises TreeError when parents do not describe a tree in topological order.
    """
    check_parents(parents)
    path: list[int] = []
    here = ROOT
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        # Children come after their parents, so one look at each node suffices.
        if parent == here and token == chosen[here + 1]:
            path.append(node)
            here = node
    return Walk(tuple(path), (*(tokens[node] for node in path), chosen[here + 1]))
