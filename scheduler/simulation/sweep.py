"""Many runs of one scenario: strategies, and values of what the sweep is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from scheduler.simulation.measuring import Report
from scheduler.simulation.performance import run
from scheduler.simulation.scenario import Scenario
from scheduler.simulation.strategies import BEST_FIXED, Strategy, fixed_shapes, strategy

AXES = ("concurrency", "rtt-ms", "drafters")


@dataclass(frozen=True, slots=True)
class Job:
    """One run; a process can take it."""

    scenario: Scenario
    strategy: Strategy
    column: str  # the strategy as it was asked for

    def run(self) -> Row:
        scenario = self.scenario
        return Row(
            concurrency=scenario.load.concurrency,
            rate_per_s=scenario.load.rate_per_s,
            rtt_ms=scenario.network.drafter_rtt_ms,
            drafters=sum(section.workers for section in scenario.drafters),
            column=self.column,
            report=run(scenario, self.strategy),
        )


@dataclass(frozen=True, slots=True)
class Row:
    concurrency: int | None
    rate_per_s: float | None
    rtt_ms: float
    drafters: int
    column: str
    report: Report

    @property
    def point(self) -> tuple[float, float, int]:
        return self.concurrency or self.rate_per_s or 0.0, self.rtt_ms, self.drafters


def jobs(scenario: Scenario, columns: Sequence[str], axes: Mapping[str, Sequence[float]]) -> list[Job]:
    """Every strategy at every point. Raises KeyError for a strategy that is none."""
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    found: list[Job] = []
    for point in points:
        there = moved(scenario, point)
        for column in columns:
            tried = list(fixed_shapes()) if column == BEST_FIXED else [strategy(column, there)]
            found += [Job(there, each, column) for each in tried]
    return found


def moved(scenario: Scenario, point: Mapping[str, float]) -> Scenario:
    """The scenario with other values on some axes."""
    changes: dict[str, Any] = {}
    if "concurrency" in point:
        load = {"concurrency": round(point["concurrency"]), "rate_per_s": None}
        changes["load"] = scenario.load.model_copy(update=load)
    if "rtt-ms" in point:
        rtts = {"target_rtt_ms": point["rtt-ms"], "drafter_rtt_ms": point["rtt-ms"]}
        changes["network"] = scenario.network.model_copy(update=rtts)
    if "drafters" in point:
        workers = {"workers": round(point["drafters"])}
        changes["drafters"] = [section.model_copy(update=workers) for section in scenario.drafters]
    return scenario.model_copy(update=changes)


def best_of(rows: Sequence[Row]) -> list[Row]:
    """Of the fixed shapes at each point only the fastest, the others as they are; in order of points."""
    best: dict[tuple[float, float, int, str], Row] = {}
    for row in rows:
        key = (*row.point, row.column)
        if key not in best or row.report.goodput_tokens_per_s > best[key].report.goodput_tokens_per_s:
            best[key] = row
    return list(best.values())
