"""The CPU kernels against plain torch: products, attention over long contexts, and what happens without a compiler."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from outrider.errors import Unsupported
from workers.engine import forward
from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.checkpoint import DEFAULT_CACHE_DIR, Checkpoint
from workers.engine.forward import pack_layout
from workers.engine.kv_store import KVShape, KVStore, PanelStore
from workers.engine.layout import lay_out
from workers.engine.linear import pack_linear_layers
from workers.engine.reference_attention import ReferenceAttention
from workers.engine.runner import Engine
from workers.engine.scoring import Scoring
from workers.kernels import build

BLOCK_SIZE = 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    assert build.load_kernels(DEFAULT_CACHE_DIR.expanduser())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 48), (61, 72), (5, 3), (1, 129)])
def test_the_packed_product_is_the_product_for_any_number_of_rows_and_the_same_bits_for_each(
    dtype: torch.dtype, num_outputs: int, num_inputs: int
) -> None:
    weight = torch.randn(num_outputs, num_inputs, generator=seeded()).to(dtype)
    bias = torch.randn(num_outputs, generator=seeded())
    packed = torch.ops.outrider.pack_weight(weight)
    for num_rows in (1, 2, 3, 5, 6, 7, 13, 40):
        x = torch.randn(num_rows, num_inputs, generator=seeded()).to(dtype)
        got = torch.ops.outrider.linear(x, packed, None, bias, None, num_outputs)
        expected = linear(x.double(), weight.double(), bias.double())
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
        one_by_one = [torch.ops.outrider.linear(row[None], packed, None, bias, None, num_outputs) for row in x]
        assert torch.equal(got, torch.cat(one_by_one))


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 48), (61, 71)])
def test_a_layer_in_bytes_is_the_layer_of_its_rounded_weight_and_near_the_one_before(
    num_outputs: int, num_inputs: int
) -> None:
    layer = torch.nn.Linear(num_inputs, num_outputs, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.copy_(torch.randn(num_outputs, num_inputs, generator=seeded()))
    layer.weight[3] = 0.0  # nothing to scale by
    layer.weight[:, 1] *= 5.0  # one input of many makes the scale
    plain = copy.deepcopy(layer)
    pack_linear_layers(layer, keep_weights=False, in_bytes=True)
    weight = plain.weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = torch.where(scale > 0, (weight / scale).round() * scale, 0.0).double()
    for num_rows in (1, 2, 13, 40):
        x = torch.randn(num_rows, num_inputs, generator=seeded()).bfloat16()
        got = layer(x)
        torch.testing.assert_close(got.double(), linear(x.double(), rounded, plain.bias.double()), atol=2e-2, rtol=2e-2)
        assert torch.equal(got, torch.cat([layer(row[None]) for row in x]))
        error = (got - plain(x)).double().norm() / plain(x).double().norm()
        assert 0 < error < 0.03


def test_beside_its_plain_form_a_weight_leaves_many_rows_to_torch() -> None:
    weight, bias = torch.randn(8, 4, generator=seeded()), torch.randn(8, generator=seeded())
    other = torch.randn(8, 4, generator=seeded()) + 1  # so that the result tells which of the two was used
    packed = torch.ops.outrider.pack_weight(weight)
    few, many = torch.randn(16, 4, generator=seeded()), torch.randn(17, 4, generator=seeded())
    torch.testing.assert_close(torch.ops.outrider.linear(few, packed, None, bias, other, 8), linear(few, weight, bias))
    torch.testing.assert_close(torch.ops.outrider.linear(many, packed, None, bias, other, 8), linear(many, other, bias))


def long_batch() -> Batch:
    """Rows on both sides of the kernel's segments of 512 positions: chunks, single tokens and trees across a border."""
    rows = [
        (Row(0, [1] * 40), 500),
        (Row(1, [1], [1] * 14, [-1, 0, 1, 2, 2, 4, 5, 6, 7, 8, 9, 10, 11, -1]), 505),
        (Row(2, [1]), 1100),
        (Row(3, [1, 1], [1] * 5, [-1, -1, 1, 1, 3]), 1030),
        (Row(4, [1] * 3), 0),
        (Row(5, [1], [1, 1], [-1, 0]), 511),
    ]
    generator, taken, placed = seeded(), 0, []
    order = torch.randperm(256, generator=generator).tolist()
    for row, context in rows:
        count = -(-(context + row.num_tokens) // BLOCK_SIZE)
        placed.append(BatchRow(row, context, order[taken : taken + count]))
        taken += count
    return Batch.of(placed, [])


SCORINGS = {
    "plain": (Scoring(0.125), False),
    "window": (Scoring(0.125, window=300), False),
    "window over a border": (Scoring(0.125, window=20), False),
    "softcap": (Scoring(0.125, softcap=3.0), False),
    "sinks": (Scoring(0.125), True),
    "all": (Scoring(0.2, window=700, softcap=5.0), True),
}


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 40), (8, 1, 96), (2, 2, 12)])
@pytest.mark.parametrize("name", SCORINGS)
def test_attention_over_long_contexts_is_that_of_the_reference(
    name: str, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    scoring, has_sinks = SCORINGS[name]
    layout = lay_out(long_batch(), BLOCK_SIZE, CPU)
    num_tokens = layout.input_ids.shape[1]
    shape = KVShape(1, num_kv_heads, head_dim, torch.float32)
    plain, panels = KVStore(shape, 256 * BLOCK_SIZE, CPU), PanelStore(shape, 256, BLOCK_SIZE, CPU)
    generator = seeded()
    for held in (plain.keys, plain.values):
        held.copy_(torch.randn(held.shape, generator=generator))
    blocks = (1, 256, BLOCK_SIZE, num_kv_heads, head_dim)
    panels.keys.copy_(plain.keys.view(blocks).permute(0, 1, 3, 4, 2))
    panels.values.copy_(plain.values.view(blocks).permute(0, 1, 3, 2, 4))
    query = torch.randn(1, num_heads, num_tokens, head_dim, generator=generator)
    key, value = (torch.randn(1, num_kv_heads, num_tokens, head_dim, generator=generator) for _ in range(2))
    sinks = torch.randn(num_heads, generator=generator) if has_sinks else None

    plain.write(0, layout.slot_mapping, key[0].transpose(0, 1), value[0].transpose(0, 1))
    expected = ReferenceAttention(layout, plain).attend(0, query[0], scoring, sinks)
    got = torch.ops.outrider.paged_attention(
        query,
        key,
        value,
        panels.keys[0],
        panels.values[0],
        pack_layout(layout),
        scoring.scaling,
        scoring.window or 0,
        scoring.softcap or 0.0,
        sinks,
    )

    torch.testing.assert_close(got[0], expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(panels.keys.permute(0, 1, 4, 2, 3).reshape(plain.keys.shape), plain.keys)


def test_another_cache_folder_in_the_same_process_is_no_second_library(tmp_path: Path) -> None:
    assert build.load_kernels(tmp_path)
    assert not list(tmp_path.iterdir())


def test_moves_are_all_read_before_one_is_written_in_either_store() -> None:
    shape = KVShape(2, 3, 12, torch.float32)
    plain, panels = KVStore(shape, 8 * 4, CPU), PanelStore(shape, 8, 4, CPU)
    for held in (plain.keys, plain.values):
        held.copy_(torch.randn(held.shape, generator=seeded()))
    panels.keys.copy_(plain.keys.view(2, 8, 4, 3, 12).permute(0, 1, 3, 4, 2))
    panels.values.copy_(plain.values.view(2, 8, 4, 3, 12).permute(0, 1, 3, 2, 4))
    moves = torch.tensor([[5, 9], [9, 5], [30, 6]])
    for store in (plain, panels):
        store.move(moves)
    assert torch.equal(panels.keys.permute(0, 1, 4, 2, 3).reshape(plain.keys.shape), plain.keys)
    assert torch.equal(panels.values.permute(0, 1, 3, 2, 4).reshape(plain.values.shape), plain.values)


def test_without_a_compiler_torch_serves_and_the_log_says_so(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "workers"):
        patched.setattr(build.shutil, "which", lambda name: None)
        patched.setattr(forward, "load_kernels", build._load)  # asked anew, as in a new process
        engine = Engine(Checkpoint(tiny_llama, "tiny"), kv_cache_bytes=1 << 18, cache_dir=tmp_path)
        with pytest.raises(Unsupported, match="exact is for CPUs with our kernels"):
            Engine(Checkpoint(tiny_llama, "tiny"), kv_cache_bytes=1 << 18, exact=True, cache_dir=tmp_path)
    assert "no C++ compiler is here" in caplog.text
    with_kernels = Engine(Checkpoint(tiny_llama, "tiny"), kv_cache_bytes=1 << 18)
    logits = []
    for each in (engine, with_kernels):
        each.open(1)
        logits += each.forward([Row(1, [1, 2, 3])])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    assert not torch.equal(logits[0], logits[1])  # two implementations, that is


def test_source_that_a_compiler_refuses_is_reported_with_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-DOUTRIDER_LANES=nonsense", "--no-such-flag"))
    with caplog.at_level(logging.WARNING):
        assert not build._load(tmp_path)
    assert "the CPU kernels can't be compiled" in caplog.text
    assert "no-such-flag" in caplog.text
    assert not list((tmp_path / "kernels").glob("*.so"))
