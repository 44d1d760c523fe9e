"""What the KV cache takes is what was asked for, and a long life takes no more than a short one."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine

NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM = 2, 3, 8  # of `tiny_llama`
NUM_REQUESTS = 6
NUM_PASSES = 10_000
MAX_GROWTH_BYTES = 4 << 20  # of the process, from pass 1,000 on: under 500 bytes a pass


def stored_bytes(engine: Engine) -> int:
    """Of every tensor that the store of the engine's forward holds, to the end of its memory."""
    store = engine._forward._store
    tensors = [value for value in vars(store).values() if isinstance(value, Tensor)]
    assert tensors
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("has_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("block_size", [4, 16])
def test_a_token_of_the_cache_takes_what_its_keys_and_values_take_within_5_percent(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, has_kernels: bool, dtype: str, itemsize: int, block_size: int
) -> None:
    if not has_kernels:
        monkeypatch.setattr("workers.engine.forward.load_kernels", lambda cache_dir: False)
    budget = 1 << 20
    engine = Engine(Checkpoint(tiny_llama, "tiny"), dtype=dtype, block_size=block_size, kv_cache_bytes=budget)

    num_bytes, num_tokens = stored_bytes(engine), engine.num_blocks * block_size

    theory = 2 * NUM_LAYERS * NUM_KV_HEADS * HEAD_DIM * itemsize
    assert 1 <= num_bytes / num_tokens / theory < 1.05
    assert 0.95 * budget < num_bytes < 1.05 * budget


class Life:
    """Requests that come, decode with trees, fork, share prefixes and go, at random, in a cache that is too small."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rng = random.Random(0)
        self.num_refused = self.num_found = 0

    def run(self, num_passes: int) -> None:
        for _ in range(num_passes):
            self._one_pass()

    def _one_pass(self) -> None:
        engine, rng = self._engine, self._rng
        rows: list[Row] = []
        for key in rng.sample(range(NUM_REQUESTS), rng.randint(1, 3)):
            if engine.is_open(key) and (rng.random() < 0.1 or engine.num_cached(key) > 40):
                engine.close(key)
            if not engine.is_open(key):
                engine.open(key)
                self.num_found += engine.reuse(key, [1 + key % 2] * rng.randrange(16))
            nodes = [rng.randrange(61) for _ in range(rng.randrange(4))]
            row = Row(key, [1 + key % 2] * rng.randint(1, 6), nodes, [rng.randrange(-1, i) for i in range(len(nodes))])
            if engine.blocks_needed([*rows, row]) <= engine.num_free_blocks:
                rows.append(row)
            else:
                self.num_refused += 1
                engine.close(key)
        engine.forward(rows)
        for row in rows:
            if row.node_tokens and rng.random() < 0.7:
                engine.accept(row.key, [len(row.node_tokens) - 1][: row.node_parents[-1] == -1])

    def end(self) -> None:
        for key in range(NUM_REQUESTS):
            self._engine.close(key)


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def test_ten_thousand_passes_leave_no_memory_behind(tiny_llama: Path) -> None:
    engine = Engine(Checkpoint(tiny_llama, "tiny"), block_size=4, kv_cache_bytes=40 * 4 * 2 * 2 * 3 * 8 * 4)
    life = Life(engine)
    life.run(NUM_PASSES // 10)
    warm = resident_bytes()

    life.run(NUM_PASSES - NUM_PASSES // 10)

    growth = resident_bytes() - warm
    life.end()
    engine.check_integrity()
    assert engine.num_free_blocks == engine.num_blocks
    assert min(life.num_found, life.num_refused) > 100, "prefixes were found, and the cache was full, all the time"
    print(f"resident memory grew by {growth / 1024:.0f} KiB in {NUM_PASSES - NUM_PASSES // 10} passes")  # noqa: T201 - with pytest -rP
    assert growth < MAX_GROWTH_BYTES
