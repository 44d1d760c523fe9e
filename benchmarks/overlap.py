"""Plain decoding, draft-then-verify, and ours, over one target and one drafter worker, with round trips added.

    python -m benchmarks.overlap --drafter model:PATH --drafter suffix

The target has core 0 for itself, the drafter worker core 1, which it shares with the scheduler and the clients. Links
with a round trip go through a relay, a process on core 1, that holds every byte back for half of it; those with none
are direct. For each round trip and concurrency the three modes serve the same prompts in turn:

    plain        no drafter is linked
    sequential   a row waits for its draft; nothing is drafted while a pass is in flight
    outrider     as a cell serves by default

    tokens_per_s  of all answers, prompts included; medians over the rounds
    bubble        share of the time in which the target had no pass while requests wanted one
    r             of sequential: what the target idled in a pass's turn, by the time of the pass; so the ceiling of
                  what overlap can gain over it is (1 + r) / max(1, r)

The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import typer

from benchmarks.measure import checkpoint_of, rounded
from benchmarks.relay import Relay
from cluster.actors import DRAFTER_NICENESS
from outrider import AsyncClient, SamplingParams
from outrider.types import Message
from scheduler.server import SchedulerConfig, SchedulerServer
from workers.training.held_out import held_out_prompts

TARGET_CORE, OTHER_CORE = 0, 1
MODES = ("plain", "sequential", "outrider")
PATIENCE_S = 30.0  # of sequential; its drafts always come
WARM_UP_TOKENS = 96
START_POLLS, POLL_S = 600, 0.1


@dataclass(frozen=True, slots=True)
class Run:
    tokens_per_s: float
    bubble: float
    idle_by_pass: float  # seconds without a pass by seconds of passes
    gap_ms: float  # without a pass, for each pass
    cpu_share: float  # of this process's core: what schedulers and clients took


async def serve(client: AsyncClient, prompts: Sequence[str], size: int, concurrency: int) -> Run:
    """All prompts, `concurrency` at a time, `size` tokens each; measured until the first place stays empty, since what
    the last ones take by themselves is another load."""
    places = asyncio.Semaphore(concurrency)
    sampling = SamplingParams(max_tokens=size, temperature=0.0, ignore_eos=True)
    num_tokens = num_ended = 0
    has_empty_place = asyncio.Event()

    async def ask(prompt: str) -> None:
        nonlocal num_tokens, num_ended
        async with places:
            chat: list[Message] = [{"role": "user", "content": prompt}]
            async for _ in client.generate(chat, sampling=sampling):
                num_tokens += 1
        num_ended += 1
        if num_ended > len(prompts) - concurrency:
            has_empty_place.set()

    before, started, cpu_s = await client.server_info(), time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as answers:
        for prompt in prompts:
            answers.create_task(ask(prompt))
        await has_empty_place.wait()
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        num_measured, after = num_tokens, await client.server_info()
    busy_s, bubble_s = after.busy_s - before.busy_s, after.bubble_s - before.bubble_s
    return Run(
        tokens_per_s=num_measured / elapsed_s,
        bubble=bubble_s / (busy_s + bubble_s),
        idle_by_pass=bubble_s / busy_s,
        gap_ms=1000 * bubble_s / (after.num_passes - before.num_passes),
        cpu_share=cpu_s / elapsed_s,
    )


def serve_target(model: str, dtype: str, pipe: multiprocessing.connection.Connection) -> None:
    os.sched_setaffinity(0, {TARGET_CORE})
    from workers.target.server import TargetConfig, TargetServer

    config = TargetConfig(model=model, dtype=dtype, threads=1, kv_cache_bytes=1_000_000_000, compiled=True)
    asyncio.run(_serve(TargetServer(config), pipe))


def serve_drafters(specs: Sequence[str], pipe: multiprocessing.connection.Connection) -> None:
    os.sched_setaffinity(0, {OTHER_CORE})
    os.nice(DRAFTER_NICENESS)
    from workers.draft.server import DrafterConfig, DrafterServer

    config = DrafterConfig(drafters=tuple(specs), threads=1, kv_cache_bytes=500_000_000, compiled=True)
    asyncio.run(_serve(DrafterServer(config), pipe))


async def _serve(server, pipe) -> None:  # type: ignore[no-untyped-def]  # a TargetServer or a DrafterServer
    pipe.send(await server.start())
    await server.wait_failed()


@contextmanager
def workers(model: str, dtype: str, specs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A target and a drafter worker, each in a process on its core: their addresses."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    started = [
        context.Process(target=serve_target, args=(model, dtype, pipes[0][1]), daemon=True),
        context.Process(target=serve_drafters, args=(specs, pipes[1][1]), daemon=True),
    ]
    for worker in started:
        worker.start()
    try:
        target, drafters = [mine.recv() for mine, _ in pipes]
        yield target, drafters
    finally:
        for worker in started:
            worker.kill()


async def compare(
    target: str,
    drafters: str,
    rtts_ms: Sequence[float],
    concurrencies: Sequence[int],
    size: int,
    rounds: int,
    max_nodes: int,
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    async with AsyncExitStack() as stack:
        relays = [Relay(target, OTHER_CORE), Relay(drafters, OTHER_CORE)]
        relayed = [stack.enter_context(relay) for relay in relays]
        servers = {mode: await start(mode, max_nodes, stack) for mode in MODES}
        clients = {mode: client for mode, (_, client) in servers.items()}
        prompts = [prompt.text for prompt in held_out_prompts()]
        for rtt_ms in rtts_ms:
            for relay in relays:
                relay.delay_s = rtt_ms / 2000
            for mode, (server, client) in servers.items():
                await link(server, client, *(relayed if rtt_ms else (target, drafters)), drafts=mode != "plain")
                await serve(client, prompts[:4], WARM_UP_TOKENS, 2)  # what is learned of drafters and passes
            for concurrency in concurrencies:
                asked = [prompts[i * 7 % len(prompts)] for i in range(3 * concurrency)]
                runs: defaultdict[str, list[Run]] = defaultdict(list)
                for number in range(rounds + 1):
                    for mode in MODES:
                        run = await serve(clients[mode], asked, size, concurrency)
                        if number:  # the first one fills prefix caches and adapts to the round trip
                            runs[mode].append(run)
                rows += _rows(runs, concurrency, rtt_ms)
    return rows


async def start(mode: str, max_nodes: int, stack: AsyncExitStack) -> tuple[SchedulerServer, AsyncClient]:
    config = SchedulerConfig(listen="127.0.0.1:0", max_nodes=max_nodes)
    if mode == "sequential":
        config = SchedulerConfig(listen="127.0.0.1:0", max_nodes=max_nodes, draft_wait_s=PATIENCE_S, run_ahead=1)
    server = SchedulerServer(config)
    stack.push_async_callback(server.stop, 0)
    return server, await stack.enter_async_context(AsyncClient(await server.start()))


async def link(server: SchedulerServer, client: AsyncClient, target: str, drafters: str, *, drafts: bool) -> None:
    await server.set_workers([], [])
    await server.set_workers([target], [drafters] if drafts else [])
    for _ in range(START_POLLS):
        info = await client.server_info()
        if info.state == "ready":
            return
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"a scheduler is not ready: {info}")


def _rows(runs: dict[str, list[Run]], concurrency: int, rtt_ms: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    r = median(run.idle_by_pass for run in runs["sequential"])
    for mode in MODES:
        row: dict[str, object] = {
            "mode": mode,
            "concurrency": concurrency,
            "rtt_ms": rtt_ms,
            "tokens_per_s": median(run.tokens_per_s for run in runs[mode]),
            "bubble": median(run.bubble for run in runs[mode]),
            "r": r,
        }
        for other in MODES[: MODES.index(mode)]:
            pairs = zip(runs[mode], runs[other], strict=True)
            row[f"by_{other}"] = median(own.tokens_per_s / theirs.tokens_per_s for own, theirs in pairs)
        rows.append(row)
        print("   ", rounded(row), flush=True)
    return rows


def main(
    drafter: Annotated[list[str], typer.Option(help="As for outriderd up; may be repeated.")],
    model: Annotated[str, typer.Option(help="The target. Unset: the default model.")] = "",
    dtype: Annotated[str, typer.Option(help="Of the target.")] = "bfloat16",
    rtt_ms: Annotated[list[float], typer.Option(help="Round trips that are added.")] = [0, 1, 10, 50],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(help="Requests at a time.")] = [1, 2, 4, 8, 16],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=8, help="Of each answer.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Over which medians are taken.")] = 3,
    max_nodes: Annotated[int, typer.Option(min=1, help="Of a request in a pass.")] = 8,
) -> None:
    os.sched_setaffinity(0, {OTHER_CORE})
    checkpoint = checkpoint_of(model)
    with workers(str(checkpoint.folder), dtype, drafter) as (target, drafters):
        rows = asyncio.run(compare(target, drafters, rtt_ms, concurrency, tokens, rounds, max_nodes))
    print(json.dumps(rounded({"target": checkpoint.model, "dtype": dtype, "drafters": drafter, "rows": rows})))


if __name__ == "__main__":
    typer.run(main)
