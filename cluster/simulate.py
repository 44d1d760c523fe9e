"""What `outriderd simulate` does once its flags are read: processes, clock and screen around a simulation."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scheduler.simulation.campaign import Tally, run_seeds
from scheduler.simulation.schedule import run_schedule
from scheduler.simulation.trace import Trace

_CHUNK = 50  # schedules that a process takes at a time

_stderr = Console(stderr=True, highlight=False)


def simulate_faults(num_schedules: int, first_seed: int, num_processes: int | None, *, as_json: bool) -> int:
    """Run the schedules first_seed … and report; returns the exit code: 1 where anything was found."""
    started_s = time.monotonic()
    tally = Tally()
    with progress_bar("schedules", num_schedules) as advance:
        for part in _parts(num_schedules, first_seed, num_processes or os.cpu_count() or 1):
            tally.add(part)
            advance(part.schedules)
    per_minute = 60 * tally.schedules / max(time.monotonic() - started_s, 1e-9)
    if as_json:
        typer.echo(json.dumps(_json(tally, per_minute)))
    else:
        _print(tally, per_minute)
    return 0 if tally.is_clean else 1


def replay(seed: int, num_events: int) -> int:
    """One schedule again, with its last events on standard output."""
    trace = Trace(num_events)
    verdict = run_schedule(seed, trace=trace)
    for line in trace.lines():
        typer.echo(line)
    for what in verdict.findings.what or ["nothing was found"]:
        typer.echo(f"seed {seed}: {what}")
    return 1 if verdict.findings.num else 0


def _parts(num_schedules: int, first_seed: int, num_processes: int) -> Iterator[Tally]:
    last = first_seed + num_schedules
    chunks = [range(at, min(at + _CHUNK, last)) for at in range(first_seed, last, _CHUNK)]
    if num_processes == 1 or len(chunks) == 1:
        yield from map(run_seeds, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(min(num_processes, len(chunks))) as pool:
        yield from pool.imap_unordered(run_seeds, chunks)


def _json(tally: Tally, per_minute: float) -> dict[str, object]:
    return {
        "schedules": tally.schedules,
        "lost": tally.lost,
        "repeated": tally.repeated,
        "wrong": tally.wrong,
        "leaked": tally.leaked,
        "unended": tally.unended,
        "broken": tally.broken,
        "answers": tally.answers,
        "failed": tally.failed,
        "events": tally.events,
        "preemptions": tally.preemptions,
        "schedules_per_minute": round(per_minute),
        "failing_seeds": [seed for seed, _ in tally.failures],
    }


def _print(tally: Tally, per_minute: float) -> None:
    typer.echo(f"{tally.schedules} schedules, {tally.events} events, {per_minute:.0f} schedules a minute")
    typer.echo(
        f"{tally.answers} answers, {tally.failed} requests that failed for a reason, {tally.preemptions} preemptions"
    )
    typer.echo(
        f"lost {tally.lost}, repeated {tally.repeated}, wrong {tally.wrong}, leaked {tally.leaked}, "
        f"unended {tally.unended}, broken {tally.broken}"
    )
    for seed, found in tally.failures:
        _stderr.print(escape(f"seed {seed}: {found[0]}"), style="red", soft_wrap=True)
    if tally.failures:
        typer.echo(f"Look at one of them: outriderd simulate --faults 1 --seed {tally.failures[0][0]} --trace 60")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr, disable=not _stderr.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num: progress.advance(task, num)
