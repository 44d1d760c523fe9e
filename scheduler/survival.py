"""What a node is worth: the chance that it is the target's choice once its parent is reached, by who proposed it.

Part of the core: no I/O. Every verdict tells of all children of the places that it came to, whether they were verified
or not: the choice there is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod

from outrider.calibration import Calibration, by_chance, by_score
from outrider.tree import DraftTree, Node, Vote
from scheduler.events import Guesses


class Survival:
    """One calibration a drafter, and one for nodes that several have proposed; greedy requests, sampled ones and those
    whose nodes are drawn apart.

    Of a drawn node only its rank counts: whether it is verified must not depend on which token was drawn.
    """

    def __init__(self) -> None:
        self._drafters: defaultdict[tuple[str, Guesses], Calibration] = defaultdict(by_score)
        self._merged: defaultdict[Guesses, Calibration] = defaultdict(by_chance)

    def chance(self, votes: Mapping[str, Vote], guesses: Guesses) -> float:
        """That a node with these votes is the choice, if its parent is reached."""
        if len(votes) == 1:
            [(name, vote)] = votes.items()
            return self._drafters[name, guesses].chance(vote.rank, _score(vote, guesses))
        return self._merged[guesses].chance(0, self._alone(votes, guesses))

    def learn(self, tree: DraftTree, tokens: Sequence[int], guesses: Guesses) -> None:
        """The target chose these tokens below the tree's root."""
        for node, is_accepted in tree.judged(tokens):
            self._learn(node, guesses, is_accepted=is_accepted)

    def _alone(self, votes: Mapping[str, Vote], guesses: Guesses) -> float:
        """As if the drafters guessed independently of each other: which they don't, and that is learned as well."""
        return 1 - prod(
            1 - self._drafters[name, guesses].chance(vote.rank, _score(vote, guesses)) for name, vote in votes.items()
        )

    def _learn(self, node: Node, guesses: Guesses, *, is_accepted: bool) -> None:
        if len(node.votes) > 1:
            self._merged[guesses].learn(0, self._alone(node.votes, guesses), is_accepted=is_accepted)
        for name, vote in node.votes.items():
            self._drafters[name, guesses].learn(vote.rank, _score(vote, guesses), is_accepted=is_accepted)


def _score(vote: Vote, guesses: Guesses) -> float:
    return 0.0 if guesses == "drawn" else vote.score
