"""The target's own law of a short answer, computed from its log-probabilities.

Where an answer may hold three tokens only, the law of what comes after a prefix is exp(log-probability / temperature)
of these three, normalised. So the law of every short sequence is a product of numbers that the server tells.
A token's log-probability is had by allowing that token alone, and the prefixes are sent as token ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from cluster.conformance.asking import OFF, Asker, together
from cluster.conformance.deployment import Deployment
from cluster.conformance.prompts import PROMPTS
from outrider.errors import InternalError
from outrider.types import SamplingParams

Tokens = tuple[int, ...]

NUM_TOKENS = 3  # that an answer may hold
_NUM_WORDS = 16  # of the target's own, before the pattern
_NUM_CANDIDATES = 20
# Each of the three tokens is followed by each of them once: whatever the answer begins with, prompt lookup has a draft.
_PATTERN = (0, 0, 1, 0, 2, 1, 1, 2, 2, 0)


@dataclass(frozen=True, slots=True)
class Context:
    """A prompt, and the tokens that may follow it."""

    prompt: Tokens
    allowed: Tokens


async def find_context(asker: Asker, deployment: Deployment) -> Context:
    """The target's own words, and the tokens that it finds likely after them, so that there is a choice to make.

    Raises OutriderError.
    """
    sampling = SamplingParams(
        temperature=0, max_tokens=_NUM_WORDS + 1, ignore_eos=True, logprobs=_NUM_CANDIDATES, seed=0
    )
    content = PROMPTS[0].content(deployment.model.has_chat_template)
    [answer] = await asker.ask(content, sampling, OFF)
    if answer.logprobs is None:
        raise InternalError(f"sampling.logprobs was {_NUM_CANDIDATES}, and the answer has no log-probabilities")
    ends = deployment.model.end_token_ids
    allowed = tuple(token for token in answer.logprobs[-1].top_ids if token not in ends)[:NUM_TOKENS]
    return Context((*answer.token_ids[:-1], *(allowed[i % len(allowed)] for i in _PATTERN)), allowed)


@dataclass(frozen=True, slots=True)
class TargetLaw:
    """`logprobs`: of each allowed token after each prefix, before any temperature."""

    context: Context
    logprobs: Mapping[Tokens, Mapping[int, float]]

    def of_sequences(self, length: int, temperature: float) -> dict[Tokens, float]:
        """The probability of each sequence of `length` tokens, at temperature > 0."""
        found: dict[Tokens, float] = {}
        for sequence in product(self.context.allowed, repeat=length):
            shares = (self._share(sequence[:i], sequence[i], temperature) for i in range(length))
            found[sequence] = math.prod(shares)
        return found

    def _share(self, prefix: Tokens, token: int, temperature: float) -> float:
        best = max(self.logprobs[prefix].values())
        weights = {other: math.exp((value - best) / temperature) for other, value in self.logprobs[prefix].items()}
        return weights[token] / sum(weights.values())


def num_questions(length: int) -> int:
    """How many answers `ask_law` asks for."""
    return sum(NUM_TOKENS ** (i + 1) for i in range(length))


async def ask_law(asker: Asker, context: Context, length: int) -> TargetLaw:
    """The law of up to `length` tokens. Raises OutriderError; InternalError where a ban is not kept."""
    questions = [
        (prefix, token)
        for i in range(length)
        for prefix in product(context.allowed, repeat=i)
        for token in context.allowed
    ]
    values = await together(_logprob(asker, (*context.prompt, *prefix), token) for prefix, token in questions)
    logprobs: dict[Tokens, dict[int, float]] = {prefix: {} for prefix, _ in questions}
    for (prefix, token), value in zip(questions, values, strict=True):
        logprobs[prefix][token] = value
    return TargetLaw(context, logprobs)


async def _logprob(asker: Asker, prompt: Tokens, token: int) -> float:
    sampling = SamplingParams(temperature=0, max_tokens=1, allowed_token_ids=[token], logprobs=0, seed=0)
    [answer] = await asker.ask(prompt, sampling, OFF)
    if answer.token_ids != (token,) or answer.logprobs is None:
        raise InternalError(
            f"sampling.allowed_token_ids was [{token}] and logprobs 0: the answer is {answer.token_ids} "
            f"with the log-probabilities {answer.logprobs}"
        )
    return answer.logprobs[0].logprob
