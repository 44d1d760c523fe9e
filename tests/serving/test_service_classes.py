"""Requests that give way, over real gRPC: whoever was preempted has the answer of whoever was not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from outrider import Answer, Client, SamplingParams
from outrider.types import ServiceClass
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.serving.scraping import scrape
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(240)

NUM_PLACES = 2
NUM_BATCH, NUM_INTERACTIVE = 3, 4


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", num_layers=1, max_context=512)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=4 << 20, profile_s=0)
    drafters = [drafter_config("ngram", f"itself=model:{folder}")]
    scheduler = SchedulerConfig(listen="127.0.0.1:0", max_running_requests=NUM_PLACES, metrics_port=0)
    with local_cell(target, drafters, scheduler) as running:
        yield running


def ask(client: Client, number: int, service_class: ServiceClass | None) -> Iterator[Answer | None]:
    """None once the first token is there, then the answer."""
    num_tokens = 300 if number < NUM_BATCH else 20
    sampling = SamplingParams(seed=number, max_tokens=num_tokens, ignore_eos=True)
    generation = client.generate([1 + number, 2, 3], sampling=sampling, service_class=service_class)
    tokens = iter(generation)
    next(tokens)
    yield None
    for _ in tokens:
        pass
    yield generation.answer


def whole(client: Client, number: int, service_class: ServiceClass | None) -> Answer:
    *_, answer = ask(client, number, service_class)
    assert answer is not None
    return answer


def test_interactive_requests_preempt_batch_ones_and_every_answer_is_the_undisturbed_one(cell: LocalCell) -> None:
    numbers = range(NUM_BATCH + NUM_INTERACTIVE)
    with Client(cell.endpoint) as client, ThreadPoolExecutor(len(numbers)) as threads:
        alone = [whole(client, number, None).token_ids for number in numbers]
        assert scrape(cell.metrics_address)["outrider:num_preemptions_total"] == 0
        batch = [ask(client, number, "batch") for number in range(NUM_BATCH)]
        for answer in batch[:NUM_PLACES]:
            next(answer)  # they run
        rest = [threads.submit(list, answer) for answer in batch]
        urgent = [threads.submit(whole, client, number, "interactive") for number in numbers[NUM_BATCH:]]
        answers = [done for each in rest if (done := each.result()[-1]) is not None]
        answers += [each.result() for each in urgent]
    assert [answer.token_ids for answer in answers] == alone
    assert scrape(cell.metrics_address)["outrider:num_preemptions_total"] >= NUM_PLACES
    for answer in answers:
        assert answer.usage.num_cached_prompt_tokens <= answer.usage.num_prompt_tokens
