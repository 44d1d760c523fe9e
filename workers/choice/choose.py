"""The only place where a token is chosen. The target calls it to decide, drafters to guess the same decision.

    logits → relative to the best, / temperature → top-k → top-p → min-p → + noise(seed, position) → argmax

Without the noise this is the law softmax(processed logits / temperature); with it, argmax is one exact sample of
that law. The choice depends on nothing else, and so not on any draft. The order of the steps is that of
transformers; each of the limits looks at probabilities at the request's temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outrider.errors import InternalError
from workers.choice.noise import gumbel
from workers.choice.params import ChoiceParams

Noise = Callable[[int, int], Tensor]  # (seed, position) -> [vocab] f32
_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny


class UnusableLogits(InternalError):
    """The model's answer is no law: NaN, infinity, or every token impossible."""


def choose(
    logits: Tensor,  # [num_nodes, vocab] f32; the model's answer after each node
    positions: Sequence[int],  # [num_nodes]; the absolute position of the token to choose there
    params: ChoiceParams,
    *,
    noise: Noise | None = None,  # where `gumbel(seed, position, vocab)` comes from, when it is kept between calls
) -> Tensor:
    """The choice after each node, [num_nodes] i64. Of equals, the one with the lowest token id.

    Raises UnusableLogits.
    """
    return noisy_scores(logits, positions, params, noise=noise).argmax(dim=-1)


def noisy_scores(
    logits: Tensor,  # [num_nodes, vocab] f32
    positions: Sequence[int],  # [num_nodes]
    params: ChoiceParams,
    *,
    noise: Noise | None = None,
) -> Tensor:
    """What `choose` takes the argmax of, [num_nodes, vocab] f32; -inf for tokens that a limit excludes.

    Raises UnusableLogits.
    """
    best = logits.amax(dim=-1, keepdim=True)
    if not bool(best.isfinite().all()):
        raise UnusableLogits("the logits hold NaN or infinity, or exclude every token")
    scores = logits - best
    if params.temperature == 0:
        return scores
    scores /= max(params.temperature, _LEAST_TEMPERATURE)
    if 0 < params.top_k < scores.shape[-1]:
        _keep_top_k(scores, params.top_k)
    if params.top_p < 1:
        for row in scores:
            _keep_top_p(row, params.top_p)
    if params.min_p > 0:
        scores.masked_fill_(scores < math.log(params.min_p), -math.inf)
    for row, position in zip(scores, positions, strict=True):
        row += (
            gumbel(params.seed, position, len(row), device=row.device)
            if noise is None
            else noise(params.seed, position)
        )
    return scores


def _keep_top_k(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    top_k: int,
) -> None:
    """Exclude all but the top_k best tokens; among equals at the border, the lowest token ids stay."""
    border = scores.topk(top_k, dim=-1).values[:, -1:]
    is_above, is_border = scores > border, scores == border
    num_left = top_k - is_above.sum(dim=-1, keepdim=True)
    is_kept = is_above | (is_border & (is_border.cumsum(dim=-1) <= num_left))
    scores.masked_fill_(~is_kept, -math.inf)


def _keep_top_p(
    scores: Tensor,  # [vocab] f32, changed in place
    top_p: float,
) -> None:
    """Exclude all but the smallest set of tokens whose mass reaches top_p, the token that crosses it included.

    Tokens join the set from the best down, among equals from the lowest token id up. Those less likely than
    (1 - top_p) / vocab have a mass below 1 - top_p together: the set is full before it gets to them, so they need
    not be sorted. Half of that bound leaves room for rounding.
    """
    probabilities = scores.double().softmax(dim=-1)
    candidates = (probabilities >= (1 - top_p) / (2 * len(scores))).nonzero().squeeze(-1)
    order = scores[candidates].sort(descending=True, stable=True).indices
    candidates = candidates[order]
    mass = probabilities[candidates].cumsum(dim=-1)
    num_kept = 1 + int((mass[:-1] < top_p).sum())
    kept = candidates[:num_kept]
    kept_scores = scores[kept]
    scores.fill_(-math.inf)
    scores[kept] = kept_scores
