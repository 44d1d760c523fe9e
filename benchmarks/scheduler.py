"""What the scheduler itself costs: a decision of the policy, and passes a second with workers that compute nothing.

    python -m benchmarks.scheduler

    decision_ms   of the price over `rows` rows whose trees hold `nodes` nodes each, trees unchanged since the last
                  decision; decision_new_ms: every tree has changed, as after a pass
    passes_per_s  real gRPC on loopback: the scheduler's process has core 0, the null workers and the clients core 1
    gap_p99_ms    from a pass's answer to the next pass, at the target; the 99th percentile (gap_ms: the median)
    cpu_share     of one core that the scheduler's process used

The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import Connection
from statistics import median, quantiles
from typing import Annotated

import psutil
import typer

from benchmarks.measure import checkpoint_of, rounded
from benchmarks.null_workers import VOCAB, NullDrafter, NullTarget, serve_null
from outrider import AsyncClient, SamplingParams
from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.events import NewRequest, PassCost, TargetFacts
from scheduler.policy.price import Price
from scheduler.request import Request
from scheduler.server import SchedulerConfig, SchedulerServer, spare_collector

SCHEDULER_CORE, OTHER_CORE = 0, 1
LONGEST = 1 << 20
PROMPT_LEN = 32
START_POLLS, POLL_S = 600, 0.1
FACTS = TargetFacts(
    vocab_size=VOCAB,
    block_size=16,
    num_kv_blocks=1 << 24,
    max_pass_tokens=8192,
    pass_costs=[PassCost(n, 0, 0.015 + n * 5e-6) for n in (1, 64, 256, 1024, 8192)],
)


def requests_with_trees(num_rows: int, num_nodes: int, rng: random.Random) -> list[Request]:
    requests = []
    for number in range(1, num_rows + 1):
        request = Request(_new_request(number, num_nodes), 0.0)
        request.tokens.append(1)
        request.target.known_len = len(request.tokens) - 1
        places = [None]
        while len(request.tree) < num_nodes:
            node = request.tree.add(rng.choice(places), rng.randrange(VOCAB), "null", rng.random())
            node.chance = rng.random()
            places.append(node)  # type: ignore[arg-type]
        requests.append(request)
    return requests


def _new_request(number: int, max_nodes: int) -> NewRequest:
    return NewRequest(
        number=number,
        prompt=[1] * PROMPT_LEN,
        max_tokens=LONGEST,
        end_token_ids=frozenset(),
        stop_token_ids=frozenset(),
        opening=OpenRequest(sampling=pb.SamplingParams(temperature=0)),
        speculates=True,
        drafters=frozenset(),
        max_nodes=max_nodes,
        deadline_s=None,
    )


def decisions_ms(num_rows: int, num_nodes: int, rounds: int) -> tuple[float, float]:
    """Medians: with trees that have not changed since the decision before, and with trees that all have."""
    requests = requests_with_trees(num_rows, num_nodes, random.Random(0))
    policy = Price()
    policy.note_target(FACTS)
    unchanged: list[float] = []
    changed: list[float] = []
    for _ in range(rounds):
        for request in requests:
            request.tree.version += 1
        for times in (changed, unchanged):
            started = time.perf_counter()
            policy.plan(requests, [], [], FACTS, 0.0)
            times.append(1000 * (time.perf_counter() - started))
    return median(unchanged), median(changed)


def serve_workers(folder: str, pipe: Connection) -> None:
    os.sched_setaffinity(0, {OTHER_CORE})
    from pathlib import Path

    asyncio.run(_serve_workers(NullTarget(Path(folder)), pipe))


async def _serve_workers(target: NullTarget, pipe: Connection) -> None:
    servers = [await serve_null(target, None), await serve_null(None, NullDrafter())]
    pipe.send([address for _, address in servers])
    while True:  # "start" and "stop" of the time that counts
        await asyncio.to_thread(pipe.recv)
        target.gaps_s, target.num_tokens = [], 0
        await asyncio.to_thread(pipe.recv)
        pipe.send((target.gaps_s, target.num_tokens))


def serve_scheduler(num_rows: int, pipe: Connection) -> None:
    os.sched_setaffinity(0, {SCHEDULER_CORE})
    asyncio.run(_serve_scheduler(num_rows, pipe))


async def _serve_scheduler(num_rows: int, pipe: Connection) -> None:
    spare_collector()
    config = SchedulerConfig(listen="127.0.0.1:0", max_running_requests=num_rows, max_queued_requests=num_rows)
    server = SchedulerServer(config)
    pipe.send(await server.start())
    target, drafter = await asyncio.to_thread(pipe.recv)
    await server.set_workers([target], [drafter])
    await server.wait_failed()


@contextmanager
def null_cell(num_places: int) -> Iterator[tuple[str, Connection, psutil.Process]]:
    """A scheduler and workers that compute nothing, each in a process on its core: the address for clients, what talks
    to the workers, and the scheduler's process. It runs as many requests as it queues."""
    context = multiprocessing.get_context("spawn")
    (to_workers, workers_end), (to_scheduler, scheduler_end) = context.Pipe(), context.Pipe()
    workers = context.Process(target=serve_workers, args=(str(checkpoint_of("").folder), workers_end), daemon=True)
    scheduler = context.Process(target=serve_scheduler, args=(num_places, scheduler_end), daemon=True)
    for process in (workers, scheduler):
        process.start()
    try:
        addresses, endpoint = to_workers.recv(), to_scheduler.recv()
        to_scheduler.send(addresses)
        yield endpoint, to_workers, psutil.Process(scheduler.pid)
    finally:
        for process in (workers, scheduler):
            process.kill()


