"""The draft tree: what has been proposed after a request's last committed token.

Every server process shares this one structure: drafters grow it, the scheduler prunes and re-roots it,
the target walks it. The root is the last committed token and is not itself a node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from outrider.draft_law import DraftLaw
from outrider.errors import InvalidRequest

ROOT = -1  # as a parent: the last committed token
_survival = attrgetter("survival")


class TreeError(InvalidRequest):
    """A list of parents that is not a tree in topological order."""


def check_parents(parents: Sequence[int]) -> None:
    """Raises TreeError unless ROOT <= parents[i] < i for every node i."""
    for node, parent in enumerate(parents):
        if not ROOT <= parent < node:
            raise TreeError(f"parents[{node}] is {parent}: it must be {ROOT} (the root) or an earlier node")


class Vote(NamedTuple):
    """A drafter's proposal of a node."""

    rank: int  # among what it proposed below the same parent: 0 came first
    score: float  # higher is likelier; what it is worth is learned (calibration.py)


_NO_VOTES: Mapping[str, Vote] = {}


@lru_cache(maxsize=4096)
def _vote_of_one(source: str, rank: int, score: float) -> Mapping[str, Vote]:
    """Shared by all nodes that were proposed like this: most are, and there are many."""
    return {source: Vote(rank, score)}


class Node:
    """One proposed token. Compared and kept by identity; its path is its meaning."""

    __slots__ = (
        "_chance",
        "children",
        "depth",
        "law",
        "number",
        "parent",
        "survival",
        "token",
        "votes",
    )

    def __init__(self, number: int, token: int, parent: Node | None, law: DraftLaw | None) -> None:
        self.number = number  # in order of addition to its tree, from 1 on; never used again
        self.token = token
        self.parent = parent  # None: a child of the root
        self.depth: int = 1 if parent is None else parent.depth + 1  # tokens after the root: 1 for its children
        self.votes: Mapping[str, Vote] = _NO_VOTES  # by the name of the drafter; the first one comes first
        self.law = law  # that it and its later siblings were drawn from, if it is the first of them
        self.children: dict[int, Node] = {}  # by token; none of one that is in no tree any more
        self.survival: float = 1.0 if parent is None else parent.survival  # that the target's choices lead here
        self._chance = 1.0

    @property
    def chance(self) -> float:
        """That it is the choice, if its parent is reached: its survival is the product of those on its path. 1 where
        nobody prices nodes."""
        return self._chance

    @chance.setter
    def chance(self, chance: float) -> None:
        if chance == self._chance:
            return
        self._chance = chance
        self.survival = chance if self.parent is None else chance * self.parent.survival
        if self.children:
            below = list(self.children.values())
            for node in below:  # a loop, since a chain may be longer than calls may be deep
                assert node.parent is not None
                node.survival = node._chance * node.parent.survival
                below += node.children.values()

    def __repr__(self) -> str:
        return f"Node({self.number}, token {self.token}, depth {self.depth}, survival {self.survival:.3g})"


