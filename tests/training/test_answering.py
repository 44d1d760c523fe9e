"""Answers of a target, made many at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_tiny_llama
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.kv_cache import OutOfBlocks
from workers.engine.runner import Engine
from workers.training.answering import answer_prompts, pick_from_kept_laws
from workers.training.shards import Answer

MAX_TOKENS = 20


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "target", max_context=48)


def answered(target: Path, num_blocks: int) -> tuple[list[list[int]], int]:
    """Answers to ten prompts on a cache of so many blocks, and how many were made at once at most."""
    engine = Engine(prepare_checkpoint(str(target)), dtype="float32", kv_cache_bytes=1 << 22)
    engine = Engine(
        prepare_checkpoint(str(target)), dtype="float32", kv_cache_bytes=num_blocks * (1 << 22) // engine.num_blocks
    )
    assert engine.num_blocks == num_blocks
    answers = [Answer(number, [1 + number, 7, 9], (0.0, 0.8)[number % 2]) for number in range(10)]
    at_once: list[int] = []
    answer_prompts(engine, answers, pick_from_kept_laws, at_once.append, max_tokens=MAX_TOKENS)
    engine.check_integrity()
    return [answer.tokens for answer in answers], max(at_once)


def test_a_small_cache_takes_fewer_at_once_and_the_answers_are_the_same(target: Path) -> None:
    few, num_at_once = answered(target, 5)
    many, all_at_once = answered(target, 100)

    assert few == many
    assert (num_at_once, all_at_once) == (2, 10), "23 tokens are two blocks of 16"


def test_a_cache_that_cannot_hold_one_answer_says_so(target: Path) -> None:
    with pytest.raises(OutOfBlocks):
        answered(target, 1)
