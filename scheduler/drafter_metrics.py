"""What `/metrics` says of each drafter: by name what came of its nodes, by name and worker how it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

from outrider.v1 import inference_pb2 as pb
from scheduler.driver import Driver
from scheduler.links import DrafterLink
from scheduler.request import DrafterHealth
from scheduler.totals import Totals

STATES = {
    pb.WORKER_STATE_CONNECTING: "connecting",
    pb.WORKER_STATE_READY: "ready",
    pb.WORKER_STATE_LATE: "late",
    pb.WORKER_STATE_STARVED: "starved",
    pb.WORKER_STATE_REFUSED: "refused",
}
_COUNTS: dict[str, tuple[str, Callable[[DrafterHealth], int]]] = {
    "drafter_verdicts": ("On its best guess behind a root.", lambda health: health.num_verdicts),
    "drafter_orders": ("Orders that it was sent.", lambda health: health.num_orders),
    "drafter_orders_skipped": ("Orders that it was not sent: starved.", lambda health: health.num_orders_skipped),
    "drafter_times_late": ("Times that it became late.", lambda health: health.num_times_late),
    "drafter_stale_reports": ("Reports for what was over.", lambda health: health.num_stale_reports),
    "drafter_dropped_nodes": ("Nodes that had no place any more.", lambda health: health.num_dropped_nodes),
}
_LABELS = ("drafter", "worker")


def drafter_metrics(driver: Driver, totals: Totals, prefix: str) -> Iterator[Metric]:
    drafted = CounterMetricFamily(f"{prefix}drafter_nodes", "Nodes that it put into trees.", labels=["drafter"])
    accepted = CounterMetricFamily(f"{prefix}drafter_accepted_tokens", "Of them accepted.", labels=["drafter"])
    for name, count in totals.drafters.items():
        drafted.add_metric([name], count.num_drafted_nodes)
        accepted.add_metric([name], count.num_accepted_tokens)
    yield from (drafted, accepted, _states(driver, prefix))
    known = [
        ((drafter.name, link.address), driver.core.health(link.address, drafter.name))
        for link in driver.drafter_links
        for drafter in (link.description.drafters if link.description else ())
    ]
    shares = GaugeMetricFamily(f"{prefix}drafter_acceptance", "How often its best guess is right.", labels=_LABELS)
    answers = SummaryMetricFamily(f"{prefix}drafter_answer_seconds", "Order to first nodes.", labels=_LABELS)
    for labels, health in known:
        if health.num_verdicts:
            shares.add_metric(labels, health.acceptance)
        answers.add_metric(labels, health.num_answers, health.answer_s)
    yield from (shares, answers)
    for name, (meaning, count_of) in _COUNTS.items():
        counts = CounterMetricFamily(prefix + name, meaning, labels=_LABELS)
        for labels, health in known:
            counts.add_metric(labels, count_of(health))
        yield counts


def _states(driver: Driver, prefix: str) -> Metric:
    """One of a drafter's states is 1. A worker that has not said what it hosts goes by its address."""
    family = GaugeMetricFamily(f"{prefix}drafter_state", "1 for the one that it is in.", labels=[*_LABELS, "state"])
    for link in driver.drafter_links:
        for name in _names(link):
            now = driver.worker_state(link, name)
            for state, text in STATES.items():
                family.add_metric([name, link.address, text], float(state == now))
    return family


def _names(link: DrafterLink) -> list[str]:
    return [drafter.name for drafter in link.description.drafters] if link.description else [link.address]
