"""Small tokenizers whose tokens split characters and words in awkward places."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def fast_tokenizer() -> FastTokenizer:
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the rain in Spain stays mainly in the plain; stop here, END. naïve café 🦊🦊"], trainer
    )
    return tokenizer


@pytest.fixture(scope="session")
def byte_fallback_tokenizer() -> FastTokenizer:
    """As of Llama 2 and Gemma: what is no token of its own is written in tokens of a byte each.

    Bytes behind each other are decoded together, and if these are no UTF-8 then none of them are characters.
    """
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theén", "▁t", "he", "▁▁"]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁", "▁")]
    tokenizer = FastTokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.fixture(scope="session", params=["fast_tokenizer", "byte_fallback_tokenizer"])
def any_tokenizer(request: pytest.FixtureRequest) -> FastTokenizer:
    tokenizer: FastTokenizer = request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_files(fast_tokenizer: FastTokenizer) -> dict[str, bytes]:
    return {
        "tokenizer.json": fast_tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"eos_token": {"content": "</s>"}}).encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
