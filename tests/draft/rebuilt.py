"""What a model drafter keeps of its requests, against what the tokens alone give.

Tree and KV are caches: whatever has happened, each expanded place has exactly the children that the model gives after
the whole text, computed at once and from nothing, and each branch holds the KV of its own text.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.tree import Node
from workers.choice.params import ChoiceParams
from workers.draft.branches import ROOT
from workers.draft.drafter import Request
from workers.draft.guessing import path_to
from workers.draft.model import ModelDrafter
from workers.engine.batch import Row
from workers.engine.kv_store import KVStore, PanelStore

TOLERANCE = 2e-3


class Rebuilt:
    """`reference`: a drafter of the same model that keeps nothing. What it finds is found once for each text."""

    def __init__(self, reference: ModelDrafter) -> None:
        self._reference = reference
        self._keys = count()
        self._children: dict[tuple[Any, ...], dict[int, float]] = {}
        self._kv: dict[tuple[int, ...], Tensor] = {}

    def check(self, drafter: ModelDrafter) -> None:
        drafter._engine.check_integrity()
        held: set[int] = set()
        for request in drafter._requests.values():
            branches = drafter._states[request.key].branches
            self._check_tree(drafter, request)
            self._check_kv(drafter, request)
            assert not branches._taken, "a row that was never run"
            held |= set(branches._branch.values())
        assert set(drafter._engine._cache._requests) == held, "the engine holds what no request asked for"

    def children(self, params: ChoiceParams, text: list[int], root_len: int) -> dict[int, float]:
        """Scores by token of what may come after `text`, of which root_len tokens are committed."""
        where = (params, tuple(text), root_len if params.is_drawn_for else 0)
        if where not in self._children:
            logits, _ = self._forward(text)
            request = Request(-1, params, text[:root_len])
            node: Node | None = None
            for token in text[root_len:]:
                node = request.tree.add(node, token, "given")
            [found] = self._reference._guesser.candidates(logits, [(request, node)])
            self._children[where] = {candidate.token: candidate.score for candidate in found}
        return self._children[where]

    def _check_tree(self, drafter: ModelDrafter, request: Request) -> None:
        state = drafter._states[request.key]
        places: list[Node | None] = [node for node in request.tree if state.branches.is_expanded(node)]
        if state.branches.is_root_expanded:
            places.append(None)
        else:
            assert not len(request.tree), "nodes below a root that was never computed"
        candidates = state.frontier.candidates
        assert all(candidate.parent in places for candidate in candidates)
        for place in places:
            found = {node.token: node.votes[drafter.kind].score for node in request.tree.children(place).values()}
            found |= {each.token: each.score for each in candidates if each.parent is place}
            expected = self.children(request.params, [*request.tokens, *path_to(place)], len(request.tokens))
            assert found == pytest.approx(expected, abs=TOLERANCE)
        open_ends = {node.number for node in request.tree if node not in places and self._may_go_on(request, node)}
        assert {leaf.number for leaf in state.frontier.leaves} == open_ends

    def _may_go_on(self, request: Request, node: Node) -> bool:
        spec = self._reference._engine.spec
        return node.token not in spec.end_token_ids and len(request.tokens) + node.depth < spec.max_context

    def _check_kv(self, drafter: ModelDrafter, request: Request) -> None:
        branches, cache = drafter._states[request.key].branches, drafter._engine._cache
        by_number = {node.number: node for node in request.tree}
        for number, key in branches._branch.items():
            cached = cache._requests[key].tokens
            text = [*request.tokens, *path_to(by_number.get(number))]
            if number == ROOT and not branches.is_root_expanded:
                assert cached == text[: len(cached)]
            else:
                assert cached[: len(text)] == text
        for key in set(branches._branch.values()):
            if cached := cache._requests[key].tokens:
                torch.testing.assert_close(kv_of(drafter, key), self._kv_of(cached), atol=TOLERANCE, rtol=0)

    def _kv_of(self, text: list[int]) -> Tensor:
        if tuple(text) not in self._kv:
            self._kv[tuple(text)] = self._forward(text)[1]
        return self._kv[tuple(text)]

    def _forward(self, text: list[int]) -> tuple[Tensor, Tensor]:
        """Logits after the text, [1, vocab], and its KV."""
        engine, key = self._reference._engine, next(self._keys)
        engine.open(key)
        logits = engine.forward_packed([Row(key, text)])
        kv = kv_of(self._reference, key)
        engine.close(key)
        return logits, kv


def kv_of(drafter: ModelDrafter, key: int) -> Tensor:
    """[2, num_layers, num_cached, num_kv_heads, head_dim]: where each slot's content lies now."""
    engine = drafter._engine
    cache, store = engine._cache, engine._forward._store  # type: ignore[attr-defined]
    slots = torch.tensor([cache._moves.source_of(cache.slot(key, i)) for i in range(cache.num_cached(key))])
    if isinstance(store, KVStore):
        return torch.stack([store.keys[:, slots], store.values[:, slots]])
    assert isinstance(store, PanelStore)
    blocks, offsets = slots // cache.block_size, slots % cache.block_size
    keys = store.keys[:, blocks, :, :, offsets].movedim(0, 1)  # the index pair comes first
    values = store.values[:, blocks, :, offsets].movedim(0, 1)
    return torch.stack([keys, values])
