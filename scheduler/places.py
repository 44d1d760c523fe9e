"""What a drafter's nodes have become, by the numbers that it gave them. Part of the core: no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from outrider.tree import DraftTree, Node

MAX_OVERTAKEN = 64  # tokens that may be committed while a growth is on its way, and it still finds its place
_SPARE = 64  # numbers that come, and half as many as there were, before those that are gone are looked for again


class Places:
    """Nodes of a request's tree, or places in its committed tokens. Those that were pruned are gone.

    Whether a node still stands is asked of the tree when somebody wants to know, so a verdict costs nothing here.
    """

    def __init__(self) -> None:
        self._places: dict[int, Node | int] = {}
        self._num_at_most = _SPARE  # until something is forgotten

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def put(self, number: int, place: Node | int) -> None:
        self._places[number] = place

    def find(self, number: int, tree: DraftTree) -> Node | int | None:
        place = self._places.get(number)
        if not isinstance(place, Node):
            return place
        if place.committed_at is not None:
            return place.committed_at
        return place if tree.holds(place) else None

    def forget(self, tree: DraftTree, committed_len: int) -> None:
        """Drop what is gone, and what was committed long ago, if it may have become much."""
        if len(self._places) <= self._num_at_most:
            return
        oldest = committed_len - MAX_OVERTAKEN
        kept: dict[int, Node | int] = {}
        for number in self._places:
            place = self.find(number, tree)
            if isinstance(place, Node) or (place is not None and place >= oldest):
                kept[number] = place
        self._places = kept
        self._num_at_most = len(kept) + len(kept) // 2 + _SPARE
