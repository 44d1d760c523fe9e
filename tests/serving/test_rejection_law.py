"""The rejection rule through the real service: drawn drafts over gRPC, and what comes out has the target's own law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from outrider import Answer, Client, SamplingParams, Speculation
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config, target_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.statistics import chi_square_p_value
from tests.tiny import save_tiny_llama

FALSE_ALARM = 1e-6
PROMPT = [5, 6, 7, 8, 9]
TOKENS = (11, 23, 42)  # all that may be chosen
LENGTH = 4
NUM_ANSWERS = 500
TEMPERATURE = 0.5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny_llama(folder / name, seed=seed) for name, seed in (("target", 0), ("other", 1))}


@pytest.fixture(scope="module")
def cell(models: dict[str, Path]) -> Iterator[LocalCell]:
    drafters = [drafter_config(f"other=model:{models['other']}"), drafter_config("ngram")]
    scheduler = SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60, max_queued_requests=NUM_ANSWERS)
    with local_cell(target_config(models["target"]), drafters, scheduler) as running:
        yield running


@pytest.fixture(scope="module")
@torch.inference_mode()
def law(models: dict[str, Path]) -> dict[tuple[int, ...], float]:
    """Of the target's own answers, by transformers' forward."""
    model = AutoModelForCausalLM.from_pretrained(models["target"])

    def after(path: tuple[int, ...]) -> dict[int, float]:
        logits = model(torch.tensor([[*PROMPT, *path]])).logits[0, -1, list(TOKENS)].double()
        return dict(zip(TOKENS, (logits / TEMPERATURE).softmax(0).tolist(), strict=True))

    found = {}
    for answer in product(TOKENS, repeat=LENGTH):
        share = 1.0
        for depth, token in enumerate(answer):
            share *= after(answer[:depth])[token]
        found[answer] = share
    return found


def answers(cell: LocalCell, speculation: Speculation) -> list[Answer]:
    with Client(cell.endpoint) as client, ThreadPoolExecutor(32) as pool:

        def ask(seed: int) -> Answer:
            sampling = SamplingParams(
                temperature=TEMPERATURE, seed=seed, max_tokens=LENGTH, allowed_token_ids=TOKENS, ignore_eos=True
            )
            return client.generate(PROMPT, sampling=sampling, speculation=speculation).result()

        return list(pool.map(ask, range(NUM_ANSWERS)))


@pytest.mark.timeout(300)
def test_answers_from_drawn_drafts_have_the_targets_law(cell: LocalCell, law: dict[tuple[int, ...], float]) -> None:
    found = answers(cell, Speculation(acceptance_rule="rejection"))

    assert {stats.name for answer in found for stats in answer.speculation.drafters} == {"other"}
    num_drafted = sum(answer.speculation.num_drafted_nodes for answer in found)
    num_accepted = sum(answer.speculation.num_accepted_tokens for answer in found)
    assert num_drafted > NUM_ANSWERS  # two nodes an answer, as a rule
    assert 0.1 * num_drafted < num_accepted < 0.95 * num_drafted, "the rule must have had both to accept and to reject"
    counts = Counter(answer.token_ids for answer in found)
    assert chi_square_p_value(counts, law) > FALSE_ALARM
    flat = dict.fromkeys(law, 1 / len(law))
    assert chi_square_p_value(counts, flat) < FALSE_ALARM
