"""What stands before each choice of a row: its committed tokens, then the tokens on the way to a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.tree import ROOT


@dataclass(frozen=True, slots=True)
class Paths:
    """A draft tree behind committed tokens: one path for the root, then one for each node."""

    committed: Sequence[int]  # the last one is the root
    node_tokens: Sequence[int] = ()  # [num_nodes]
    node_parents: Sequence[int] = ()  # [num_nodes]; -1 is the root, otherwise parents[i] < i

    @property
    def positions(self) -> list[int]:
        """Where the token that is chosen after each path will stand, [1 + num_nodes]."""
        positions = [len(self.committed)]
        for parent in self.node_parents:
            positions.append(positions[parent + 1] + 1)
        return positions

    def behind_root(self) -> list[tuple[int, ...]]:
        """The tokens of each path after the committed ones, [1 + num_nodes]."""
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(self.node_tokens, self.node_parents, strict=True):
            paths.append((*paths[0 if parent == ROOT else parent + 1], token))
        return paths
