"""Checkpoints small enough to be made in a test: random weights, real format."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_TOKEN = 0
NUM_LETTER_TOKENS = 257  # of save_letter_tokenizer


def save_tiny_llama(
    folder: Path,
    *,
    vocab: int = 97,
    seed: int = 0,
    num_layers: int = 2,
    max_context: int = 128,
    nan_token: int | None = None,  # a token after which the model answers NaN
    with_tokenizer: bool = True,
) -> Path:
    """Write a random llama (8 heads, 4 KV heads) with a word-level tokenizer into `folder`; returns it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=max_context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END_TOKEN,
        pad_token_id=None,
        initializer_range=0.15,  # large enough for the answer to depend on every token before it
    )
    model = LlamaForCausalLM(config)
    if nan_token is not None:
        with torch.no_grad():
            model.model.embed_tokens.weight[nan_token] = math.nan
    model.save_pretrained(folder)
    if with_tokenizer:
        words = {f"w{token}": token for token in range(vocab)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w0")  # type: ignore[no-untyped-call]
        wrapped.save_pretrained(folder)
    return folder


def save_tiny_pair(folder: Path, *, num_layers: int, max_context: int = 128) -> tuple[Path, Path]:
    """A target, and a draft model that is often right about it and many times faster: its first two layers.

    The others add little to what these make of a text.
    """
    target = save_tiny_llama(folder / "target", num_layers=num_layers, max_context=max_context)
    model = LlamaForCausalLM.from_pretrained(target)
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.self_attn.o_proj.weight *= 0.02
            layer.mlp.down_proj.weight *= 0.02
    model.save_pretrained(target)
    draft = save_tiny_llama(folder / "draft", num_layers=2, max_context=max_context)
    half = LlamaForCausalLM.from_pretrained(draft)
    half.load_state_dict(model.state_dict(), strict=False)
    half.save_pretrained(draft)
    return target, draft


def save_letter_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token for each byte into `folder`: any text can be written with it, and by a grammar."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
    tokenizer = Tokenizer(models.BPE({"<end>": END_TOKEN, **letters}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)  # type: ignore[no-untyped-call]
