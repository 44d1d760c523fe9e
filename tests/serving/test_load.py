"""Far more clients than a cell can serve, and clients that vanish. Real gRPC; the model is tiny, the queue is short."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Iterator
from random import Random

import grpc
import grpc.aio
import pytest

from outrider import Answer, AsyncClient, Client, Resuming, SamplingParams
from outrider.errors import Overloaded
from outrider.rpc import link_options
from outrider.v1 import inference_pb2, inference_pb2_grpc
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config
from tests.serving.cutting_relay import cutting_relay
from tests.serving.local_cell import LocalCell, local_cell
from tests.serving.test_service import is_empty, until
from tests.tiny import save_tiny_llama
from workers.draft.hosted import Hosted
from workers.draft.ngram import NgramDrafter
from workers.engine.kv_cache import KVCache
from workers.target.passes import Session
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(240)

MAX_RUNNING, MAX_QUEUED = 8, 32
NUM_REQUESTS = 2000
NUM_CONNECTIONS = 8
NUM_VANISHING = 500
ONCE = Resuming(max_tries=0)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", num_layers=1, max_context=512)
    target = TargetConfig(model=str(folder), dtype="float32", threads=1, kv_cache_bytes=4 << 20, profile_s=0)
    drafters = [drafter_config("ngram"), drafter_config(f"itself=model:{folder}")]
    scheduler = SchedulerConfig(
        listen="127.0.0.1:0", max_running_requests=MAX_RUNNING, max_queued_requests=MAX_QUEUED, max_nodes=4
    )
    with local_cell(target, drafters, scheduler) as running:
        yield running


def sampling(number: int) -> SamplingParams:
    return SamplingParams(seed=number % 4, max_tokens=4, ignore_eos=True)


def prompt(number: int) -> list[int]:
    return [1 + number % 4, 2, 3]


async def test_of_2000_requests_at_once_all_are_answered_or_refused_with_a_hint(cell: LocalCell) -> None:
    clients = [AsyncClient(cell.endpoint, resuming=ONCE) for _ in range(NUM_CONNECTIONS)]
    try:
        expected = [await clients[0].generate(prompt(i), sampling=sampling(i)).result() for i in range(4)]
        calls: list[Awaitable[Answer]] = [
            clients[i % NUM_CONNECTIONS].generate(prompt(i), sampling=sampling(i)).result() for i in range(NUM_REQUESTS)
        ]
        ends = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        for client in clients:
            await client.close()
    refused = [end for end in ends if isinstance(end, Overloaded)]
    answers = [(number, end) for number, end in enumerate(ends) if isinstance(end, Answer)]
    assert len(refused) + len(answers) == NUM_REQUESTS, next(e for e in ends if not isinstance(e, (Overloaded, Answer)))
    assert len(answers) >= MAX_QUEUED, "as many as there are places, at the least"
    assert len(refused) > NUM_REQUESTS / 4, "it was beyond what the cell can serve"
    assert all(error.retry_after_s is not None and error.retry_after_s > 0 for error in refused)
    assert [answer.token_ids for _, answer in answers] == [expected[number % 4].token_ids for number, _ in answers]
    with Client(cell.endpoint) as client:
        await asyncio.to_thread(until, client, is_empty)


def held(cell: LocalCell) -> dict[str, int]:
    """What the scheduler and the workers hold for requests. They are in this process: their objects are looked for."""
    of_workers: dict[str, int] = {"sessions": 0, "KV caches": 0, "drafters": 0, "n-grams": 0}
    for thing in gc.get_objects():
        if type(thing) is Session:
            of_workers["sessions"] += len(thing.requests)
        elif type(thing) is KVCache:
            of_workers["KV caches"] += len(thing._requests)
        elif type(thing) is Hosted:
            of_workers["drafters"] += len(thing._requests)
        elif type(thing) is NgramDrafter:
            of_workers["n-grams"] += len(thing._texts)
    return of_workers | cell.held()


async def vanish(address: str, number: int, leave: bool) -> None:
    """Connect, ask for a long answer, read a little of it, and be gone: by closing the channel, or cut off."""
    random = Random(number)
    options = [*link_options(), ("grpc.use_local_subchannel_pool", 1)]
    request = inference_pb2.GenerateRequest(
        token_ids={"ids": prompt(number)}, sampling={"max_tokens": 100, "seed": number, "ignore_eos": True}
    )
    async with grpc.aio.insecure_channel(address, options) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=100)  # type: ignore[call-overload]
        try:
            for _ in range(random.randrange(6) if leave else 10**6):
                if await call.read() is grpc.aio.EOF:
                    return
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise


async def test_500_clients_that_vanish_leave_nothing_behind(cell: LocalCell) -> None:
    nothing = held(cell)
    with cutting_relay(cell.endpoint) as relay:
        random = Random(1)
        relay.budgets = [random.randrange(1, 500) for _ in range(NUM_VANISHING)]
        places = asyncio.Semaphore(50)

        async def one(number: int) -> None:
            async with places:
                leave = number % 2 == 0
                await vanish(cell.endpoint if leave else relay.address, number, leave)

        await asyncio.gather(*(one(number) for number in range(NUM_VANISHING)))
        num_cuts = relay.num_cuts
    assert num_cuts >= NUM_VANISHING / 4, "half of them are cut off, unless they were refused"
    await asyncio.to_thread(wait_until_held, cell, nothing)
    with Client(cell.endpoint) as client:
        answer = client.generate(prompt(0), sampling=sampling(0)).result()
        assert len(answer.token_ids) == 4


def wait_until_held(cell: LocalCell, at_most: dict[str, int]) -> None:
    pause = threading.Event()
    for _ in range(100):
        now = held(cell)
        if all(now[kind] <= at_most[kind] for kind in at_most):
            return
        pause.wait(0.1)
    raise AssertionError(f"{now} are still held; before, it was {at_most}")
