"""Where everything in a batch lies: positions, slots, parents and logits rows, worked out once a pass on each rank.

A pass is packed: the queries of all rows stand side by side, [num_tokens], each row's tokens before its nodes.

    one row's queries    tokens t0 t1 t2 | nodes n0 n1 n2 (parents -1 0 0)
    it sees the context  all of it       | all of it
    among the queries    t0: t0          | n0: t0 t1 t2 n0
                         t1: t0 t1       | n1: t0 t1 t2 n0 n1
                         t2: t0 t1 t2    | n2: t0 t1 t2 n0 n2
    packed parents       -1 0 1          | 2 3 3

So a query sees its row's context, itself, and whatever its parents lead to. A layer with a sliding window sees of
these only the keys less than a window behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.engine.batch import Batch, Ints, cumulated, node_depths

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """All that the forward of a batch needs besides the model, on the model's device; and the batch itself, which
    stays on the host."""

    batch: Batch
    block_size: int
    input_ids: Tensor  # [1, num_tokens] i64
    positions: Tensor  # [1, num_tokens] i64
    slot_mapping: Tensor  # [num_tokens] i64; where each query's KV goes
    moves: Tensor  # [num_moves, 2] i64; (source slot, destination slot)
    logits_rows: Tensor  # [num_logits] i64; the queries whose logits are wanted
    cu_queries: Tensor  # [num_rows + 1] i32; row r's queries are cu_queries[r]:cu_queries[r + 1]
    context_lens: Tensor  # [num_rows] i32; cached before the pass
    num_linear: Tensor  # [num_rows] i32; tokens of the row, before its nodes
    block_tables: Tensor  # [total blocks] i32
    cu_blocks: Tensor  # [num_rows + 1] i32; row r's block table is block_tables[cu_blocks[r]:cu_blocks[r + 1]]
    parents: Tensor  # [num_tokens] i32; the query right before this one on its path, -1 for its row's first


def lay_out(batch: Batch, block_size: int, device: torch.device) -> Layout:
    """The layout of a batch, on `device`."""
    num_queries = batch.num_linear + batch.num_nodes
    cu_queries, cu_blocks = cumulated(num_queries), cumulated(batch.num_blocks)
    row_of = np.repeat(np.arange(len(num_queries)), num_queries)
    within = np.arange(cu_queries[-1]) - cu_queries[row_of]  # each query's number in its row
    places = batch.context_lens[row_of] + within  # a node's place in the block table is not its position
    is_node = within >= batch.num_linear[row_of]
    blocks = batch.block_tables[cu_blocks[row_of] + places // block_size]
    long = _on_device(
        [
            batch.tokens,
            query_positions(batch, places, is_node),
            blocks * block_size + places % block_size,
            batch.moves.reshape(-1),
            _logits_rows(batch, cu_queries),
        ],
        np.int64,
        device,
    )
    short = _on_device(
        [
            cu_queries,
            batch.context_lens,
            batch.num_linear,
            batch.block_tables,
            cu_blocks,
            _parents(batch, cu_queries, within, is_node),
        ],
        np.int32,
        device,
    )
    input_ids, positions, slot_mapping, moves, logits_rows = long
    moves = moves.view(-1, 2)
    return Layout(batch, block_size, input_ids[None], positions[None], slot_mapping, moves, logits_rows, *short)


def query_positions(
    batch: Batch,
    places: Ints,  # [num_tokens]; each query's place in its row's block table
    is_node: Flags,  # [num_tokens]
) -> Ints:
    """Positions of the queries, [num_tokens]: a node stands at its row's last token plus its depth."""
    last = np.repeat(batch.context_lens + batch.num_linear - 1, batch.num_nodes)
    positions = places.copy()
    positions[is_node] = last + node_depths(batch.node_parents, batch.num_nodes)
    return positions


def _parents(
    batch: Batch,
    cu_queries: Ints,  # [num_rows + 1]
    within: Ints,  # [num_tokens]
    is_node: Flags,  # [num_tokens]
) -> Ints:
    first_node = np.repeat(cu_queries[:-1] + batch.num_linear, batch.num_nodes)
    parents = np.where(within == 0, -1, np.arange(len(within)) - 1)
    parents[is_node] = first_node + batch.node_parents  # -1 leads to the row's last token
    return parents


def _logits_rows(
    batch: Batch,
    cu_queries: Ints,  # [num_rows + 1]
) -> Ints:
    """The last num_logits queries of each row: [num_logits]."""
    cu_logits = cumulated(batch.num_logits)
    shift = cu_queries[1:] - cu_logits[1:]
    return np.arange(cu_logits[-1]) + np.repeat(shift, batch.num_logits)


def _on_device(arrays: list[Ints], dtype: type[np.int64] | type[np.int32], device: torch.device) -> tuple[Tensor, ...]:
    """The arrays as tensors, sent in one transfer."""
    joined = torch.from_numpy(np.concatenate(arrays, dtype=dtype, casting="same_kind")).to(device)
    return torch.split(joined, [len(array) for array in arrays])
