"""What moves the weights: Muon for matrices, AdamW for the rest (the norms).

Muon (Jordan et al., 2024; scaled as in Liu et al., arXiv 2502.16982) makes each update nearly orthogonal, and takes
AdamW's learning rates. The default draft model was made with it. In 40 steps of 1,024 tokens the loss fell by 0.078,
with AdamW by 0.069, and a step took 1.5 times as long: which is better in the long run was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_MATRIX_DIMS = 2


class Optimizer:
    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of parameters that require gradients."""
        every = [each for each in parameters if each.requires_grad]
        matrices = [each for each in every if each.ndim == _MATRIX_DIMS]
        rest = [each for each in every if each.ndim != _MATRIX_DIMS]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, learning_rate: float) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
