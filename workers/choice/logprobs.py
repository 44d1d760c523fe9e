"""Log-probabilities of the target's own law: of the softmax of its logits, before any sampling parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token that was committed. Natural logarithms."""

    ids: Sequence[int]  # [1 + num_top]; the token itself, then the likeliest, of equals the lowest id first
    logprobs: Sequence[float]  # [1 + num_top]


def logprobs_of(
    logits: Tensor,  # [num_tokens, vocab] f32; the model's answer where each token was chosen, not edited
    tokens: Sequence[int],  # [num_tokens]
    num_top: int,
) -> list[Logprobs]:
    """One entry a token. A vocabulary smaller than num_top gives fewer alternatives."""
    normalised = logits.double().log_softmax(dim=-1)
    own = normalised.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    tops = [_top(row, min(num_top, len(row))) for row in normalised] if num_top else [([], [])] * len(tokens)
    return [
        Logprobs([token, *top_ids], [value, *top_values])
        for token, value, (top_ids, top_values) in zip(tokens, own, tops, strict=True)
    ]


def _top(
    row: Tensor,  # [vocab] f64
    num_top: int,
) -> tuple[list[int], list[float]]:
    candidates = (row >= row.topk(num_top).values[-1]).nonzero()[:, 0]  # in order of their ids
    order = row[candidates].sort(descending=True, stable=True)
    return candidates[order.indices[:num_top]].tolist(), order.values[:num_top].tolist()
