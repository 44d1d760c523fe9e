"""A drafter driven by hand: orders in, nodes out, as `Growing` does it on the engine's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outrider.v1 import worker_pb2
from outrider.v1.inference_pb2 import SamplingParams
from workers.choice.params import ChoiceParams, guess_params
from workers.draft.drafter import Drafter, Resources
from workers.draft.growing import Growing, NewNodes, Order
from workers.draft.model import ModelDrafter, load

BLOCK_BYTES = 16 * 2 * 2 * 4 * 8 * 2  # of the tiny model: tokens, layers, K and V, KV heads, head size, bfloat16
TextPath = tuple[int, ...]


def params_of(sampling: SamplingParams) -> ChoiceParams:
    return guess_params(worker_pb2.OpenRequest(sampling=sampling))


def load_tiny(folder: Path, num_blocks: int = 256) -> ModelDrafter:
    return load(str(folder), Resources(threads=1, kv_cache_bytes=num_blocks * BLOCK_BYTES))


@dataclass
class Told:
    """What has been told of one request: its nodes, by number, as the texts that they stand for."""

    text: TextPath = ()
    nodes: dict[int, TextPath] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    laws: dict[int, object] = field(default_factory=dict)

    def standing(self) -> list[TextPath]:
        """Of the nodes that are below the newest root: their tokens from there, in order of their numbers."""
        n = len(self.text)
        return [text[n:] for text in self.nodes.values() if len(text) > n and text[:n] == self.text]


class Driver:
    """Orders for one drafter, and what comes of them."""

    def __init__(self, drafter: Drafter, *, may_forget: bool = False) -> None:
        """`may_forget`: there is too little room, so that nodes that stand may be found, and told, again."""
        self.drafter = drafter
        self._may_forget = may_forget
        self.growing = Growing(drafter)
        self.told: dict[int, Told] = {}
        self.live: set[int] = set()
        self._orders: list[Order] = []
        self._closed: list[int] = []

    def open(self, key: int, params: ChoiceParams, tokens: Sequence[int], max_nodes: int) -> None:
        self.told[key] = Told(tuple(tokens))
        self._orders.append(Order(key, params, tokens, max_nodes))
        self.live.add(key)

    def order(self, key: int, tokens: Sequence[int], max_nodes: int, min_survival: float = 0.0) -> None:
        self.told[key].text += tuple(tokens)
        self._orders.append(Order(key, None, tokens, max_nodes, min_survival))
        self.live.add(key)

    def close(self, key: int) -> None:
        del self.told[key]
        self.live.discard(key)
        self._orders = [order for order in self._orders if order.key != key]
        self._closed.append(key)

    def step(self) -> list[NewNodes]:
        orders, self._orders = self._orders, []
        closed, self._closed = self._closed, []
        news = self.growing.step(closed, orders)
        for new in news:
            self._note(new)
        return news

    def finish(self, max_steps: int = 1000) -> None:
        """Steps until nothing more is to come."""
        for _ in range(max_steps):
            if not (self.live or self._orders or self._closed):
                return
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def _note(self, new: NewNodes) -> None:
        told = self.told[new.key]
        assert new.committed_len == len(told.text)
        numbers = range(new.first_number, new.first_number + len(new.tokens))
        for number, token, parent, score, law in zip(
            numbers, new.tokens, new.parents, new.scores, new.laws, strict=True
        ):
            assert number not in told.nodes
            told.nodes[number] = (*(told.nodes[parent] if parent else told.text), token)
            told.scores[number], told.laws[number] = score, law
        standing = told.standing()
        assert self._may_forget or len(standing) == len(set(standing)), "a node that stands was told again"
        if new.is_done:
            self.live.discard(new.key)
