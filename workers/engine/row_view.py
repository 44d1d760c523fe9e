"""What one row of a pass sees, written out as slots and masks: the meaning of a layout, for whoever can afford it.

Kernels read the layout itself. Here nothing is computed before it is asked for, and nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from workers.engine.layout import Layout


@dataclass(frozen=True)
class RowView:
    layout: Layout
    start: int  # of the row's queries in the packed pass
    end: int
    num_linear: int
    context_len: int
    block_table: Tensor  # [num_blocks] i32
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)  # by window

    def mask(self, window: int | None) -> Tensor | None:
        """Which keys each query sees under a window, [num_queries, num_keys] bool; None where each sees them all."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Tensor | None:
        num_queries = self.end - self.start
        num_keys = self.context_len + num_queries
        if window is None or num_keys <= window:
            return None if num_queries == 1 else self.seen
        positions = self.layout.positions[0, self.start : self.end]
        context = torch.arange(self.context_len, device=positions.device)
        distances = positions[:, None] - torch.cat([context, positions])
        return self.seen & (distances < window)

    @cached_property
    def slots(self) -> Tensor:
        """Slots of the row's keys in order, context first, then its own queries: [num_keys] i64."""
        size = self.layout.block_size
        within = torch.arange(size, device=self.block_table.device)
        slots = (self.block_table.long()[:, None] * size + within).flatten()
        return slots[: self.context_len + self.end - self.start]

    @cached_property
    def seen(self) -> Tensor:
        """Which keys each query sees, windows aside: [num_queries, num_keys] bool."""
        num_queries, num_linear = self.end - self.start, self.num_linear
        parents = self.layout.parents[self.start : self.end].long() - self.start
        among = torch.ones(num_queries, num_queries, dtype=torch.bool, device=parents.device).tril()
        among[num_linear:, num_linear:] = False
        nodes = torch.arange(num_linear, num_queries, device=parents.device)
        ancestors = nodes
        while len(nodes):  # one step a level of the tree
            among[nodes, ancestors] = True
            ancestors = parents[ancestors]
            below = ancestors >= num_linear
            nodes, ancestors = nodes[below], ancestors[below]
        return torch.cat([among.new_ones(num_queries, self.context_len), among], dim=1)


def row_views(layout: Layout) -> list[RowView]:
    cu_queries, cu_blocks = layout.cu_queries.tolist(), layout.cu_blocks.tolist()
    num_linear, context_lens = layout.num_linear.tolist(), layout.context_lens.tolist()
    return [
        RowView(
            layout,
            cu_queries[row],
            cu_queries[row + 1],
            num_linear[row],
            context_lens[row],
            layout.block_tables[cu_blocks[row] : cu_blocks[row + 1]],
        )
        for row in range(len(num_linear))
    ]
