"""Memory of a scheduler that is asked for far more than it can serve, wave after wave.

    python -m benchmarks.load

In each wave `requests` clients ask at once, of whom a quarter vanish after their first token; the scheduler runs 64
requests and queues 64, so most are refused. Workers compute nothing (null_workers.py). After each wave, when nothing
runs any more:

    rss_mb            resident memory of the scheduler's process
    bytes_a_request   by which it has grown from the middle wave to the last, by the requests since; medians of three
    refused, answered, vanished    in all waves

The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from statistics import median
from typing import Annotated

import psutil
import typer

from benchmarks.measure import rounded
from benchmarks.scheduler import POLL_S, PROMPT_LEN, START_POLLS, null_cell, when_ready
from outrider import AsyncClient, Resuming, SamplingParams
from outrider.errors import Overloaded

NUM_PLACES, MAX_TOKENS = 64, 256
NUM_CONNECTIONS = 8
MB = 1 << 20


async def ask(client: AsyncClient, *, vanishes: bool) -> str:
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
    generation = client.generate([1] * PROMPT_LEN, sampling=sampling)
    try:
        async for _ in generation:
            if vanishes:
                generation.cancel()
                return "vanished"
    except Overloaded:
        return "refused"
    return "answered"


async def when_idle(client: AsyncClient) -> None:
    for _ in range(START_POLLS):
        info = await client.server_info()
        if not info.num_running_requests and not info.num_queued_requests:
            return
        await asyncio.sleep(POLL_S)
    raise TimeoutError("requests are left")


async def waves(endpoint: str, scheduler: psutil.Process, requests: int, num_waves: int) -> dict[str, object]:
    rss_mb: list[float] = []
    ends: Counter[str] = Counter()
    for _ in range(num_waves):
        clients = [AsyncClient(endpoint, resuming=Resuming(max_tries=0)) for _ in range(NUM_CONNECTIONS)]
        await when_ready(clients[0])
        ends.update(
            await asyncio.gather(*(ask(clients[i % NUM_CONNECTIONS], vanishes=i % 4 == 0) for i in range(requests)))
        )
        await when_idle(clients[0])
        for client in clients:
            await client.close()
        rss_mb.append(scheduler.memory_info().rss / MB)
        print(f"    {rss_mb[-1]:.1f} MB, {dict(ends)}", flush=True)
    middle = len(rss_mb) // 2
    growth_mb = median(rss_mb[-3:]) - median(rss_mb[middle - 1 : middle + 2])
    num_between = requests * (len(rss_mb) - 2 - middle)
    return {"rss_mb": rss_mb, "bytes_a_request": growth_mb * MB / num_between, **ends}


def main(
    requests: Annotated[int, typer.Option(min=NUM_PLACES, help="At once.")] = 2000,
    num_waves: Annotated[int, typer.Option("--waves", min=7)] = 13,
) -> None:
    with null_cell(NUM_PLACES) as (endpoint, _, scheduler):
        figures = asyncio.run(waves(endpoint, scheduler, requests, num_waves))
    print(json.dumps(rounded({"requests": requests, "places": NUM_PLACES, "waves": num_waves, **figures})))


if __name__ == "__main__":
    typer.run(main)
