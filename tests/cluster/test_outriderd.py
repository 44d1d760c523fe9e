"""The command as a user runs it: a process of its own, signals, exit codes, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import psutil
import pytest

from cluster.config import DEFAULT_CACHE_DIR
from outrider import AsyncClient
from outrider.errors import OutriderError
from outrider.types import SamplingParams
from tests.cluster.conftest import TIMEOUT_S

pytestmark = pytest.mark.cluster

MEDIUM = SamplingParams(max_tokens=200, ignore_eos=True, seed=1)  # well within the drain time of a busy machine
LONG = SamplingParams(max_tokens=1800, ignore_eos=True, seed=1)
MARKER = "OUTRIDER_TEST_RUN"  # in the environment of the command, and so of every process that it starts


class Command:
    """A running `outriderd up`."""

    def __init__(self, process: asyncio.subprocess.Process, run: str) -> None:
        self.process = process
        self.run = run

    async def endpoint(self) -> str:
        async with asyncio.timeout(TIMEOUT_S):
            line = await self._line()
            while not (found := re.fullmatch(r"Outrider serves on (\S+)\n", line)):
                line = await self._line()
            assert f"--server {found[1]}" in await self._line()
        return found[1]

    async def metrics_url(self) -> str:
        """Said behind the endpoint."""
        async with asyncio.timeout(TIMEOUT_S):
            return (await self._line()).removeprefix("Metrics: ").strip()

    async def exit_code(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()

    async def says(self, line: str) -> None:
        """Returns once that is on its stderr."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            while (await self.process.stderr.readline()).decode().strip() != line:
                assert self.process.returncode is None

    def processes(self) -> list[psutil.Process]:
        """All that carry the marker of this run, the command included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == self.run and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    async def _line(self) -> str:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        assert line, "the command ended before it served"
        return line


@asynccontextmanager
async def outriderd(*arguments: str, cache: Path) -> AsyncIterator[Command]:
    """`outriderd` in a session of its own, as in a terminal; whatever is left of it is killed at the end."""
    run = uuid4().hex
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cluster",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {MARKER: run, "OUTRIDER_CACHE": str(cache)},
        start_new_session=True,
    )
    command = Command(process, run)
    try:
        yield command
    finally:
        for left in command.processes():
            left.kill()
        await process.communicate()


def up(model: Path) -> list[str]:
    return ["up", "--target", str(model), "--dtype", "float32", "--no-compiled", "--listen", "127.0.0.1:0"]


async def test_ctrl_c_ends_the_command_with_0_and_no_process_is_left(tiny_model: Path) -> None:
    async with outriderd(*up(tiny_model), cache=DEFAULT_CACHE_DIR.expanduser()) as command:
        async with AsyncClient(await command.endpoint()) as client:
            answer = await client.generate([3, 4, 5], sampling=SamplingParams(max_tokens=8, ignore_eos=True)).result()
        assert len(answer.token_ids) == 8
        assert len(command.processes()) > 4
        os.killpg(command.process.pid, signal.SIGINT)  # a terminal sends it to the command and all its children
        assert await command.exit_code() == 0
        assert command.processes() == []


async def test_a_running_answer_is_finished_after_sigterm(tiny_model: Path) -> None:
    async with outriderd(*up(tiny_model), cache=DEFAULT_CACHE_DIR.expanduser()) as command:
        async with AsyncClient(await command.endpoint()) as client:
            num_tokens = 0
            async for _ in client.generate([3, 4, 5], sampling=MEDIUM):
                num_tokens += 1
                if num_tokens == 1:
                    command.process.send_signal(signal.SIGTERM)
        assert num_tokens == MEDIUM.max_tokens
        assert await command.exit_code() == 0
        assert command.processes() == []


async def test_sigusr1_renews_the_drafters_and_the_command_serves_on(tiny_model: Path) -> None:
    async with outriderd(*up(tiny_model), "--drafter", "ngram", cache=DEFAULT_CACHE_DIR.expanduser()) as command:
        endpoint = await command.endpoint()
        command.process.send_signal(signal.SIGUSR1)
        await command.says("All drafters are new")
        async with AsyncClient(endpoint) as client:
            answer = await client.generate([3, 4, 5], sampling=SamplingParams(max_tokens=8, ignore_eos=True)).result()
        assert len(answer.token_ids) == 8
        command.process.send_signal(signal.SIGTERM)
        assert await command.exit_code() == 0


async def test_metrics_are_served_where_the_command_says(tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "cell.toml"
    config.write_text("scheduler.metrics_port = 0\n", encoding="utf-8")
    async with outriderd(*up(tiny_model), "--config", str(config), cache=DEFAULT_CACHE_DIR.expanduser()) as command:
        await command.endpoint()
        with await asyncio.to_thread(urlopen, await command.metrics_url(), timeout=TIMEOUT_S) as page:
            assert b"outrider:" in page.read()
        command.process.send_signal(signal.SIGTERM)
        assert await command.exit_code() == 0


@pytest.mark.parametrize("line", ["Starting Ray", "Starting the target"])
async def test_a_sigterm_while_the_cell_starts_leaves_nothing(tiny_model: Path, line: str) -> None:
    async with outriderd(*up(tiny_model), cache=DEFAULT_CACHE_DIR.expanduser()) as command:
        await command.says(line)
        command.process.send_signal(signal.SIGTERM)
        assert await command.exit_code() == 0
        assert command.processes() == []


async def _read_with_impatience(client: AsyncClient, command: Command) -> None:
    """Send SIGTERM with every token; signals that come too fast count as one, and these are enough for two."""
    async for _ in client.generate([3, 4, 5], sampling=LONG):
        if command.process.returncode is None:
            command.process.send_signal(signal.SIGTERM)


async def test_a_second_sigterm_does_not_wait_for_running_answers(tiny_model: Path) -> None:
    async with outriderd(*up(tiny_model), cache=DEFAULT_CACHE_DIR.expanduser()) as command:
        async with AsyncClient(await command.endpoint(), resuming=None) as client:
            with pytest.raises(OutriderError):
                await _read_with_impatience(client, command)
        assert await command.exit_code() == 0
        assert command.processes() == []


async def test_a_failure_ends_the_command_with_1_and_one_paragraph(tmp_path: Path) -> None:
    async with outriderd(*up(tmp_path / "nowhere"), cache=tmp_path) as command:
        async with asyncio.timeout(TIMEOUT_S):
            _, errors = await command.process.communicate()
        assert command.process.returncode == 1
        assert "nowhere" in errors.decode()
        assert "Traceback" not in errors.decode()
        assert command.processes() == []


async def test_a_wrong_setting_ends_the_command_before_anything_is_started(tmp_path: Path) -> None:
    async with outriderd("up", "--tensor-parallel", "0", cache=tmp_path) as command:
        async with asyncio.timeout(TIMEOUT_S):
            output, errors = await command.process.communicate()
        assert command.process.returncode == 1
        assert output == b""
        assert "target.tensor_parallel is 0" in errors.decode()
