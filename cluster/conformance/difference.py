"""Two answers that should be the same tokens, and how they differ.

In 16 bits a pass over several tokens may round otherwise than a pass over one. That can only change a choice which
was nearly a tie. Where a choice is argmax(log-probability + temperature × noise), its margin can be computed from
outside: the answers carry the log-probabilities, and the noise is a function of seed, position and token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.conformance.settings import Setting
from outrider.types import Answer

# Two or three units in the last place of logits between 16 and 32.
ROUNDING_GAPS = {"bfloat16": 0.25, "float16": 0.05}

# "unclear": whether it was nearly a tie can't be seen from outside.
Kind = Literal["breach", "within rounding", "unclear"]


@dataclass(frozen=True, slots=True)
class Difference:
    position: int  # in the answer, from 0
    first: int | None  # its token there; None: it had ended
    second: int | None
    gap: float | None  # between the scores of the two tokens, in logits; None: unknown

    def kind(self, dtype: str, *, is_strict: bool) -> Kind:
        if is_strict:
            return "breach"
        if self.gap is None:
            return "unclear"
        return "within rounding" if self.gap <= ROUNDING_GAPS.get(dtype, 0.0) else "breach"

    def told(self, first: str, second: str) -> str:
        """`first`, `second`: how each answer was asked for."""
        gap = "" if self.gap is None else f"; the gap between them is {self.gap:.3g} logits"
        tokens = f"{_token(self.first)} {first}, {_token(self.second)} {second}"
        return f"token {self.position + 1} of the answer: {tokens}{gap}"


def difference(first: Answer, second: Answer, setting: Setting, vocab_size: int) -> Difference | None:
    """The first one; None where all tokens are equal."""
    longer = max(len(first.token_ids), len(second.token_ids))
    for i in range(longer):
        ours, others = _at(first, i), _at(second, i)
        if ours != others:
            return Difference(i, ours, others, _gap(first, second, i, setting, vocab_size))
    return None


def _gap(first: Answer, second: Answer, position: int, setting: Setting, vocab_size: int) -> float | None:
    """How far the two choices are apart; None where it takes more than log-probabilities to tell."""
    ours, others = _at(first, position), _at(second, position)
    if not setting.has_plain_choice or ours is None or others is None or not (first.logprobs and second.logprobs):
        return None
    gap = first.logprobs[position].logprob - second.logprobs[position].logprob
    if temperature := setting.sampling.temperature:
        from workers.choice.noise import gumbel  # only here: it loads torch

        noise = gumbel(first.seed, first.usage.num_prompt_tokens + position, vocab_size)
        gap += temperature * float(noise[ours] - noise[others])
    return abs(gap)


def _at(answer: Answer, position: int) -> int | None:
    return answer.token_ids[position] if position < len(answer.token_ids) else None


def _token(token: int | None) -> str:
    return "the end" if token is None else str(token)
