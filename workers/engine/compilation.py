"""Compiling a forward at load, before anybody waits for it, and only for as long as it gives what it gave before.

A few models can't be traced by torch's compiler, and a compiler can be wrong. Then the forward runs as it did, and
the log says why.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from workers.engine.batch import Batch, BatchRow, Row
from workers.engine.forward import KernelForward
from workers.engine.layout import lay_out
from workers.engine.self_check import relative_error, tolerance

_log = logging.getLogger(__name__)


def compile_forward(forward: KernelForward, vocab_size: int, block_size: int, cache_dir: Path) -> None:
    """Compile what passes of one token and of several run, or leave the forward uncompiled and log the reason.

    The KV cache is there already, and empty: its size is part of what is compiled. What torch compiles is kept in
    `cache_dir`: the first start of a model takes about half a minute here, later ones a few seconds.
    """
    started = time.perf_counter()
    expected = _logits(forward, vocab_size, block_size)
    _log.info("compiling the forward")
    forward.compile(cache_dir)
    try:
        compiled = _logits(forward, vocab_size, block_size)
    except TorchDynamoException as err:
        forward.run_uncompiled()
        _log.warning(
            "the forward runs uncompiled, and slower: torch can't compile it: %s", " ".join(str(err).split())[:400]
        )
        return
    error = max(relative_error(ours, plain) for ours, plain in zip(compiled, expected, strict=True))
    if not error <= tolerance(forward.kv_shape.dtype):
        forward.run_uncompiled()
        _log.warning("the forward runs uncompiled, and slower: compiled, its logits are %.2g away", error)
        return
    _log.info("compiled the forward in %.0f s", time.perf_counter() - started)


def _logits(forward: KernelForward, vocab_size: int, block_size: int) -> list[Tensor]:
    """Logits of a pass over two tokens, which stands for any larger one, and of a pass over one."""
    tokens = [vocab_size // 2, vocab_size // 3]
    rows = [BatchRow(Row(0, tokens[:count]), 0, range(-(-count // block_size))) for count in (2, 1)]
    return [forward.run(lay_out(Batch.of([row], []), block_size, forward.device)).clone() for row in rows]
