"""Linear layers whose weight is packed for our CPU kernels: read once from memory, whatever the number of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

PACKED_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST_BYTE = 127


def pack_linear_layers(module: nn.Module, *, keep_weights: bool, in_bytes: bool) -> None:
    """Replace the weight of every linear layer by its packed form, in place; names stay.

    With `in_bytes` it is rounded to 8 bits, with a scale for each output. With `keep_weights` the plain form stays
    beside it, and passes over many tokens use it. A layer that tensor parallelism has split is left as it is:
    transformers has wrapped its forward already.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.weight.dtype in PACKED_DTYPES and not isinstance(layer.weight, DTensor):
            _pack(layer, keep_weights, in_bytes)


def _pack(layer: nn.Linear, keep_weights: bool, in_bytes: bool) -> None:
    weight, scale = layer.weight.detach(), None
    if in_bytes:
        weight, scale = _rounded(weight)
    packed = torch.ops.outrider.pack_weight(weight)
    if not keep_weights:
        layer.weight = None  # type: ignore[assignment]  # its memory is given back where nothing else holds it
    layer.register_buffer("packed", packed, persistent=False)
    layer.register_buffer("scale", scale, persistent=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    layer.__class__ = PackedLinear


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out_features, in_features] i8, and what an output is multiplied by for it, [out_features] f32."""
    scale = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST_BYTE
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


class PackedLinear(nn.Linear):
    """y = x W^T + b with f32 sums; x and y have the model's dtype. Never made anew: `pack_linear_layers` turns one
    into it."""

    packed: Tensor  # [num_panels, steps, numbers of a step]
    scale: Tensor | None  # [out_features]

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's name; [..., in_features]
    ) -> Tensor:
        linear: Any = torch.ops.outrider.linear
        output: Tensor = linear(input, self.packed, self.scale, self.bias, self.weight, self.out_features)
        return output