class DraftTree:
    """A growing set of proposed continuations of one request's committed tokens.

    Nodes with equal (parent, token) are one node (SpecInfer's merge, arXiv 2305.09781), so any number
    of drafters may feed the same tree.
    """

    def __init__(self) -> None:
        self._children: dict[int, Node] = {}
        self._nodes: dict[int, Node] = {}  # by number, in their order: parents before children
        self._next_number = 1
        self._depth = 0  # of the deepest node; 0: there is none
        self.version = 0  # another one after every change but that of a chance

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        """All nodes, parents before children, breadth first; siblings in the order in which they were added."""
        level = list(self._children.values())
        while level:
            yield from level
            level = [child for node in level for child in node.children.values()]

    def add(
        self, parent: Node | None, token: int, source: str, score: float = 0.0, law: DraftLaw | None = None
    ) -> Node:
        """The node for `token` under `parent` (None: the root), made if it is not there.

        `parent` must still be in the tree: after an `advance`, ask `find` for it again.
        """
        self.version += 1
        siblings = self._children if parent is None else parent.children
        node = siblings.get(token)
        if node is None:
            number = self._next_number
            node = siblings[token] = self._nodes[number] = Node(number, token, parent, law)
            self._next_number = number + 1
            if node.depth > self._depth:
                self._depth = node.depth
        if source not in node.votes:
            rank = sum(source in sibling.votes for sibling in siblings.values()) if len(siblings) > 1 else 0
            alone = _vote_of_one(source, rank, score)
            node.votes = {**node.votes, **alone} if node.votes else alone
        return node

    def children(self, parent: Node | None) -> Mapping[int, Node]:
        """By token, in the order in which they were added; None: of the root."""
        return self._children if parent is None else parent.children

    def find(self, path: Sequence[int]) -> Node | None:
        """The node at the end of `path`, tokens from the root's child on; None where it is not there."""
        node: Node | None = None
        children = self._children
        for token in path:
            node = children.get(token)
            if node is None:
                return None
            children = node.children
        return node

    def along(self, path: Sequence[int]) -> list[Node]:
        """The nodes on `path`, the root's child first, as far as they are there."""
        nodes: list[Node] = []
        children = self._children
        for token in path:
            node = children.get(token)
            if node is None:
                break
            nodes.append(node)
            children = node.children
        return nodes

    def holds(self, node: Node) -> bool:
        """Whether a node that was added once is still in the tree."""
        return self._nodes.get(node.number) is node

    def node(self, number: int) -> Node | None:
        """The one with this number; None where it is not there any more."""
        return self._nodes.get(number)

    @property
    def nodes(self) -> Collection[Node]:
        """All of them in the order of their numbers, parents before children."""
        return self._nodes.values()

    @property
    def depth(self) -> int:
        """Of the deepest node; 0: there is none."""
        return self._depth

    def judged(self, chosen: Sequence[int]) -> Iterator[tuple[Node, bool]]:
        """What a verdict says of the nodes: all children of the places that the chosen tokens lead to, and whether
        each was the choice there."""
        children = self._children
        for token in chosen:
            for child in children.values():
                yield child, child.token == token
            if token not in children:
                return
            children = children[token].children

    def ranked(self) -> list[Node]:
        """All nodes, those of the highest survival first, and of equals those that came first.

        Survival never rises along a path, so the first ones, however many, are a connected part of the tree; parents
        come before children.
        """
        return sorted(self._nodes.values(), key=_survival, reverse=True)  # stable, reversed or not

    def advance(self, committed: Sequence[int]) -> None:
        """Move the root along newly committed tokens. What lies beside them is pruned; what lies below lives on."""
        if not committed:
            return
        end = self.find(committed)
        if end is None:
            self.clear()
            return
        left: dict[int, Node] = {}
        depth = 0
        self._children, end.children = end.children, {}
        for number, node in self._nodes.items():
            above = node.parent
            if above is end:
                node.parent, node.depth, node.survival = None, 1, node._chance
            elif above is not None and above.number in left:
                node.depth, node.survival = above.depth + 1, above.survival * node._chance
            else:
                node.children = {}
                continue
            left[number] = node
            if node.depth > depth:
                depth = node.depth
        self._nodes, self._depth = left, depth
        self.version += 1

    def clear(self) -> None:
        # Without its children a node is in no cycle of references: it is gone with the last one who knows it.
        for node in self._nodes.values():
            node.children = {}
        self._children, self._nodes, self._depth = {}, {}, 0
        self.version += 1


def below(path: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> tuple[list[int], list[int]]:
    """What lies below the end of `path` in a tree that is given as lists: the nodes, and for each the place of its
    parent among them, or ROOT. Nothing where the path leaves the tree."""
    numbers = {edge: node for node, edge in enumerate(zip(parents, tokens, strict=True))}
    end: int | None = ROOT
    for token in path:
        end = None if end is None else numbers.get((end, token))
    if end is None:
        return [], []
    places = {end: ROOT}
    left: list[int] = []
    for node, parent in enumerate(parents):
        if parent in places:
            places[node] = len(left)
            left.append(node)
    return left, [places[parents[node]] for node in left]


def with_ancestors(nodes: Sequence[Node]) -> list[Node]:
    """The nodes and all above them, parents first."""
    found: dict[Node, None] = {}
    for node in nodes:
        path = [node]
        while (parent := path[-1].parent) is not None and parent not in found:
            path.append(parent)
        found.update(dict.fromkeys(reversed(path)))
    return list(found)


def pack_nodes(nodes: Sequence[Node]) -> tuple[list[int], list[int]]:
    """The tokens and parents, [num_nodes] each, of a connected selection given parents first.

    Raises TreeError when a node's parent is neither the root nor selected before it.
    """
    index = {node.number: i for i, node in enumerate(nodes)}
    parents: list[int] = []
    for i, node in enumerate(nodes):
        parent = ROOT if node.parent is None else index.get(node.parent.number, len(nodes))
        if parent >= i:
            raise TreeError(f"node {i} (token {node.token}) comes without, or before, its parent")
        parents.append(parent)
    return [node.token for node in nodes], parents
