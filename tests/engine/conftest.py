"""Tiny random models of several families, on disk as a user would have them, and their plain logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine

transformers_logging.disable_progress_bar()

SaveModel = Callable[[PreTrainedConfig], Path]
LogitsOf = Callable[[Path, Sequence[int]], Tensor]
KV_CACHE_BYTES = 1 << 18


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Saves a model with this config and seeded random weights; gives its folder."""

    def save(config: PreTrainedConfig) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(config.model_type)
        module = AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        module.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def plain_logits() -> LogitsOf:
    """Logits by transformers alone, [num_tokens, vocab], after each token of a sequence."""
    modules: dict[Path, torch.nn.Module] = {}

    @torch.inference_mode()
    def logits_of(folder: Path, tokens: Sequence[int]) -> Tensor:
        if folder not in modules:
            modules[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits: Tensor = modules[folder](input_ids=torch.tensor([tokens])).logits[0]
        return logits

    return logits_of


@pytest.fixture(scope="session")
def tiny_llama(save_model: SaveModel) -> Path:
    """Nine query heads over three KV heads: two ranks can share it only with padding."""
    return save_model(
        LlamaConfig(
            vocab_size=61,  # odd, as is the MLP: two ranks get unequal parts
            hidden_size=72,
            intermediate_size=67,
            num_hidden_layers=2,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=64,
            eos_token_id=[5, 3],
        )
    )


@pytest.fixture(scope="session")
def shared_engine(tiny_llama: Path) -> Engine:
    return Engine(Checkpoint(tiny_llama, "tiny"), block_size=4, kv_cache_bytes=KV_CACHE_BYTES)


@pytest.fixture
def tiny_engine(shared_engine: Engine) -> Engine:
    """An engine of `tiny_llama` with nothing open or to be found in it."""
    shared_engine._cache.clear()
    return shared_engine
