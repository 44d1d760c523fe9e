"""One drafter's requests and their trees, on the engine's thread: orders in, new nodes out.

A tree lives as long as its request. Each step tells the nodes that are new, by number; what survives a verdict is
there already, on both sides of the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.draft_law import DraftLaw
from outrider.tree import Node
from workers.choice.params import ChoiceParams
from workers.draft.drafter import Drafter, Request

MAX_NODES = 512  # of one tree: more would be a drafter that does not count


@dataclass(frozen=True, slots=True)
class Order:
    """The newest state of one request, and what is wanted below it."""

    key: int
    params: ChoiceParams | None  # of a request that is new to the drafter
    tokens: Sequence[int]  # committed since the last order
    max_nodes: int
    min_survival: float = 0.0


@dataclass(frozen=True, slots=True)
class NewNodes:
    """What a step has added to one request's tree."""

    key: int
    committed_len: int
    first_number: int  # of the first node below; the others follow
    tokens: Sequence[int]  # [num_nodes]
    parents: Sequence[int]  # [num_nodes]; numbers of nodes, 0 for the root
    scores: Sequence[float]  # [num_nodes]
    laws: Sequence[DraftLaw | None]  # [num_nodes]; None throughout where no node was drawn
    is_done: bool  # no more will come for this root


class Growing:
    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._requests: dict[int, Request] = {}  # in line: whoever is short of room serves the first ones first
        self._waiting: set[int] = set()  # those to which nothing was told since they lined up
        self._num_told: dict[int, int] = {}  # the number of the last node that was told

    def step(self, closed: Sequence[int], orders: Sequence[Order]) -> list[NewNodes]:
        """Carry out what has happened since the last step, and one step of the drafter for all live requests."""
        for key in closed:
            self._close(key)
        for order in orders:
            self._take(order)
        live = [request for request in self._requests.values() if request.is_live]
        if live:
            self._drafter.step(live)
        news = [new for new in map(self._news, live) if new.tokens or new.is_done]
        self._waiting -= {new.key for new in news}
        return news

    def _take(self, order: Order) -> None:
        if order.params is not None:
            request = self._requests[order.key] = Request(order.key, order.params)
            self._num_told[order.key] = 0
            self._drafter.open(request)
        # One that still waits keeps its place, however often the target overtakes it.
        if order.key not in self._waiting:
            self._requests[order.key] = self._requests.pop(order.key)
            self._waiting.add(order.key)
        request = self._requests[order.key]
        if order.tokens:
            self._drafter.commit(request, order.tokens)
            if request.params.is_drawn_for:
                request.tree.clear()  # a verdict depends on all that was drawn: nothing of it is fresh any more
            request.tree.advance(order.tokens)
            request.tokens += order.tokens
        request.max_nodes, request.min_survival = min(order.max_nodes, MAX_NODES), order.min_survival
        request.is_live = True

    def _close(self, key: int) -> None:
        request = self._requests.pop(key, None)
        if request is not None:
            del self._num_told[key]
            self._waiting.discard(key)
            self._drafter.close(request)

    def _news(self, request: Request) -> NewNodes:
        told = self._num_told[request.key]
        nodes = sorted((node for node in request.tree if node.number > told), key=lambda node: node.number)
        assert not nodes or nodes[-1].number == told + len(nodes), "a drafter took nodes away that nobody was told of"
        self._num_told[request.key] = told + len(nodes)
        return NewNodes(
            key=request.key,
            committed_len=len(request.tokens),
            first_number=told + 1,
            tokens=[node.token for node in nodes],
            parents=[node.parent.number if node.parent is not None else 0 for node in nodes],
            scores=[_score(node) for node in nodes],
            laws=[node.law for node in nodes],
            is_done=not request.is_live,
        )


def _score(node: Node) -> float:
    """The drafter's own: in its own tree there is no other's."""
    return next(iter(node.votes.values())).score
