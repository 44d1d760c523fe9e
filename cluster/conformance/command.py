"""What `outriderd verify-lossless` does once its flags are read."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.config import CellConfig
from cluster.conformance import report
from cluster.conformance.deployment import Deployment, describe
from cluster.conformance.findings import Finding
from cluster.conformance.local import local_cell
from cluster.conformance.suite import Plan, Suite
from outrider import AsyncClient
from outrider.access_options import Access

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Verification:
    """`where`: the address of a deployment, or the cell to run in this process."""

    where: str | CellConfig
    access: Access  # to a deployment
    plan: Plan
    is_strict: bool
    requires_drafts: bool
    as_json: bool


def verify(verification: Verification) -> int:
    """Run it and print the report; returns the exit code. Raises OutriderError where nothing can be verified.

    With JSON, that line is all that standard output has, and the table goes to standard error.
    """
    screen = Console(stderr=verification.as_json, highlight=False)
    try:
        deployment, findings = asyncio.run(_until_signal(verification))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    screen.print(report.table(findings, deployment))
    for line in report.lines(findings):
        screen.print(escape(line), soft_wrap=True)
    if verification.as_json:
        typer.echo(report.as_json(findings, deployment, verification.plan))
    return report.exit_code(findings, requires_drafts=verification.requires_drafts)


async def _until_signal(verification: Verification) -> tuple[Deployment, list[Finding]]:
    """SIGINT and SIGTERM cancel all calls, and then stop the cell if there is one."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await _verify(verification)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _verify(verification: Verification) -> tuple[Deployment, list[Finding]]:
    with _progress() as progress:
        access = verification.access if isinstance(verification.where, str) else Access(tls=None, token=None)
        async with _endpoint(verification.where, progress) as endpoint, AsyncClient(endpoint, **access) as client:
            deployment = await describe(client, is_strict=verification.is_strict)
            suite = Suite(client, deployment, verification.plan, _steps(progress))
            return deployment, await suite.run()


@asynccontextmanager
async def _endpoint(where: str | CellConfig, progress: Progress) -> AsyncIterator[str]:
    if isinstance(where, str):
        yield where
        return
    async with local_cell(where, lambda line: progress.console.print(escape(line), style="dim")) as endpoint:
        yield endpoint


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        yield progress


def _steps(progress: Progress) -> Callable[[str, int], Callable[[int], None]]:
    def begin(step: str, num_answers: int) -> Callable[[int], None]:
        task = progress.add_task(step, total=num_answers)
        return lambda num: progress.advance(task, num)

    return begin
