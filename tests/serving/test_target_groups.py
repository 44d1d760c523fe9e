"""A scheduler with several target groups: real servers, a tiny model, one group in a process that can be killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from outrider import Client, Resuming, SamplingParams, Speculation
from outrider.types import WorkerInfo
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(300)

KV_CACHE_BYTES = 4 << 20
NUM_STREAMS = 12
NUM_TOKENS = 400
NUM_BEFORE_THE_KILL = 4  # tokens of each stream
BLOCK_SIZE = 16
LONGEST = 4096  # a request of so many tokens outlives whatever a test does meanwhile
ONCE = Resuming(max_tries=0)  # the scheduler keeps the streams: no client has to come back


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_context=LONGEST)


@pytest.fixture(scope="module")
def cell(tiny: Path) -> Iterator[LocalCell]:
    """With one group, until a test adds another."""
    target = TargetConfig(model=str(tiny), dtype="float32", threads=1, kv_cache_bytes=KV_CACHE_BYTES, profile_s=0)
    with local_cell(target, [drafter_config(f"itself=model:{tiny}", "ngram")]) as running:
        yield running


def sampling(number: int) -> SamplingParams:
    temperature = 0.0 if number % 2 else 0.9
    return SamplingParams(temperature=temperature, seed=number, max_tokens=NUM_TOKENS, ignore_eos=True)


def prompt(number: int) -> list[int]:
    return [1 + number, 2, 3 + number, 5]


class Streams:
    """Many answers at once, each in a thread."""

    def __init__(self, client: Client, numbers: Sequence[int]) -> None:
        self._client = client
        self._numbers = numbers
        self._have_begun = threading.Semaphore(0)
        self._may_go_on = threading.Event()

    def __enter__(self) -> Streams:
        self._pool = ThreadPoolExecutor(len(self._numbers))
        self._answers = [self._pool.submit(self._answer, number) for number in self._numbers]
        return self

    def __exit__(self, *_: object) -> None:
        self._may_go_on.set()
        self._pool.shutdown()

    def wait_begun(self) -> None:
        """Until every stream has some tokens. None reads on before it may."""
        for _ in self._numbers:
            assert self._have_begun.acquire(timeout=60.0)

    def tokens(self) -> list[tuple[int, ...]]:
        self._may_go_on.set()
        return [answer.result() for answer in self._answers]

    def _answer(self, number: int) -> tuple[int, ...]:
        generation = self._client.generate(prompt(number), sampling=sampling(number))
        for num_tokens, _ in enumerate(generation, 1):
            if num_tokens == NUM_BEFORE_THE_KILL:
                self._have_begun.release()
                assert self._may_go_on.wait(60.0)
        return tuple(generation.answer.token_ids)


def test_a_group_that_is_killed_under_load_costs_no_stream_a_token(cell: LocalCell, tiny: Path) -> None:
    with Client(cell.endpoint, resuming=ONCE) as client:
        with Streams(client, range(NUM_STREAMS)) as streams:
            undisturbed = streams.tokens()
        with cell.target_process(str(tiny), KV_CACHE_BYTES) as process, Streams(client, range(NUM_STREAMS)) as streams:
            streams.wait_begun()
            before = cell.look(lambda core: [len(group.running) for group in core.groups])
            process.kill()
            assert streams.tokens() == undisturbed
        info = client.server_info()
    assert len(before) == 2
    assert all(before), "both groups had streams when one was killed"
    assert info.num_running_requests == 0
    assert cell.look(lambda core: (len(core._requests), core._stranded)) == (0, {})


def test_a_group_that_is_drained_under_load_costs_no_stream_a_token_and_may_end_then(
    cell: LocalCell, tiny: Path
) -> None:
    with Client(cell.endpoint, resuming=ONCE) as client:
        with Streams(client, range(NUM_STREAMS)) as streams:
            undisturbed = streams.tokens()
        with cell.target_process(str(tiny), KV_CACHE_BYTES) as process, Streams(client, range(NUM_STREAMS)) as streams:
            streams.wait_begun()
            [address] = cell.other_targets
            before = cell.look(lambda core: [len(group.running) for group in core.groups])
            cell.drain(address, 60.0)
            after = cell.look(lambda core: {group.address: len(group.running) for group in core.groups})
            info = client.server_info()
            process.kill()
            assert streams.tokens() == undisturbed
    assert all(before), "both groups had streams when one was drained"
    assert after[address] == 0
    assert {target.address: target.state for target in info.targets}[address] == "leaving"
    assert (info.state, info.max_running_requests) == ("ready", 32)
    assert cell.look(lambda core: (len(core._requests), core._stranded)) == (0, {})


@contextmanager
def one_request_running(client: Client) -> Iterator[None]:
    """For as long as the block lasts."""
    sampling = SamplingParams(temperature=0, max_tokens=LONGEST - 2, ignore_eos=True)
    generation = client.generate([9, 9], sampling=sampling, speculation=Speculation(mode="off"))
    tokens = iter(generation)  # the request is over with it
    next(tokens)
    try:
        yield
    finally:
        generation.cancel()


def num_cached(client: Client, tokens: Sequence[int]) -> int:
    answer = client.generate(list(tokens), sampling=SamplingParams(temperature=0, max_tokens=1)).result()
    return answer.usage.num_cached_prompt_tokens


def test_requests_come_to_where_their_prefix_is_cached(cell: LocalCell, tiny: Path) -> None:
    """One text is computed on each group. What begins like one of them finds it, though both groups are idle."""
    texts = [[(7 * i + shift) % 90 + 1 for i in range(4 * BLOCK_SIZE)] for shift in (0, 3)]
    with cell.target_process(str(tiny), KV_CACHE_BYTES), Client(cell.endpoint) as client:
        assert num_cached(client, texts[0]) == 0
        with one_request_running(client):
            assert num_cached(client, texts[1]) == 0
        known = cell.look(lambda core: [[group.prefixes.num_known(text) for text in texts] for group in core.groups])
        assert known == [[len(texts[0]), 0], [0, len(texts[1])]], "the first group, and the idle one"
        for _ in range(2):
            for text in texts:
                assert num_cached(client, [*text, 1, 2, 3]) == len(text)


def test_the_information_tells_the_groups_apart(cell: LocalCell, tiny: Path) -> None:
    with cell.target_process(str(tiny), KV_CACHE_BYTES), Client(cell.endpoint) as client:
        info = client.server_info()
        with one_request_running(client):
            running = client.server_info()
    assert [target.state for target in info.targets] == ["ready", "ready"]
    assert {target.address for target in info.targets} == {cell.target_address, info.targets[1].address}
    assert info.num_kv_blocks == sum(target.num_kv_blocks for target in info.targets)
    assert info.max_running_requests == 2 * 32
    assert sorted(target.num_running_requests for target in running.targets) == [0, 1]


def test_a_group_with_another_model_is_refused_and_the_information_says_why(
    cell: LocalCell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = save_tiny_llama(tmp_path_factory.mktemp("models") / "other", vocab=61, max_context=512)
    with cell.target_process(str(other), KV_CACHE_BYTES), Client(cell.endpoint) as client:
        info = client.server_info()
        refused = next(target for target in info.targets if target.address != cell.target_address)
        assert isinstance(refused, WorkerInfo)
        assert (info.state, refused.state) == ("degraded", "refused")
        assert f"its model is 'other', not 'tiny' as is served at {cell.target_address}" in refused.detail
        assert client.generate([1, 2], sampling=SamplingParams(max_tokens=2)).result().token_ids
