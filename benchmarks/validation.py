"""How near the simulator comes to this machine: the same cell, served and simulated.

    python -m benchmarks.validation --drafter PATH

Served as in benchmarks.overlap: the target has core 0 for itself, the draft model core 1, which it shares with the
scheduler and the clients. What the simulator is given is measured apart from the tokens a second that it has to find:

    target       V(n) on one row, alone on its core. A target measures it when it starts, all sizes in turn; here each
                 is measured by itself, since passes over one token take a tenth longer behind larger ones
    prompts      of what is asked, the tokens that the target computes: what all begin with is in its prefix cache
    drafter      steps of the draft model alone on its core, by the tokens that they compute, divided by the share of
                 the core that scheduler and clients leave it
    acceptance   by rank, and how much places differ, on the target's answers (benchmarks/playing.py)
    gap          between a pass and the next one, of plain decoding at this concurrency

The last line is one JSON object; `by_real` is simulated by served tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import checkpoint_of, rounded
from benchmarks.overlap import (
    MODES,
    OTHER_CORE,
    PATIENCE_S,
    TARGET_CORE,
    WARM_UP_TOKENS,
    Run,
    link,
    serve,
    start,
    workers,
)
from benchmarks.playing import Play, Tally
from scheduler.policy.patience import Patience
from scheduler.policy.policy import Policy
from scheduler.simulation.performance import run as simulate
from scheduler.simulation.scenario import Scenario
from scheduler.simulation.strategies import Strategy, strategy
from workers.choice.params import ChoiceParams
from workers.draft.drafter import Resources
from workers.draft.growing import Growing, Order
from workers.draft.model import ModelDrafter, load
from workers.engine.cost_profile import measure, points_that_fit
from workers.engine.runner import Engine
from workers.target.server import TargetConfig
from workers.training.answering import answer_prompts, pick_as_served
from workers.training.distill import encoder
from workers.training.held_out import held_out_prompts
from workers.training.prompts import Prompt
from workers.training.shards import Answer

MAX_NODES = 8
STEPS_OF_A_ROOT = 4
POINT_S = 1.0
VIRTUAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Draft:
    """What is measured of the draft model."""

    steps: list[list[float]]  # [tokens, context, milliseconds]
    acceptance: list[float]  # by rank
    sharpness: float
    prompt_lens: list[int]  # by text; what the target computes


class Sequential(Strategy):
    """As `overlap` serves it: a row waits for its draft, a tree, and nothing is drafted ahead."""

    def make_policy(self) -> Policy:
        return Patience(PATIENCE_S)


# ── measured apart ──────────────────────────────────────────────────────────────────────────────────


def measure_draft(
    model: str, dtype: str, draft: str, prompts: Sequence[str], size: int, pipe: multiprocessing.connection.Connection
) -> None:
    """In a process of its own, on the core on which the draft model serves."""
    os.sched_setaffinity(0, {OTHER_CORE})
    torch.set_num_threads(1)
    checkpoint = checkpoint_of(model)
    encode = encoder(checkpoint)
    engine = Engine(checkpoint, dtype=dtype, kv_cache_bytes=1_000_000_000)
    answers = [Answer(number, encode(Prompt("chat", text)), 0.0) for number, text in enumerate(prompts)]
    answer_prompts(engine, answers, pick_as_served, lambda num_tokens: None, max_tokens=size)
    drafter = load(draft, Resources(threads=1, kv_cache_bytes=500_000_000, compiled=True))
    tally = Tally()
    Play({"draft": drafter}, MAX_NODES, is_chain=False).run((answer, tally) for answer in answers)
    acceptance = [tally.right_ranks[rank] / tally.num_first for rank in range(4)]
    asked = [encode(Prompt("chat", numbered(0, text))) for text in prompts]
    num_common = next(i for i, tokens in enumerate(zip(*asked, strict=False)) if len(set(tokens)) > 1)
    lens = [len(prompt) - num_common // engine.block_size * engine.block_size for prompt in asked]
    pipe.send(Draft(step_costs(drafter, answers), acceptance, _sharpness(tally, acceptance[0]), lens))


def _measured(work: Callable[..., None], *arguments: object) -> Any:
    """What `work` sends, from a process that has nothing beside it."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    measuring = context.Process(target=work, args=(*arguments, theirs))
    measuring.start()
    measured = mine.recv()
    measuring.join()
    return measured


