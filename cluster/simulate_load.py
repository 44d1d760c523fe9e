"""What `outriderd simulate SCENARIO` does once its flags are read: runs, a table or JSON, and a plot."""

from __future__ import annotations

import json
import multiprocessing
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

import scheduler.simulation
from cluster.complaint import explain
from cluster.errors import ConfigError
from cluster.simulate import progress_bar
from outrider.tables import print_table
from scheduler.simulation.scenario import Scenario
from scheduler.simulation.strategies import BEST_FIXED, NAMES
from scheduler.simulation.sweep import AXES, Job, Row, best_of, jobs

_COLUMNS = (
    "users",
    "rtt ms",
    "drafters",
    "strategy",
    "tokens/s",
    "gain",
    "first ms",
    "a token ms",
    "answer ms",
    "a row",
    "size",
    "pass ms",
    "bubble",
    "drafting",
    "$ a million",
)

_BUNDLED = Path(scheduler.simulation.__file__).parent / "scenarios"


def bundled() -> list[str]:
    return sorted(path.stem for path in _BUNDLED.glob("*.toml"))


def load_scenario(name: str, *, seed: int | None = None, duration_s: float | None = None) -> Scenario:
    """A bundled scenario, or that of a file; another seed or duration wins. Raises ConfigError."""
    path = _BUNDLED / f"{name}.toml" if name in bundled() else Path(name)
    try:
        values = tomllib.loads(path.read_text())
    except OSError:
        limit = f"it must be a TOML file, or one of {', '.join(bundled())}"
        raise ConfigError(f"the scenario is {name!r}: {limit}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    if seed is not None:
        values["seed"] = seed
    if duration_s is not None:
        values.setdefault("load", {})["duration_s"] = duration_s
    try:
        return Scenario.model_validate(values)
    except ValidationError as error:
        lines = "; ".join(explain(Scenario, each) for each in error.errors())
        raise ConfigError(f"{path}: {lines}") from error


def parse_columns(text: str | None) -> list[str]:
    """The strategies to compare, ours alone where none is named. Raises ConfigError."""
    columns = ["outrider"] if text is None else [part.strip() for part in text.split(",")]
    for column in columns:
        if column not in (*NAMES, BEST_FIXED):
            raise ConfigError(f"--compare has {column!r}: the strategies are {', '.join((*NAMES, BEST_FIXED))}")
    return columns


def parse_axes(texts: Sequence[str]) -> dict[str, list[float]]:
    """Of "concurrency=1,8,32" and the like. Raises ConfigError."""
    axes: dict[str, list[float]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in AXES:
            raise ConfigError(f"--sweep has {name!r}: it must be one of {', '.join(AXES)}, as in concurrency=1,8,32")
        try:
            axes[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ConfigError(f"--sweep {name} is {values!r}: it must be numbers, as in {name}=1,8,32") from None
        least = 0 if name == "rtt-ms" else 1
        if min(axes[name]) < least:
            raise ConfigError(f"--sweep {name} is {values!r}: each must be at least {least}")
    return axes


def simulate_load(
    scenario: Scenario,
    columns: Sequence[str],
    axes: Mapping[str, Sequence[float]],
    num_processes: int | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    if plot is not None:
        from cluster.simulate_plot import check_plotting

        check_plotting(plot)
    todo = jobs(scenario, columns, axes)
    rows: list[Row] = []
    with progress_bar("runs", len(todo)) as advance:
        for row in _results(todo, num_processes or os.cpu_count() or 1):
            rows.append(row)
            advance(1)
    rows = sorted(best_of(rows), key=lambda row: (row.point, columns.index(row.column)))
    if as_json:
        typer.echo(json.dumps({"scenario": scenario.name, "rows": [_json(row, rows) for row in rows]}))
    else:
        title = f"{scenario.name}: p50/p99 of latencies"
        print_table(title, _COLUMNS, [_cells(row, rows) for row in rows], is_framed=False)
    if plot is not None:
        from cluster.simulate_plot import draw

        draw(scenario.name, rows, plot)


def _run(job: Job) -> Row:
    return job.run()


def _results(todo: Sequence[Job], num_processes: int) -> Iterator[Row]:
    if num_processes == 1 or len(todo) == 1:
        yield from map(_run, todo)
        return
    with multiprocessing.get_context("spawn").Pool(min(num_processes, len(todo))) as pool:
        yield from pool.imap_unordered(_run, todo)


def gain(row: Row, rows: Sequence[Row]) -> float | None:
    """Over plain decoding at the same point; None where that was not run."""
    plain = [each for each in rows if each.column == "plain" and each.point[:1] == row.point[:1]]
    same = [each for each in plain if each.point == row.point] or plain
    if not same or not same[0].report.goodput_tokens_per_s:
        return None
    return row.report.goodput_tokens_per_s / same[0].report.goodput_tokens_per_s


def _json(row: Row, rows: Sequence[Row]) -> dict[str, object]:
    at = {"concurrency": row.concurrency, "rate_per_s": row.rate_per_s, "rtt_ms": row.rtt_ms, "drafters": row.drafters}
    report = asdict(row.report)
    name = report.pop("strategy")
    shape = {"shape": name} if row.column == BEST_FIXED else {}
    numbers = _rounded({**report, "gain": gain(row, rows)})
    return {**at, "strategy": row.column, **shape, **numbers}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value)
        if isinstance(value, dict)
        else float(f"{value:.5g}")
        if isinstance(value, float)
        else value
        for key, value in values.items()
    }


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Its values of _COLUMNS."""
    report, ratio = row.report, gain(row, rows)
    return (
        f"{row.concurrency or f'{row.rate_per_s:g}/s'}",
        f"{row.rtt_ms:g}",
        f"{row.drafters}",
        f"{row.column}: {report.strategy}" if row.column == BEST_FIXED else row.column,
        f"{report.goodput_tokens_per_s:.1f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{report.first_token_ms.p50:.0f}/{report.first_token_ms.p99:.0f}",
        f"{report.per_token_ms.p50:.1f}/{report.per_token_ms.p99:.1f}",
        f"{report.answer_ms.p50:.0f}/{report.answer_ms.p99:.0f}",
        f"{report.tokens_per_row:.2f}",
        f"{report.tokens_per_pass / report.rows_per_pass:.2f}",
        f"{report.pass_ms:.1f}",
        f"{report.bubble:.1%}",
        f"{report.drafters_busy:.0%}",
        f"{report.dollars_per_million_tokens:.2f}",
    )
