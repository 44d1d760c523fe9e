"""Any sequence of opens, forks, passes, accepts, truncates and closes leaves what a plain forward would compute."""

from __future__ import annotations

import functools
import tempfile

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel

from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint, prepare_checkpoint
from workers.engine.kv_cache import OutOfBlocks
from workers.engine.runner import Engine

VOCAB = 29
MAX_CONTEXT = 40
NUM_BLOCKS = 9  # too few for all requests at once: blocks change hands all the time
BLOCK_SIZE = 4
KEYS = range(4)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_CONTEXT,
}
CONFIGS = {
    "whole context": LlamaConfig(**SIZES),
    "sliding window": MistralConfig(**SIZES, sliding_window=5),
}
tokens = st.integers(0, VOCAB - 1)


@functools.cache
def engine_and_model(config: str) -> tuple[Engine, PreTrainedModel]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[config])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        checkpoint: Checkpoint = prepare_checkpoint(folder)
        block_bytes = BLOCK_SIZE * 2 * 2 * 2 * 8 * 4  # k and v, layers, KV heads, head size, float32
        engine = Engine(checkpoint, block_size=BLOCK_SIZE, kv_cache_bytes=NUM_BLOCKS * block_bytes)
    return engine, model


@functools.lru_cache(maxsize=4096)
@torch.inference_mode()
def plain_logits(config: str, path: tuple[int, ...]) -> Tensor:
    logits: Tensor = engine_and_model(config)[1](input_ids=torch.tensor([path])).logits[0, -1]
    return logits


class EngineStates(RuleBasedStateMachine):
    """Beside the engine stand plain lists: each request's committed tokens, and the tree of its last pass."""

    config = "whole context"

    def __init__(self) -> None:
        super().__init__()
        self.engine = engine_and_model(self.config)[0]
        self.engine._cache.clear()
        self.committed: dict[int, tuple[int, ...]] = {}
        self.trees: dict[int, tuple[list[int], list[int]]] = {}  # (tokens, parents)

    @rule(key=st.sampled_from(KEYS))
    def open(self, key: int) -> None:
        if key not in self.committed:
            self.engine.open(key)
            self.committed[key] = ()

    @rule(key=st.sampled_from(KEYS))
    def close(self, key: int) -> None:
        self.engine.close(key)
        self.committed.pop(key, None)
        self.trees.pop(key, None)

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), child=st.sampled_from(KEYS))
    def fork(self, data: st.DataObject, child: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.committed)), label="key")
        if child not in self.committed:
            self.engine.fork(key, child)
            self.committed[child] = self.committed[key]

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), num_others=st.integers(0, 5))
    def reuse(self, data: st.DataObject, num_others: int) -> None:
        """A key is closed and comes back with what some key had, and perhaps more."""
        key, other = (data.draw(st.sampled_from(sorted(self.committed)), label="key") for _ in range(2))
        sought = (*self.committed[other], *range(num_others))
        self.close(key)
        self.engine.open(key)
        self.committed[key] = sought[: self.engine.reuse(key, sought)]

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def forward(self, data: st.DataObject) -> None:
        rows = [self._row(data, key) for key in sorted(self.committed) if data.draw(st.booleans(), label=f"row {key}")]
        rows = [row for row in rows if len(self.committed[row.key]) + row.num_tokens <= MAX_CONTEXT]
        if not rows:
            return
        if self.engine.blocks_needed(rows) > self.engine.num_free_blocks:
            try:
                self.engine.forward(rows)
            except OutOfBlocks:
                return
            raise AssertionError("more blocks were needed than free, and the pass ran")
        results = self.engine.forward(rows)
        for row, logits in zip(rows, results, strict=True):
            self.committed[row.key] += tuple(row.tokens)
            self.trees[row.key] = (list(row.node_tokens), list(row.node_parents))
            assert (logits is not None) == row.wants_logits
            if logits is not None:
                self._compare(row.key, logits)

    @precondition(lambda self: self.trees)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.trees)), label="key")
        node_tokens, parents = self.trees.pop(key)
        path: list[int] = []
        while children := [i for i, parent in enumerate(parents) if parent == (path[-1] if path else -1)]:
            child = data.draw(st.sampled_from([None, *children]), label="child")
            if child is None:
                break
            path.append(child)
        self.engine.accept(key, path)
        self.committed[key] += tuple(node_tokens[node] for node in path)

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.committed)), label="key")
        num_tokens = data.draw(st.integers(0, len(self.committed[key])), label="num_tokens")
        self.engine.truncate(key, num_tokens)
        self.committed[key] = self.committed[key][:num_tokens]
        self.trees.pop(key, None)

    @invariant()
    def the_books_agree(self) -> None:
        self.engine.check_integrity()
        assert {key: self.engine.num_cached(key) for key in KEYS if self.engine.is_open(key)} == {
            key: len(path) for key, path in self.committed.items()
        }

    def _row(self, data: st.DataObject, key: int) -> Row:
        linear = data.draw(st.lists(tokens, min_size=1, max_size=6), label="tokens")
        node_tokens = data.draw(st.lists(tokens, max_size=6), label="node_tokens")
        parents = [data.draw(st.integers(-1, node - 1), label="parent") for node in range(len(node_tokens))]
        return Row(key, linear, node_tokens, parents, wants_logits=data.draw(st.booleans(), label="wants_logits"))

    def _compare(self, key: int, logits: Tensor) -> None:
        paths = [self.committed[key]]
        for token, parent in zip(*self.trees[key], strict=True):
            paths.append((*paths[1 + parent], token))
        expected = torch.stack([plain_logits(self.config, path) for path in paths])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


class WindowedStates(EngineStates):
    config = "sliding window"


EngineStates.TestCase.settings = settings(derandomize=True, max_examples=150, stateful_step_count=25, deadline=None)
WindowedStates.TestCase.settings = settings(derandomize=True, max_examples=30, stateful_step_count=25, deadline=None)
test_any_history_leaves_what_a_plain_forward_computes = EngineStates.TestCase
test_any_history_leaves_what_a_plain_forward_computes_in_a_window = WindowedStates.TestCase
