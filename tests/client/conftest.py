"""The fake server and both clients, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from outrider import AsyncClient, Client
from tests.client.fake_inference import FakeInference, serving


@pytest.fixture
def fake() -> FakeInference:
    return FakeInference()


@pytest.fixture
def server(fake: FakeInference) -> Iterator[str]:
    with serving(fake) as address:
        yield address


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(server: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server) as client:
        yield client
