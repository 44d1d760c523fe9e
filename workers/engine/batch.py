"""One pass as it travels: what every rank of a target group must know to carry out the same forward.

A batch names tokens, tree parents and block tables; everything else (positions, slot mapping, masks) follows from
these in `layout.py`, the same on every rank. So the broadcast is one short tensor of integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor


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
    block_table: Sequence[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one pass, and the moves of accepted nodes that come before it."""

    rows: Sequence[BatchRow]
    moves: Sequence[tuple[int, int]]  # (source slot, destination slot)

    def encode(self) -> Tensor:
        """The batch as [num_values] i64: counts and moves, then each row's lengths followed by its lists."""
        values: list[int] = [len(self.moves), len(self.rows)]
        for move in self.moves:
            values += move
        for placed in self.rows:
            row = placed.row
            values += (row.key, placed.context_len, row.wants_logits)
            values += (len(row.tokens), len(row.node_tokens), len(placed.block_table))
            for part in (row.tokens, row.node_tokens, row.node_parents, placed.block_table):
                values += part
        return torch.tensor(values, dtype=torch.int64)

    @staticmethod
    def decode(
        encoded: Tensor,  # [num_values] i64, as `encode` made it
    ) -> Batch:
        values = iter(encoded.tolist())
        num_moves, num_rows = _take(values, 2)
        moves = [(source, destination) for source, destination in (_take(values, 2) for _ in range(num_moves))]
        return Batch([_decode_row(values) for _ in range(num_rows)], moves)


def _decode_row(values: Iterator[int]) -> BatchRow:
    key, context_len, wants_logits, num_linear, num_nodes, num_blocks = _take(values, 6)
    tokens, node_tokens, node_parents = (_take(values, n) for n in (num_linear, num_nodes, num_nodes))
    row = Row(key, tokens, node_tokens, node_parents, wants_logits=bool(wants_logits))
    return BatchRow(row, context_len, _take(values, num_blocks))


def _take(values: Iterator[int], count: int) -> list[int]:
    return list(islice(values, count))
