"""The compiled forward: the uncompiled one's logits, or none of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig

from outrider.errors import Unsupported
from tests.engine.conftest import SaveModel
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.forward import KernelForward
from workers.engine.layout import Layout
from workers.engine.runner import Engine


def make_engine(folder: Path, **options: Any) -> Engine:
    return Engine(Checkpoint(folder, "tiny"), block_size=4, kv_cache_bytes=1 << 18, **options)


def logits_of(engine: Engine) -> list[torch.Tensor]:
    """Of a prompt, a tree, a single token and a batch."""
    found = []
    for key in (1, 2):
        engine.open(key)
    for rows in (
        [Row(1, [1, 2, 3, 4, 5])],
        [Row(1, [6], [7, 8, 9, 10], [-1, 0, 0, 2])],
        [Row(1, [11])],
        [Row(1, [12]), Row(2, [13, 14, 15], [16], [-1])],
        [Row(1, [1, 2], wants_logits=False)],
    ):
        found += [logits.clone() for logits in engine.forward(rows) if logits is not None]
    return found


def test_compiled_the_logits_are_those_of_the_plain_forward(tiny_llama: Path) -> None:
    compiled = make_engine(tiny_llama, compiled=True)
    assert compiled._forward.is_compiled
    for got, expected in zip(logits_of(compiled), logits_of(make_engine(tiny_llama)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_no_pass_is_compiled_once_requests_are_served(save_model: SaveModel) -> None:
    engine = make_engine(even_llama(save_model), compiled=True)
    assert engine.is_compiled
    num_graphs = counters["stats"]["unique_graphs"]
    logits_of(engine)
    assert counters["stats"]["unique_graphs"] == num_graphs


def even_llama(save_model: SaveModel) -> Path:
    return save_model(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_is_served_compiled_where_every_size_is_whole_vectors(save_model: SaveModel, dtype: str) -> None:
    assert make_engine(even_llama(save_model), dtype=dtype, compiled=True, exact=True)._forward.is_compiled


def test_exact_is_refused_where_rounding_depends_on_the_pass(
    save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_inexactly(self: KernelForward, layout: Layout) -> torch.Tensor:
        return run(self, layout) * (1 + 1e-6 * layout.input_ids.shape[1])

    folder, run = even_llama(save_model), KernelForward.run
    monkeypatch.setattr(KernelForward, "run", run_inexactly)
    with pytest.raises(Unsupported, match=r"exact: of 48 tokens computed as one chain, 4\d have"):
        make_engine(folder, exact=True)


def test_exact_wins_over_compiled(
    save_model: SaveModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_inexactly(self: KernelForward, cache_dir: Path) -> None:
        def call(**inputs: Any) -> Any:
            output = self._module(**inputs)
            output.logits += 1e-5 * inputs["input_ids"].shape[1]
            return output

        self._call = call

    monkeypatch.setattr(KernelForward, "compile", compile_inexactly)
    with caplog.at_level(logging.WARNING, "workers"):
        engine = make_engine(even_llama(save_model), compiled=True, exact=True)
    assert not engine._forward.is_compiled
    assert "compiled it is not exact" in caplog.text


def test_what_torch_cannot_compile_runs_uncompiled_and_the_log_says_why(
    save_model: SaveModel, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}  # looks at its longest row: a graph break
    folder = save_model(
        LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            rope_parameters=rope,
        )
    )
    with caplog.at_level(logging.WARNING, "workers"):
        engine = make_engine(folder, compiled=True)
    assert "the forward runs uncompiled" in caplog.text
    assert not engine._forward.is_compiled
    for got, expected in zip(logits_of(engine), logits_of(make_engine(folder)), strict=True):
        assert torch.equal(got, expected)


def test_a_compiled_forward_with_other_logits_is_not_used(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def miscompile(self: KernelForward, cache_dir: Path) -> None:
        self._call = lambda **inputs: self._module(**inputs | {"input_ids": inputs["input_ids"] * 0})

    monkeypatch.setattr(KernelForward, "compile", miscompile)
    with caplog.at_level(logging.WARNING, "workers"):
        engine = make_engine(tiny_llama, compiled=True)
    assert not engine._forward.is_compiled
    assert "compiled, its logits are" in caplog.text
