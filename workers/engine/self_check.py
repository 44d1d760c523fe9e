"""A loaded model's own forward against ours, on a few tokens, before anybody is served.

The probe judges what attention is asked for. This judges what comes out, and so can find what no list foresees: layers
that carry state from token to token beside their attention, layers that share keys, a kernel that is wrong on this
machine. In float32 it finds small errors, in 16 bits only gross ones (see the tolerances).

Two requests are packed into two passes, one of them with a tree, and a path of each is held against transformers'
plain forward. It costs three forwards of two dozen tokens at most; every rank takes part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.errors import Unsupported
from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.forward import Forward
from workers.engine.layout import lay_out

_LENGTH = 12  # tokens on each path
_BLOCK_SIZE = 4
# Of ‖ours - theirs‖ / ‖theirs less its mean‖. Measured on SmolLM2-135M over six draws of tokens, with six deliberate
# errors (a sibling seen, a key lost, the context lost, a position or a block wrong, scores 10 % too large):
#   float32    right: up to 6e-6; wrong: 0.09 and more. All 36 are caught.
#   bfloat16   right: up to 0.22; wrong: as above. Only the lost context is always caught, the rest in 11 of 30.
# The bfloat16 tolerance can't be tighter: there a mixture of experts may send a token elsewhere for its rounding alone,
# and with random weights that gave up to 0.42. In bfloat16 this finds gross errors; the rest is the probe's.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


@torch.inference_mode()
def check(module: PreTrainedModel, forward: Forward, vocab_size: int) -> None:
    """Raises Unsupported where our logits are not the model's own, but for rounding."""
    paths = torch.randint(0, vocab_size, (2, _LENGTH), generator=torch.Generator().manual_seed(0))
    theirs, ours = _theirs(module, paths), _ours(forward, paths, module.device)
    error = relative_error(ours, theirs)
    if not error <= tolerance(module.dtype):  # a NaN fails, too
        raise Unsupported(f"its logits are {error:.2g} away from those that transformers computes for the same tokens")


def tolerance(dtype: torch.dtype) -> float:
    """The largest `relative_error` that rounding may explain."""
    return _TOLERANCES.get(dtype, 0.5)


def relative_error(
    ours: Tensor,  # [num_paths, vocab] f32
    theirs: Tensor,  # [num_paths, vocab] f32
) -> float:
    """The largest of the paths. A constant added to all logits means nothing, so their mean is no part of the scale."""
    scale = (theirs - theirs.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(((ours - theirs).norm(dim=-1) / scale).max())


def _ours(
    forward: Forward,
    paths: Tensor,  # [2, length] i64; one request each
    device: torch.device,
) -> Tensor:
    """Logits after each path, [2, vocab] f32. The first path ends in a tree, as the younger of two siblings' child."""
    tree, other = paths.tolist()
    forward.allocate(7, _BLOCK_SIZE)
    blocks = ([6, 0, 3, 5], [2, 4, 1])
    first = [Row(0, tree[:6], wants_logits=False), Row(1, other[:3], wants_logits=False)]
    second = [Row(0, tree[6:-2], [other[0], tree[-2], tree[-1]], [-1, -1, 1]), Row(1, other[3:])]
    placed = [BatchRow(row, 0, table) for row, table in zip(first, blocks, strict=True)]
    forward.run(lay_out(Batch.of(placed, []), _BLOCK_SIZE, device))
    placed = [BatchRow(second[0], 6, blocks[0]), BatchRow(second[1], 3, blocks[1])]
    return forward.run(lay_out(Batch.of(placed, []), _BLOCK_SIZE, device))[-2:]


def _theirs(
    module: PreTrainedModel,
    paths: Tensor,  # [2, length] i64
) -> Tensor:
    """The same by transformers' plain forward, with the attention that its authors wrote beside the model."""
    ours = module.config._attn_implementation
    module.set_attn_implementation("eager")
    logits: Tensor = module(input_ids=paths.to(module.device), use_cache=False).logits[:, -1].float()
    module.set_attn_implementation(ours)
    return logits
