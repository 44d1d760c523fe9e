"""Attention on CUDA: torch's flex attention over the keys of all rows at once, in one fused kernel.

The keys of the pass's rows are gathered from the pool into one packed list, then one call serves every row. What a
query sees is an interval test (`tree_order.py`). Of the tiles of queries and keys only those are visited in which
something can be seen, and those in which everything is are not tested.

Rejected: flex over the whole pool without gathering. It can be made sound, but its tiles would have to be KV blocks,
16 keys wide, which leaves the kernel waiting on short steps; and it would depend on how the pool lies in memory. A
kernel of our own that reads block tables is what would save the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from workers.engine.batch import Batch, Ints, cumulated
from workers.engine.kv_store import KVStore
from workers.engine.layout import Flags, Layout, query_positions
from workers.engine.scoring import Scoring
from workers.engine.tree_order import tree_order

TILE = 128  # queries, and keys, of a tile
_SMALLEST_HEAD_DIM = 16  # that the kernel takes


class FlexAttention:
    """See `attention.Implementation`."""

    def __init__(self, layout: Layout, store: KVStore) -> None:
        self._layout = layout
        self._store = store
        self._masks: dict[int | None, BlockMask] = {}  # by window

    def attend(
        self,
        layer: int,
        query: Tensor,  # [num_heads, num_tokens, head_dim]
        scoring: Scoring,
        sinks: Tensor | None,  # [num_heads]
    ) -> Tensor:
        """What each query gathers, [num_tokens, num_heads, head_dim]."""
        keys, values = self._store.read(layer, self._seen.slots)
        packed = (query, keys.transpose(0, 1), values.transpose(0, 1))
        head_dim = query.shape[2]
        missing = max(0, _SMALLEST_HEAD_DIM - head_dim)  # filled with zeros, which change no score and no value
        result = _flex(query.device.type)(
            *(pad(part, (0, missing))[None] if missing else part[None] for part in packed),
            score_mod=_softcap(scoring.softcap, query.device),
            block_mask=self._mask(scoring.window),
            scale=scoring.scaling,
            enable_gqa=query.shape[0] != keys.shape[1],
            return_aux=None if sinks is None else AuxRequest(lse=True),
        )
        attended: Tensor = result if sinks is None else _with_sinks(result[0], result[1], sinks)
        return attended[0, ..., :head_dim].transpose(0, 1)

    @cached_property
    def _seen(self) -> SeenKeys:
        return SeenKeys(self._layout.batch, self._layout.block_size, self._layout.input_ids.device)

    def _mask(self, window: int | None) -> BlockMask:
        if window not in self._masks:
            self._masks[window] = self._seen.mask(window)
        return self._masks[window]


def _with_sinks(
    attended: Tensor,  # [1, num_heads, num_tokens, head_dim]
    aux: AuxOutput,  # lse: [1, num_heads, num_tokens], the logarithm of the softmax's denominator
    sinks: Tensor,  # [num_heads]
) -> Tensor:
    """The same with one more term, e^sink, in the denominator."""
    assert aux.lse is not None
    share = torch.sigmoid(aux.lse.float() - sinks.float()[:, None])
    return (attended * share[..., None]).to(attended.dtype)


class SeenKeys:
    """The packed keys of a pass, each row's context and then its queries, and who sees them."""

    def __init__(self, batch: Batch, block_size: int, device: torch.device) -> None:
        num_queries = batch.num_linear + batch.num_nodes
        cu_queries, cu_keys = cumulated(num_queries), cumulated(batch.context_lens + num_queries)
        row_of = np.repeat(np.arange(len(num_queries)), np.diff(cu_keys))
        places = np.arange(cu_keys[-1]) - cu_keys[row_of]
        blocks = batch.block_tables[cumulated(batch.num_blocks)[row_of] + places // block_size]
        is_own = places >= batch.context_lens[row_of]
        is_node = places >= (batch.context_lens + batch.num_linear)[row_of]
        self.slots = torch.from_numpy(blocks * block_size + places % block_size).to(device)  # [num_keys] i64
        order = tree_order(batch)
        self._first, self._last, self._positions = cu_queries[row_of], cu_queries[row_of + 1], places
        self._first[is_own], self._last[is_own] = order.numbers, order.ends
        self._positions[is_own] = query_positions(batch, places[is_own], is_node[is_own])
        self._numbers, self._query_positions = order.numbers, self._positions[is_own]
        parts = (self._numbers, self._query_positions, self._first, self._last, self._positions)
        joined = torch.from_numpy(np.concatenate(parts, dtype=np.int32, casting="same_kind")).to(device)
        self._on_device = torch.split(joined, [len(part) for part in parts])

    def mask(self, window: int | None) -> BlockMask:
        """Who sees what under a window, as flex attention takes it."""
        partial, full = self.tiles(window)
        device = self.slots.device
        return BlockMask.from_kv_blocks(
            *_listed(partial, device),
            *_listed(full, device),
            BLOCK_SIZE=TILE,
            mask_mod=_sees(self._on_device, window),
            seq_lengths=(len(self._numbers), len(self._first)),
            compute_q_blocks=False,  # for the backward pass only
        )

    def tiles(self, window: int | None) -> tuple[Flags, Flags]:
        """Tiles in which something may be seen, and those in which all is: [query tiles, key tiles] each, disjoint."""
        least, most = _extremes(self._numbers)
        first_least, first_most = _extremes(self._first)
        last_least, last_most = _extremes(self._last)
        some = (first_least <= most[:, None]) & (least[:, None] < last_most)
        every = (first_most <= least[:, None]) & (most[:, None] < last_least)
        if window is not None:
            nearest, furthest = _extremes(self._query_positions)
            key_least, key_most = _extremes(self._positions)
            some &= nearest[:, None] - key_most < window
            every &= furthest[:, None] - key_least < window
        every[len(self._numbers) // TILE :] = False  # a tile that is cut short has places without a query or a key
        every[:, len(self._first) // TILE :] = False
        return some & ~every, every


def _extremes(values: Ints) -> tuple[Ints, Ints]:
    """The least and the greatest of each tile."""
    starts = np.arange(0, len(values), TILE)
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _listed(tiles: Flags, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per query tile the number of its key tiles, [1, 1, query tiles], and their indices first in a row of all, i32."""
    indices = np.argsort(~tiles, axis=1, kind="stable").astype(np.int32)
    counts = tiles.sum(axis=1, dtype=np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(indices)[None, None].to(device)


def _sees(seen: tuple[Tensor, ...], window: int | None) -> Callable[..., Tensor]:
    numbers, query_positions, first, last, positions = seen

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first[key] <= numbers[query]) & (numbers[query] < last[key])

    if window is None:
        return sees

    def sees_in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(batch, head, query, key) & (query_positions[query] - positions[key] < window)

    return sees_in_window


def _softcap(softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    cap = torch.tensor(softcap, device=device)  # as a number, the compiler would make a symbol of it and then fail

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@cache
def _flex(device_type: str) -> Callable[..., Any]:
    """flex_attention, compiled once for all sizes on CUDA; on the CPU, for tests, as it is: slow and exact.

    It is compiled anew for one query tile or several, one key tile or several, with and without window, softcap and
    sinks; more often than that would be a mistake, and must not end in an uncompiled pass that nobody notices.
    """
    flex: Callable[..., Any] = flex_attention
    if device_type != "cuda":
        return flex
    compile_: Any = torch.compile  # its annotation forgets recompile_limit
    compiled: Callable[..., Any] = compile_(flex, dynamic=True, fullgraph=True, recompile_limit=64)
    return compiled
