"""What `/metrics` says, read from the driver and its core when somebody asks. docs/metrics.md explains every series.

Names are vLLM's with another prefix where it has the thing, so that dashboards and planners find them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from scheduler.distribution import Distribution
from scheduler.drafter_metrics import drafter_metrics
from scheduler.driver import Driver
from scheduler.totals import Totals

PREFIX = "outrider:"


def all_metrics(driver: Driver) -> list[Metric]:
    """Every series, as it is now; call it on the driver's event loop. Each has the label `model_name`."""
    totals = driver.core.totals_now()
    families = [
        *_request_metrics(driver, totals),
        *_latency_metrics(driver),
        *_target_metrics(driver, totals),
        *_speculation_metrics(totals),
        *drafter_metrics(driver, totals, PREFIX),
    ]
    label = {"model_name": driver.model.description.model if driver.model else ""}
    for family in families:
        family.samples = [sample._replace(labels=label | sample.labels) for sample in family.samples]
    return families


def _request_metrics(driver: Driver, totals: Totals) -> Iterator[Metric]:
    yield _gauge("num_requests_running", "Requests that run.", driver.core.num_running)
    yield _gauge("num_requests_waiting", "Requests in the queue.", driver.core.num_queued)
    yield _counter("num_preemptions", "Requests that gave way to more urgent ones.", totals.num_preemptions)
    yield _counter("prompt_tokens", "Prompt tokens of requests that got a first token.", totals.num_prompt_tokens)
    yield _counter("generation_tokens", "Tokens that were generated.", totals.num_generated_tokens)
    yield _counter("prefix_cache_queries", "Prompt tokens that were looked for.", totals.num_prompt_tokens)
    yield _counter("prefix_cache_hits", "Prompt tokens that were there.", totals.num_cached_prompt_tokens)
    times = driver.times
    yield _counters("request_success", "Answers that came to their end.", "finished_reason", times.num_finished)
    yield _counters("request_failures", "Admitted requests that did not.", "reason", times.num_failed)
    yield _counters("admission_rejections", "Requests that were refused at once.", "reason", times.num_refused)


def _latency_metrics(driver: Driver) -> Iterator[Metric]:
    times = driver.times
    yield _histogram("time_to_first_token_seconds", "Submission to first token.", times.first_token_s)
    yield _histogram("inter_token_latency_seconds", "Between tokens, each its share.", times.between_tokens_s)
    yield _histogram("e2e_request_latency_seconds", "Submission to end.", times.whole_s)
    yield _histogram("request_queue_time_seconds", "Submission to start.", times.queued_s)
    yield _histogram("request_prefill_time_seconds", "Start to first token.", times.prefill_s)
    yield _histogram("request_decode_time_seconds", "First token to end.", times.decode_s)
    yield _histogram("request_prompt_tokens", "Prompt tokens of a request.", times.num_prompt_tokens)
    yield _histogram("request_generation_tokens", "Tokens of an answer.", times.num_generated_tokens)


def _target_metrics(driver: Driver, totals: Totals) -> Iterator[Metric]:
    yield _gauge("target_up", "Whether a target is there.", float(driver.core.has_target))
    groups = driver.core.groups
    used = 1 - groups.num_free_kv_blocks / groups.num_kv_blocks if groups.num_kv_blocks else 0.0
    yield _gauge("kv_cache_usage_perc", "Of the target's KV blocks that requests hold, 1: all.", used)
    running = GaugeMetricFamily(f"{PREFIX}target_requests_running", "Requests that run on it.", labels=["target"])
    free = GaugeMetricFamily(f"{PREFIX}target_kv_blocks_free", "Of its KV blocks.", labels=["target"])
    for group in groups:
        running.add_metric([group.address], len(group.running))
        free.add_metric([group.address], group.num_free_kv_blocks)
    yield from (running, free)
    yield _counter("passes", "Passes of the target.", totals.num_passes)
    yield _counter("target_busy_seconds", "That the target ran passes.", totals.busy_s)
    yield _counter("target_bubble_seconds", "That it had none while requests ran.", totals.bubble_s)
    yield _counter("rows", "Rows of passes that committed tokens.", totals.num_rows)
    yield _counter("rows_without_draft", "Of them without a node.", totals.num_rows - totals.num_drafts)


def _speculation_metrics(totals: Totals) -> Iterator[Metric]:
    yield _counter("spec_decode_num_drafts", "Rows with nodes.", totals.num_drafts)
    yield _counter("spec_decode_num_draft_tokens", "Nodes that were verified.", totals.num_verified_nodes)
    yield _counter("spec_decode_num_accepted_tokens", "Of them accepted.", totals.num_accepted_tokens)
    reached = {
        str(position): sum(count for length, count in totals.num_accepted.items() if length > position)
        for position in range(max(totals.num_accepted, default=0))
    }
    yield _counters("spec_decode_num_accepted_tokens_per_pos", "By depth, from 0.", "position", reached)
    yield _counter("run_ahead_hits", "Verdicts after which nodes were there already.", totals.num_hits)
    yield _counter("run_ahead_hit_depth", "How deep the tree was then, summed up.", totals.hit_depth)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, meaning, value=value)


def _counters(name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, meaning, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, meaning: str, values: Distribution) -> Metric:
    return HistogramMetricFamily(PREFIX + name, meaning, buckets=values.cumulative(), sum_value=values.sum)
