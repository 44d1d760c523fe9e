"""The engine against transformers' own forward, on tiny random models in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.errors import InvalidRequest
from outrider.tree import TreeError
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.kv_cache import OutOfBlocks
from workers.engine.runner import Engine

TOLERANCE = 1e-4
LogitsOf = Callable[[Path, Sequence[int]], Tensor]


def random_tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, 61, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_specification_comes_from_the_checkpoint(tiny_engine: Engine) -> None:
    spec = tiny_engine.spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.vocab_size) == (2, 3, 8, 61)
    assert (spec.max_context, spec.end_token_ids, spec.dtype, spec.name) == (64, (3, 5), "float32", "tiny")


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
    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    prompt = random_tokens(9, 8)
    tiny_engine.open(1)
    tiny_engine.forward([Row(1, prompt)])
    with monkeypatch.context() as failing:
        failing.setattr(tiny_engine._forward, "run", fail)
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
    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    for key in (1, 2):
        tiny_engine.open(key)
    tiny_engine.forward([Row(2, [1, 2, 3])])
    monkeypatch.setattr(tiny_engine._forward, "run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny_engine.forward([Row(1, [1])])
    assert not tiny_engine.is_open(1)
    assert not tiny_engine.is_open(2)
    assert tiny_engine.num_free_blocks == tiny_engine.num_blocks
    tiny_engine.check_integrity()
