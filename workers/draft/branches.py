"""The KV of a growing tree: one entry of the engine's cache a branch, forked where the tree forks.

    committed  a b c        branch 0 holds   a b c | d e f      extended by whoever comes first
    tree       c ─ d ─ e ─ f
                   └─ g     branch 1 holds   a b c | d g        forked behind d when g was computed

Branches share the blocks of their common beginning (copy-on-write), and each is decoded as a request of its own: no
mask, and nothing is computed twice. A node is *expanded* once its KV is there; the root is node 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outrider.tree import DraftTree, Node
from workers.engine.batch import Row
from workers.engine.runner import Engine

ROOT = 0


class Branches:
    """Of one request. `keys`: numbers for the engine that nobody else uses."""

    def __init__(self, engine: Engine, keys: Iterator[int]) -> None:
        self._engine = engine
        self._keys = keys
        self._committed_len = 0
        self._branch: dict[int, int] = {ROOT: self._open()}  # by expanded node: the key that holds its path; the root's
        self._is_root_expanded = False
        self._taken: set[int] = set()  # keys that a row of the next pass extends

    @property
    def is_root_expanded(self) -> bool:
        return self._is_root_expanded

    def is_expanded(self, node: Node) -> bool:
        return node.number in self._branch

    def root_row(self, tokens: Sequence[int], max_tokens: int) -> Row:
        """What is to be computed for the root's logits: `tokens` are all that are committed.

        Of a long prompt a chunk, which wants no logits. What the prefix cache has is not computed again.
        """
        key = self._branch[ROOT]
        self._engine.reuse(key, tokens[self._engine.num_cached(key) :])
        # The last token is computed, whatever is cached: the draft begins with its logits.
        self._truncate(key, len(tokens) - 1)
        rest = tokens[self._engine.num_cached(key) :]
        return Row(key, rest[:max_tokens], wants_logits=len(rest) <= max_tokens)

    def node_row(self, node: Node) -> Row:
        """The row that expands a node whose parent is expanded. It has to be run, or withdrawn."""
        parent = self._branch[node.parent.number if node.parent is not None else ROOT]
        num_before = self._committed_len + node.depth - 1
        if self._engine.num_cached(parent) == num_before and parent not in self._taken:
            key = parent
        else:
            key = next(self._keys)
            self._engine.fork(parent, key)
            self._engine.truncate(key, num_before)
        self._taken.add(key)
        self._branch[node.number] = key
        return Row(key, [node.token])

    def withdraw(self, nodes: Sequence[Node]) -> None:
        """The rows of these nodes are not run after all."""
        keys = {self._branch.pop(node.number) for node in nodes}
        for key in keys - set(self._branch.values()):
            self._engine.close(key)
        self._taken.clear()

    def note_root(self, num_tokens: int) -> None:
        """The root's logits are there: num_tokens are committed."""
        self._committed_len, self._is_root_expanded = num_tokens, True

    def note_run(self) -> None:
        """The rows have been run."""
        self._taken.clear()

    def commit(self, tree: DraftTree, num_tokens: int, tokens: Sequence[int], *, keep: bool) -> None:
        """The root, behind num_tokens, moves along `tokens`; the tree has not yet. With `keep`, nodes that survive
        stay expanded."""
        reached: Node | None = None
        for token in tokens:
            node = tree.children(reached).get(token)
            if node is None or not self.is_expanded(node):
                break
            reached = node
        depth = reached.depth if reached is not None else 0
        survivors = dict[int, int]()
        if keep and reached is not None and depth == len(tokens):
            survivors = {node.number: self._branch[node.number] for node in below(reached) if self.is_expanded(node)}
        main = self._branch[reached.number if reached is not None else ROOT]
        self._is_root_expanded = keep and depth == len(tokens)
        self._committed_len = num_tokens + len(tokens)
        self._close_all_but({main, *survivors.values()})
        if not survivors:
            self._truncate(main, num_tokens + depth)
        self._branch = {ROOT: main, **survivors}

    def forget(self) -> None:
        """Hold nothing. The tree has to be given up as well."""
        self._close_all_but(set())
        self._branch = {ROOT: self._open()}
        self._is_root_expanded = False
        self._taken.clear()

    def close(self) -> None:
        self._close_all_but(set())
        self._branch = {}

    def _open(self) -> int:
        key = next(self._keys)
        self._engine.open(key)
        return key

    def _close_all_but(self, kept: set[int]) -> None:
        for key in set(self._branch.values()) - kept:
            self._engine.close(key)

    def _truncate(self, key: int, num_tokens: int) -> None:
        self._engine.truncate(key, min(num_tokens, self._engine.num_cached(key)))


def below(node: Node) -> Iterator[Node]:
    """All that descends from a node, parents first."""
    level = list(node.children.values())
    while level:
        yield from level
        level = [child for each in level for child in each.children.values()]
