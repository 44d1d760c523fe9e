"""Verification: follow the draft for as long as it says what the target chose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from outrider.errors import NoTokenLeft
from outrider.tree import ROOT, check_parents
from workers.choice.choose import NO_TOKEN
from workers.choice.errors import UnusableLogits


@dataclass(frozen=True, slots=True)
class Walk:
    """How far a draft tree was accepted."""

    path: tuple[int, ...]  # accepted nodes, from the root's child down
    tokens: tuple[int, ...]  # [len(path) + 1]; theirs, then the next token: the target's own choice behind them


def walk(
    chosen: Sequence[int],  # [1 + num_nodes]; the target's own choice after the root, then after each node
    tokens: Sequence[int],  # [num_nodes]; the token that each node proposes
    parents: Sequence[int],  # [num_nodes]; -1 is the root, otherwise parents[i] < i
    ends: Collection[int] = (),  # tokens that end the answer: nothing is chosen after one
) -> Walk:
    """Follow the draft tree from the root for as long as a child proposes the chosen token.

    The result's tokens are exactly what decoding one token at a time would have produced,
    whatever the tree holds: the tree decides only how many of them come at once.
    Raises TreeError when parents do not describe a tree in topological order; UnusableLogits or NoTokenLeft when the
    walk comes to a place without a choice, for which decoding would have had to choose as well.
    """
    check_parents(parents)
    path: list[int] = []
    here = ROOT
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        # Children come after their parents, so one look at each node suffices.
        if parent == here and token == chosen[here + 1] and token not in ends:
            path.append(node)
            here = node
    check_choice(chosen[here + 1])
    return Walk(tuple(path), (*(tokens[node] for node in path), chosen[here + 1]))


def check_choice(choice: int) -> None:
    """Raises UnusableLogits or NoTokenLeft for what stands in place of a choice where there is none."""
    if choice == NO_TOKEN:
        raise NoTokenLeft("the request's own parameters leave no token to choose")
    if choice < 0:
        raise UnusableLogits("the model's logits hold NaN or infinity")
