"""Flex attention on random passes against the reference: uncompiled, on the CPU, where it computes every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.flex_attention import TILE, FlexAttention, SeenKeys
from workers.engine.kv_store import KVShape, KVStore
from workers.engine.layout import lay_out
from workers.engine.reference_attention import ReferenceAttention
from workers.engine.row_view import row_views
from workers.engine.scoring import Scoring
from workers.engine.tree_order import tree_order

BLOCK_SIZE = 4
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 8
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def random_batch(seed: int, lengths: Sequence[tuple[int, int, int]]) -> Batch:
    """Rows of (context, tokens, nodes) with random trees; the first block is the first of every row with a context.

    Sharing a block is what a prefix cache would do.
    """
    draw = np.random.default_rng(seed)
    num_blocks = [-(-sum(length) // BLOCK_SIZE) for length in lengths]
    blocks = 1 + draw.permutation(sum(num_blocks))
    placed = []
    for key, (context, num_linear, num_nodes) in enumerate(lengths):
        table, blocks = blocks[: num_blocks[key]], blocks[num_blocks[key] :]
        if context >= BLOCK_SIZE:
            table = np.concatenate(([0], table[1:]))
        parents = [int(draw.integers(max(-1, node - 4), node)) for node in range(num_nodes)]
        placed.append(BatchRow(Row(key, [1] * num_linear, [1] * num_nodes, parents), context, table))
    return Batch.of(placed, [])


def both(batch: Batch, scoring: Scoring, *, with_sinks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    layout = lay_out(batch, BLOCK_SIZE, CPU)
    num_slots = (int(batch.block_tables.max()) + 1) * BLOCK_SIZE
    store = KVStore(KVShape(1, NUM_KV_HEADS, HEAD_DIM, torch.float32), num_slots, CPU)
    kv = torch.randn(2, num_slots, NUM_KV_HEADS, HEAD_DIM, generator=draw)
    store.write(0, torch.arange(num_slots), *kv)
    query = torch.randn(NUM_HEADS, len(batch.tokens), HEAD_DIM, generator=draw)
    sinks = torch.randn(NUM_HEADS, generator=draw) if with_sinks else None
    flex = FlexAttention(layout, store).attend(0, query, scoring, sinks)
    return flex, ReferenceAttention(layout, store).attend(0, query, scoring, sinks)


lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4)


@given(lengths, st.integers(0, 99), st.sampled_from([None, 1, 5, 30]), st.sampled_from([None, 2.0]), st.booleans())
@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flex_attention_computes_what_the_reference_does(
    rows: list[tuple[int, int, int]], seed: int, window: int | None, softcap: float | None, with_sinks: bool
) -> None:
    flex, reference = both(random_batch(seed, rows), Scoring(0.4, window, softcap), with_sinks=with_sinks)
    torch.testing.assert_close(flex, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 400])
def test_every_key_that_is_seen_lies_in_a_visited_tile_and_untested_tiles_are_seen_whole(window: int | None) -> None:
    batch = random_batch(1, [(500, 300, 7), (0, 3, 0), (40, 1, 150), (600, 2, 30), (0, 1, 1)])
    layout = lay_out(batch, BLOCK_SIZE, CPU)
    num_keys = int((batch.context_lens + batch.num_linear + batch.num_nodes).sum())
    seen = torch.zeros(len(batch.tokens), num_keys, dtype=torch.bool)
    first = 0
    for view in row_views(layout):
        mask = view.seen if (masked := view.mask(window)) is None else masked
        seen[view.start : view.end, first : first + mask.shape[1]] = mask
        first += mask.shape[1]
    partial, full = SeenKeys(batch, BLOCK_SIZE, CPU).tiles(window)
    in_tiles = seen.numpy()
    visited = 0
    for query, key in np.ndindex(partial.shape):
        tile = in_tiles[query * TILE : (query + 1) * TILE, key * TILE : (key + 1) * TILE]
        assert (partial | full)[query, key] >= tile.any()
        assert not full[query, key] or (tile.all() and tile.shape == (TILE, TILE))
        visited += (partial | full)[query, key]
    assert full.any()
    assert visited < partial.size
    assert not (partial & full).any()


@given(lengths, st.integers(0, 99))
@settings(derandomize=True, deadline=None)
def test_an_interval_of_numbers_says_who_descends_from_whom(rows: list[tuple[int, int, int]], seed: int) -> None:
    batch = random_batch(seed, rows)
    order = tree_order(batch)
    assert sorted(order.numbers) == list(range(len(order.numbers)))
    for view in row_views(lay_out(batch, BLOCK_SIZE, CPU)):
        numbers, ends = order.numbers[view.start : view.end], order.ends[view.start : view.end]
        expected: Any = view.seen[:, view.context_len :].numpy()
        np.testing.assert_array_equal((numbers <= numbers[:, None]) & (numbers[:, None] < ends), expected)
