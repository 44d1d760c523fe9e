"""How far a draft's law is from the target's: what training makes small.

A target's law is known by its likeliest tokens and the mass of the rest. Tokens that the draft can't propose belong
to the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kl(
    draft: Tensor,  # [num_tokens, num_draft_tokens] f32; log-probabilities
    target: Tensor,  # [num_tokens, num_top] f32; probabilities, 0 for what the draft can't propose
    places: Tensor,  # [num_tokens, num_top] i64; the draft's own numbers of these tokens
) -> Tensor:
    """Cross-entropy with the target's law, [num_tokens]: the KL divergence up to what the draft can't change."""
    own = draft.gather(-1, places)
    return -(target * own).sum(-1) - _rest(target) * _log_rest(target, own)


def total_variation(
    draft: Tensor,  # [num_tokens, num_draft_tokens] f32; log-probabilities
    target: Tensor,  # [num_tokens, num_top] f32; probabilities, 0 for what the draft can't propose
    places: Tensor,  # [num_tokens, num_top] i64; the draft's own numbers of these tokens
) -> Tensor:
    """1 - Σ min(target, draft), [num_tokens]: one minus the acceptance of the rejection rule, for the known tokens
    (Zhou et al., DistillSpec, arXiv 2310.08461)."""
    return 1 - torch.minimum(target, draft.gather(-1, places).exp()).sum(-1)


def both(draft: Tensor, target: Tensor, places: Tensor) -> Tensor:
    """Their sum: KL has a gradient everywhere, total variation is what counts."""
    return kl(draft, target, places) + total_variation(draft, target, places)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"kl": kl, "tv": total_variation, "both": both}


def _rest(target: Tensor) -> Tensor:
    return (1 - target.sum(-1)).clamp(min=0)


def _log_rest(target: Tensor, own: Tensor) -> Tensor:
    """Of the draft's mass beside the known tokens, [num_tokens]."""
    known = torch.where(target > 0, own.exp(), 0.0).sum(-1)
    return torch.log1p(-known.clamp(max=1 - 1e-4))
