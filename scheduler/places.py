"""What a drafter's nodes have become, by the numbers that it gave them. Part of the core: no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from outrider.tree import DraftTree, Node

MAX_OVERTAKEN = 64  # tokens that may be committed while a growth is on its way, and it still finds its place
_SPARE = 64  # numbers of nodes that are gone, and kept until there are so many


class Places:
    """Nodes of a request's tree, or places in its committed tokens. Those that were pruned are gone.

    Whether a node still stands is asked of the tree when somebody wants to know, so a verdict costs nothing here.
    """

    def __init__(self) -> None:
        self._places: dict[int, Node | int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def put(self, number: int, place: Node | int) -> None:
        self._places[number] = place

    def find(self, number: int, tree: DraftTree) -> Node | int | None:
        place = self._places.get(number)
        return _now(place, tree) if isinstance(place, Node) else place

    def forget(self, tree: DraftTree, committed_len: int) -> None:
        """Drop what is gone, and what was committed long ago, if it has become much."""
        if len(self._places) <= 2 * len(tree) + _SPARE:
            return
        oldest = committed_len - MAX_OVERTAKEN
        kept: dict[int, Node | int] = {}
        for number in self._places:
            place = self.find(number, tree)
            if isinstance(place, Node) or (place is not None and place >= oldest):
                kept[number] = place
        self._places = kept


def _now(node: Node, tree: DraftTree) -> Node | int | None:
    return node.committed_at if node.committed_at is not None else node if tree.holds(node) else None
