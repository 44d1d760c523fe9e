"""The only place where a token is chosen. The target calls it to decide, drafters to guess the same decision.

    logits, edited (penalties.py) → relative to the best, / temperature
           → top-k → top-p → min-p → typical-p (limits.py) → + noise(seed, position) → argmax

Without the noise this is the law softmax(scores); with it, argmax is one exact sample of that law. The choice depends
on nothing else, and so not on any draft. The order of the steps is that of transformers; each of the limits looks at
probabilities at the request's temperature.

All nodes of all rows are chosen at once, each with its own parameters. On a CPU with our kernels one operator
(kernels/choice.cpp) does it in two reads of the logits; what it chooses is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from workers.choice.limits import keep_min_p, keep_top_k, keep_top_p, keep_typical_p, least_score
from workers.choice.noise import gumbel_rows, integers
from workers.choice.params import ChoiceParams
from workers.kernels.build import are_kernels_loaded

UNUSABLE = -1  # in place of a choice: the logits hold NaN or infinity
NO_TOKEN = -2  # in place of a choice: every token is excluded

_LEAST_TEMPERATURE, _MOST_TEMPERATURE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Noise(Protocol):
    """Where `gumbel_rows(seeds, positions, vocab)` comes from, when it is kept between calls."""

    def __call__(self, seeds: Sequence[int], positions: Sequence[int]) -> Tensor: ...  # [num_nodes, vocab] f32


def choose(
    logits: Tensor,  # [num_nodes, vocab] f32; the model's answer after each node, edited
    positions: Sequence[int],  # [num_nodes]; the absolute position of the token to choose there
    params: Sequence[ChoiceParams],  # [num_nodes]
    *,
    noise: Noise | None = None,
) -> Tensor:
    """The choice after each node, [num_nodes] i64; of equals, the one with the lowest token id.

    UNUSABLE or NO_TOKEN stand where there is nothing to choose: whether that matters is known only after the walk.
    """
    if noise is None and _has_kernel(logits):
        seeds, places = integers([its.seed for its in params], logits.device), integers(positions, logits.device)
        chosen: Tensor = torch.ops.outrider.choose(logits, _packed(params), seeds, places)
        return chosen
    return choose_by_torch(logits, positions, params, noise=noise)


def choose_by_torch(
    logits: Tensor,  # [num_nodes, vocab] f32
    positions: Sequence[int],  # [num_nodes]
    params: Sequence[ChoiceParams],  # [num_nodes]
    *,
    noise: Noise | None = None,
) -> Tensor:
    """See `choose`; on any device."""
    chosen = noisy_scores(logits, positions, params, noise=noise).argmax(dim=-1)
    _mark(chosen, logits.amax(dim=-1))
    return chosen


def _mark(
    chosen: Tensor,  # [num_nodes] i64, changed in place
    best: Tensor,  # [num_nodes] f32
) -> None:
    chosen[best == -torch.inf] = NO_TOKEN
    chosen[best.isnan() | (best == torch.inf)] = UNUSABLE


def noisy_scores(
    logits: Tensor,  # [num_nodes, vocab] f32
    positions: Sequence[int],  # [num_nodes]
    params: Sequence[ChoiceParams],  # [num_nodes]
    *,
    noise: Noise | None = None,
) -> Tensor:
    """What `choose` takes the argmax of, [num_nodes, vocab] f32; -inf for tokens that a limit excludes."""
    scores = limited_scores(logits, params)
    nodes = [node for node, its in enumerate(params) if _samples(its)]
    if nodes:
        seeds, places = [params[node].seed for node in nodes], [positions[node] for node in nodes]
        vocab = scores.shape[-1]
        rows = noise(seeds, places) if noise else gumbel_rows(seeds, places, vocab, device=scores.device)
        if len(nodes) == len(scores):
            scores += rows
        else:
            scores[torch.tensor(nodes, device=scores.device)] += rows
    return scores


def laws(
    logits: Tensor,  # [num_nodes, vocab] f32
    params: Sequence[ChoiceParams],  # [num_nodes]
) -> Tensor:
    """The law of the choice after each node, [num_nodes, vocab] f64; at temperature 0 all of it on the best token."""
    scores = limited_scores(logits, params)
    probabilities = scores.double().softmax(dim=-1)
    for law, row, its in zip(probabilities, scores, params, strict=True):
        if its.temperature == 0:
            law.zero_()[row.argmax()] = 1
    return probabilities


def limited_scores(
    logits: Tensor,  # [num_nodes, vocab] f32
    params: Sequence[ChoiceParams],  # [num_nodes]
) -> Tensor:
    """Log-probabilities up to a constant a node: the best token has 0, excluded ones -inf. [num_nodes, vocab] f32."""
    if _has_kernel(logits):
        scores: Tensor = torch.ops.outrider.limited_scores(logits, _packed(params))
        return scores
    return limited_scores_of_torch(logits, params)


def limited_scores_of_torch(
    logits: Tensor,  # [num_nodes, vocab] f32
    params: Sequence[ChoiceParams],  # [num_nodes]
) -> Tensor:
    """See `limited_scores`; on any device."""
    scores = logits - logits.amax(dim=-1, keepdim=True)
    temperatures = [_temperature(its) or 1.0 for its in params]
    scores /= torch.tensor(temperatures, dtype=torch.float32, device=logits.device)[:, None]
    vocab = scores.shape[-1]
    _limit(scores, keep_top_k, [its.top_k if _samples(its) and its.top_k < vocab else 0 for its in params], 0)
    _limit(scores, keep_top_p, [its.top_p if _samples(its) else 1.0 for its in params], 1.0)
    _limit(scores, keep_min_p, [its.min_p if _samples(its) else 0.0 for its in params], 0.0)
    _limit(scores, keep_typical_p, [its.typical_p if _samples(its) else 1.0 for its in params], 1.0)
    return scores


def _has_kernel(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and are_kernels_loaded()


def _packed(params: Sequence[ChoiceParams]) -> Tensor:
    """As kernels/choice.cpp reads them: [num_nodes, 5] f64."""
    rows = np.array([(_temperature(its), its.top_k, its.top_p, its.min_p, its.typical_p) for its in params], np.float64)
    packed = torch.from_numpy(rows.reshape(-1, 5))
    packed[:, 3] = least_score(packed[:, 3])
    return packed


def _temperature(params: ChoiceParams) -> float:
    """0 for greedy alone, and what float32 can divide by."""
    return min(max(params.temperature, _LEAST_TEMPERATURE), _MOST_TEMPERATURE) if _samples(params) else 0.0


def _samples(params: ChoiceParams) -> bool:
    return params.temperature > 0


def _limit(
    scores: Tensor,  # [num_nodes, vocab] f32, changed in place
    keep: Callable[[Tensor, Tensor], None],
    limits: Sequence[float],  # [num_nodes]
    none: float,  # the limit that limits nothing
) -> None:
    """Apply a limit to the nodes that have it. Where all have, nothing is copied."""
    nodes = [node for node, limit in enumerate(limits) if limit != none]
    if not nodes:
        return
    # By way of numpy: a Python float stays the float64 that it is.
    of_nodes = torch.from_numpy(np.array([limits[node] for node in nodes])).to(scores.device)
    if len(nodes) == len(scores):
        keep(scores, of_nodes)
        return
    index = torch.tensor(nodes, device=scores.device)
    limited = scores[index]
    keep(limited, of_nodes)
    scores[index] = limited
