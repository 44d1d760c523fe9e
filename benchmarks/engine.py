"""What a pass of the engine costs, against the machine's limit and against transformers, in one process.

    python -m benchmarks.engine --model PATH_OR_HUB_NAME --dtype bfloat16 --threads 2

Every figure is a median over rounds. In each round all points are measured once, so that a machine that drifts drifts
under all of them. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from benchmarks.decoding import against_transformers, whole_answers
from benchmarks.measure import checkpoint_of, medians, rounded, show, timed_ms
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.cost_profile import KNEE
from workers.engine.device import resolve_dtype
from workers.engine.runner import Engine

CONTEXTS = (256, 1024, 4096)
NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Bench:
    """An engine with one request per context, and passes over it that leave it as it was."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._random = random.Random(0)

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self.engine.spec.vocab_size) for _ in range(count)]

    def verify(self, keys: Sequence[int], context: int, num_nodes: int, *, chain: bool) -> Callable[[], object]:
        """A pass over a root and its nodes for each of the keys, whose context it finds and leaves."""
        parents = [node - 1 if chain or not node else (node - 1) // 2 for node in range(num_nodes)]
        rows = [Row(key, self.tokens(1), self.tokens(num_nodes), parents) for key in keys]

        def run() -> None:
            for key in keys:
                self.engine.truncate(key, context)
            self.engine.forward(rows)

        return run


def read_bandwidth(rounds: int) -> float:
    """Bytes a second that this many threads read from memory: a sum over 512 MiB."""
    data = torch.ones(1 << 27)
    best = min(timed_ms(data.sum) for _ in range(rounds + 2))
    return data.nbytes / best * 1000


def peak_flops(rounds: int) -> float:
    """Float operations a second of torch's own float32 product of two large matrices."""
    left = torch.ones(1536, 1536)
    return 2 * 1536**3 / min(timed_ms(lambda: left @ left) for _ in range(rounds + 2)) * 1000


def num_weights(folder: Path) -> int:
    """Weights that a pass reads: all but an embedding that is not the head as well."""
    module: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    total = sum(weight.numel() for weight in module.parameters())
    return int(total if embedding is head else total - embedding.numel())


def one_request(bench: Bench, rounds: int, roofline_ms: float, per_token_ms: float) -> dict[int, float]:
    """Milliseconds of a pass over a tree, by its number of tokens, at the shortest context; shows them at each."""
    contexts = [context for context in CONTEXTS if context + max(NUM_TOKENS) <= bench.engine.spec.max_context]
    for context in contexts:
        bench.engine.pretend(context, context)
    points = {
        (context, num_tokens): bench.verify([context], context, num_tokens - 1, chain=False)
        for context in contexts
        for num_tokens in NUM_TOKENS
    }
    passes = medians(points, rounds)
    table: list[tuple[object, ...]] = [("tokens", *(f"ctx {context}" for context in contexts), "of 1", "limit")]
    for num_tokens in NUM_TOKENS:
        at = [passes[context, num_tokens] for context in contexts]
        limit = max(roofline_ms, num_tokens * per_token_ms)
        table.append((num_tokens, *at, at[0] / passes[contexts[0], 1], limit))
    show("ms per pass of one request: at each context, as a multiple of one token, and the machine's limit", table)
    return {num_tokens: passes[contexts[0], num_tokens] for num_tokens in NUM_TOKENS}


def several_requests(bench: Bench, rounds: int) -> None:
    batches = {}
    for num_rows in (8, 32):
        keys = [1000 * num_rows + row for row in range(num_rows)]
        for key in keys:
            bench.engine.pretend(key, 256)
        for num_nodes in (0, 4):
            batches[num_rows, 1 + num_nodes] = bench.verify(keys, 256, num_nodes, chain=True)
    per_batch = [(*shape, ms) for shape, ms in medians(batches, rounds).items()]
    show("ms per pass of several rows at context 256", [("rows", "tokens", "ms"), *per_batch])


def breakdown(bench: Bench, num_tokens: int) -> list[tuple[str, float]]:
    """Milliseconds of one pass by what is done in it, by torch's profiler."""
    run = bench.verify([256], 256, num_tokens - 1, chain=True)
    run()
    with torch.profiler.profile() as profile:
        for _ in range(5):
            run()
    parts: dict[str, float] = {"linear layers": 0.0, "attention": 0.0, "the compiled rest": 0.0, "torch operators": 0.0}
    for event in profile.key_averages():
        part = (
            "linear layers"
            if event.key == "outrider::linear"
            else "attention"
            if event.key == "outrider::paged_attention"
            else "the compiled rest"
            if "Compiled" in event.key or "Dynamo" in event.key or "AOTD" in event.key
            else "torch operators"
        )
        parts[part] += event.self_cpu_time_total / 5000
    return list(parts.items())


def compaction(bench: Bench, rounds: int) -> dict[str, float]:
    """Milliseconds of a pass over a tree, a walk, and a pass over one token, by what the walk leaves to be moved.

    None of the four accepted nodes lies where committed tokens belong; the second pass copies them there first.
    """
    engine = bench.engine
    row = Row(256, bench.tokens(1), bench.tokens(8), [-1, -1, 1, 1, 3, 3, 5, 5])
    then = Row(256, bench.tokens(1))

    def run(path: list[int]) -> Callable[[], None]:
        def verify_and_go_on() -> None:
            engine.truncate(256, 256)
            engine.forward([row])
            engine.accept(256, path)
            engine.forward([then])

        return verify_and_go_on

    return medians({"four moved": run([1, 3, 5, 7]), "none": run([])}, 5 * rounds)


def main(
    model: Annotated[str, typer.Option(help="Folder, GGUF file or hub name; default: SmolLM2-135M-Instruct.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Over which medians are taken.")] = 7,
    compiled: Annotated[bool, typer.Option(help="The forward that a server runs by default.")] = True,
    generated: Annotated[int, typer.Option(min=1, help="Tokens of each generate.")] = 64,
) -> None:
    """What a pass costs, against the machine's limit and against transformers."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    checkpoint = checkpoint_of(model)
    weights = num_weights(checkpoint.folder)
    options: dict[str, Any] = {"dtype": dtype, "compiled": compiled, "kv_cache_bytes": 1 << 30}
    bench = Bench(Engine(checkpoint, **options))
    bandwidth, flops = read_bandwidth(rounds), peak_flops(rounds)
    item_bytes = (resolve_dtype(bench.engine.spec.dtype) or torch.float32).itemsize
    roofline_ms = 1000 * weights * item_bytes / bandwidth
    print(f"{checkpoint.model}, {bench.engine.spec.dtype}, {threads} threads, compiled: {compiled}")
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s, {weights * item_bytes / 1e6:.0f} MB of weights")
    print(f"roofline: {roofline_ms:.1f} ms a pass; arithmetic at {flops / 1e9:.0f} GFLOP/s (float32): ", end="")
    per_token_ms = 2000 * weights / flops
    print(f"{per_token_ms:.2f} ms a token, more than reading from {roofline_ms / per_token_ms:.1f} tokens on")

    passes = one_request(bench, rounds, roofline_ms, per_token_ms)
    knee = knee_tokens(passes)
    print(f"knee: {knee:.1f} tokens ride for less than {KNEE} times the cost of one")
    several_requests(bench, rounds)
    for num_tokens in (1, 16, 256):
        show(f"one pass over {num_tokens} tokens at context 256, profiled, ms", breakdown(bench, num_tokens))
    moved = compaction(bench, rounds)
    show("a pass over a tree of eight, a walk, a pass over one token: ms, by the accepted nodes to move", moved.items())

    one_token = bench.verify([256], 256, 0, chain=True)
    compared = against_transformers(checkpoint.folder, dtype, bench.engine, one_token, 3, generated)
    show("against transformers, ms a token (generate) and a pass (forward)", compared.items())
    print(f"plain decoding is {compared['hf_generate'] / compared['ours']:.2f} times as fast as generate")

    answers = whole_answers(checkpoint, bench.engine)
    price = exact_price(checkpoint, options, bench, rounds)
    print(f"\nexact mode: {price:.3f} times the time of a pass over 16 tokens without it")
    figures = rounded(
        {
            "model": checkpoint.model,
            "dtype": bench.engine.spec.dtype,
            "threads": threads,
            "compiled": compiled,
            "bandwidth_gb_s": bandwidth / 1e9,
            "peak_gflop_s": flops / 1e9,
            "roofline_ms": roofline_ms,
            "hf_ms_per_token": compared["hf_generate"],
            "ms_per_token": compared["ours"],
            "hf_forward_ms": compared["hf_forward"],
            "pass_ms": {str(num_tokens): ms for num_tokens, ms in passes.items()},
            "knee_tokens": knee,
            "exact_price": price,
            "tokens_per_s": answers,
        }
    )
    print(json.dumps(figures))


def knee_tokens(pass_ms: dict[int, float]) -> float:
    """The most tokens that cost less than `KNEE` times one, between the measured points on straight lines."""
    limit = KNEE * pass_ms[1]
    for (few, before), (many, after) in pairwise(sorted(pass_ms.items())):
        if after > limit:
            return few + (many - few) * max(0.0, limit - before) / (after - before)
    return float(max(pass_ms))


def exact_price(checkpoint: Checkpoint, options: dict[str, Any], bench: Bench, rounds: int) -> float:
    """The time of a pass over 16 tokens in exact mode over that without, measured in turn."""
    exact = Bench(Engine(checkpoint, exact=True, **options))
    exact.engine.pretend(256, 256)
    works = {mode: each.verify([256], 256, 15, chain=False) for mode, each in ((False, bench), (True, exact))}
    spent = medians(works, rounds)
    return spent[True] / spent[False]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
