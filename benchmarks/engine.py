"""What a pass of the engine costs, against the machine's limit and against transformers, in one process.

    python -m benchmarks.engine --model PATH_OR_HUB_NAME --dtype bfloat16 --threads 2

Every figure is a median over rounds. In each round all points are measured once, so that a machine that drifts drifts
under all of them. The last line is one JSON object.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from workers.draft.drafter import Resources
from workers.draft.ngram import load as load_ngram
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint, prepare_checkpoint
from workers.engine.device import resolve_dtype
from workers.engine.runner import Engine
from workers.sampling import ChoiceParams
from workers.target.walk import walk

CONTEXTS = (256, 1024, 4096)
NUM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KNEE = 1.3
GREEDY = ChoiceParams(temperature=0)
PROMPTS = {
    "chat": "<|im_start|>user\nExplain to a child why the sky is blue.<|im_end|>\n<|im_start|>assistant\n",
    "code": "<|im_start|>user\nWrite a Python function that reverses a linked list.<|im_end|>\n<|im_start|>assistant\n",
    "copy": "<|im_start|>user\nRepeat word for word: The lighthouse keeper climbed the ninety-two steps every evening "
    "at dusk. He lit the lamp, wound the clockwork, and wrote the weather into the log. Then he sat by the window and "
    "counted the ships until morning.<|im_end|>\n<|im_start|>assistant\n",
}


def timed_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def medians(works: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """The median milliseconds of each, measured in turn; one more round comes first and does not count."""
    times: dict[Any, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = timed_ms(work)
            if number:
                times[name].append(spent)
    return {name: statistics.median(each) for name, each in times.items()}


class Bench:
    """An engine with one request per context, and passes over it that leave it as it was."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._random = random.Random(0)

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self.engine.spec.vocab_size) for _ in range(count)]

    def fill(self, key: int, num_tokens: int) -> None:
        self.engine.open(key)
        for start in range(0, num_tokens, 256):
            self.engine.forward([Row(key, self.tokens(min(256, num_tokens - start)), wants_logits=False)])

    def verify(self, keys: Sequence[int], context: int, num_nodes: int, *, chain: bool) -> Callable[[], object]:
        """A pass over a root and its nodes for each of the keys, whose context it finds and leaves."""
        parents = [node - 1 if chain else (node - 1) // 2 for node in range(num_nodes)]
        parents = [max(parent, -1) if node else -1 for node, parent in enumerate(parents)]
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
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    total = sum(weight.numel() for weight in module.parameters())
    return total if embedding is head else total - embedding.numel()


def against_transformers(folder: Path, dtype: str, bench: Bench, rounds: int, num_generated: int) -> dict[str, float]:
    """Milliseconds a token of transformers' generate and of our plain decoding; of both forwards over one token."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=resolve_dtype(dtype) or "auto").eval()
    prompt = bench.tokens(64)
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": num_generated, "min_new_tokens": num_generated, "do_sample": False}

    def hf_generate() -> None:
        hf.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)

    def ours() -> None:
        decode(bench.engine, prompt, num_generated, with_drafts=False, ignore_end=True)

    with torch.inference_mode():
        cache = hf(input_ids=torch.tensor([bench.tokens(256)]), use_cache=True).past_key_values

        def hf_forward() -> None:
            hf(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
            cache.crop(-1)

        spent = medians(
            {
                "hf_generate": hf_generate,
                "ours": ours,
                "hf_forward": hf_forward,
                "our_forward": bench.verify([256], 256, 0, chain=True),
            },
            rounds,
        )
    return {name: ms / num_generated if name in ("hf_generate", "ours") else ms for name, ms in spent.items()}


def decode(
    engine: Engine, prompt: Sequence[int], max_tokens: int, *, with_drafts: bool, ignore_end: bool = False
) -> tuple[list[int], int]:
    """A greedy answer and the number of passes that it took, the prompt's aside."""
    key, drafter = 1 << 20, load_ngram("", Resources())
    engine.open(key)
    drafter.open(key, GREEDY)
    tokens, told, passes = list(prompt), 0, -1
    ends = () if ignore_end else engine.spec.end_token_ids
    while len(tokens) < len(prompt) + max_tokens and not (passes >= 0 and tokens[-1] in ends):
        nodes: Sequence[int] = ()
        parents: Sequence[int] = ()
        if with_drafts:
            drafter.extend(key, tokens[told:])
            told = len(tokens)
            drafter.begin(key, 8)
            for grown in drafter.step():
                nodes, parents = grown.tokens, grown.parents
        (logits,) = engine.forward([Row(key, tokens[engine.num_cached(key) :], nodes, parents)])
        assert logits is not None
        walked = walk(logits.argmax(-1).tolist(), nodes, parents)
        engine.accept(key, walked.path)
        tokens += walked.tokens
        passes += 1
    engine.close(key)
    answer = tokens[len(prompt) : len(prompt) + max_tokens]
    end = next((index for index, token in enumerate(answer) if token in ends), len(answer))
    return answer[: end + 1], passes  # a walk may go on behind the end


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


def show(title: str, rows: Iterable[tuple[object, ...]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print("   ", "  ".join(f"{value:>10.2f}" if isinstance(value, float) else f"{value:>10}" for value in row))


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
    checkpoint = _checkpoint(model)
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

    contexts = [context for context in CONTEXTS if context + max(NUM_TOKENS) <= bench.engine.spec.max_context]
    for context in contexts:
        bench.fill(context, context)
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
    knee = knee_tokens({num_tokens: passes[contexts[0], num_tokens] for num_tokens in NUM_TOKENS})
    print(f"knee: {knee:.1f} tokens ride for less than {KNEE} times the cost of one")

    batches = {}
    for num_rows in (8, 32):
        keys = [1000 * num_rows + row for row in range(num_rows)]
        for key in keys:
            bench.fill(key, 256)
        for num_nodes in (0, 4):
            batches[num_rows, 1 + num_nodes] = bench.verify(keys, 256, num_nodes, chain=True)
    per_batch = [(*shape, ms) for shape, ms in medians(batches, rounds).items()]
    show("ms per pass of several rows at context 256", [("rows", "tokens", "ms"), *per_batch])
    for num_tokens in (1, 16, 256):
        show(f"one pass over {num_tokens} tokens at context 256, profiled, ms", breakdown(bench, num_tokens))
    show(
        "a pass over nine tokens, a walk of four, a pass over one: ms, by where the walk's KV lay",
        compaction(bench, rounds).items(),
    )

    compared = against_transformers(checkpoint.folder, dtype, bench, rounds=3, num_generated=generated)
    show("against transformers, ms a token (generate) and a pass (forward)", compared.items())
    print(f"plain decoding is {compared['hf_generate'] / compared['ours']:.2f} times as fast as generate")

    answers = decoding(checkpoint, bench)
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
            "pass_ms": {str(num): passes[contexts[0], num] for num in NUM_TOKENS},
            "knee_tokens": knee,
            "exact_price": price,
            "tokens_per_s": answers,
        }
    )
    print(json.dumps(figures))


def rounded(value: Any) -> Any:
    """Floats with three digits behind the point, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def _checkpoint(model: str) -> Checkpoint:
    if not model:
        from cluster.config import DEFAULT_CACHE_DIR
        from cluster.default_model import fetch_default_model

        model = str(fetch_default_model(DEFAULT_CACHE_DIR.expanduser(), lambda line: None))
    return prepare_checkpoint(model)


def knee_tokens(pass_ms: dict[int, float]) -> float:
    """The most tokens that cost less than `KNEE` times one, between the measured points on straight lines."""
    limit = KNEE * pass_ms[1]
    for (few, before), (many, after) in pairwise(sorted(pass_ms.items())):
        if after > limit:
            return few + (many - few) * max(0.0, limit - before) / (after - before)
    return float(max(pass_ms))


def decoding(checkpoint: Checkpoint, bench: Bench, max_tokens: int = 128) -> dict[str, list[float]]:
    """Tokens a second of whole answers, plain and with prompt lookup, prompts included; plain and drafted in turn."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    answers: dict[str, list[float]] = {}
    table: list[tuple[object, ...]] = [("prompt", "plain", "lookup", "a pass", "equal")]
    for name, text in PROMPTS.items():
        prompt = tokenizer.encode(text).ids
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(3):
            texts = {}
            for with_drafts in (False, True):
                started = time.perf_counter()
                tokens, passes = decode(bench.engine, prompt, max_tokens, with_drafts=with_drafts)
                rates[with_drafts].append(len(tokens) / (time.perf_counter() - started))
                texts[with_drafts] = tokens
        answers[name] = [statistics.median(rates[with_drafts]) for with_drafts in (False, True)]
        table.append((name, *answers[name], len(texts[True]) / max(1, passes), str(texts[False] == texts[True])))
    show("whole answers: tokens/s plain and with prompt lookup, tokens a pass with it, same tokens", table)
    return answers


def exact_price(checkpoint: Checkpoint, options: dict[str, Any], bench: Bench, rounds: int) -> float:
    """The time of a pass over 16 tokens in exact mode over that without, measured in turn."""
    exact = Bench(Engine(checkpoint, exact=True, **options))
    exact.fill(256, 256)
    works = {mode: each.verify([256], 256, 15, chain=False) for mode, each in ((False, bench), (True, exact))}
    spent = medians(works, rounds)
    return spent[True] / spent[False]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
