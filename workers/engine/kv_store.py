"""The tensors that hold keys and values, one pair a layer, on every rank for its own heads.

There are two, which differ in how they lie in memory: `KVStore` for attention in torch, on any device, and `PanelStore`
for our CPU kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_WIDEST_VECTOR = 16  # floats that a register of any CPU holds


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer keeps of one token, on this rank."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KVStore:
    """Keys and values by layer and slot: `keys[layer]` and `values[layer]` are [num_slots, num_kv_heads, head_dim]."""

    def __init__(self, shape: KVShape, num_slots: int, device: torch.device) -> None:
        size = (shape.num_layers, num_slots, shape.num_kv_heads, shape.head_dim)
        self.keys = torch.zeros(size, dtype=shape.dtype, device=device)
        self.values = torch.zeros(size, dtype=shape.dtype, device=device)

    def write(
        self,
        layer: int,
        slot_mapping: Tensor,  # [num_tokens] i64; where each token goes
        key: Tensor,  # [num_tokens, num_kv_heads, head_dim]
        value: Tensor,  # [num_tokens, num_kv_heads, head_dim]
    ) -> None:
        self.keys[layer].index_copy_(0, slot_mapping, key)
        self.values[layer].index_copy_(0, slot_mapping, value)

    def read(
        self,
        layer: int,
        slots: Tensor,  # [num_keys] i64
    ) -> tuple[Tensor, Tensor]:
        """Copies of the keys and the values, [num_keys, num_kv_heads, head_dim] each."""
        return self.keys[layer].index_select(0, slots), self.values[layer].index_select(0, slots)

    def move(
        self,
        moves: Tensor,  # [num_moves, 2] i64; (source slot, destination slot)
    ) -> None:
        """Copy slots in every layer. All are read before one is written: a source may be another's destination."""
        if len(moves) == 0:
            return
        sources, destinations = moves.unbind(1)
        for held in (self.keys, self.values):
            held.index_copy_(1, destinations, held.index_select(1, sources))


class PanelStore:
    """The same as panels: in a block and head, a key is a column and a value is a row.

    `keys` is [num_layers, num_blocks, num_kv_heads, head_dim, block_size], `values` is [num_layers, num_blocks,
    num_kv_heads, block_size, head_dim]. The operator `outrider::paged_attention` writes them and reads them.
    """

    def __init__(self, shape: KVShape, num_blocks: int, block_size: int, device: torch.device) -> None:
        first = (shape.num_layers, num_blocks, shape.num_kv_heads)
        self.keys = _zeros((*first, shape.head_dim, block_size), shape.dtype, device)
        self.values = _zeros((*first, block_size, shape.head_dim), shape.dtype, device)

    def move(
        self,
        moves: Tensor,  # [num_moves, 2] i64; (source slot, destination slot)
    ) -> None:
        """Copy slots in every layer. All are read before one is written: a source may be another's destination."""
        if len(moves):
            torch.ops.outrider.move_kv(self.keys, self.values, moves)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of this size, with a vector's room behind them: the kernels read on to the end of one."""
    count = math.prod(size)
    return torch.zeros(count + _WIDEST_VECTOR, dtype=dtype, device=device)[:count].view(size)
