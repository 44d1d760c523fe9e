"""A real target on a tiny model, spoken to over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outrider.v1 import target_pb2_grpc
from tests.target_link import Link, Reference, serving
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def reference(tiny: Path) -> Reference:
    return Reference(tiny)


@pytest.fixture
async def target(tiny: Path) -> AsyncIterator[target_pb2_grpc.TargetAsyncStub]:
    async with serving(TargetConfig(model=str(tiny), kv_cache_bytes=1 << 20, threads=1, profile_s=0)) as (_, stub):
        yield stub


@pytest.fixture
async def link(target: target_pb2_grpc.TargetAsyncStub) -> Link:
    return Link(target)
