"""Limits: which tokens keep a chance. Each excludes the others by a score of -inf, in place.

All take the scores of many nodes at once and one limit a node. What a node keeps depends on its own scores alone.
Probabilities are those of the scores that are left, in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NUM_FIRST = 1024  # tokens that are sorted to begin with; most laws have their mass in fewer


def keep_top_k(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    top_k: Tensor,  # [num_nodes] i64, >= 1
) -> None:
    """Exclude all but the top_k best tokens; among equals at the border, the lowest token ids stay."""
    top_k = top_k.clamp(max=scores.shape[-1])
    best = scores.topk(int(top_k.max()), dim=-1).values
    _keep_best(scores, best, top_k)


def keep_top_p(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    top_p: Tensor,  # [num_nodes] f64
) -> None:
    """Exclude all but the smallest set of tokens whose mass reaches top_p, the token that crosses it included.

    Tokens join the set from the best down, among equals from the lowest token id up.
    """
    total = scores.double().exp_().sum(dim=-1, keepdim=True)
    num_sorted = min(_NUM_FIRST, scores.shape[-1])
    best = scores.topk(num_sorted, dim=-1).values
    mass = (best.double().exp_() / total).cumsum_(dim=-1)
    if num_sorted < scores.shape[-1] and bool((mass[:, -1] < top_p).any()):
        best = scores.sort(dim=-1, descending=True).values
        mass = (best.double().exp_() / total).cumsum_(dim=-1)
    _keep_best(scores, best, 1 + (mass[:, :-1] < top_p[:, None]).sum(dim=-1))


def keep_min_p(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place; relative to the best
    min_p: Tensor,  # [num_nodes] f64, > 0
) -> None:
    """Exclude the tokens less likely than min_p times the best."""
    scores.masked_fill_(scores < min_p.log().float()[:, None], -math.inf)


def keep_typical_p(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    typical_p: Tensor,  # [num_nodes] f64
) -> None:
    """Locally typical sampling (Meister et al., arXiv 2202.00666): exclude all but the smallest set of tokens whose
    mass reaches typical_p, those first whose surprise is nearest to the law's entropy; of equals the lowest token id.
    """
    log_probabilities = scores.double().log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    entropy = -torch.where(probabilities > 0, probabilities * log_probabilities, 0).sum(dim=-1, keepdim=True)
    order = (-log_probabilities - entropy).abs().sort(dim=-1, stable=True).indices
    mass = probabilities.gather(-1, order).cumsum_(dim=-1)
    num_kept = 1 + (mass[:, :-1] < typical_p[:, None]).sum(dim=-1, keepdim=True)
    is_kept = torch.zeros_like(scores, dtype=torch.bool)
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    is_kept.scatter_(-1, order, ranks < num_kept)
    scores.masked_fill_(~is_kept, -math.inf)


def _keep_best(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    best: Tensor,  # [num_nodes, num_sorted] f32; the largest scores, descending
    num_kept: Tensor,  # [num_nodes] i64, from 1 to num_sorted
) -> None:
    border = best.gather(-1, num_kept[:, None] - 1)
    num_left = num_kept[:, None] - (best > border).sum(dim=-1, keepdim=True)
    is_border = scores == border
    is_kept = (scores > border) | (is_border & (is_border.cumsum(dim=-1) <= num_left))
    scores.masked_fill_(~is_kept, -math.inf)
