"""Models that say one text in different tokens."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Each character occurs once, so the last one of a token says what comes next.
TEXT = " abcdefghé🙂ijklmnopqrs,tuvwxyz."
_HIDDEN = 384


def save_speaking_llama(folder: Path, tokenizer: Tokenizer) -> Path:
    """Write a model that goes on with TEXT, over and over, from wherever it is; in its tokenizer's own tokens."""
    vocab = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=_HIDDEN,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocab, _HIDDEN))
        model.lm_head.weight.zero_()
        for token, successor in enumerate(_successors(tokenizer)):
            model.lm_head.weight[successor, token] = 1
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def _successors(tokenizer: Tokenizer) -> list[int]:
    """What comes after each token: as the tokenizer writes the text, or else by its last character."""
    written = tokenizer.encode(TEXT * 3, add_special_tokens=False).ids
    successors = []
    for token in range(tokenizer.get_vocab_size()):
        last = TEXT.find(tokenizer.decode([token], skip_special_tokens=False)[-1:])
        following = (TEXT * 2)[last + 1 :] if last >= 0 else TEXT
        successors.append(tokenizer.encode(following, add_special_tokens=False).ids[0])
    for token, successor in pairwise(written):
        successors[token] = successor
    return successors


def save_renamed(folder: Path, original: Path, seed: int = 0) -> Path:
    """Write a copy of a tiny llama in which every token has another id: the same model with another tokenizer."""
    model = LlamaForCausalLM.from_pretrained(original)
    vocab = model.config.vocab_size
    new_ids = list(range(vocab))
    random.Random(seed).shuffle(new_ids)
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight[torch.tensor(new_ids)] = weight.clone()
    model.config.eos_token_id = new_ids[model.config.eos_token_id]
    model.generation_config.eos_token_id = model.config.eos_token_id
    model.save_pretrained(folder)
    words = {f"w{token}": new_id for token, new_id in enumerate(new_ids)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w0")  # type: ignore[no-untyped-call]
    wrapped.save_pretrained(folder)
    return folder