async def ask(client: AsyncClient, counter: count[int]) -> None:
    sampling = SamplingParams(max_tokens=1 << 16, temperature=0.0, ignore_eos=True)
    async for _ in client.generate([1] * PROMPT_LEN, sampling=sampling):
        next(counter)


async def when_ready(client: AsyncClient) -> None:
    for _ in range(START_POLLS):
        if (await client.server_info()).state == "ready":
            return
        await asyncio.sleep(POLL_S)
    raise TimeoutError("the scheduler is not ready")


async def load(
    endpoint: str, workers: Connection, scheduler: psutil.Process, num_rows: int, seconds: float
) -> dict[str, float]:
    counter = count()
    async with AsyncClient(endpoint) as client:
        await when_ready(client)
        streams = [asyncio.create_task(ask(client, counter)) for _ in range(num_rows)]
        await asyncio.sleep(seconds / 2)
        received = next(counter)
        workers.send("start")
        started, cpu_before = time.perf_counter(), sum(scheduler.cpu_times()[:2])
        await asyncio.sleep(seconds)
        workers.send("stop")
        elapsed_s, cpu_s = time.perf_counter() - started, sum(scheduler.cpu_times()[:2]) - cpu_before
        received = next(counter) - received - 1
        gaps_s, num_tokens = workers.recv()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    return {
        "passes_per_s": len(gaps_s) / elapsed_s,
        "tokens_per_s": num_tokens / elapsed_s,
        "received_per_s": received / elapsed_s,
        "gap_ms": 1000 * median(gaps_s),
        "gap_p99_ms": 1000 * quantiles(gaps_s, n=100)[98],
        "cpu_share": cpu_s / elapsed_s,
    }


def main(
    rows: Annotated[int, typer.Option(min=1)] = 256,
    nodes: Annotated[int, typer.Option(min=1, help="Of each row's tree, for the decision.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Of the decision.")] = 50,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of the load.")] = 10.0,
) -> None:
    unchanged_ms, changed_ms = decisions_ms(rows, nodes, rounds)
    print(f"    decision {unchanged_ms:.2f} ms, with new trees {changed_ms:.2f} ms", flush=True)
    os.sched_setaffinity(0, {OTHER_CORE})
    with null_cell(rows) as (endpoint, workers, scheduler):
        figures = asyncio.run(load(endpoint, workers, scheduler, rows, seconds))
    result = {"rows": rows, "nodes": nodes, "decision_ms": unchanged_ms, "decision_new_ms": changed_ms, **figures}
    print(json.dumps(rounded(result)))


if __name__ == "__main__":
    typer.run(main)
