"""The target answers prompts: what a draft model learns from, and what it is judged by.

Many answers at a time, in one batch that is refilled as they end. A token depends on the text before it, the prompt's
number and the position alone: a piece that is made anew is the same, save for the rounding of a batch of another shape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.choice.choose import choose
from workers.choice.noise import uniform
from workers.choice.params import ChoiceParams
from workers.engine.batch import Row
from workers.engine.runner import Engine
from workers.training.shards import NUM_TOP, Answer

MAX_AT_ONCE = 256  # a forward of so many costs less than twice one of 64
MAX_TOKENS = 192
_STREAM = 3  # of noise.py's


@dataclass(frozen=True, slots=True)
class Laws:
    """The target's laws where the next token of each answer comes."""

    logits: Tensor  # [num_answers, vocab] f32
    top: Tensor  # [num_answers, NUM_TOP] f32; the largest logits
    top_ids: Tensor  # [num_answers, NUM_TOP] i64; their tokens


Pick = Callable[[Sequence[Answer], Laws], Sequence[int]]  # -> the next token of each answer


def answer_prompts(
    engine: Engine,
    answers: Sequence[Answer],  # with nothing but their prompts; completed in place
    pick: Pick,
    report: Callable[[int], None],  # takes the number of tokens of a step
    *,
    max_tokens: int = MAX_TOKENS,
) -> None:
    """As many at once as the engine's cache surely holds. Raises OutOfBlocks where it can't hold one."""
    waiting = deque(range(len(answers)))
    running: dict[int, int] = {}  # blocks that each can come to need
    while waiting or running:
        while waiting and len(running) < MAX_AT_ONCE:
            longest = min(len(answers[waiting[0]].prompt) + max_tokens, engine.spec.max_context)
            needed = -(-longest // engine.block_size)
            if running and sum(running.values()) + needed > engine.num_blocks:
                break
            engine.open(waiting[0])
            running[waiting.popleft()] = needed
        rows = [Row(key, answers[key].tokens[-1:] or answers[key].prompt) for key in running]
        _extend([answers[key] for key in running], engine.forward_packed(rows), pick)
        report(len(running))
        for key in [key for key in running if _is_complete(answers[key], engine, max_tokens)]:
            engine.close(key)
            del running[key]


def pick_from_kept_laws(answers: Sequence[Answer], laws: Laws) -> Sequence[int]:
    """Of the NUM_TOP likeliest tokens, at the answer's temperature: of the law that is kept of it."""
    tokens = []
    for answer, values, ids in zip(answers, laws.top, laws.top_ids, strict=True):
        place = 0
        if answer.temperature > 0:
            cumulative = (values / answer.temperature).double().softmax(0).cumsum(0)
            position = len(answer.prompt) + len(answer.tokens)
            drawn = uniform(answer.number, position, index=0, stream=_STREAM)
            place = min(int(torch.searchsorted(cumulative, drawn, right=True)), NUM_TOP - 1)
        tokens.append(int(ids[place]))
    return tokens


def pick_as_served(answers: Sequence[Answer], laws: Laws) -> Sequence[int]:
    """The target's choice with the number as seed: what coupled drafts guess."""
    positions = [len(answer.prompt) + len(answer.tokens) for answer in answers]
    params = [ChoiceParams(temperature=answer.temperature, seed=answer.number) for answer in answers]
    tokens: list[int] = choose(laws.logits, positions, params).tolist()
    return tokens


def _extend(
    answers: Sequence[Answer],
    logits: Tensor,  # [num_answers, vocab] f32
    pick: Pick,
) -> None:
    best = logits.topk(NUM_TOP, dim=-1)
    logprobs = (best.values - logits.logsumexp(dim=-1, keepdim=True)).half()
    tokens = pick(answers, Laws(logits, best.values, best.indices))
    for answer, token, ids, own in zip(answers, tokens, best.indices.int(), logprobs, strict=True):
        answer.tokens.append(token)
        answer.top_ids.append(ids)
        answer.top_logprobs.append(own)


def _is_complete(answer: Answer, engine: Engine, max_tokens: int) -> bool:
    length = len(answer.prompt) + len(answer.tokens)
    is_ended = answer.tokens[-1] in engine.spec.end_token_ids
    return is_ended or len(answer.tokens) == max_tokens or length == engine.spec.max_context
