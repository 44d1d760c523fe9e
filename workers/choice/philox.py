"""Philox4x32-10: random words that are a function of a counter and a key.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Integer arithmetic only, so the
words are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_KEY_STEPS = (0x9E37_79B9, 0xBB67_AE85)
_NUM_ROUNDS = 10

Word = Tensor | int  # below 2**32; a tensor is i64, of any shape that broadcasts with the others


def philox(
    counter: Sequence[Word],  # four
    key: tuple[Word, Word],
) -> list[Tensor]:
    """Four random words below 2**32 for each counter and key, i64, of the shape that all of them broadcast to.

    A product of two words needs 64 bits and wraps to a negative i64. Its bits are still the right ones: the low
    word is what the mask leaves, and the high word what it leaves of an arithmetic shift.
    """
    zeros = sum(word * 0 for word in (*counter, *key))  # of the shape, and on the device, of all of them
    return list(_rounds([word + zeros for word in counter], key))


def philox_of_integers(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The same four words of one counter, without tensors."""
    return _rounds(counter, key)


def _rounds(counter: Sequence[Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Of tensors and integers alike."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = product0 >> 32, product1 >> 32
        # In place, from here on: these four are this round's own, and a vector needs many rounds.
        high0 ^= c3
        high0 ^= k1
        high0 &= MASK
        high1 ^= c1
        high1 ^= k0
        high1 &= MASK
        product0 &= MASK
        product1 &= MASK
        c0, c1, c2, c3 = high1, product1, high0, product0
        k0, k1 = (k0 + _KEY_STEPS[0]) & MASK, (k1 + _KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3
