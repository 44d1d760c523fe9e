"""Where a tree can grow: leaves that are not expanded yet, and children of expanded nodes that are no nodes yet.

Survival, the product of the chances along a path, orders both. A request's budget goes to what is likeliest, wherever
in the tree it is: deep where the drafter is sure, wide where it is not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from outrider.draft_law import DraftLaw
from outrider.step_size import num_promoted
from outrider.tree import Node
from workers.draft.drafter import Request


@dataclass(slots=True)
class Candidate:
    """A child of an expanded node, or of the root."""

    parent: Node | None
    token: int
    score: float
    chance: float
    law: DraftLaw | None = None

    @property
    def survival(self) -> float:
        return self.chance * (self.parent.survival if self.parent is not None else 1.0)


class Frontier:
    """Of one request."""

    def __init__(self) -> None:
        self.leaves: list[Node] = []
        self.candidates: list[Candidate] = []

    def best(self, min_survival: float) -> list[Candidate]:
        """Candidates that are worth it, the likeliest first; of siblings, in the order in which they were found."""
        worth = [candidate for candidate in self.candidates if candidate.survival >= min_survival]
        return sorted(worth, key=lambda candidate: -candidate.survival)

    def promote(self, request: Request, source: str, ends: Collection[int], max_context: int) -> None:
        """The best candidates become nodes, and leaves if anything can come after them."""
        best = self.best(request.min_survival)
        for candidate in best[: num_promoted([each.survival for each in best], request.num_missing)]:
            node = request.tree.add(candidate.parent, candidate.token, source, candidate.score, candidate.law)
            node.chance = candidate.chance
            self.candidates.remove(candidate)
            if node.token not in ends and len(request.tokens) + node.depth < max_context:
                self.leaves.append(node)

    def commit(self, survivor: Node | None) -> None:
        """The root moves to `survivor`, an expanded node; the tree has not yet moved. None: nothing stays."""
        if survivor is None:
            self.leaves, self.candidates = [], []
            return
        self.leaves = [leaf for leaf in self.leaves if leaf is not survivor and _is_below(leaf, survivor)]
        self.candidates = [each for each in self.candidates if _is_below(each.parent, survivor)]
        for candidate in self.candidates:
            if candidate.parent is survivor:
                candidate.parent = None


def likeliest_leaves(frontiers: Sequence[Frontier], max_leaves: int) -> list[list[Node]]:
    """Leaves to expand, by frontier: the best of each, then the best of all up to max_leaves."""
    ranked = [sorted(frontier.leaves, key=lambda leaf: -leaf.survival) for frontier in frontiers]
    chosen = [leaves[:1] for leaves in ranked]
    others = [(-leaf.survival, which, leaf.number, leaf) for which, leaves in enumerate(ranked) for leaf in leaves[1:]]
    for _, which, _, leaf in sorted(others)[: max(0, max_leaves - sum(map(len, chosen)))]:
        chosen[which].append(leaf)
    return chosen


def _is_below(node: Node | None, above: Node) -> bool:
    """Whether a node is `above`, or descends from it."""
    while node is not None and node is not above:
        node = node.parent
    return node is above
