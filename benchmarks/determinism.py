"""How often a greedy token depends on how it was computed: plain decoding alone against every way of verification.

    python -m benchmarks.determinism [--dtype float32] [--compiled] [--plain-torch]

A text is decoded once, greedily, one token at a time at batch 1, in one engine. Then the same positions are computed in
other shapes, always below the same text (teacher-forced), so that one flip does not fork what follows. Counted are
flips (another argmax) per 10,000 positions, and rows of logits whose bits are all equal.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.measure import checkpoint_of
from tests.serving.prompts import VARIED_PROMPTS
from tests.target_link import random_tree
from workers.engine import forward
from workers.engine.batch import Row
from workers.engine.runner import Engine

CHAIN_LEN = 5
MAX_NODES = 8


def logits_of(engine: Engine, row: Row) -> Tensor:
    """[vocab] f32, behind the row's last token."""
    (logits,) = engine.forward([row])
    assert logits is not None
    return logits[0]


class Texts:
    """Prompts with their greedy answers by plain decoding, and the logits row at each position of an answer."""

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], num_tokens: int) -> None:
        self.prompts = prompts
        self.num_tokens = num_tokens
        self.answers: list[list[int]] = []
        self.logits: list[Tensor] = []  # [num_tokens, vocab] f32 a text
        for prompt in prompts:
            fresh(engine, [0])
            rows = [logits_of(engine, Row(0, prompt))]
            while len(rows) < num_tokens:
                rows.append(logits_of(engine, Row(0, [int(rows[-1].argmax())])))
            self.logits.append(torch.stack(rows))
            self.answers.append(self.logits[-1].argmax(-1).tolist())


class Tally:
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self.num_rows = self.num_equal = self.num_flips = 0
        self.largest = 0.0

    def add(self, text: int, position: int, got: Tensor) -> None:
        """`got` is [vocab] f32, the logits at a position of the answer."""
        expected = self._texts.logits[text][position]
        self.num_rows += 1
        if torch.equal(got, expected):
            self.num_equal += 1
            return
        self.num_flips += int(got.argmax() != expected.argmax())
        self.largest = max(self.largest, float((got - expected).abs().max()))

    def summary(self) -> dict[str, float]:
        return {
            "positions": self.num_rows,
            "bitwise_equal_rows": self.num_equal,
            "flips": self.num_flips,
            "flips_per_10000": round(10_000 * self.num_flips / self.num_rows, 2),
            "largest_difference": self.largest,
        }


def fresh(engine: Engine, keys: Sequence[int]) -> None:
    engine._cache.clear()  # nothing is found in the prefix cache: every row is computed anew
    for key in keys:
        engine.open(key)


def groups(num_texts: int, size: int) -> Iterator[range]:
    for first in range(0, num_texts, size):
        yield range(first, min(first + size, num_texts))


def decode(engine: Engine, texts: Texts, batch_size: int, chunk_len: int | None) -> Tally:
    """One token a pass, `batch_size` texts at once; prompts in chunks of chunk_len."""
    tally = Tally(texts)
    for group in groups(len(texts.prompts), batch_size):
        fresh(engine, group)
        prefill(engine, texts, group, chunk_len)
        for position in range(texts.num_tokens):
            rows = [Row(key, [([*texts.prompts[key], *texts.answers[key]])[engine.num_cached(key)]]) for key in group]
            for key, logits in zip(group, engine.forward(rows), strict=True):
                assert logits is not None
                tally.add(key, position, logits[0])
    return tally


