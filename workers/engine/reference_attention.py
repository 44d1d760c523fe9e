"""Attention as it is defined, row by row in plain torch, on any device.

Faster implementations are held against it: it gathers a row's keys, masks what a query may not see, and weighs the
rest. What a row sees (`row_view.py`) is worked out once a pass and shared by all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.kv_store import KVStore
from workers.engine.layout import Layout
from workers.engine.row_view import RowView, row_views
from workers.engine.scoring import Scoring


class ReferenceAttention:
    """See `attention.Implementation`."""

    def __init__(self, layout: Layout, store: KVStore) -> None:
        self._layout = layout
        self._store = store
        self._rows: list[RowView] = []

    def attend(
        self,
        layer: int,
        query: Tensor,  # [num_heads, num_tokens, head_dim]
        scoring: Scoring,
        sinks: Tensor | None,  # [num_heads]
    ) -> Tensor:
        """What each query gathers, [num_tokens, num_heads, head_dim]."""
        self._rows = self._rows or row_views(self._layout)
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for row in self._rows:
            keys, values = (held.transpose(0, 1) for held in self._store.read(layer, row.slots))
            mask = row.mask(scoring.window)
            own = query[:, row.start : row.end]
            if scoring.softcap is None and sinks is None:
                attended = _weigh_plainly(own, keys, values, mask, scoring)
            else:
                attended = _weigh(own, keys, values, mask, scoring, sinks)
            output[row.start : row.end] = attended.transpose(0, 1)
        return output


def _weigh_plainly(
    query: Tensor,  # [num_heads, num_queries, head_dim]
    keys: Tensor,  # [num_kv_heads, num_keys, head_dim]
    values: Tensor,  # [num_kv_heads, num_keys, head_dim]
    mask: Tensor | None,  # [num_queries, num_keys] bool
    scoring: Scoring,
) -> Tensor:
    """softmax(q·k * scaling)·v, [num_heads, num_queries, head_dim]: torch's own, several times as fast as `_weigh`."""
    attended = scaled_dot_product_attention(
        query[None], keys[None], values[None], attn_mask=mask, scale=scoring.scaling, enable_gqa=True
    )
    return attended[0]


def _weigh(
    query: Tensor,  # [num_heads, num_queries, head_dim]
    keys: Tensor,  # [num_kv_heads, num_keys, head_dim]
    values: Tensor,  # [num_kv_heads, num_keys, head_dim]
    mask: Tensor | None,  # [num_queries, num_keys] bool
    scoring: Scoring,
    sinks: Tensor | None,  # [num_heads]
) -> Tensor:
    """The values weighed by everything that a layer can ask for, [num_heads, num_queries, head_dim]."""
    num_heads, num_queries, head_dim = query.shape
    grouped = query.reshape(keys.shape[0], -1, num_queries, head_dim)  # heads that share keys side by side
    scores = (grouped @ keys[:, None].transpose(2, 3) * scoring.scaling).float()
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        beside = sinks.float().reshape(keys.shape[0], -1, 1, 1).expand(-1, -1, num_queries, 1)
        weights = torch.cat([scores, beside], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return (weights.to(values.dtype) @ values[:, None]).reshape(num_heads, num_queries, head_dim)
