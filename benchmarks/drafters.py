"""How much of the target's own answers drafters foresee: tokens per pass, calibration, run-ahead, a step's cost.

    python -m benchmarks.drafters --drafter model:PATH --drafter suffix --threads 2

The target answers the held-out prompts of workers/training once for each temperature. Then the scheduler's own core
plays them through, with the real drafters and no clock: a row goes into a pass as soon as it may, the drafters run
ahead while the pass is in flight, and the verdict is what the answer says. So every figure but the times is exact for
these answers, and nothing depends on the machine. Each drafter plays alone, and then all of them on one tree.

    tokens_per_pass         of the target, with at most `budget` nodes verified in one; "chain": without siblings
    first_token_acceptance  how often the likeliest child of the root was the target's choice
    calibration_error       the mean distance between predicted and observed survival of the nodes verified, by tenths
    run_ahead_hit_rate      verdicts after which a node was there already; run_ahead_depth: how deep the tree was then
    draft_step_share        the median time of a step by the median time of a pass of one token: eight steps, then eight
                            passes, in turn, as a drafter works that has its cache for itself
    draft_step_share_cold   the same, one step and one pass in turn: each finds the other's weights in the cache

The last line is one JSON object.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer

from benchmarks.measure import checkpoint_of, rounded, show
from benchmarks.playing import Play, Tally
from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from workers.choice.params import guess_params
from workers.draft.drafter import Drafter, DrafterSpec, Resources, TextDrafter, load_drafter
from workers.draft.growing import Growing, Order
from workers.engine.batch import Row
from workers.engine.runner import Engine
from workers.training.answering import answer_prompts, pick_as_served
from workers.training.distill import encoder
from workers.training.held_out import held_out_prompts
from workers.training.shards import Answer

TEMPERATURES = (0.0, 0.7, 1.0)
BUDGETS = (4, 8, 16, 32)
TIMED_CONTEXT = 256
IN_A_ROW = 8


def main(
    drafter: Annotated[list[str], typer.Option(help="As for outriderd up; may be repeated.")],
    model: Annotated[
        str, typer.Option(help="The target: folder, GGUF file or hub name. Unset: the default model.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="Of the target.")] = "float32",
    prompts: Annotated[int, typer.Option(min=1, help="Of the held-out ones, of every kind alike.")] = 52,
    max_tokens: Annotated[int, typer.Option(min=2)] = 128,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Of the timings.")] = 15,
) -> None:
    torch.set_num_threads(threads)
    checkpoint = checkpoint_of(model)
    engine = Engine(checkpoint, dtype=dtype, kv_cache_bytes=1_500_000_000)
    specs = [DrafterSpec.parse(text) for text in drafter]
    loaded = {spec.name: load_drafter(spec, Resources(threads=threads, kv_cache_bytes=500_000_000)) for spec in specs}
    for one in loaded.values():
        if isinstance(one, TextDrafter):
            one.take_tokenizer(Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")))
    encode = encoder(checkpoint)
    held_out = held_out_prompts()
    chosen = [held_out[i * len(held_out) // prompts] for i in range(min(prompts, len(held_out)))]
    sets: dict[str, dict[str, Drafter]] = {name: {name: one} for name, one in loaded.items()}
    if len(loaded) > 1:
        sets["+".join(loaded)] = loaded
    rows: list[dict[str, object]] = []
    tables: dict[str, Tally] = defaultdict(Tally)
    for temperature in TEMPERATURES:
        answers = [Answer(number, encode(prompt), temperature) for number, prompt in enumerate(chosen)]
        answer_prompts(engine, answers, pick_as_served, lambda num_tokens: None, max_tokens=max_tokens)
        kinds = [prompt.kind for prompt in chosen]
        for name, drafters in sets.items():
            for budget in ("chain", *BUDGETS):
                rows.append(_play(name, drafters, temperature, budget, answers, kinds, tables))
                print("   ", rows[-1], flush=True)
    errors = {name: tally.calibration_error() for name, tally in tables.items()}
    for name, tally in tables.items():
        show(f"survival, {name}: predicted, observed, nodes", _calibration_rows(tally))
    shares, cold = (
        {name: _step_share(engine, one, answers, rounds, in_a_row) for name, one in loaded.items()}
        for in_a_row in (IN_A_ROW, 1)
    )
    result = {
        "target": checkpoint.model,
        "num_prompts": len(chosen),
        "rows": rows,
        "calibration_error": errors,
        "run_ahead_hit_rate": {name: _hit_rate(rows, name) for name in sets},
        "draft_step_share": shares,
        "draft_step_share_cold": cold,
    }
    print(json.dumps(rounded(result)))


def _play(
    name: str,
    drafters: dict[str, Drafter],
    temperature: float,
    budget: int | str,
    answers: Sequence[Answer],
    kinds: Sequence[str],
    tables: dict[str, Tally],
) -> dict[str, object]:
    is_chain = isinstance(budget, str)
    play = Play(drafters, budget if isinstance(budget, int) else max(BUDGETS), is_chain=is_chain)
    by_kind: dict[str, Tally] = defaultdict(Tally)
    play.run((answer, by_kind[kind]) for answer, kind in zip(answers, kinds, strict=True))
    tallies = by_kind.values()
    num_passes = sum(tally.num_passes for tally in tallies)
    num_hits = sum(tally.num_hits for tally in tallies)
    if not is_chain:
        for tally in tallies:
            for where in tally.predicted:
                tables[name].predicted[where] += tally.predicted[where]
                tables[name].observed[where] += tally.observed[where]
    return {
        "drafter": name,
        "temperature": temperature,
        "budget": budget,
        "tokens_per_pass": sum(tally.num_tokens for tally in tallies) / max(1, num_passes),
        "by_kind": {kind: tally.num_tokens / max(1, tally.num_passes) for kind, tally in by_kind.items()},
        "first_token_acceptance": sum(t.num_first_right for t in tallies) / max(1, sum(t.num_first for t in tallies)),
        "run_ahead_hit_rate": num_hits / max(1, num_passes),
        "run_ahead_depth": sum(tally.hit_depth for tally in tallies) / max(1, num_hits),
    }


def _calibration_rows(tally: Tally) -> list[tuple[object, ...]]:
    return [
        (
            sum(tally.predicted[b]) / len(tally.predicted[b]),
            sum(tally.observed[b]) / len(tally.observed[b]),
            len(tally.predicted[b]),
        )
        for b in sorted(tally.predicted)
    ]


def _hit_rate(rows: Sequence[dict[str, object]], name: str) -> float:
    """Over all temperatures and tree budgets."""
    rates = [
        float(str(row["run_ahead_hit_rate"])) for row in rows if row["drafter"] == name and row["budget"] != "chain"
    ]
    return sum(rates) / len(rates)


def _step_share(engine: Engine, drafter: Drafter, answers: Sequence[Answer], rounds: int, in_a_row: int) -> float:
    """A step for one request in the middle of an answer, by a pass of one token behind as long a text."""
    text = [token for answer in answers for token in (*answer.prompt, *answer.tokens)]
    text = text[: TIMED_CONTEXT + (rounds + 1) * in_a_row]
    growing, key = Growing(drafter), -1
    growing.step(
        [], [Order(key, guess_params(OpenRequest(sampling=SamplingParams(temperature=0))), text[:TIMED_CONTEXT], 0)]
    )
    engine.open(key)
    engine.forward_packed([Row(key, text[:TIMED_CONTEXT])])
    steps: list[float] = []
    passes: list[float] = []
    for first in range(TIMED_CONTEXT, len(text), in_a_row):
        tokens = text[first : first + in_a_row]
        steps += [_seconds(growing.step, [], [Order(key, None, [token], 64)]) for token in tokens]
        passes += [_seconds(engine.forward_packed, [Row(key, [token])]) for token in tokens]
    growing.step([key], [])
    engine.close(key)
    return median(steps[in_a_row:]) / median(passes[in_a_row:])  # without the first round


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
