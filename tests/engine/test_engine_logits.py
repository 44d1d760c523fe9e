"""The engine against transformers' own forward, on tiny random models in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from outrider.errors import InvalidRequest, Unsupported
from outrider.tree import TreeError
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.kv_cache import OutOfBlocks
from workers.engine.runner import Engine

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
SERVED = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=16),
    MistralConfig(**SIZES, sliding_window=None),
    MistralConfig(**SIZES, sliding_window=64),  # holds the whole context
]
REFUSED = [
    (MistralConfig(**SIZES, sliding_window=16), "a sliding window of 16 tokens, shorter than its context of 64"),
    (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1), "a sliding window of 16"),
    (Gemma2Config(**SIZES, head_dim=8, sliding_window=64), "soft-capped attention scores"),
    (LlamaConfig(**SIZES, rope_parameters=DYNAMIC_ROPE), "rotary embeddings of type dynamic"),
]

LogitsOf = Callable[[Path, Sequence[int]], Tensor]


def random_tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, 61, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("config", SERVED, ids=lambda config: config.model_type)
def test_prompts_chains_and_trees_in_one_pass_give_the_models_own_logits(
    config: PreTrainedConfig, save_model: Callable[[PreTrainedConfig], Path], plain_logits: LogitsOf
) -> None:
    folder = save_model(config)
    engine = Engine(Checkpoint(folder, "tiny"), block_size=4, kv_cache_bytes=1 << 18)
    prompts = {1: random_tokens(1, 7), 2: random_tokens(2, 13), 3: random_tokens(3, 5)}
    for key in prompts:
        engine.open(key)
    first = engine.forward([Row(1, prompts[1]), Row(2, prompts[2][:6], wants_logits=False)])
    second = engine.forward(
        [
            Row(1, [8], [11, 12, 13, 14], [-1, 0, -1, 2]),  # a tree of two branches
            Row(2, prompts[2][6:]),  # the rest of a prompt
            Row(3, prompts[3], [21, 22], [-1, 0]),  # a whole prompt with a chain below it
        ]
    )
    assert first[1] is None
    expected = [
        (first[0], 0, prompts[1]),
        (second[0], 0, [*prompts[1], 8]),
        (second[0], 1, [*prompts[1], 8, 11]),
        (second[0], 2, [*prompts[1], 8, 11, 12]),
        (second[0], 3, [*prompts[1], 8, 13]),
        (second[0], 4, [*prompts[1], 8, 13, 14]),
        (second[1], 0, prompts[2]),
        (second[2], 0, prompts[3]),
        (second[2], 2, [*prompts[3], 21, 22]),
    ]
    for logits, index, path in expected:
        assert logits is not None
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits[index], plain_logits(folder, path)[-1], atol=TOLERANCE, rtol=0)


def test_the_specification_comes_from_the_checkpoint(tiny_engine: Engine) -> None:
    spec = tiny_engine.spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (2, 3, 8, 61)
    assert (spec.max_context, spec.end_token_ids, spec.dtype, spec.name) == (64, (3, 5), "float32", "tiny")


@pytest.mark.parametrize(("config", "reason"), REFUSED, ids=lambda value: getattr(value, "model_type", ""))
def test_attention_that_we_would_get_wrong_is_refused_by_name(
    config: PreTrainedConfig, reason: str, save_model: Callable[[PreTrainedConfig], Path]
) -> None:
    with pytest.raises(Unsupported, match=rf"a-name \({config.model_type}\): .*{reason}"):
        Engine(Checkpoint(save_model(config), "a-name"), kv_cache_bytes=1 << 18)


def test_positions_learned_as_embeddings_are_served_too(
    save_model: Callable[[PreTrainedConfig], Path], plain_logits: LogitsOf
) -> None:
    folder = save_model(
        GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    engine = Engine(Checkpoint(folder, "tiny"), block_size=4, kv_cache_bytes=1 << 18)
    engine.open(1)
    (logits,) = engine.forward([Row(1, [1, 2, 3], [4, 5], [-1, -1])])
    assert logits is not None
    for node, token in enumerate([4, 5]):
        expected = plain_logits(folder, [1, 2, 3, token])[-1]
        torch.testing.assert_close(logits[1 + node], expected, atol=TOLERANCE, rtol=0)


def test_accepted_nodes_survive_their_blocks_going_to_another_request(
    tiny_engine: Engine, tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    tiny_engine.open(1)
    tiny_engine.open(2)
    nodes = random_tokens(4, 12)
    tiny_engine.forward([Row(1, [1, 2, 3], nodes, [-1] * 11 + [10])])
    tiny_engine.accept(1, [10, 11])  # their own blocks are free now, and the next pass takes them
    num_free = tiny_engine.num_free_blocks
    prompt = random_tokens(5, 40)
    logits = tiny_engine.forward([Row(2, prompt), Row(1, [9])])
    assert tiny_engine.num_free_blocks < num_free
    for got, path in zip(logits, (prompt, [1, 2, 3, nodes[10], nodes[11], 9]), strict=True):
        assert got is not None
        torch.testing.assert_close(got[0], plain_logits(tiny_llama, path)[-1], atol=TOLERANCE, rtol=0)


def assert_logits(logits: Tensor | None, folder: Path, path: Sequence[int], plain_logits: LogitsOf) -> None:
    assert logits is not None
    torch.testing.assert_close(logits[0], plain_logits(folder, path)[-1], atol=TOLERANCE, rtol=0)


def test_a_prefix_of_another_request_gives_the_models_own_logits_whole_prompts_too(
    tiny_engine: Engine, tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    shared = random_tokens(6, 12)
    for key in (1, 2, 3):
        tiny_engine.open(key)
    tiny_engine.forward([Row(1, shared, [7, 8], [-1, -1])])
    assert tiny_engine.reuse(2, [*shared, 9, 10]) == 12
    assert tiny_engine.reuse(3, shared) == 12
    tiny_engine.truncate(3, 11)  # its last token has to be computed for its logits

    logits = tiny_engine.forward([Row(1, [5]), Row(2, [9, 10]), Row(3, shared[11:])])

    for got, rest in zip(logits, ([5], [9, 10], []), strict=True):
        assert_logits(got, tiny_llama, [*shared, *rest], plain_logits)
    tiny_engine.check_integrity()


def test_a_prefix_that_accepted_nodes_completed_gives_the_models_own_logits_before_it_is_moved(
    tiny_engine: Engine, tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    tiny_engine.open(1)
    tiny_engine.open(2)
    tiny_engine.forward([Row(1, [1, 2], [7, 8, 9, 10], [-1, -1, 1, 2])])
    tiny_engine.accept(1, [1, 2, 3])
    tiny_engine.close(1)
    assert tiny_engine.reuse(2, [1, 2, 8, 9]) == 4

    (logits,) = tiny_engine.forward([Row(2, [11])])

    assert_logits(logits, tiny_llama, [1, 2, 8, 9, 11], plain_logits)


def test_forks_go_their_own_ways_from_a_shared_partial_block(
    tiny_engine: Engine, tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    tiny_engine.open(1)
    tiny_engine.forward([Row(1, [1, 2, 3, 4, 5], [6, 7, 8], [-1, -1, 1])])
    tiny_engine.accept(1, [1, 2])  # moved into the shared block, in the pass that copies from it
    for child in (2, 3):
        tiny_engine.fork(1, child)
    paths = {key: [1, 2, 3, 4, 5, 7, 8] for key in (1, 2, 3)}
    for step in range(6):
        rows = [Row(key, [10 * key + step]) for key in paths]
        for row, got in zip(rows, tiny_engine.forward(rows), strict=True):
            paths[row.key] += row.tokens
            assert_logits(got, tiny_llama, paths[row.key], plain_logits)
    tiny_engine.check_integrity()


def test_what_was_evicted_is_not_found_and_gives_the_same_logits_when_it_is_computed_again(
    tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    block_bytes = 4 * 2 * 2 * 3 * 8 * 4  # block_size, k and v, layers, KV heads, head size, float32
    engine = Engine(Checkpoint(tiny_llama, "tiny"), block_size=4, kv_cache_bytes=5 * block_bytes)
    one, other = random_tokens(7, 17), random_tokens(8, 9)
    found = []
    for prompt in (one, other, one, one):
        engine.open(1)
        found.append(engine.reuse(1, prompt))
        (logits,) = engine.forward([Row(1, prompt[found[-1] :])])
        assert_logits(logits, tiny_llama, prompt, plain_logits)
        engine.close(1)
        engine.check_integrity()
    # The other prompt took the unregistered block first, then the tail's two.
    assert found == [0, 0, 8, 16]


def test_a_failed_pass_leaves_nothing_to_be_found(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs: object) -> None:
        raise RuntimeError("out of memory")

    prompt = random_tokens(9, 8)
    tiny_engine.open(1)
    tiny_engine.forward([Row(1, prompt)])
    with monkeypatch.context() as failing:
        failing.setattr(tiny_engine, "_module", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            tiny_engine.forward([Row(1, [1])])
    tiny_engine.open(1)
    assert tiny_engine.reuse(1, prompt) == 0


def test_bfloat16_holds_cache_and_weights_and_still_answers_in_float32(
    tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    engine = Engine(Checkpoint(tiny_llama, "tiny"), dtype="bfloat16", block_size=4, kv_cache_bytes=1 << 18)
    engine.open(1)
    engine.forward([Row(1, [1, 2, 3])])
    (logits,) = engine.forward([Row(1, [4])])
    assert logits is not None
    assert (engine.spec.dtype, logits.dtype) == ("bfloat16", torch.float32)
    expected = plain_logits(tiny_llama, [1, 2, 3, 4])[-1]
    assert torch.corrcoef(torch.stack([logits[0], expected]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "int3"}, "dtype is 'int3': it is one of auto, float32, bfloat16, float16"),
        ({"kv_cache_bytes": 100}, "kv_cache_bytes is 100: it holds not a single block"),
        ({"tensor_parallel": 2}, "tensor_parallel is 2: it is the number of ranks in the group"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(tiny_llama: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Engine(Checkpoint(tiny_llama, "tiny"), **options)


def test_a_pass_without_wanted_logits_only_fills_the_cache(tiny_engine: Engine) -> None:
    tiny_engine.open(1)
    assert tiny_engine.forward([Row(1, [1, 2, 3], wants_logits=False)]) == [None]
    assert tiny_engine.num_cached(1) == 3
    assert tiny_engine.forward([]) == []


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (Row(1, []), InvalidRequest, "tokens"),
        (Row(1, [61]), InvalidRequest, "token is 61: the vocabulary has 61"),
        (Row(1, [1], [-1], [-1]), InvalidRequest, "token is -1"),
        (Row(1, [1], [1], []), InvalidRequest, "node_parents"),
        (Row(1, [1], [1, 1], [1, -1]), TreeError, "parents"),
        (Row(1, [1] * 65), InvalidRequest, "the model's context holds 64"),
        (Row(1, [1] * 63, [1, 1], [-1, 0]), InvalidRequest, "the model's context holds 64"),
        (Row(2, [1]), InvalidRequest, "key is 2: it is not open"),
    ],
)
def test_a_senseless_row_is_refused_before_anything_is_done(
    tiny_engine: Engine, row: Row, error: type[Exception], message: str
) -> None:
    tiny_engine.open(1)
    num_free = tiny_engine.num_free_blocks
    with pytest.raises(error, match=message):
        tiny_engine.forward([row])
    assert (tiny_engine.num_cached(1), tiny_engine.num_free_blocks) == (0, num_free)


def test_two_rows_of_one_request_in_a_pass_are_refused(tiny_engine: Engine) -> None:
    tiny_engine.open(1)
    with pytest.raises(InvalidRequest, match="a request has one row in a pass"):
        tiny_engine.forward([Row(1, [1]), Row(1, [2])])


def test_a_pass_that_needs_more_than_is_free_raises_and_the_request_goes_on(
    tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    block_bytes = 4 * 2 * 2 * 3 * 8 * 4  # block_size, k and v, layers, KV heads, head size, float32
    engine = Engine(Checkpoint(tiny_llama, "tiny"), block_size=4, kv_cache_bytes=3 * block_bytes)
    assert engine.num_blocks == 3
    engine.open(1)
    engine.forward([Row(1, [1, 2, 3])])
    with pytest.raises(OutOfBlocks):
        engine.forward([Row(1, list(range(10)))])
    assert engine.blocks_needed([Row(1, [4, 5])]) == 1
    (logits,) = engine.forward([Row(1, [4, 5])])
    assert logits is not None
    torch.testing.assert_close(logits[0], plain_logits(tiny_llama, [1, 2, 3, 4, 5])[-1], atol=TOLERANCE, rtol=0)


def test_a_failure_inside_a_pass_closes_every_request(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs: object) -> None:
        raise RuntimeError("out of memory")

    for key in (1, 2):
        tiny_engine.open(key)
    tiny_engine.forward([Row(2, [1, 2, 3])])
    monkeypatch.setattr(tiny_engine, "_module", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny_engine.forward([Row(1, [1])])
    assert not tiny_engine.is_open(1)
    assert not tiny_engine.is_open(2)
    assert tiny_engine.num_free_blocks == tiny_engine.num_blocks
    tiny_engine.check_integrity()