def verify(engine: Engine, texts: Texts, batch_size: int, kind: str, chunk_len: int | None) -> Tally:
    """A forced tree or chain a pass, `batch_size` texts at once; every node whose path is the text counts."""
    tally, rng = Tally(texts), random.Random(0)
    for group in groups(len(texts.prompts), batch_size):
        fresh(engine, group)
        prefill(engine, texts, group, chunk_len)
        done = dict.fromkeys(group, 0)
        while running := [key for key in group if done[key] < texts.num_tokens]:
            rows = []
            for key in running:
                future = texts.answers[key][done[key] : texts.num_tokens - 1]
                chain = future[:CHAIN_LEN]
                tree = (
                    (chain, range(-1, len(chain) - 1))
                    if kind == "chain"
                    else random_tree(rng, future, engine.spec.vocab_size, MAX_NODES)
                )
                rows.append(Row(key, [([*texts.prompts[key], *texts.answers[key]])[engine.num_cached(key)]], *tree))
            for row, logits in zip(rows, engine.forward(rows), strict=True):
                right = [-1]  # nodes of the tree whose path is the text, -1 for its root; then their depths
                depths = {-1: 0}
                for node, (token, parent) in enumerate(zip(row.node_tokens, row.node_parents, strict=True)):
                    answer = texts.answers[row.key]
                    if parent not in depths or done[row.key] + depths[parent] + 1 >= texts.num_tokens:
                        continue
                    if token == answer[done[row.key] + depths[parent]]:
                        depths[node] = depths[parent] + 1
                        right.append(node)
                assert logits is not None
                for node in right:
                    tally.add(row.key, done[row.key] + depths[node], logits[1 + node])
                path: list[int] = []
                for node in right[1:]:
                    if row.node_parents[node] == (path[-1] if path else -1):
                        path.append(node)
                engine.accept(row.key, path)
                done[row.key] += 1 + len(path)
    return tally


def prefill(engine: Engine, texts: Texts, group: range, chunk_len: int | None) -> None:
    """All but each prompt's last token."""
    for key in group:
        prompt = texts.prompts[key][:-1]
        step = chunk_len or max(len(prompt), 1)
        for start in range(0, len(prompt), step):
            engine.forward([Row(key, prompt[start : start + step], wants_logits=False)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder, GGUF file or hub name; default: SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true", help="the forward that torch's compiler has fused")
    parser.add_argument("--plain-torch", action="store_true", help="the forward without our kernels, to compare with")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.plain_torch:
        forward.load_kernels = lambda cache_dir: False  # type: ignore[attr-defined]
    checkpoint = checkpoint_of(args.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder)
    prompts = [
        tokenizer(prompt).input_ids
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)["input_ids"]
        for prompt in VARIED_PROMPTS[: args.texts]
    ]
    engine = Engine(checkpoint, dtype=args.dtype, kv_cache_bytes=int(400e6), compiled=args.compiled)
    started = time.monotonic()
    texts = Texts(engine, prompts, args.tokens)
    print(f"{args.texts} texts of {args.tokens} tokens decoded alone in {time.monotonic() - started:.0f} s", flush=True)
    ways = {
        "decode, batch 8": lambda: decode(engine, texts, 8, None),
        "decode, batch 32": lambda: decode(engine, texts, 32, 7),
        "chains of 5, batch 1": lambda: verify(engine, texts, 1, "chain", None),
        "chains of 5, batch 8": lambda: verify(engine, texts, 8, "chain", 16),
        "chains of 5, batch 32": lambda: verify(engine, texts, 32, "chain", None),
        "trees, batch 1": lambda: verify(engine, texts, 1, "tree", 16),
        "trees, batch 8": lambda: verify(engine, texts, 8, "tree", None),
        "trees, batch 32": lambda: verify(engine, texts, 32, "tree", 7),
        "decode, batch 1, prompt chunks of 16": lambda: decode(engine, texts, 1, 16),
    }
    results: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        started = time.monotonic()
        result = results[name] = way().summary()
        print(
            f"{name:38} {result['flips_per_10000']:8.2f} flips per 10,000; "
            f"bitwise equal {result['bitwise_equal_rows']} of {result['positions']}; "
            f"largest difference {result['largest_difference']:.2g}; {time.monotonic() - started:.0f} s",
            flush=True,
        )
    setting = {name: str(value) for name, value in vars(args).items()}
    print(json.dumps({"benchmark": "determinism", **setting, "results": results}))


if __name__ == "__main__":
    main()
