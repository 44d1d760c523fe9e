"""A cell under fire: whatever process is killed, the answer is the same tokens, and the process comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cluster.launch import Cell
from outrider import AsyncClient
from outrider.types import Answer, SamplingParams, Speculation
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, Returns, running

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
SAMPLING = SamplingParams(max_tokens=400, temperature=0.2, seed=11, ignore_eos=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(cell_config: MakeConfig) -> AsyncIterator[Cell]:
    """Two target ranks and an n-gram drafter, with restarts enough for the whole module."""
    restarts = {"max_restarts": 20, "first_backoff_s": 0.0}
    async with running(cell_config(target={"tensor_parallel": 2}, restarts=restarts)) as cell:
        yield cell


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(cell: Cell) -> Answer:
    """What the target alone answers, undisturbed."""
    async with AsyncClient(cell.endpoint) as client:
        generation = client.generate(PROMPT, sampling=SAMPLING, speculation=Speculation(mode="off"))
        return await generation.result()


async def answer(cell: Cell, *, kill: int | None = None, after_tokens: int = 40) -> Answer:
    """The answer with drafts; the process `kill` is killed once the stream has brought `after_tokens`."""
    num_tokens = 0
    async with AsyncClient(cell.endpoint) as client, asyncio.timeout(TIMEOUT_S):
        generation = client.generate(PROMPT, sampling=SAMPLING)
        async for _ in generation:
            num_tokens += 1
            if num_tokens == after_tokens and kill is not None:
                os.kill(kill, signal.SIGKILL)
        return generation.answer


async def test_a_cell_answers_with_drafts_what_the_target_alone_answers(cell: Cell, plain: Answer) -> None:
    drafted = await answer(cell)
    assert drafted.token_ids == plain.token_ids
    assert drafted.speculation.num_accepted_tokens > 0


async def test_a_drafter_killed_in_the_middle_changes_nothing_and_comes_back_alone(
    cell: Cell, plain: Answer, returns: Returns
) -> None:
    drafter, ranks = cell.drafters[0].process_ids, cell.target.process_ids
    assert (await answer(cell, kill=drafter[0])).token_ids == plain.token_ids
    assert await returns.next() == "drafter ngram"
    assert cell.drafters[0].process_ids != drafter
    assert cell.target.process_ids == ranks
    assert (await answer(cell)).token_ids == plain.token_ids


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_killed_in_the_middle_pauses_the_stream_and_the_whole_group_is_new(
    cell: Cell, plain: Answer, returns: Returns, rank: int
) -> None:
    ranks = cell.target.process_ids
    assert (await answer(cell, kill=ranks[rank])).token_ids == plain.token_ids
    assert await returns.next() == "the target"
    assert set(cell.target.process_ids).isdisjoint(ranks)
    assert len(cell.target.process_ids) == 2


async def test_a_killed_scheduler_comes_back_on_the_same_endpoint_with_all_its_workers(
    cell: Cell, plain: Answer, returns: Returns
) -> None:
    endpoint = cell.endpoint
    os.kill(cell.scheduler.process_ids[0], signal.SIGKILL)
    assert await returns.next() == "the scheduler"
    assert cell.endpoint == endpoint
    assert (await answer(cell)).token_ids == plain.token_ids
