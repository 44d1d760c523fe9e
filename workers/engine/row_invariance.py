"""`exact`: a token's logits have the same bits whatever else is in the pass, and however many tokens are verified.

Rounding depends on the order of a sum. In 16 bits it moves logits by as much as a choice between two good tokens, so
that verifying several tokens at once can choose otherwise than decoding one at a time. Our CPU kernels sum in an order
that depends on the row alone; whether all else in a model does so too is not assumed but tried, at load.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import torch
from torch import Tensor

from outrider.errors import InvalidRequest, Unsupported
from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.forward import KernelForward
from workers.engine.layout import lay_out

_log = logging.getLogger(__name__)
_LENGTH = 48  # enough for torch to split the work of a pass over all of it among threads
_NUM_SLOTS = _LENGTH + 4  # of each of two rows


def ensure(forward: KernelForward, vocab_size: int, num_blocks: int, block_size: int) -> None:
    """Have the forward run so that it passes `check`: uncompiled, where it does not compiled. Raises Unsupported.

    torch handles the last numbers of a vector apart, and where sizes are odd these are others for each number of rows.
    """
    try:
        check(forward, vocab_size, num_blocks, block_size)
    except Unsupported as err:
        if not forward.is_compiled:
            raise
        _log.warning("the forward runs uncompiled, and slower: compiled it is not %s", err.message)
        forward.run_uncompiled()
        check(forward, vocab_size, num_blocks, block_size)


def check(forward: KernelForward, vocab_size: int, num_blocks: int, block_size: int) -> None:
    """Raises Unsupported where a token's logits are not the same bits in every pass that was tried.

    The KV cache is there already, and empty; what is left in it then means nothing.
    """
    per_row = -(-_NUM_SLOTS // block_size)
    if num_blocks < 2 * per_row:
        raise InvalidRequest.of("kv_cache_bytes", num_blocks, f"exact is tried on {2 * per_row} KV blocks at least")
    _Trial(forward, vocab_size, block_size, per_row).run()


class _Trial:
    """A few passes over the same tokens, each shaped otherwise."""

    def __init__(self, forward: KernelForward, vocab_size: int, block_size: int, per_row: int) -> None:
        self._forward = forward
        self._block_size = block_size
        self._blocks = (list(range(2 * per_row - 1, per_row - 1, -1)), list(range(per_row)))
        generator = torch.Generator().manual_seed(1)
        self._path, self._other = torch.randint(0, vocab_size, (2, _LENGTH), generator=generator).tolist()

    def run(self) -> None:
        alone = self._decoded(list(range(_LENGTH + 1)))
        ways = {
            "as one chain": self._decoded([0, _LENGTH]),
            "in chunks": self._decoded([0, 5, 6, 17, 40, _LENGTH]),
            "as nodes beside another row": self._verified(),
        }
        for way, logits in ways.items():
            num_equal = int((logits == alone[-len(logits) :]).all(dim=1).sum())
            if num_equal < len(logits):
                raise Unsupported(
                    f"exact: of {len(logits)} tokens computed {way}, {len(logits) - num_equal} have other logits "
                    "than alone"
                )

    def _decoded(self, cuts: list[int]) -> Tensor:
        """Logits after each token, computed in passes that end at the cuts: [length, vocab] f32."""
        parts = []
        for start, end in pairwise(cuts):
            # A chain of nodes below the first token, so that the logits after each are given.
            row = Row(0, self._path[start : start + 1], self._path[start + 1 : end], list(range(-1, end - start - 2)))
            parts.append(self._pass([BatchRow(row, start, self._blocks[0])]))
        return torch.cat(parts)

    def _verified(self) -> Tensor:
        """Logits after the last tokens, nodes among others of a tree, in a pass with another row: [4, vocab] f32."""
        path, other = self._path, self._other
        first = _LENGTH - 4
        prompts = [Row(0, path[:first], wants_logits=False), Row(1, other[:3], wants_logits=False)]
        self._pass([BatchRow(row, 0, blocks) for row, blocks in zip(prompts, self._blocks, strict=True)])
        nodes, parents = [other[0], path[first + 1], other[1], path[first + 2], path[first + 3]], [-1, -1, 1, 1, 3]
        tree = Row(0, path[first : first + 1], nodes, parents)
        logits = self._pass([BatchRow(Row(1, other[3:8]), 3, self._blocks[1]), BatchRow(tree, first, self._blocks[0])])
        return logits[1:][[0, 2, 4, 5]]

    def _pass(self, placed: list[BatchRow]) -> Tensor:
        layout = lay_out(Batch.of(placed, []), self._block_size, self._forward.device)
        return self._forward.run(layout).clone()
