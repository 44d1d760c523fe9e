"""The life of a cell: what it does when a part can't be kept, when it is stopped, and when it can't start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from cluster.errors import ClusterError, ConfigError, WorkerFailed
from cluster.launch import Cell
from outrider import AsyncClient
from outrider.errors import InvalidRequest
from outrider.types import SamplingParams
from tests.cluster.conftest import TIMEOUT_S, MakeConfig, Returns, running

pytestmark = pytest.mark.cluster


async def test_a_drafter_that_keeps_falling_is_given_up_and_the_cell_goes_on_without_it(
    cell_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(cell_config(restarts={"max_restarts": 0})) as cell:
        os.kill(cell.drafters[0].process_ids[0], signal.SIGKILL)
        async with AsyncClient(cell.endpoint) as client, asyncio.timeout(TIMEOUT_S):
            while (await client.server_info()).drafters:
                pass
            answer = await client.generate([5, 6, 7], sampling=SamplingParams(max_tokens=9, ignore_eos=True)).result()
        assert len(answer.token_ids) == 9
    assert "goes on without it" in caplog.text


async def test_where_machines_are_added_on_demand_the_cell_serves_before_its_drafters_have_one(
    cell_config: MakeConfig, returns: Returns
) -> None:
    async with running(cell_config(ray={"autoscaled": True})) as cell, AsyncClient(cell.endpoint) as client:
        answer = await client.generate([5, 6, 7], sampling=SamplingParams(max_tokens=9, ignore_eos=True)).result()
        assert len(answer.token_ids) == 9
        assert await returns.next() == "drafter ngram"
        async with asyncio.timeout(TIMEOUT_S):
            while len((await client.server_info()).drafters) < 1:  # the scheduler is told next
                pass


async def test_a_target_that_is_given_up_ends_the_cell_with_the_reason(cell_config: MakeConfig) -> None:
    async with running(cell_config(drafters=[], restarts={"max_restarts": 0})) as cell:
        assert cell.target is not None
        os.kill(cell.target.process_ids[0], signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r"the target is given up.*rank 0 of the target failed"):
            await asyncio.wait_for(cell.wait(), TIMEOUT_S)


async def test_without_ray_on_its_own_machine_the_cell_ends_and_nothing_is_left(cell_config: MakeConfig) -> None:
    before = set(psutil.Process().children(recursive=True))
    async with running(cell_config()) as cell:
        [raylet] = [child for child in psutil.Process().children() if child.name() == "raylet"]
        raylet.kill()
        with pytest.raises(ClusterError, match="Ray's node on this machine has ended"):
            await asyncio.wait_for(cell.wait(), TIMEOUT_S)
        await asyncio.wait_for(cell.stop(at_once=True), TIMEOUT_S)
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_stopped_cell_leaves_no_process_and_may_be_stopped_again(cell_config: MakeConfig) -> None:
    before = set(psutil.Process().children(recursive=True))
    async with running(cell_config()) as cell:
        assert len(set(psutil.Process().children(recursive=True)) - before) >= 3
        await asyncio.gather(cell.stop(), cell.stop())
        assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_model_that_is_not_there_fails_the_start_with_its_name_and_leaves_nothing(
    cell_config: MakeConfig,
) -> None:
    before = set(psutil.Process().children(recursive=True))
    cell = Cell(cell_config(target={"model": "/nowhere/model"}))
    with pytest.raises(WorkerFailed, match=r"the target failed: .*/nowhere/model"):
        await asyncio.wait_for(cell.start(), TIMEOUT_S)
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_port_that_is_taken_fails_the_start_with_its_name_before_anything_runs(cell_config: MakeConfig) -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        expected: dict[str, dict[str, object]] = {
            f"scheduler.listen is '{listen}': it is in use; choose --listen HOST:PORT": {"listen": listen},
            f"scheduler.metrics_port is {port}: it is in use; choose another port": {"metrics_port": port},
        }
        for words, scheduler in expected.items():
            with pytest.raises(ConfigError) as raised:
                await asyncio.wait_for(Cell(cell_config(scheduler=scheduler)).start(lines.append), TIMEOUT_S)
            assert words in raised.value.message
    assert lines == []


async def test_a_host_that_is_another_machines_fails_the_start_with_its_name(cell_config: MakeConfig) -> None:
    for host in ("192.0.2.1", "nowhere.invalid"):
        with pytest.raises(ConfigError, match=f"scheduler.listen is '{host}:1': it can't be bound"):
            await asyncio.wait_for(Cell(cell_config(scheduler={"listen": f"{host}:1"})).start(), TIMEOUT_S)


async def test_a_tokens_file_that_is_not_there_fails_the_start_before_anything_runs(
    cell_config: MakeConfig, tmp_path: Path
) -> None:
    lines: list[str] = []
    cell = Cell(cell_config(auth={"tokens_file": str(tmp_path / "gone.toml")}))
    with pytest.raises(InvalidRequest, match=r"auth.tokens_file is '.*gone.toml': it can't be read"):
        await asyncio.wait_for(cell.start(lines.append), TIMEOUT_S)
    assert lines == []
