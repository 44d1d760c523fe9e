"""A small byte-level tokenizer whose tokens split characters and words in awkward places."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

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
def tokenizer_files(fast_tokenizer: FastTokenizer) -> dict[str, bytes]:
    return {
        "tokenizer.json": fast_tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({"eos_token": {"content": "</s>"}}).encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