def _sharpness(tally: Tally, mean: float) -> float:
    """Such that modelled confidences differ as much from place to place as the survivals of first guesses do."""
    power = (1 - mean) / mean
    widest = math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2)
    return min(statistics.pstdev(tally.first_survivals) / widest, 1.0)


def step_costs(drafter: ModelDrafter, answers: Sequence[Answer]) -> list[list[float]]:
    """Medians by the number of tokens computed, rounded to a power of two."""
    engine, computed = drafter._engine, 0
    forward = engine.forward_packed

    def counted(rows: Any) -> Any:
        nonlocal computed
        computed += sum(row.num_tokens for row in rows)
        return forward(rows)

    engine.forward_packed = counted  # type: ignore[method-assign]
    times: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for num_requests in (1, 2, 4, 8, 16):
        growing, some = Growing(drafter), answers[:num_requests]
        params = ChoiceParams(temperature=0.0)
        orders = [Order(key, params, [*answer.prompt, answer.tokens[0]], 0) for key, answer in enumerate(some)]
        growing.step([], orders)
        for place in range(1, min(len(answer.tokens) for answer in some)):
            orders = [Order(key, None, [answer.tokens[place]], 3 * MAX_NODES) for key, answer in enumerate(some)]
            for _ in range(STEPS_OF_A_ROOT):
                computed, started = 0, time.perf_counter()
                growing.step([], orders)
                if computed and place > 2:
                    took_ms = 1000 * (time.perf_counter() - started)
                    times[round(math.log2(computed))].append((computed, took_ms))
                orders = []
        growing.step(list(range(num_requests)), [])
    del engine.forward_packed
    return [
        [float(round(statistics.mean(n for n, _ in each))), 0.0, statistics.median(ms for _, ms in each)]
        for _, each in sorted(times.items())
    ]


def measure_target(model: str, dtype: str, pipe: multiprocessing.connection.Connection) -> None:
    """[tokens, context, milliseconds] of passes, in a process of its own, on the core on which the target serves."""
    os.sched_setaffinity(0, {TARGET_CORE})
    torch.set_num_threads(1)
    engine = Engine(checkpoint_of(model), dtype=dtype, kv_cache_bytes=1_000_000_000, compiled=True)
    points = points_that_fit(engine, TargetConfig(model=model).max_pass_tokens)
    costs = [cost for point in points for cost in measure(engine, [point], POINT_S)]
    pipe.send([[float(cost.point.num_tokens), float(cost.point.context_len), cost.pass_ms] for cost in costs])


# ── served ──────────────────────────────────────────────────────────────────────────────────────────


def numbered(number: int, text: str) -> str:
    return f"{number}. {text}"


def those_asked(concurrency: int, num_texts: int) -> list[int]:
    """Texts of all kinds."""
    return [i * 7 % num_texts for i in range(3 * concurrency + 3)]


async def serve_all(
    target: str, drafters: str, texts: Sequence[str], size: int, concurrencies: Sequence[int], rounds: int
) -> dict[tuple[int, str], list[Run]]:
    """By (concurrency, mode). No prompt is asked twice, so the prefix cache is of no use."""
    runs: defaultdict[tuple[int, str], list[Run]] = defaultdict(list)
    number = 0
    async with AsyncExitStack() as stack:
        servers = {mode: await start(mode, MAX_NODES, stack) for mode in MODES}
        clients = {mode: client for mode, (_, client) in servers.items()}
        for mode in MODES:
            await link(*servers[mode], target, drafters, drafts=mode != "plain")
            await serve(clients[mode], [f"{mode}: {text}" for text in texts[:4]], WARM_UP_TOKENS, 2)
        for concurrency in concurrencies:
            for counts in (False, *[True] * rounds):
                for mode in MODES:
                    number += 1
                    asked = [numbered(number, texts[i]) for i in those_asked(concurrency, len(texts))]
                    run = await serve(clients[mode], asked, size, concurrency)
                    if counts:
                        runs[concurrency, mode].append(run)
    return runs


