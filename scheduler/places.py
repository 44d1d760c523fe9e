"""What a drafter's nodes have become, by the numbers that it gave them. Part of the core: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from outrider.tree import DraftTree, Node

MAX_OVERTAKEN = 64  # tokens that may be committed while a growth is on its way, and it still finds its place
_SPARE = 64  # numbers that come, and half as many as there were, before those that are gone are looked for again


class Places:
    """Nodes of a request's tree, or places in its committed tokens. Those that were pruned are gone.

    Whether a node still stands is asked of the tree when somebody wants to know, so a verdict costs nothing here.
    `committed` says where in the tokens nodes are that were committed of late, by their numbers in the tree.
    """

    def __init__(self) -> None:
        self._places: dict[int, int] = {}  # the node's number in the tree, or -1 less the place in the tokens
        self._num_at_most = _SPARE  # until something is forgotten

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def put(self, number: int, place: Node | int) -> None:
        self._places[number] = place.number if isinstance(place, Node) else -1 - place

    def find(self, number: int, tree: DraftTree, committed: Mapping[int, int]) -> Node | int | None:
        place = self._places.get(number)
        if place is None:
            return None
        if place < 0:
            return -1 - place
        node = tree.node(place)
        return committed.get(place) if node is None else node

    def forget(self, tree: DraftTree, committed: Mapping[int, int], committed_len: int) -> None:
        """Drop what is gone, and what was committed long ago, if it may have become much."""
        if len(self._places) <= self._num_at_most:
            return
        oldest = committed_len - MAX_OVERTAKEN
        self._places = {
            number: place
            for number, place in self._places.items()
            if (-1 - place >= oldest if place < 0 else tree.node(place) is not None or place in committed)
        }
        self._num_at_most = len(self._places) + len(self._places) // 2 + _SPARE
