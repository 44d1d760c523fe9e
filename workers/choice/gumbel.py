"""From a 32-bit word to Gumbel noise, with the same bits on every device.

    u = (word + 1/2) / 2**32        g = -log(-log(u))

A device's own logarithm may differ from another's in the last bit, and then two of them choose different tokens.
So both logarithms are made of what IEEE 754 defines to the bit: float32 sums, products and quotients, each rounded
once. That is: no fused multiply-add, nothing that a compiler may reorder, and the same operations in the same order in
kernels/choice.cpp. Every operation here is one of torch's, which rounds what it gives; torch.compile would fuse them.

    log(x) of x = m * 2**e, m in [√½, √2)        -log(x) = -e * ln 2 + 2 atanh(s),  s = (1 - m) / (1 + m)
    -log(u) where u is above √½, v = 1 - u       2 atanh(s),  s = v / (2 - v)

v comes from the word itself, whose complement is 2**32 times v, less 1/2: so -log(u) is as exact near u = 1 as
elsewhere.

The noise never falls when the word grows. Within one power of two each operation is monotone in the word and so is
its rounding; at the borders between them the tests look at every one. `kernels/choice.cpp` relies on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFF_FFFF
_NEAR_ONE = 0xB504_F334  # the first word whose u is above √½
_ROOT_HALF_BITS = 0x3F35_04F3  # √½ as float32
_MANTISSA_BITS = 23
_MANTISSA = (1 << _MANTISSA_BITS) - 1
_BIAS = 127

_LN2_HIGH = 0.693359375  # nine bits: exact times any exponent
_LN2_LOW = -2.12194440e-4
# 2 atanh(s) / s = 2 + s²(A + s²(B + s² C)) for |s| <= (√2 - 1) / (√2 + 1), within 9e-10. All are float32.
_ATANH = (0.66666776, 0.39977542, 0.2987173)


def gumbel_of_words(
    words: Tensor,  # [...] i64, each below 2**32
) -> Tensor:
    """Standard Gumbel noise, [...] f32, from -3.2 to 22.9.

    Against 64 bits of mantissa, over 450,000 words about the borders and 2 * 10**7 others: -log(u) is off by 3.1e-7
    of itself at most, and the noise by 3.7e-7 times the larger of 1 and itself.
    """
    return _minus_log(exponential_of_words(words))


def exponential_of_words(
    words: Tensor,  # [...] i64, each below 2**32
) -> Tensor:
    """-log(u), [...] f32: from 1.1e-10 to 22.9, and never 0."""
    is_near_one = words >= _NEAR_ONE
    counted = torch.where(is_near_one, _MASK - words, words)
    # Two exact halves, so that the sum is rounded once.
    scaled = (counted >> 16).float() * 65536.0 + ((counted & 0xFFFF).float() + 0.5)
    mantissa, exponent = _split(scaled)
    numerator = torch.where(is_near_one, scaled, 1.0 - mantissa)
    denominator = torch.where(is_near_one, 2.0**33 - scaled, 1.0 + mantissa)
    return _log_sum(torch.where(is_near_one, 0, 32 - exponent), numerator / denominator)


def _minus_log(
    x: Tensor,  # [...] f32, positive and normal
) -> Tensor:
    mantissa, exponent = _split(x)
    return _log_sum(-exponent, (1.0 - mantissa) / (1.0 + mantissa))


def _split(
    x: Tensor,  # [...] f32, positive and normal
) -> tuple[Tensor, Tensor]:
    """The mantissa in [√½, √2), [...] f32, and the exponent, [...] i32."""
    bits = x.view(torch.int32) + ((_BIAS << _MANTISSA_BITS) - _ROOT_HALF_BITS)
    exponent = (bits >> _MANTISSA_BITS) - _BIAS
    return ((bits & _MANTISSA) + _ROOT_HALF_BITS).view(torch.float32), exponent


def _log_sum(
    power: Tensor,  # [...] i32
    s: Tensor,  # [...] f32
) -> Tensor:
    """power * ln 2 + 2 atanh(s), [...] f32."""
    square = s * s
    series = (square * _ATANH[2] + _ATANH[1]) * square + _ATANH[0]
    series = s * (series * square + 2.0)
    number = power.float()
    return number * _LN2_HIGH + (number * _LN2_LOW + series)
