"""`/metrics` of a real cell over HTTP, against what its clients saw."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outrider import Answer, Client, Resuming, SamplingParams, Speculation
from outrider.errors import DeadlineExceeded, InternalError, InvalidRequest, Overloaded
from scheduler.server import SchedulerConfig, SchedulerServer
from tests.metrics_page import documented_series
from tests.ports import free_address
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.serving.scraping import Samples, exposition, increase, scrape
from tests.serving.test_service import is_empty, until
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(240)

MAX_RUNNING, MAX_QUEUED = 2, 2
LONG = SamplingParams(temperature=0, max_tokens=1900, ignore_eos=True)
HISTOGRAMS = ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", num_layers=1, max_context=2048)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    drafters = [drafter_config("ngram"), drafter_config(f"itself=model:{folder}")]
    scheduler = SchedulerConfig(
        listen="127.0.0.1:0",
        metrics_port=0,
        max_running_requests=MAX_RUNNING,
        max_queued_requests=MAX_QUEUED,
        draft_wait_s=5.0,  # each row waits for its nodes, so that some are accepted on the slowest machine
    )
    with local_cell(target, drafters, scheduler) as running:
        yield running


@contextmanager
def counted(cell: LocalCell) -> Iterator[Samples]:
    """What the block adds to each series; filled in where it ends, with nothing running any more."""
    before, change = scrape(cell.metrics_address), Samples()
    yield change
    with Client(cell.endpoint) as client:
        until(client, is_empty)
    change.update(increase(before, scrape(cell.metrics_address)))


def ask(cell: LocalCell, number: int) -> Answer:
    sampling = SamplingParams(seed=number, temperature=0.7 * (number % 2), max_tokens=20 + number)
    prompt = [1 + number % 5, 2, 3] * (1 + number % 3)
    with Client(cell.endpoint) as client:
        return client.generate(prompt, sampling=sampling).result()


def test_counters_are_what_the_clients_saw(cell: LocalCell) -> None:
    with counted(cell) as change:
        answers = [ask(cell, number) for number in range(8)]
    drafts = [answer.speculation for answer in answers]
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    assert change["outrider:prompt_tokens_total"] == sum(answer.usage.num_prompt_tokens for answer in answers)
    assert change["outrider:prefix_cache_queries_total"] == change["outrider:prompt_tokens_total"]
    cached = sum(answer.usage.num_cached_prompt_tokens for answer in answers)
    assert change["outrider:prefix_cache_hits_total"] == cached
    assert change["outrider:generation_tokens_total"] == num_tokens
    accepted = sum(draft.num_accepted_tokens for draft in drafts)
    assert accepted > 0, "a target that drafts for itself is right"
    assert change["outrider:spec_decode_num_accepted_tokens_total"] == accepted
    assert accepted == sum(answer.sources.count("draft") for answer in answers)
    assert change["outrider:spec_decode_num_draft_tokens_total"] == sum(draft.num_drafted_nodes for draft in drafts)
    assert change["outrider:rows_total"] == sum(draft.num_passes for draft in drafts)
    assert change["outrider:run_ahead_hits_total"] == sum(draft.num_hits for draft in drafts)
    depths = sum(draft.num_hits * draft.mean_hit_depth for draft in drafts)
    assert change["outrider:run_ahead_hit_depth_total"] == pytest.approx(depths, rel=1e-5)
    ends = Counter(answer.finish_reason for answer in answers)
    for reason in ("end", "stop", "length"):
        assert change[f'outrider:request_success_total{{finished_reason="{reason}"}}'] == ends[reason]
    for name in ("ngram", "itself"):
        own = [each for draft in drafts for each in draft.drafters if each.name == name]
        nodes, used = sum(each.num_drafted_nodes for each in own), sum(each.num_accepted_tokens for each in own)
        assert change[f'outrider:drafter_nodes_total{{drafter="{name}"}}'] == nodes
        assert change[f'outrider:drafter_accepted_tokens_total{{drafter="{name}"}}'] == used


def test_accepted_tokens_by_position_add_up_and_fall(cell: LocalCell) -> None:
    with counted(cell) as change:
        ask(cell, 0)
    prefix = "outrider:spec_decode_num_accepted_tokens_per_pos_total"
    by_position = [change[name] for name in sorted(change) if name.startswith(prefix)]
    assert sum(by_position) == change["outrider:spec_decode_num_accepted_tokens_total"] > 0
    assert by_position == sorted(by_position, reverse=True), "positions 0 to 7: whoever accepts one accepts those above"
    drafts = change["outrider:spec_decode_num_drafts_total"]
    assert by_position[0] <= drafts == change["outrider:rows_total"] - change["outrider:rows_without_draft_total"]


def test_each_answer_counts_once_in_every_histogram_and_each_token_once_between_tokens(cell: LocalCell) -> None:
    with counted(cell) as change:
        answers = [ask(cell, number) for number in range(5)]
    for name in HISTOGRAMS:
        assert change[f"outrider:{name}_seconds_count"] == len(answers)
    assert change["outrider:time_to_first_token_seconds_count"] == len(answers)
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    assert change["outrider:request_generation_tokens_sum"] == num_tokens
    assert change["outrider:request_generation_tokens_count"] == len(answers)
    num_prompt_tokens = sum(answer.usage.num_prompt_tokens for answer in answers)
    assert change["outrider:request_prompt_tokens_sum"] == num_prompt_tokens
    assert change["outrider:inter_token_latency_seconds_count"] == num_tokens - len(answers), "one after the other"
    whole_s = sum(answer.usage.duration_s for answer in answers)
    assert change["outrider:e2e_request_latency_seconds_sum"] == pytest.approx(whole_s, rel=1e-3)
    first_s = sum(answer.usage.time_to_first_token_s for answer in answers)
    decode_s = change["outrider:request_decode_time_seconds_sum"]
    assert decode_s == pytest.approx(whole_s - first_s, rel=1e-3)
    assert change['outrider:e2e_request_latency_seconds_bucket{le="+Inf"}'] == len(answers)


def test_a_request_that_is_refused_counts_by_its_status_and_as_nothing_else(cell: LocalCell) -> None:
    with counted(cell) as change, Client(cell.endpoint, resuming=Resuming(max_tries=0)) as client:
        with pytest.raises(InvalidRequest):
            client.generate([1], sampling=SamplingParams(max_tokens=10**6)).result()
        admitted = [iter(client.generate([1, number], sampling=LONG)) for number in range(MAX_RUNNING)]
        for tokens in admitted:
            next(tokens)
        waiting = [client.generate([3], sampling=SamplingParams(max_tokens=2)) for _ in range(MAX_QUEUED)]
        with ThreadPoolExecutor() as pool:
            results = [pool.submit(generation.result) for generation in waiting]
            until(client, lambda info: info.num_queued_requests == MAX_QUEUED)
            samples = scrape(cell.metrics_address)
            with pytest.raises(Overloaded):
                client.generate([5], sampling=LONG).result()
            for tokens in admitted:
                for _ in tokens:
                    pass
            for result in results:
                result.result()
    assert samples["outrider:num_requests_running"] == MAX_RUNNING
    assert samples["outrider:num_requests_waiting"] == MAX_QUEUED
    assert 0 < samples["outrider:kv_cache_usage_perc"] <= 1
    assert change['outrider:admission_rejections_total{reason="invalid_argument"}'] == 1
    assert change['outrider:admission_rejections_total{reason="resource_exhausted"}'] == 1
    assert change["outrider:e2e_request_latency_seconds_count"] == MAX_RUNNING + MAX_QUEUED
    assert not any(value for name, value in change.items() if "request_failures" in name)


def test_requests_that_do_not_come_to_their_end_count_as_failures_and_their_tokens_are_kept(cell: LocalCell) -> None:
    with counted(cell) as change, Client(cell.endpoint) as client:
        generation = iter(client.generate([1, 2, 3], sampling=LONG))
        num_seen = sum(1 for _, _ in zip(range(10), generation, strict=False))
        generation.close()
        until(client, is_empty)
        with pytest.raises(DeadlineExceeded):
            client.generate([1, 2], sampling=LONG, speculation=Speculation(mode="off"), timeout_s=0.3).result()
    assert change['outrider:request_failures_total{reason="cancelled"}'] >= 1
    # At the deadline gRPC may cancel before the core comes to it; on a slow machine it passes before admission.
    names = ("outrider:request_failures_total", "outrider:admission_rejections_total")
    assert sum(value for name, value in change.items() if name.startswith(names)) == 2
    assert change["outrider:generation_tokens_total"] >= num_seen
    assert change["outrider:e2e_request_latency_seconds_count"] == 0


def test_scrapes_under_load_disturb_no_token_and_no_count_falls(cell: LocalCell) -> None:
    alone = [ask(cell, number).token_ids for number in range(MAX_RUNNING + MAX_QUEUED)]
    scrapes: list[Samples] = []
    is_over = threading.Event()

    def scrape_on() -> None:
        while not is_over.is_set():
            scrapes.append(scrape(cell.metrics_address))

    with ThreadPoolExecutor() as pool:
        scraping = pool.submit(scrape_on)
        try:
            numbers = range(MAX_RUNNING + MAX_QUEUED)
            together = [answer.token_ids for answer in pool.map(lambda number: ask(cell, number), numbers)]
        finally:
            is_over.set()
        scraping.result()
    assert together == alone
    assert len(scrapes) > 3
    for before, after in pairwise(scrapes):
        falling = [name for name, value in increase(before, after).items() if value < 0 and "_total" in name]
        assert falling == []


def test_the_bubble_and_the_passes_are_those_of_get_server_info(cell: LocalCell) -> None:
    ask(cell, 1)
    with Client(cell.endpoint) as client:
        info = until(client, is_empty)
    samples = scrape(cell.metrics_address)
    assert samples["outrider:passes_total"] == info.num_passes > 0
    assert samples["outrider:target_busy_seconds_total"] == pytest.approx(info.busy_s, rel=1e-5)
    assert samples["outrider:target_bubble_seconds_total"] == pytest.approx(info.bubble_s, rel=1e-5)
    assert samples["outrider:target_up"] == 1


def test_each_drafter_is_in_one_state_and_its_orders_are_counted(cell: LocalCell) -> None:
    with counted(cell) as change:
        ask(cell, 2)
    samples = scrape(cell.metrics_address)
    for name in ("ngram", "itself"):
        [state] = [
            own for own in samples if own.startswith("outrider:drafter_state") and f'"{name}"' in own if samples[own]
        ]
        assert re.search('state="(ready|late|starved)"', state)
        [orders] = [own for own in change if own.startswith("outrider:drafter_orders_total") and f'"{name}"' in own]
        assert change[orders] > 0
        [answers] = [
            own for own in change if own.startswith("outrider:drafter_answer_seconds_count") and f'"{name}"' in own
        ]
        assert 0 < change[answers] <= change[orders]


# What Prometheus 2 and 3 say that they take.
ACCEPTS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;"
    "escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "application/openmetrics-text;version=1.0.0;escaping=underscores,text/plain;version=0.0.4;q=0.3",
)


@pytest.mark.parametrize("accept", ACCEPTS)
def test_whatever_a_scraper_takes_the_names_keep_their_colon_and_every_series_names_the_model(
    cell: LocalCell, accept: str
) -> None:
    families = list(text_string_to_metric_families(exposition(cell.metrics_address, accept)))
    ours = [family for family in families if not family.name.startswith("process_")]
    assert all(family.name.startswith("outrider:") and family.type != "unknown" for family in ours)
    assert all(sample.name.startswith("outrider:") for family in ours for sample in family.samples)
    with Client(cell.endpoint) as client:
        model = client.model_info().model
    assert {sample.labels["model_name"] for family in ours for sample in family.samples} == {model}


def test_the_page_about_metrics_has_every_series_and_no_other(cell: LocalCell) -> None:
    exported = {
        (family.name, family.type)
        for family in text_string_to_metric_families(exposition(cell.metrics_address))
        if family.name.startswith("outrider:")
    }
    assert documented_series() == dict(exported)


async def test_metrics_are_served_only_where_a_port_is_set() -> None:
    server = SchedulerServer(SchedulerConfig(listen="127.0.0.1:0"))
    await server.start()
    assert server.metrics_address is None
    await server.stop(0)


async def test_before_a_target_is_there_the_page_says_so() -> None:
    server = SchedulerServer(SchedulerConfig(listen="127.0.0.1:0", metrics_port=0))
    await server.start()
    assert server.metrics_address is not None
    samples = await asyncio.to_thread(scrape, server.metrics_address)
    await server.stop(0)
    assert (samples["outrider:target_up"], samples["outrider:kv_cache_usage_perc"]) == (0, 0)


async def test_a_port_that_is_taken_is_named_with_its_key() -> None:
    host, _, port = free_address().rpartition(":")
    first, second = (SchedulerServer(SchedulerConfig(listen=f"{host}:0", metrics_port=int(port))) for _ in range(2))
    await first.start()
    with pytest.raises(InternalError, match=rf"scheduler.metrics_port is {port}: .* in use"):
        await second.start()
    await second.stop(0)
    await first.stop(0)
