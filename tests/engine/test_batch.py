from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.layout import lay_out
from workers.engine.row_view import row_views

BLOCK_SIZE = 4
CPU = torch.device("cpu")

Moves = list[tuple[int, int]]


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[BatchRow], Moves]:
    """Rows whose blocks are all different, in any order, and moves."""
    rows = []
    blocks = iter(draw(st.permutations(range(64))))
    for key in range(draw(st.integers(1, 4))):
        tokens = draw(st.lists(st.integers(0, 99), min_size=1, max_size=5))
        num_nodes = draw(st.integers(0, 5))
        parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
        row = Row(key, tokens, list(range(num_nodes)), parents, wants_logits=draw(st.booleans()))
        context_len = draw(st.integers(0, 9))
        num_blocks = -(-(context_len + row.num_tokens) // BLOCK_SIZE)
        rows.append(BatchRow(row, context_len, [next(blocks) for _ in range(num_blocks)]))
    moves = draw(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=4))
    return rows, moves


def paths(row: Row) -> list[list[int]]:
    """For each query, the queries of its row that it sees: the slow and obvious way."""
    seen = [list(range(i + 1)) for i in range(len(row.tokens))]
    for node, parent in enumerate(row.node_parents):
        before = seen[len(row.tokens) - 1] if parent < 0 else seen[len(row.tokens) + parent]
        seen.append([*before, len(row.tokens) + node])
    return seen


@given(batches())
@settings(derandomize=True)
def test_a_batch_arrives_as_it_was_sent(drawn: tuple[list[BatchRow], Moves]) -> None:
    rows, moves = drawn
    sent = Batch.of(rows, moves)
    arrived = Batch.decode(sent.encode())
    for field in fields(Batch):
        np.testing.assert_array_equal(getattr(arrived, field.name), getattr(sent, field.name), strict=True)
    assert arrived.moves.tolist() == [list(move) for move in moves]
    assert arrived.tokens.tolist() == [t for one in rows for t in (*one.row.tokens, *one.row.node_tokens)]
    assert arrived.node_parents.tolist() == [parent for one in rows for parent in one.row.node_parents]
    assert arrived.block_tables.tolist() == [block for one in rows for block in one.block_table]


def test_block_tables_may_come_as_arrays_too() -> None:
    as_lists = Batch.of([BatchRow(Row(1, [5]), 3, [7])], []).encode()
    as_arrays = Batch.of([BatchRow(Row(1, [5]), 3, np.array([7], np.int32))], np.empty((0, 2), np.int64)).encode()
    assert torch.equal(as_lists, as_arrays)


@given(batches())
@settings(derandomize=True)
def test_each_query_sees_the_context_and_its_own_path_and_stands_behind_them(
    drawn: tuple[list[BatchRow], Moves],
) -> None:
    rows, moves = drawn
    layout = lay_out(Batch.of(rows, moves), BLOCK_SIZE, CPU)
    for placed, view in zip(rows, row_views(layout), strict=True):
        seen = paths(placed.row)
        for query, path in enumerate(seen):
            expected = [*range(placed.context_len), *(placed.context_len + i for i in path)]
            assert view.seen[query].nonzero().flatten().tolist() == expected
        positions = [placed.context_len + len(path) - 1 for path in seen]
        assert layout.positions[0, view.start : view.end].tolist() == positions
        before = [view.start + path[-2] if len(path) > 1 else -1 for path in seen]
        assert layout.parents[view.start : view.end].tolist() == before


@given(batches())
@settings(derandomize=True)
def test_slots_follow_the_block_table_and_only_wanted_rows_get_logits(drawn: tuple[list[BatchRow], Moves]) -> None:
    rows, moves = drawn
    layout = lay_out(Batch.of(rows, moves), BLOCK_SIZE, CPU)
    expected_rows: list[int] = []
    for placed, view in zip(rows, row_views(layout), strict=True):
        num_keys = placed.context_len + placed.row.num_tokens
        slots = [placed.block_table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(num_keys)]
        assert view.slots.tolist() == slots
        assert layout.slot_mapping[view.start : view.end].tolist() == slots[placed.context_len :]
        if placed.row.wants_logits:
            expected_rows += range(view.start + len(placed.row.tokens) - 1, view.end)
    assert layout.logits_rows.tolist() == expected_rows
    assert layout.input_ids.shape == layout.positions.shape == (1, len(layout.slot_mapping))
    assert layout.moves.tolist() == [list(move) for move in moves]


@given(batches())
@settings(derandomize=True)
def test_what_kernels_read_has_the_rows_lengths_in_32_bits(drawn: tuple[list[BatchRow], Moves]) -> None:
    rows, moves = drawn
    layout = lay_out(Batch.of(rows, moves), BLOCK_SIZE, CPU)
    queries, blocks = layout.cu_queries.diff().tolist(), layout.cu_blocks.diff().tolist()
    assert queries == [placed.row.num_tokens for placed in rows]
    assert blocks == [len(placed.block_table) for placed in rows]
    assert layout.context_lens.tolist() == [placed.context_len for placed in rows]
    assert layout.num_linear.tolist() == [len(placed.row.tokens) for placed in rows]
    assert layout.block_tables.tolist() == [block for placed in rows for block in placed.block_table]
    short = (layout.cu_queries, layout.cu_blocks, layout.context_lens, layout.num_linear, layout.block_tables)
    assert {tensor.dtype for tensor in (*short, layout.parents)} == {torch.int32}
