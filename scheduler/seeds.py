"""Seeds of the answers to one request. Each answer can be had again alone, with its own seed and n = 1."""

from __future__ import annotations

import hashlib


def answer_seed(seed: int, index: int) -> int:
    """The seed of answer `index`, 64 bits unsigned: of the first the request's own, of others a hash of both."""
    if index == 0:
        return seed
    message = seed.to_bytes(8, "little") + index.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"outrider-answer").digest(), "little")
