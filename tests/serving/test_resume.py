"""A stream that is cut again and again brings the answer of one that is not: with drafts and without, under every
parameter that looks back at the answer. The tokens are bytes, so most cuts are inside a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from random import Random

import grpc
import pytest

from outrider import Answer, Client, Resuming, SamplingParams, Speculation
from outrider.errors import ServerUnavailable
from outrider.types import Started
from outrider.v1 import inference_pb2, inference_pb2_grpc
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config
from tests.serving.cutting_relay import CuttingRelay, cutting_relay
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import NUM_LETTER_TOKENS, save_letter_tokenizer, save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(120)

OFF = Speculation(mode="off")
DRAFTED = Speculation(drafters=["ngram", "itself"], max_nodes=4)
QUICK = Resuming(first_backoff_s=0.01, max_backoff_s=0.1)
PROMPT = "answer: aXbXcX aXbXcX\nanswer: "
FREE = SamplingParams(max_tokens=64, seed=5, ignore_eos=True)
SCHEMA = '{"type": "object", "properties": {"a": {"type": "string", "minLength": 30, "maxLength": 40}}, "required": ["a"], "additionalProperties": false}'  # noqa: E501


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_llama(folder, vocab=NUM_LETTER_TOKENS, num_layers=1, max_context=1024, with_tokenizer=False)
    save_letter_tokenizer(folder)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    drafters = [drafter_config("ngram"), drafter_config(f"itself=model:{folder}")]
    with local_cell(target, drafters, SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60)) as running:
        yield running


@pytest.fixture
def relay(cell: LocalCell) -> Iterator[CuttingRelay]:
    with cutting_relay(cell.endpoint) as relay:
        yield relay


@pytest.fixture(scope="module")
def whole(cell: LocalCell) -> Answer:
    """Undisturbed, by the target alone."""
    with Client(cell.endpoint) as client:
        return client.generate(PROMPT, sampling=FREE, speculation=OFF).result()


def parameters(whole: Answer) -> dict[str, SamplingParams]:
    """Of which each looks back at the answer so far, or at its text."""
    first_seen = next(i for i in range(35, 60) if whole.text[i : i + 3] not in whole.text[: i + 2])
    stop = [whole.text[first_seen : first_seen + 3]]
    return {
        "log-probabilities": replace(FREE, logprobs=2),
        "penalties": replace(FREE, repetition_penalty=1.5, frequency_penalty=0.7, presence_penalty=0.5),
        "bad words": replace(FREE, bad_words=[whole.text[2], whole.text[40:42]]),
        "min tokens": replace(FREE, ignore_eos=False, min_tokens=56),
        "stop": replace(FREE, stop=stop),
        "stop, kept": replace(FREE, stop=stop, include_stop=True),
        "stop token": replace(FREE, stop_token_ids=[whole.token_ids[50]], min_tokens=40),
        "schema": replace(FREE, ignore_eos=False, json_schema=SCHEMA),
        "greedy": replace(FREE, temperature=0),
    }


def check(broken: Answer, whole: Answer) -> None:
    """All that a caller gets is the same, but for the times and for what only the speed depends on."""
    assert broken.token_ids == whole.token_ids
    assert (broken.texts, broken.text) == (whole.texts, whole.text)
    assert (broken.finish_reason, broken.matched_stop) == (whole.finish_reason, whole.matched_stop)
    assert (broken.seed, broken.usage.num_prompt_tokens) == (whole.seed, whole.usage.num_prompt_tokens)
    assert broken.usage.num_completion_tokens == whole.usage.num_completion_tokens
    assert (broken.logprobs is None) == (whole.logprobs is None)
    for ours, theirs in zip(broken.logprobs or (), whole.logprobs or (), strict=True):
        assert ours.top_ids == theirs.top_ids
        assert (ours.logprob, *ours.top_logprobs) == pytest.approx((theirs.logprob, *theirs.top_logprobs), abs=1e-4)


PARAMETERS = [
    "log-probabilities",
    "penalties",
    "bad words",
    "min tokens",
    "stop",
    "stop, kept",
    "stop token",
    "schema",
    "greedy",
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_stream_that_is_cut_brings_the_whole_answer(name: str, cell: LocalCell, whole: Answer) -> None:
    sampling = parameters(whole)[name]
    with Client(cell.endpoint) as client:
        undisturbed = client.generate(PROMPT, sampling=sampling, speculation=OFF).result()
    random = Random(name)
    for speculation in (OFF, DRAFTED):
        with cutting_relay(cell.endpoint) as relay:
            relay.budgets = [random.randrange(300, 500) for _ in range(2)]
            with Client(relay.address, resuming=QUICK) as client:
                broken = client.generate(PROMPT, sampling=sampling, speculation=speculation).result()
            check(broken, undisturbed)
            assert relay.num_cuts > 0


def test_the_tokens_are_mostly_inside_characters(whole: Answer) -> None:
    """Were they not, the tests here would say little about text."""
    assert sum(not text for text in whole.texts) > 20


def test_a_drawn_seed_is_the_answers_to_its_end(cell: LocalCell, relay: CuttingRelay) -> None:
    relay.budgets = [800, 600]
    with Client(relay.address, resuming=QUICK) as client:
        broken = client.generate(PROMPT, sampling=replace(FREE, seed=None), speculation=DRAFTED).result()
    with Client(cell.endpoint) as client:
        again = client.generate(PROMPT, sampling=replace(FREE, seed=broken.seed), speculation=OFF).result()
    assert broken.num_resumed_tokens > 0
    check(broken, again)


def test_each_of_several_answers_goes_on(cell: LocalCell, relay: CuttingRelay) -> None:
    sampling = replace(FREE, n=3, max_tokens=40)
    with Client(cell.endpoint) as client:
        undisturbed = client.generate_all(PROMPT, sampling=sampling, speculation=OFF)
    relay.budgets = [1500, 900]
    with Client(relay.address, resuming=QUICK) as client:
        broken = client.generate_all(PROMPT, sampling=sampling, speculation=DRAFTED)
    for ours, theirs in zip(broken, undisturbed, strict=True):
        check(ours, theirs)
    assert relay.num_cuts > 0


def test_an_answer_that_starts_says_its_limit_and_its_prompt(cell: LocalCell) -> None:
    def started(prompt: str, sampling: SamplingParams) -> Started:
        generation = client.generate(prompt, sampling=sampling)
        next(generation.chunks())
        assert generation.started is not None
        return generation.started

    with Client(cell.endpoint) as client:
        default, given = started(PROMPT, replace(FREE, max_tokens=None)), started(PROMPT, FREE)
        other = started(PROMPT[::-1], FREE)
    assert (default.max_tokens, given.max_tokens) == (256, FREE.max_tokens)
    assert default.prompt_hash == given.prompt_hash != other.prompt_hash
    assert default.num_prompt_tokens == other.num_prompt_tokens


def test_a_call_that_is_refused_takes_nothing_over(cell: LocalCell) -> None:
    sampling = replace(FREE, max_tokens=900)
    with Client(cell.endpoint, resuming=None) as client, grpc.insecure_channel(cell.endpoint) as channel:
        tokens = iter(generation := client.generate(PROMPT, sampling=sampling, request_id="mine"))
        next(tokens)
        request = inference_pb2.GenerateRequest(request_id="mine", resume_from={})
        with pytest.raises(grpc.RpcError, match="prompt is not set"):
            list(inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=60))
        assert len(generation.result().token_ids) == 900


def test_without_resuming_a_cut_is_an_error(relay: CuttingRelay) -> None:
    """The wrong twin: the cuts are real."""
    relay.budgets = [600]
    with Client(relay.address, resuming=None) as client, pytest.raises(ServerUnavailable):
        client.generate(PROMPT, sampling=FREE).result()


@pytest.mark.parametrize("speculation", [OFF, DRAFTED], ids=["alone", "drafted"])
def test_streams_outlive_their_scheduler(speculation: Speculation, cell: LocalCell, whole: Answer) -> None:
    """Two restarts without any grace, on the same address."""
    num_streams = 3
    samplings = [replace(FREE, max_tokens=120, seed=seed) for seed in range(num_streams)]

    def read(sampling: SamplingParams, restarts: list[int]) -> Answer:
        with Client(cell.endpoint, resuming=QUICK) as client:
            generation = client.generate(PROMPT, sampling=sampling, speculation=speculation)
            for num_tokens, _ in enumerate(generation):
                if restarts and num_tokens == restarts[0]:
                    del restarts[0]
                    cell.restart_scheduler()
            return generation.answer

    with ThreadPoolExecutor(num_streams) as pool:
        plain = list(pool.map(lambda sampling: read(sampling, []), samplings))
        calls = [pool.submit(read, sampling, [20, 70] if sampling.seed == 0 else []) for sampling in samplings]
        broken = [call.result() for call in calls]
    for ours, theirs in zip(broken, plain, strict=True):
        check(ours, theirs)
    assert broken[0].num_resumed_tokens > 0
    assert all(earlier.token_ids != later.token_ids for earlier, later in pairwise(plain))
