"""What a model means by its token ids: told the same way by targets and drafters, so that they can be compared."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from outrider.v1 import worker_pb2

TOKENIZER_FILE = "tokenizer.json"


def vocabulary_of(folder: Path, size: int) -> worker_pb2.Vocabulary:
    """The vocabulary of the checkpoint in `folder`, whose logits have `size` entries.

    Without a tokenizer.json it has no spellings: such a model drafts, or is drafted for, by id alone.
    """
    path = folder / TOKENIZER_FILE
    return worker_pb2.Vocabulary(size=size, tokens=_spellings(path) if path.is_file() else [])


def _spellings(tokenizer_file: Path) -> list[str]:
    """By id, those of added tokens included; "" where no token has the id."""
    vocabulary = Tokenizer.from_file(str(tokenizer_file)).get_vocab(with_added_tokens=True)
    spellings = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        spellings[token_id] = token
    return spellings
