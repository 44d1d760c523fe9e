"""The CUDA paths, where there is a device. Never run by us so far: this workplace has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, GptOssConfig, LlamaConfig, PreTrainedConfig

from workers.choice.gumbel import gumbel_of_words
from workers.choice.noise import gumbel_rows
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def test_noise_is_the_same_bits_on_cuda_and_cpu() -> None:
    seeds, positions = [0, 1, 2**64 - 1], [0, 100_000, 2**32 - 1]
    on_cuda = gumbel_rows(seeds, positions, 151_936, stream=1, salt=[0, 1, 2**32 - 1], device="cuda").cpu()
    assert torch.equal(on_cuda, gumbel_rows(seeds, positions, 151_936, stream=1, salt=[0, 1, 2**32 - 1]))


def test_the_noise_of_any_word_is_the_same_bits_on_cuda_and_cpu() -> None:
    ends = torch.arange(2**20)
    words = torch.cat([ends, 2**31 + ends, 2**32 - 1 - ends, torch.randint(2**32, (10**7,))])
    assert torch.equal(gumbel_of_words(words.cuda()).cpu(), gumbel_of_words(words))


def test_a_tree_on_cuda_has_the_logits_of_the_cpu(tiny_llama: Path) -> None:
    rows = [Row(1, [3, 4, 5], [6, 7, 8, 9], [-1, 0, 0, 1]), Row(2, [9, 8])]
    logits = {}
    for device in ("cpu", "cuda"):
        engine = Engine(Checkpoint(tiny_llama, "tiny"), device=device, dtype="float32", kv_cache_bytes=1 << 18)
        engine.open(1)
        engine.open(2)
        logits[device] = engine.forward(rows)
    for on_cpu, on_cuda in zip(logits["cpu"], logits["cuda"], strict=True):
        assert on_cpu is not None
        assert on_cuda is not None
        torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-3, rtol=0)


SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}
WINDOWED = {"sliding_window": 200, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        Gemma2Config(**SIZES, **WINDOWED, attn_logit_softcapping=1.5),
        GptOssConfig(**SIZES, **WINDOWED, num_local_experts=4, num_experts_per_tok=2),
    ],
    ids=lambda config: config.model_type,
)
def test_long_mixed_passes_on_cuda_have_the_logits_of_the_cpu(
    config: PreTrainedConfig, save_model: Callable[[PreTrainedConfig], Path]
) -> None:
    """Sizes from a few queries to several tiles, so that the compiled kernel meets one tile and many."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, 61, (count,), generator=draw).tolist()

    tree = [-1, 0, -1, 2, 2, 4, 4]
    passes = [
        [Row(1, tokens(700)), Row(2, tokens(5), tokens(7), tree)],
        [Row(1, tokens(1), tokens(7), tree), Row(2, tokens(300)), Row(3, tokens(40), tokens(7), tree)],
        [Row(key, tokens(1), tokens(7), tree) for key in (1, 2, 3)],
        [Row(3, tokens(1))],
    ]
    folder = save_model(config)
    on_cpu, on_cuda = (
        Engine(Checkpoint(folder, "tiny"), device=device, dtype="float32", kv_cache_bytes=1 << 22)
        for device in ("cpu", "cuda")
    )
    for engine in (on_cpu, on_cuda):
        for key in (1, 2, 3):
            engine.open(key)
    for rows in passes:
        for expected, got in zip(on_cpu.forward(rows), on_cuda.forward(rows), strict=True):
            assert expected is not None
            assert got is not None
            torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=0)
