"""Answers as batches of about one size: answers of similar length side by side, in an order that the seed decides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.training.shards import NUM_TOP, Answer

_WINDOW = 1024  # answers among which those of similar length are sought


@dataclass(frozen=True, slots=True)
class Batch:
    input_ids: Tensor  # [num_answers, length] i64; padded with 0 behind each answer's end
    attention_mask: Tensor  # [num_answers, length] i64
    answer_rows: Tensor  # [num_tokens, 2] i64; (answer, place) of the input behind which each learned token comes
    chosen: Tensor  # [num_tokens] i64; the token that came there
    top_ids: Tensor  # [num_tokens, NUM_TOP] i64
    top_logprobs: Tensor  # [num_tokens, NUM_TOP] f32


def batches(answers: Sequence[Answer], batch_tokens: int, seed: int) -> Iterator[Batch]:
    """Once over all answers. A batch has about `batch_tokens` tokens, padding included."""
    rng = random.Random(seed)
    order = list(range(len(answers)))
    rng.shuffle(order)
    made: list[list[Answer]] = []
    for start in range(0, len(order), _WINDOW):
        window = sorted((answers[i] for i in order[start : start + _WINDOW]), key=_length)
        made += _split(window, batch_tokens)
    rng.shuffle(made)
    yield from map(batch_of, made)


def batch_of(answers: Sequence[Answer]) -> Batch:
    length = max(map(_length, answers))
    input_ids = torch.zeros(len(answers), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    rows: list[tuple[int, int]] = []
    for number, answer in enumerate(answers):
        own = _length(answer)
        input_ids[number, :own] = torch.tensor([*answer.prompt, *answer.tokens[:-1]])
        attention_mask[number, :own] = 1
        rows += [(number, len(answer.prompt) - 1 + place) for place in range(len(answer.tokens))]
    return Batch(
        input_ids,
        attention_mask,
        torch.tensor(rows),
        torch.tensor([token for answer in answers for token in answer.tokens]),
        torch.stack([ids for answer in answers for ids in answer.top_ids]).view(-1, NUM_TOP).long(),
        torch.stack([logprobs for answer in answers for logprobs in answer.top_logprobs]).view(-1, NUM_TOP).float(),
    )


def _length(answer: Answer) -> int:
    """Of the input: the last token has nothing to predict."""
    return len(answer.prompt) + len(answer.tokens) - 1


def _split(answers: Sequence[Answer], batch_tokens: int) -> list[list[Answer]]:
    """Answers in order of length, cut where a batch would grow too large."""
    made: list[list[Answer]] = [[]]
    for answer in answers:
        if made[-1] and _length(answer) * (len(made[-1]) + 1) > batch_tokens:
            made.append([])
        made[-1].append(answer)
    return made
