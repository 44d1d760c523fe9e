"""The CUDA paths, where there is a device. Never run by us so far: this workplace has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine
from workers.noise import gumbel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_noise_is_the_same_bits_on_cuda_and_cpu(seed: int) -> None:
    for position in (0, 1, 100_000):
        on_cuda = gumbel(seed, position, 49_152, device=torch.device("cuda")).cpu()
        assert torch.equal(on_cuda, gumbel(seed, position, 49_152, device=torch.device("cpu")))


def test_a_tree_on_cuda_has_the_logits_of_the_cpu(tiny_llama: Path) -> None:
    rows = [Row(1, [3, 4, 5], [6, 7, 8, 9], [-1, 0, 0, 1]), Row(2, [9, 8])]
    logits = {}
    for device in ("cpu", "cuda"):
        engine = Engine(Checkpoint(tiny_llama, "tiny"), device=device, dtype="float32", kv_cache_bytes=1 << 18)
        engine.open(1)
        engine.open(2)
        logits[device] = engine.forward(rows)
    for on_cpu, on_cuda in zip(logits["cpu"], logits["cuda"], strict=True):
        assert on_cpu is not None
        assert on_cuda is not None
        torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-3, rtol=0)
