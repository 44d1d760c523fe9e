"""What the modelled target chooses: a function of a request's seed and all tokens before, and of nothing else.

A text is folded into one number, token by token, so that one wrong token anywhere changes everything behind it. The
numbers are hashes of tuples of integers: the same in every process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

_MASK = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: a multiplier that stirs all bits


@dataclass(frozen=True, slots=True)
class Law:
    vocab_size: int
    end_every: int = 0  # one choice in so many, in the mean, is the end token; 0: none is

    @property
    def end_token(self) -> int:
        return self.vocab_size - 1

    def start(self, seed: int) -> int:
        """The fold of no tokens."""
        return hash((seed, 7))

    def fold(self, state: int, tokens: Iterable[int]) -> int:
        for token in tokens:
            state = hash((state, token))
        return state

    def choice(self, state: int) -> int:
        """The token after a text with this fold."""
        stirred = draw_bits(state, 0)
        if self.end_every and stirred % self.end_every == 0:
            return self.end_token
        return (stirred >> 20) % (self.vocab_size - 1)

    def answer(self, seed: int, prompt: Iterable[int], max_tokens: int, ends: Collection[int]) -> list[int]:
        """The one true answer."""
        state = self.fold(self.start(seed), prompt)
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            tokens.append(self.choice(state))
            if tokens[-1] in ends:
                break
            state = hash((state, tokens[-1]))
        return tokens


def draw_bits(state: int, salt: int) -> int:
    """64 bits that look random, the same for the same arguments."""
    bits = ((hash((state, salt)) & _MASK) * _SPREAD) & _MASK
    return bits ^ (bits >> 31)


def draw_uniform(state: int, salt: int) -> float:
    """In [0, 1), the same for the same arguments."""
    return (draw_bits(state, salt) >> 11) / (1 << 53)
