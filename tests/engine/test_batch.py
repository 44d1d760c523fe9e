from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.layout import lay_out

BLOCK_SIZE = 4


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Batches whose blocks are all different, in any order."""
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
    return Batch(rows, moves)


def paths(row: Row) -> list[list[int]]:
    """For each query, the queries of its row that it sees: the slow and obvious way."""
    seen = [list(range(i + 1)) for i in range(len(row.tokens))]
    for node, parent in enumerate(row.node_parents):
        before = seen[len(row.tokens) - 1] if parent < 0 else seen[len(row.tokens) + parent]
        seen.append([*before, len(row.tokens) + node])
    return seen


@given(batches())
@settings(derandomize=True)
def test_a_batch_arrives_as_it_was_sent(batch: Batch) -> None:
    assert Batch.decode(batch.encode()) == batch


@given(batches())
@settings(derandomize=True)
def test_each_query_sees_the_context_and_its_own_path_and_stands_behind_them(batch: Batch) -> None:
    layout = lay_out(batch, BLOCK_SIZE, torch.device("cpu"))
    for placed, row in zip(batch.rows, layout.rows, strict=True):
        seen = paths(placed.row)
        mask = torch.ones(1, len(row.slots), dtype=torch.bool) if row.mask is None else row.mask
        for query, path in enumerate(seen):
            expected = [*range(placed.context_len), *(placed.context_len + i for i in path)]
            assert mask[query].nonzero().flatten().tolist() == expected
        positions = [placed.context_len + len(path) - 1 for path in seen]
        assert layout.positions[0, row.start : row.end].tolist() == positions


@given(batches())
@settings(derandomize=True)
def test_slots_follow_the_block_table_and_only_wanted_rows_get_logits(batch: Batch) -> None:
    layout = lay_out(batch, BLOCK_SIZE, torch.device("cpu"))
    expected_rows: list[int] = []
    for placed, row in zip(batch.rows, layout.rows, strict=True):
        num_keys = placed.context_len + placed.row.num_tokens
        slots = [placed.block_table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(num_keys)]
        assert row.slots.tolist() == slots
        assert layout.slot_mapping[row.start : row.end].tolist() == slots[placed.context_len :]
        if placed.row.wants_logits:
            expected_rows += range(row.start + len(placed.row.tokens) - 1, row.end)
    assert layout.logits_rows.tolist() == expected_rows
    assert layout.input_ids.shape == layout.positions.shape == (1, len(layout.slot_mapping))
