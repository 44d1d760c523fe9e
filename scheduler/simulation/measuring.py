"""What is measured of a run: goodput, latencies, the bubble, what speculation brought and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.simulation.cell import Cell
from scheduler.simulation.client import Client
from scheduler.simulation.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Running sums of a cell at a time."""

    time_s: float
    num_passes: int
    num_pass_tokens: int  # computed by the target groups
    num_rows: int  # in its passes
    target_busy_s: float
    bubble_s: float  # a target group had no pass while requests ran there
    drafters_busy_s: float
    num_nodes: int  # that drafters told

    @classmethod
    def of(cls, cell: Cell) -> Snapshot:
        assert cell.scheduler is not None
        counts = [target.counts for target in cell.targets]
        drafters = [drafter for worker in cell.drafter_workers.values() for drafter in worker.drafters.values()]
        return cls(
            time_s=cell.agenda.now_s,
            num_passes=sum(each.num_passes for each in counts),
            num_pass_tokens=sum(each.num_tokens for each in counts),
            num_rows=sum(each.num_rows for each in counts),
            target_busy_s=sum(each.busy_s for each in counts),
            bubble_s=cell.scheduler.core.totals.bubble_s,
            drafters_busy_s=sum(drafter.busy_s for drafter in drafters),
            num_nodes=sum(drafter.num_nodes for drafter in drafters),
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a latency, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Report:
    strategy: str
    goodput_tokens_per_s: float
    num_answers: int  # that were complete in the time measured
    first_token_ms: Spread
    per_token_ms: Spread  # of an answer, after its first token
    answer_ms: Spread
    tokens_per_row: float  # that one row of a pass commits, prompts included
    rows_per_pass: float
    tokens_per_pass: float  # that the target computes, nodes and prompts included
    pass_ms: float
    bubble: float  # share of the time in which a target group had no pass while requests ran there
    drafters_busy: float  # share
    dollars_per_million_tokens: float


def measured(
    scenario: Scenario,
    strategy: str,
    before: Snapshot,
    after: Snapshot,
    emitted: Sequence[tuple[float, int]],
    clients: Sequence[Client],
) -> Report:
    elapsed_s = after.time_s - before.time_s
    num_tokens = sum(num for time_s, num in emitted if before.time_s < time_s <= after.time_s)
    ended = [each for each in clients if each.ended_s is not None and before.time_s < each.ended_s <= after.time_s]
    num_passes = max(after.num_passes - before.num_passes, 1)
    num_rows = max(after.num_rows - before.num_rows, 1)
    num_workers = sum(section.workers for section in scenario.drafters)
    busy_s, bubble_s = after.target_busy_s - before.target_busy_s, after.bubble_s - before.bubble_s
    return Report(
        strategy=strategy,
        goodput_tokens_per_s=num_tokens / elapsed_s,
        num_answers=len(ended),
        first_token_ms=_spread([(each.first_token_s or 0.0) - each.asked_s for each in ended]),
        per_token_ms=_spread([_per_token_s(each) for each in ended if len(each.tokens) > 1]),
        answer_ms=_spread([(each.ended_s or 0.0) - each.asked_s for each in ended]),
        tokens_per_row=num_tokens / num_rows,
        rows_per_pass=num_rows / num_passes,
        tokens_per_pass=(after.num_pass_tokens - before.num_pass_tokens) / num_passes,
        pass_ms=1000 * busy_s / num_passes,
        bubble=bubble_s / max(busy_s + bubble_s, 1e-9),
        drafters_busy=(after.drafters_busy_s - before.drafters_busy_s) / elapsed_s / max(num_workers, 1),
        dollars_per_million_tokens=_dollars_per_s(scenario, strategy) * 1e6 * elapsed_s / max(num_tokens, 1),
    )


def _per_token_s(client: Client) -> float:
    return ((client.ended_s or 0.0) - (client.first_token_s or 0.0)) / (len(client.tokens) - 1)


def _dollars_per_s(scenario: Scenario, strategy: str) -> float:
    """Plain decoding has no drafters to pay for."""
    drafters = sum(section.workers * section.price_per_hour for section in scenario.drafters)
    return (scenario.target.groups * scenario.target.price_per_hour + (drafters if strategy != "plain" else 0.0)) / 3600


def _spread(seconds: Sequence[float]) -> Spread:
    """By rank: no value in between is made up."""
    ordered = sorted(seconds)
    if not ordered:
        return Spread(0.0, 0.0)
    last = len(ordered) - 1
    return Spread(1000 * ordered[round(0.5 * last)], 1000 * ordered[round(0.99 * last)])
