"""One pass as it travels: what every rank of a target group must know to carry out the same forward.

A batch names tokens, tree parents and block tables; everything else (positions, slot mapping, who sees whom) follows
from these in `layout.py`, the same on every rank. It is a struct of arrays, so that it becomes the one short tensor of
a broadcast, and comes back from it, by joining and cutting alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
_NUM_PLACES = 5  # values that an encoded row has besides its lists


@dataclass(frozen=True, slots=True)
class Row:
    """One request's part of a pass.

    `tokens` follow what is cached of the request, each seeing all before it, and become cached. The nodes form a
    tree below the last of them: node_parents[i] is an earlier node, or -1 for the last token.
    """

    key: int
    tokens: Sequence[int]
    node_tokens: Sequence[int] = ()
    node_parents: Sequence[int] = ()
    wants_logits: bool = True  # [1 + num_nodes, vocab]: of the last token, then of each node

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + len(self.node_tokens)

    @property
    def num_logits(self) -> int:
        return 1 + len(self.node_tokens) if self.wants_logits else 0


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A row with its place in the cache. The block table covers its context, its tokens and its nodes."""

    row: Row
    context_len: int  # committed tokens cached before this pass
    block_table: Sequence[int] | Ints


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The rows of one pass, and the moves of accepted nodes that come before it. Lists of rows lie end to end."""

    context_lens: Ints  # [num_rows]; committed tokens cached before this pass
    num_linear: Ints  # [num_rows]; tokens of the row, before its nodes
    num_nodes: Ints  # [num_rows]
    num_logits: Ints  # [num_rows]; 1 + num_nodes where they are wanted, else 0
    num_blocks: Ints  # [num_rows]
    tokens: Ints  # [num_tokens]; each row's tokens, then its nodes' tokens
    node_parents: Ints  # [total nodes]; as in `Row`: counted within the row, -1 for its last token
    block_tables: Ints  # [total blocks]
    moves: Ints  # [num_moves, 2]; (source slot, destination slot)

    @staticmethod
    def of(placed: Sequence[BatchRow], moves: Sequence[tuple[int, int]] | Ints) -> Batch:
        rows = [one.row for one in placed]
        return Batch(
            context_lens=_ints([one.context_len for one in placed]),
            num_linear=_ints([len(row.tokens) for row in rows]),
            num_nodes=_ints([len(row.node_tokens) for row in rows]),
            num_logits=_ints([row.num_logits for row in rows]),
            num_blocks=_ints([len(one.block_table) for one in placed]),
            tokens=join([part for row in rows for part in (row.tokens, row.node_tokens)]),
            node_parents=join([row.node_parents for row in rows]),
            block_tables=join([one.block_table for one in placed]),
            moves=_ints(moves).reshape(-1, 2),
        )

    def encode(self) -> Tensor:
        """The batch as [num_values] i64: two counts, then its arrays one behind the other."""
        counts = _ints([len(self.context_lens), len(self.moves)])
        places = (self.context_lens, self.num_linear, self.num_nodes, self.num_logits, self.num_blocks)
        lists = (self.tokens, self.node_parents, self.block_tables)
        return torch.from_numpy(np.concatenate((counts, *places, self.moves.reshape(-1), *lists)))

    @staticmethod
    def decode(
        encoded: Tensor,  # [num_values] i64, as `encode` made it
    ) -> Batch:
        values: Ints = encoded.numpy()
        num_rows, num_moves = values[:2].tolist()
        places, rest = np.split(values[2:], [_NUM_PLACES * num_rows])
        context_lens, num_linear, num_nodes, num_logits, num_blocks = places.reshape(_NUM_PLACES, num_rows)
        total_nodes = num_nodes.sum()
        ends = np.cumsum([2 * num_moves, num_linear.sum() + total_nodes, total_nodes])
        moves, tokens, node_parents, block_tables = np.split(rest, ends)
        return Batch(
            context_lens,
            num_linear,
            num_nodes,
            num_logits,
            num_blocks,
            tokens,
            node_parents,
            block_tables,
            moves.reshape(-1, 2),
        )


def join(parts: Sequence[Sequence[int] | Ints]) -> Ints:
    """Lists of integers end to end, [total]."""
    if parts and all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, dtype=np.int64)
    return np.fromiter(chain.from_iterable(parts), np.int64, count=sum(map(len, parts)))


def cumulated(
    counts: Ints,  # [num_rows]
) -> Ints:
    """Where each row's part begins, and at last where all end: [num_rows + 1]."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))


def node_depths(
    node_parents: Ints,  # [total nodes]; counted within the row, -1 for its last token
    num_nodes: Ints,  # [num_rows]
) -> Ints:
    """Each node's distance from its row's last token, [total nodes]: 1 for a child of it.

    Takes one step a level, for all nodes of all rows at once.
    """
    first_node = np.repeat(cumulated(num_nodes)[:-1], num_nodes)
    parents = np.where(node_parents < 0, -1, first_node + node_parents)
    depths = np.ones(len(parents), np.int64)
    deeper = np.flatnonzero(parents >= 0)
    above = parents[deeper]
    while len(deeper):
        depths[deeper] += 1
        above = parents[above]
        deeper, above = deeper[above >= 0], above[above >= 0]
    return depths


def _ints(values: Any) -> Ints:
    return np.asarray(values, dtype=np.int64)
