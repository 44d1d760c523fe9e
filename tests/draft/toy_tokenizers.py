"""Small tokenizers of the kinds that models have, trained on a few sentences."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The café's owner — naïve, unbelievable! — said: “déjà vu”, 12345 times in 2024.",
    "def fibonacci(number):\n    return number if number < 2 else fibonacci(number - 1)\n\n",
    "日本語のテキストと русский текст, emoji 🙂🙃🎉 and tabs\tand   blanks.",
    "unbelievably international internationalisation, the cat sat on the mat, the cats.",
]
CONTROLS = ["<end>", "<turn>"]


def byte_level(vocab: int, *, controls: list[str] = CONTROLS, corpus: list[str] = SENTENCES) -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM: merges of bytes within words; any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=controls, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    return tokenizer


def with_byte_fallback(vocab: int) -> Tokenizer:
    """As Llama 2, Mistral and Gemma: a mark for blanks, bytes for what no token writes, a token before each text."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=vocab, show_progress=False, limit_alphabet=60)
    )
    model = json.loads(trained.to_str())["model"]
    spellings = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {spelling: number for number, spelling in enumerate(spellings)},
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def word_pieces(vocab: int) -> Tokenizer:
    """As BERT: lower case, unknown words, blanks lost. No text comes back as it was."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=vocab, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    )
    return tokenizer
