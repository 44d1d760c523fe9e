"""The servers of a cell in float32, where equal tokens can be promised at every batch shape."""

from __future__ import annotations

from pathlib import Path

from workers.draft.server import DrafterConfig
from workers.target.server import TargetConfig

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
