"""Drafters renewed under load: one after the other, and the answers stay the same."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import WorkerFailed
from outrider import AsyncClient
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, running
from tests.cluster.streams import Streams

pytestmark = pytest.mark.cluster

DRAFTERS = [{"kind": "ngram"}, {"kind": "suffix"}]


async def test_drafters_are_renewed_one_after_the_other_and_the_streams_bring_what_they_did(
    cell_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(cell_config(drafters=DRAFTERS, restarts={"first_backoff_s": 0.0})) as cell:
        streams = Streams(cell.endpoint, num_streams=4, num_tokens_each=200)
        await streams.learn()
        before = [drafter.process_ids for drafter in cell.drafters]
        async with streams.running(), asyncio.timeout(2 * TIMEOUT_S):
            await streams.wait_tokens(100)
            await cell.renew_drafters()
            await streams.wait_tokens(100)
        assert streams.wrong == []
        assert all(drafter.process_ids != old for drafter, old in zip(cell.drafters, before, strict=True))
        async with AsyncClient(cell.endpoint) as client:
            assert len((await client.server_info()).drafters) == len(DRAFTERS)
    told = [record.getMessage().splitlines()[0] for record in caplog.records if record.name == "cluster.supervise"]
    assert told[0] == "drafter ngram ended"
    assert told[1].startswith("drafter ngram is back")
    assert told[2] == "drafter suffix ended"
    assert told[3].startswith("drafter suffix is back")


async def test_a_drafter_that_does_not_come_back_ends_the_renewal_and_the_others_are_left_alone(
    cell_config: MakeConfig,
) -> None:
    async with running(cell_config(drafters=DRAFTERS, restarts={"max_restarts": 0})) as cell:
        before = cell.drafters[1].process_ids
        with pytest.raises(WorkerFailed, match="drafter ngram did not come back"):
            async with asyncio.timeout(TIMEOUT_S):
                await cell.renew_drafters()
        assert cell.drafters[1].process_ids == before
        assert cell.drafters[1].address is not None
