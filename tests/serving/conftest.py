"""Cells of the real default model in float32, where equal tokens can be promised at every batch shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.server import SchedulerConfig
from tests.serving.local_cell import LocalCell, local_cell
from workers.draft.server import DrafterConfig
from workers.target.server import TargetConfig
from workers.training.layers import save_with_layers

KV_CACHE_BYTES = int(256e6)


def target_config(model: Path, tensor_parallel: int = 1) -> TargetConfig:
    return TargetConfig(
        model=str(model),
        tensor_parallel=tensor_parallel,
        dtype="float32",
        threads=1,
        kv_cache_bytes=KV_CACHE_BYTES,
        profile_s=0,
    )


def drafter_config(*drafters: str) -> DrafterConfig:
    return DrafterConfig(name="drafts", drafters=drafters, dtype="float32", threads=1, kv_cache_bytes=KV_CACHE_BYTES)


@pytest.fixture(scope="session")
def truncated(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_layers(smollm2, tmp_path_factory.mktemp("truncated") / "SmolLM2-8-layers", range(8))


@pytest.fixture(scope="session")
def cell(smollm2: Path, truncated: Path) -> Iterator[LocalCell]:
    """One rank, and three drafters: prompt lookup, the target itself, and the target cut to eight layers."""
    drafters = [
        drafter_config("ngram"),
        drafter_config(f"itself=model:{smollm2}", f"cut=model:{truncated}"),
    ]
    # The tests share two cores with all of it: a draft is waited for, so that drafts are used whatever the load.
    scheduler = SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60)
    with local_cell(target_config(smollm2), drafters, scheduler) as running:
        yield running
