"""How near the simulator comes to this machine: the same cell, served and simulated.

    python -m benchmarks.validation --drafter PATH

Served as in benchmarks.overlap: the target has core 0 for itself, the draft model core 1, which it shares with the
scheduler and the clients. What the simulator is given is measured apart from the tokens a second that it has to find:

    target       V(n), choosing included; what a token's logits take, which most of a prompt's have not; and how much
                 longer passes take beside a draft model at work
    prompts      of what is asked, the tokens that the target computes: what all begin with is in its prefix cache
    drafter      steps of the draft model by the tokens that they compute, divided by the share of the core that
                 scheduler and clients leave it; for ours as they are beside a target at work
    acceptance   by rank, and how much places differ, on the target's answers (benchmarks/playing.py)
    gap          between a pass and the next one, of plain decoding at this concurrency

The first three are benchmarks/apart.py's.

The last line is one JSON object; `by_real` is simulated by served tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from benchmarks.apart import MAX_NODES, Apart, measured_apart
from benchmarks.measure import checkpoint_of, rounded
from benchmarks.overlap import (
    MODES,
    OTHER_CORE,
    PATIENCE_S,
    WARM_UP_TOKENS,
    Run,
    link,
    serve,
    start,
    workers,
)
from scheduler.policy.patience import Patience
from scheduler.policy.policy import Policy
from scheduler.simulation.performance import run as simulate
from scheduler.simulation.scenario import Scenario
from scheduler.simulation.strategies import Strategy, strategy
from workers.training.held_out import held_out_prompts

VIRTUAL_S = 60.0


class Sequential(Strategy):
    """As `overlap` serves it: a row waits for its draft, a tree, and nothing is drafted ahead."""

    def make_policy(self) -> Policy:
        return Patience(PATIENCE_S)


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


def scenario_of(apart: Apart, mode: str, size: int, concurrency: int, gap_ms: float, cpu_share: float) -> Scenario:
    lens = [apart.prompt_lens[i] for i in those_asked(concurrency, len(apart.prompt_lens))]
    steps = apart.steps_beside if mode == "outrider" else apart.steps  # of sequential the target idles meanwhile
    logs = [math.log(length) for length in lens]
    slower = 1 / (1 - min(cpu_share, 0.9))
    return Scenario.model_validate(
        {
            "name": "this machine",
            "target": {
                "cost": {"table": apart.passes, "logits_ms": apart.logits_ms},
                "disturbance": apart.disturbance,
                "max_pass_tokens": int(max(n for n, _, _ in apart.passes)),
                "num_kv_blocks": 4096,
                "vocab_size": 49152,
            },
            "drafters": [
                {
                    "name": "draft",
                    "cost": {"table": [[n, context, ms * slower] for n, context, ms in steps]},
                    "acceptance": apart.acceptance,
                    "sharpness": apart.sharpness,
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


def compared(apart: Apart, size: int, served: dict[tuple[int, str], list[Run]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (concurrency, mode), runs in served.items():
        gap_ms = statistics.median(run.gap_ms for run in served[concurrency, "plain"])
        cpu_share = statistics.median(run.cpu_share for run in runs)
        real = statistics.median(run.tokens_per_s for run in runs)
        scenario = scenario_of(apart, mode, size, concurrency, gap_ms, cpu_share)
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
    asked = [numbered(0, text) for text in texts]
    apart = measured_apart(folder, dtype, drafter, texts, asked, tokens)
    print("   ", rounded(asdict(apart)))
    with workers(folder, dtype, [f"model:{drafter}"]) as (target, drafters):
        served = asyncio.run(serve_all(target, drafters, texts, tokens, concurrency, rounds))
    rows = compared(apart, tokens, served)
    print(json.dumps(rounded({"target": checkpoint.model, "dtype": dtype, "drafter": drafter, "rows": rows})))


if __name__ == "__main__":
    typer.run(main)