# ── simulated ───────────────────────────────────────────────────────────────────────────────────────


def scenario_of(
    costs: list[list[float]], draft: Draft, size: int, concurrency: int, gap_ms: float, cpu_share: float
) -> Scenario:
    lens = [draft.prompt_lens[i] for i in those_asked(concurrency, len(draft.prompt_lens))]
    logs = [math.log(length) for length in lens]
    slower = 1 / (1 - min(cpu_share, 0.9))
    return Scenario.model_validate(
        {
            "name": "this machine",
            "target": {
                "cost": {"table": costs},
                "max_pass_tokens": int(max(n for n, _, _ in costs)),
                "num_kv_blocks": 4096,
                "vocab_size": 49152,
            },
            "drafters": [
                {
                    "name": "draft",
                    "cost": {"table": [[n, context, ms * slower] for n, context, ms in draft.steps]},
                    "acceptance": draft.acceptance,
                    "sharpness": draft.sharpness,
                }
            ],
            "network": {"target_rtt_ms": gap_ms, "drafter_rtt_ms": gap_ms, "jitter_ms": 0.0},
            "load": {
                "concurrency": concurrency,
                "warm_up_s": 10.0,
                "duration_s": VIRTUAL_S,
                "prompt": {
                    "median": math.exp(statistics.mean(logs)),
                    "spread": statistics.pstdev(logs),
                    "max": max(lens),
                },
                "answer": {"median": float(size), "spread": 0.0, "max": size},
            },
            "core": {"max_running_requests": 64, "max_nodes": MAX_NODES},
        }
    )


def strategy_of(mode: str, scenario: Scenario) -> Strategy:
    return Sequential("sequential", MAX_NODES) if mode == "sequential" else strategy(mode, scenario)


def compared(
    costs: list[list[float]], draft: Draft, size: int, served: dict[tuple[int, str], list[Run]]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (concurrency, mode), runs in served.items():
        gap_ms = statistics.median(run.gap_ms for run in served[concurrency, "plain"])
        cpu_share = statistics.median(run.cpu_share for run in runs)
        real = statistics.median(run.tokens_per_s for run in runs)
        scenario = scenario_of(costs, draft, size, concurrency, gap_ms, cpu_share)
        simulated = simulate(scenario, strategy_of(mode, scenario)).goodput_tokens_per_s
        rows.append(
            {
                "mode": mode,
                "concurrency": concurrency,
                "tokens_per_s": real,
                "simulated": simulated,
                "by_real": simulated / real,
                "gap_ms": gap_ms,
                "cpu_share": cpu_share,
            }
        )
        print("   ", rounded(rows[-1]), flush=True)
    return rows


def main(
    drafter: Annotated[str, typer.Option(help="The draft model: a folder, a GGUF file or a hub name.")],
    model: Annotated[str, typer.Option(help="The target. Unset: the default model.")] = "",
    dtype: Annotated[str, typer.Option(help="Of the target.")] = "bfloat16",
    concurrency: Annotated[list[int], typer.Option(help="Requests at a time.")] = [1, 4, 16],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=8, help="Of each answer.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Over which medians are taken.")] = 3,
) -> None:
    os.sched_setaffinity(0, {OTHER_CORE})
    checkpoint = checkpoint_of(model)
    texts = [prompt.text for prompt in held_out_prompts()]
    folder = str(checkpoint.folder)
    costs = _measured(measure_target, folder, dtype)
    draft = _measured(measure_draft, folder, dtype, drafter, texts, tokens)
    print("   ", rounded({"passes": costs, "steps": draft.steps}))
    print("   ", rounded({"acceptance": draft.acceptance, "sharpness": draft.sharpness}))
    with workers(folder, dtype, [f"model:{drafter}"]) as (target, drafters):
        served = asyncio.run(serve_all(target, drafters, texts, tokens, concurrency, rounds))
    rows = compared(costs, draft, tokens, served)
    print(json.dumps(rounded({"target": checkpoint.model, "dtype": dtype, "drafter": drafter, "rows": rows})))


if __name__ == "__main__":
    typer.run(main)
