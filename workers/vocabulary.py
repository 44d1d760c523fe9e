"""Whether two models mean the same by a token id: one fingerprint, computed the same way by targets and drafters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from outrider.v1 import worker_pb2

TOKENIZER_FILE = "tokenizer.json"


def vocabulary_of(folder: Path, size: int) -> worker_pb2.Vocabulary:
    """The vocabulary of the checkpoint in `folder`, whose logits have `size` entries.

    Without a tokenizer.json the fingerprint is empty: such a model drafts, or is drafted for, by id alone.
    """
    path = folder / TOKENIZER_FILE
    return worker_pb2.Vocabulary(size=size, sha256=_sha256(path) if path.is_file() else b"")


def _sha256(tokenizer_file: Path) -> bytes:
    """Over the (token, id) pairs, added tokens included, sorted, as compact ASCII JSON."""
    vocabulary = Tokenizer.from_file(str(tokenizer_file)).get_vocab(with_added_tokens=True)
    pairs = json.dumps(sorted(vocabulary.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(pairs.encode("ascii")).digest()
