"""Limits: which tokens keep a chance. Each excludes the others by a score of -inf, in place.

All take the scores of many nodes at once and one limit a node. What a node keeps depends on its own scores alone.
Probabilities are those of the scores that are left.

What is kept is the same on every device, as the noise is (gumbel.py). A mass is made of float32 operations that IEEE
754 defines, and is a multiple of 2**-34: up to 2**18 of them have an exact sum in float64, in whatever order they are
added. kernels/limits.h does the same without sorting, for CPUs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NUM_FIRST = 1024  # tokens that are sorted to begin with; most laws have their mass in fewer
_NO_MASS = -80.0  # scores below it are as good as this one
_ROUNDER = 1.5 * 2.0**18


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
    needed = top_p[:, None] * _masses(scores).sum(dim=-1, keepdim=True)
    num_sorted = min(_NUM_FIRST, scores.shape[-1])
    best = scores.topk(num_sorted, dim=-1).values
    mass = _masses(best).cumsum_(dim=-1)
    if num_sorted < scores.shape[-1] and bool((mass[:, -1:] < needed).any()):
        best = scores.sort(dim=-1, descending=True).values
        mass = _masses(best).cumsum_(dim=-1)
    _keep_best(scores, best, 1 + (mass[:, :-1] < needed).sum(dim=-1))


def keep_min_p(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place; relative to the best
    min_p: Tensor,  # [num_nodes] f64, > 0
) -> None:
    """Exclude the tokens less likely than min_p times the best."""
    scores.masked_fill_(scores < least_score(min_p).float()[:, None], -math.inf)


def least_score(
    min_p: Tensor,  # [num_nodes] f64, >= 0
) -> Tensor:
    """What min-p asks of a score, [num_nodes] f64; -inf for min_p 0. Taken on the CPU for all devices."""
    return min_p.cpu().log().to(min_p.device)


def keep_typical_p(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    typical_p: Tensor,  # [num_nodes] f64
) -> None:
    """Locally typical sampling (Meister et al., arXiv 2202.00666): exclude all but the smallest set of tokens whose
    mass reaches typical_p, those first whose surprise is nearest to the law's entropy; of equals the lowest token id.

    A surprise is log(total) - score, and the entropy log(total) - mean score: their distance needs no logarithm.
    """
    masses = _masses(scores)
    total = masses.sum(dim=-1, keepdim=True)
    of_means = _rounded(masses * scores.clamp(min=_NO_MASS))
    mean = of_means.sum(dim=-1, keepdim=True) / total
    order = (scores.double() - mean).abs().sort(dim=-1, stable=True).indices
    reached = masses.gather(-1, order).cumsum_(dim=-1)
    num_kept = 1 + (reached[:, :-1] < typical_p[:, None] * total).sum(dim=-1, keepdim=True)
    is_kept = torch.zeros_like(scores, dtype=torch.bool)
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    is_kept.scatter_(-1, order, ranks < num_kept)
    scores.masked_fill_(~is_kept, -math.inf)


def _masses(
    scores: Tensor,  # [..., num] f32, <= 0
) -> Tensor:
    """exp(scores), [..., num] f64, within 1.2e-7 of itself and 2**-35. Cephes' polynomial (expf)."""
    x = scores.clamp(min=_NO_MASS)
    power = (x * 1.44269504088896341 + 12582912.0) - 12582912.0
    r = x - power * 0.693359375
    r = r - power * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    for coefficient in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + coefficient
    p = p * (r * r) + r + 1.0
    return _rounded((p.view(torch.int32) + (power.int() << 23)).view(torch.float32).double())


def _rounded(
    numbers: Tensor,  # [..., num] f64, from -1 to 1
) -> Tensor:
    """To the nearest multiple of 2**-34, which is what float64 has about _ROUNDER."""
    return (numbers + _ROUNDER) - _ROUNDER


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
