"""The real model in float32: greedy tokens are those of transformers' own `generate`, whatever trees are forced on us.

2,048 tokens of varied text stand against ours at batches of 32, 8, 3 and 1. Each pass of each request carries a tree
drawn anew: none, one without a single right node, a chain that is right to its end, or right and wrong nodes mixed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving.prompts import VARIED_PROMPTS
from tests.target_link import random_tree
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine
from workers.target.walk import walk

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

NUM_TOKENS = 64
MAX_NODES = 8
MAX_CHUNK = 48
KV_CACHE_BYTES = int(400e6)


@dataclass(frozen=True)
class Text:
    prompt: list[int]
    answer: list[int]  # [NUM_TOKENS]; by transformers


@pytest.fixture(scope="module")
def texts(smollm2: Path) -> list[Text]:
    """Greedy answers by transformers' `generate` in one batch, padded on the left. An end token does not end them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    prompts = [
        tokenizer(prompt).input_ids
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)["input_ids"]
        for prompt in VARIED_PROMPTS
    ]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    tokens = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NUM_TOKENS, pad_token_id=0)
    return [Text(prompt, answer) for prompt, answer in zip(prompts, tokens[:, longest:].tolist(), strict=True)]


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Engine:
    return Engine(Checkpoint(smollm2, "SmolLM2"), dtype="float32", kv_cache_bytes=KV_CACHE_BYTES)


def forced_tree(
    rng: random.Random, kind: str, future: Sequence[int], vocab: int
) -> tuple[Sequence[int], Sequence[int]]:
    """(tokens, parents); `future` are the tokens that decoding will choose."""
    if kind == "none":
        return (), ()
    if kind == "right chain":
        chain = list(future[: rng.randint(1, MAX_NODES)])
        return chain, range(-1, len(chain) - 1)
    if kind == "mixed":
        return random_tree(rng, future, vocab, MAX_NODES)
    wrong = [rng.randrange(vocab) for _ in range(rng.randint(1, MAX_NODES))]
    wrong = [(token + 1) % vocab if token in future[:MAX_NODES] else token for token in wrong]
    return wrong, [rng.randrange(-1, node) for node in range(len(wrong))]


class Decoding:
    """Texts that are decoded together: each pass is one forward over all that are not yet at their end."""

    def __init__(self, engine: Engine, texts: Sequence[Text], seed: int) -> None:
        self._engine = engine
        self._texts = texts
        self._rng = random.Random(seed)
        self.answers: list[list[int]] = [[] for _ in texts]
        self.num_trees: Counter[str] = Counter()
        self.num_accepted: Counter[str] = Counter()
        self.num_nodes: Counter[str] = Counter()
        self.num_passes = 0

    def run(self) -> None:
        for key in range(len(self._texts)):
            self._engine.open(key)
        while running := [key for key, answer in enumerate(self.answers) if len(answer) < NUM_TOKENS]:
            drawn = [self._row(key) for key in running]
            results = self._engine.forward([row for row, _ in drawn])
            self.num_passes += 1
            for (row, kind), logits in zip(drawn, results, strict=True):
                if logits is not None:
                    chosen = logits.argmax(dim=-1)
                    walked = walk(chosen.tolist(), row.node_tokens, row.node_parents)
                    self._engine.accept(row.key, walked.path)
                    self.answers[row.key] += walked.tokens
                    self.num_accepted[kind] += len(walked.path)
        for key in range(len(self._texts)):
            self._engine.close(key)
        self._engine.check_integrity()

    def _row(self, key: int) -> tuple[Row, str]:
        text, answer = self._texts[key], self.answers[key]
        missing = [*text.prompt, *answer][self._engine.num_cached(key) :]
        chunk_len = self._rng.randint(1, MAX_CHUNK)
        if chunk_len < len(missing):
            return Row(key, missing[:chunk_len], wants_logits=False), "prompt chunk"
        kind = self._rng.choices(["none", "all wrong", "right chain", "mixed"], [1, 2, 3, 4])[0]
        tree = forced_tree(self._rng, kind, text.answer[len(answer) :], self._engine.spec.vocab_size)
        self.num_trees[kind] += 1
        self.num_nodes[kind] += len(tree[0])
        return Row(key, missing, *tree), kind


def test_the_texts_are_more_than_two_thousand_tokens_and_no_two_alike(texts: list[Text]) -> None:
    assert len(texts) == 32
    assert sum(len(text.answer) for text in texts) >= 2000
    assert len({tuple(text.answer) for text in texts}) == len(texts)


@pytest.mark.parametrize(("batch_size", "first"), [(32, 0), (8, 10), (3, 0), (1, 7)])
def test_greedy_tokens_are_those_of_transformers_with_any_trees_at_any_batch_size(
    engine: Engine, texts: list[Text], batch_size: int, first: int
) -> None:
    part = texts[first : first + batch_size]
    decoding = Decoding(engine, part, seed=batch_size)

    decoding.run()

    answers = [answer[:NUM_TOKENS] for answer in decoding.answers]
    num_equal = sum(
        ours == theirs
        for answer, text in zip(answers, part, strict=True)
        for ours, theirs in zip(answer, text.answer, strict=True)
    )
    print(  # noqa: T201 - with pytest -rP
        f"batch {batch_size}: {num_equal} of {len(part) * NUM_TOKENS} tokens equal in {decoding.num_passes} passes; "
        f"trees {dict(decoding.num_trees)}, nodes {dict(decoding.num_nodes)}, accepted {dict(decoding.num_accepted)}"
    )
    assert answers == [text.answer for text in part]
    assert decoding.num_accepted["all wrong"] == 0
    assert decoding.num_accepted["right chain"] == decoding.num_nodes["right chain"] > 0
    assert 0 < decoding.num_accepted["mixed"] < decoding.num_nodes["mixed"]
