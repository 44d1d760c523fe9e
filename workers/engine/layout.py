"""Where everything in a batch lies: positions, slots, masks and logits rows, worked out once a pass on each rank.

A pass is packed: the queries of all rows stand side by side, [num_tokens], each row's tokens before its nodes.

    one row's queries    tokens t0 t1 t2 | nodes n0 n1 n2 (parents -1 0 0)
    it sees the context  all of it       | all of it
    among the queries    t0: t0          | n0: t0 t1 t2 n0
                         t1: t0 t1       | n1: t0 t1 t2 n0 n1
                         t2: t0 t1 t2    | n2: t0 t1 t2 n0 n2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.batch import Batch, BatchRow


@dataclass(frozen=True, slots=True)
class RowLayout:
    start: int  # of the row's queries in the packed pass
    end: int
    slots: Tensor  # [num_keys] i64; context first, then the row's own queries
    mask: Tensor | None  # [num_queries, num_keys] bool, True where a query sees a key; None: every query sees all


@dataclass(frozen=True, slots=True)
class Layout:
    input_ids: Tensor  # [1, num_tokens] i64
    positions: Tensor  # [1, num_tokens] i64
    slot_mapping: Tensor  # [num_tokens] i64; where each query's KV goes
    moves: Tensor  # [num_moves, 2] i64; (source slot, destination slot)
    logits_rows: Tensor  # [num_logits] i64; the queries whose logits are wanted
    num_logits: Sequence[int]  # a row of the batch
    rows: Sequence[RowLayout]


def lay_out(batch: Batch, block_size: int, device: torch.device) -> Layout:
    """Everything that the forward of a batch needs besides the model, on `device`."""
    input_ids: list[int] = []
    positions: list[int] = []
    logits_rows: list[int] = []
    rows: list[RowLayout] = []
    for placed in batch.rows:
        row, start = placed.row, len(input_ids)
        input_ids += [*row.tokens, *row.node_tokens]
        positions += _positions(placed)
        end = len(input_ids)
        logits_rows += range(end - row.num_logits, end)
        mask = _mask(placed)
        slots = _slots(placed, block_size).to(device)
        rows.append(RowLayout(start, end, slots, None if mask is None else mask.to(device)))
    own_slots = [row.slots[len(row.slots) - (row.end - row.start) :] for row in rows]
    return Layout(
        input_ids=torch.tensor([input_ids], device=device),
        positions=torch.tensor([positions], device=device),
        slot_mapping=torch.cat(own_slots),
        moves=torch.tensor(batch.moves, dtype=torch.int64, device=device).reshape(-1, 2),
        logits_rows=torch.tensor(logits_rows, dtype=torch.int64, device=device),
        num_logits=[placed.row.num_logits for placed in batch.rows],
        rows=rows,
    )


def _positions(placed: BatchRow) -> list[int]:
    """Positions of a row's queries, [num_queries]: a node stands at the last token's position plus its depth."""
    row = placed.row
    positions = list(range(placed.context_len, placed.context_len + len(row.tokens)))
    last, first_node = positions[-1], len(positions)
    for parent in row.node_parents:
        positions.append(1 + (last if parent < 0 else positions[first_node + parent]))
    return positions


def _slots(placed: BatchRow, block_size: int) -> Tensor:
    """Slots of a row's context and queries, in order: [num_keys] i64."""
    blocks = torch.tensor(placed.block_table, dtype=torch.int64)
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()
    return slots[: placed.context_len + placed.row.num_tokens]


def _mask(placed: BatchRow) -> Tensor | None:
    """Which keys each query sees, [num_queries, num_keys] bool; None for one query, which sees them all."""
    row, num_linear, num_queries = placed.row, len(placed.row.tokens), placed.row.num_tokens
    if num_queries == 1:
        return None
    mask = torch.ones(num_queries, placed.context_len + num_queries, dtype=torch.bool)
    among = mask[:, placed.context_len :]
    among[:num_linear] = torch.ones(num_linear, num_queries, dtype=torch.bool).tril()
    among[num_linear:, num_linear:] = False
    for node, parent in enumerate(row.node_parents):
        if parent >= 0:
            among[num_linear + node] = among[num_linear + parent]
        among[num_linear + node, num_linear + node] = True
    return mask
