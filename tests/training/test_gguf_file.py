"""A draft model as GGUF is the same model, but for the rounding of its layers to six bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from outrider.errors import Unsupported
from tests.tiny import save_tiny_llama
from workers.engine.checkpoint import prepare_checkpoint
from workers.training.gguf_file import write_gguf
from workers.training.layers import save_with_layers
from workers.vocabulary import vocabulary_of


@pytest.mark.model
@torch.inference_mode()
def test_a_model_comes_back_from_gguf(smollm2: Path, tmp_path: Path) -> None:
    folder = save_with_layers(smollm2, tmp_path / "two", range(2))
    write_gguf(folder, tmp_path / "two.gguf")
    back = prepare_checkpoint(str(tmp_path / "two.gguf"), cache_dir=tmp_path / "cache").folder

    ours, theirs = (AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (folder, back))
    assert torch.equal(ours.model.embed_tokens.weight, theirs.model.embed_tokens.weight), "it was Q8_0 before"
    tokens = torch.randint(0, 49_000, (1, 40), generator=torch.Generator().manual_seed(0))
    expected, found = ours(tokens).logits, theirs(tokens).logits
    assert (expected - found).abs().max() < 0.5 * expected.std()
    assert (expected.argmax(-1) == found.argmax(-1)).float().mean() > 0.9
    assert vocabulary_of(back, 49_152) == vocabulary_of(smollm2, 49_152)


def test_what_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="head is its embedding"):
        write_gguf(save_tiny_llama(tmp_path / "tiny"), tmp_path / "tiny.gguf")
