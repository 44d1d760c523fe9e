"""The noise that target and drafters share: a pure function of (seed, position, token id).

Gumbel noise added to log-probabilities turns argmax into an exact sample (the Gumbel-max trick). Because it is
computed, not drawn from a state, every process gets the same noise for the same position: with drafters or
without, after a restart, on any device.

The bits come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011): the key is the seed, the counter is (token // 4, position, stream, 0), and the token's word is token % 4.
Integer arithmetic only, so the bits are equal everywhere; the logarithms are taken in float64 and then rounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_KEY_STEPS = (0x9E37_79B9, 0xBB67_AE85)
_NUM_ROUNDS = 10

_CACHE_BYTES = 64 << 20


def philox(
    counter: Sequence[Tensor | int],  # four words below 2**32, each an int or [num] i64
    key: tuple[int, int],  # two words below 2**32
) -> list[Tensor]:
    """Four random words below 2**32 for each counter, [num] i64 each. At least one word of the counter is a tensor.

    A product of two words needs 64 bits and wraps to a negative i64. Its bits are still the right ones: the low
    word is what the mask leaves, and the high word what it leaves of an arithmetic shift.
    """
    return [torch.as_tensor(word) for word in _rounds(counter, key)]


def _rounds(counter: Sequence[Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Of tensors and integers alike; all words are integers where the counter's are."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = product0 >> 32, product1 >> 32
        # In place, from here on: these four are this round's own, and a pass needs many rounds.
        high0 ^= c3
        high0 ^= k1
        high0 &= _MASK
        high1 ^= c1
        high1 ^= k0
        high1 &= _MASK
        product0 &= _MASK
        product1 &= _MASK
        c0, c1, c2, c3 = high1, product1, high0, product0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def gumbel(
    seed: int,  # 64 bits, unsigned
    position: int,  # of the token that is being chosen, 0-based from the start of the prompt
    vocab: int,
    *,
    stream: int = 0,  # independent noise for another use at the same position
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard Gumbel noise for every token, [vocab] f32, between -3.2 and 22.9.

    The noise of a token does not depend on `vocab`, so models whose vocabularies are padded differently share it.
    """
    counters = torch.arange(-(-vocab // 4), dtype=torch.int64, device=device)
    words = torch.stack(philox((counters, position, stream, 0), (seed & _MASK, seed >> 32)), dim=1)
    uniform = words.view(-1)[:vocab].double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().log_().neg_().float()


def uniform(
    seed: int,  # 64 bits, unsigned
    position: int,
    *,
    index: int,  # of several numbers at one position
    stream: int,
    salt: int = 0,  # below 2**32; independent numbers for another use of the same stream
) -> float:
    """One number from [0, 1), a multiple of 2**-53, for a decision that needs no vector."""
    words = _rounds((index, position, stream, salt), (seed & _MASK, seed >> 32))
    return float((words[0] << 21) | (words[1] >> 11)) * 2.0**-53


class NoiseCache:
    """The noise of recent positions. A position that was not reached in one pass is chosen at in the next."""

    def __init__(self, vocab: int, device: torch.device | str = "cpu", max_bytes: int = _CACHE_BYTES) -> None:
        self._vocab = vocab
        self._device = device
        self._max_vectors = max(1, max_bytes // (4 * vocab))
        self._vectors: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def __call__(self, seed: int, position: int) -> Tensor:
        """`gumbel(seed, position, vocab)`, [vocab] f32; not to be written to."""
        vector = self._vectors.get((seed, position))
        if vector is None:
            vector = self._vectors[seed, position] = gumbel(seed, position, self._vocab, device=self._device)
            if len(self._vectors) > self._max_vectors:
                self._vectors.popitem(last=False)
        self._vectors.move_to_end((seed, position))
        return vector
