"""What drafting costs on the wire, counted over the very bytes that travel (benchmarks/wire.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.wire import TEMPERATURES, measure
from tests.draft.drafting import BLOCK_BYTES, load_tiny
from workers.draft.ngram import NgramDrafter
from workers.engine.checkpoint import Checkpoint
from workers.engine.runner import Engine
from workers.training.answering import answer_prompts, pick_as_served
from workers.training.shards import Answer


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Engine:
    return Engine(Checkpoint(tiny, "tiny"), dtype="float32", kv_cache_bytes=256 * BLOCK_BYTES)


def answers_of(engine: Engine, temperature: float) -> list[Answer]:
    answers = [Answer(number, [1 + number, 5, 6, 7, 8], temperature) for number in range(8)]
    answer_prompts(engine, answers, pick_as_served, lambda num_tokens: None, max_tokens=32)
    return answers


# Bytes a row and round. The bar is 64; the model, which is always right, is beyond it where it may have more nodes.
CEILINGS = {  # by TEMPERATURES
    ("ngram", 1): (9, 8, 8),
    ("ngram", 4): (15, 13, 12),
    ("model", 1): (15, 15, 15),
    ("model", 4): (30, 30, 30),
}


@pytest.mark.parametrize("which", range(len(TEMPERATURES)))
@pytest.mark.parametrize(("kind", "budget"), CEILINGS)
def test_a_round_costs_no_more_bytes_at_any_temperature(
    engine: Engine, tiny: Path, which: int, kind: str, budget: int
) -> None:
    drafter = load_tiny(tiny) if kind == "model" else NgramDrafter()
    found = measure(drafter, answers_of(engine, TEMPERATURES[which]), budget)
    ceiling = CEILINGS[kind, budget][which]
    assert 0.75 * ceiling < found["both"] <= ceiling
