"""What a node is worth: the chance that it is the target's choice once its parent is reached, by who proposed it.

Part of the core: no I/O. Every verdict tells of all children of the places that it came to, whether they were verified
or not: the choice there is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import prod

from outrider.calibration import Calibration, by_chance, by_score
from outrider.tree import DraftTree, Node, Vote


class Survival:
    """One calibration a drafter, and one for nodes that several have proposed; those of greedy requests apart."""

    def __init__(self) -> None:
        self._drafters: defaultdict[tuple[str, bool], Calibration] = defaultdict(by_score)
        self._merged: defaultdict[bool, Calibration] = defaultdict(by_chance)

    def chance(self, votes: dict[str, Vote], is_greedy: bool) -> float:
        """That a node with these votes is the choice, if its parent is reached."""
        alone = self._alone(votes, is_greedy)
        return alone if len(votes) == 1 else self._merged[is_greedy].chance(0, alone)

    def learn(self, tree: DraftTree, tokens: Sequence[int], is_greedy: bool) -> None:
        """The target chose these tokens below the tree's root."""
        for node, is_accepted in tree.judged(tokens):
            self._learn(node, is_greedy, is_accepted=is_accepted)

    def _alone(self, votes: dict[str, Vote], is_greedy: bool) -> float:
        """As if the drafters guessed independently of each other: which they don't, and that is learned as well."""
        return 1 - prod(
            1 - self._drafters[name, is_greedy].chance(vote.rank, vote.score) for name, vote in votes.items()
        )

    def _learn(self, node: Node, is_greedy: bool, *, is_accepted: bool) -> None:
        if len(node.votes) > 1:
            self._merged[is_greedy].learn(0, self._alone(node.votes, is_greedy), is_accepted=is_accepted)
        for name, vote in node.votes.items():
            self._drafters[name, is_greedy].learn(vote.rank, vote.score, is_accepted=is_accepted)
