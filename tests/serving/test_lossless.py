"""The promise: a draft changes how fast the tokens come, and never which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from outrider import Answer, Client, SamplingParams, Speculation
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config, target_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.serving.prompts import PROMPTS, Prompt
from workers.training.layers import save_with_layers

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

NUM_TOKENS = 128
PAD = 0  # a token of documents, which no answer has
OFF = Speculation(mode="off")


@pytest.fixture(scope="module")
def truncated(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_layers(smollm2, tmp_path_factory.mktemp("truncated") / "SmolLM2-8-layers", range(8))


@pytest.fixture(scope="module")
def cell(smollm2: Path, truncated: Path) -> Iterator[LocalCell]:
    """One rank, and three drafters: prompt lookup, the target itself, and the target cut to eight layers."""
    drafters = [
        drafter_config("ngram"),
        drafter_config(f"itself=model:{smollm2}", f"cut=model:{truncated}"),
    ]
    # The tests share two cores with all of it: a draft is waited for, so that drafts are used whatever the load.
    scheduler = SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60)
    with local_cell(target_config(smollm2), drafters, scheduler) as running:
        yield running


@pytest.fixture(scope="module")
def greedy_by_transformers(smollm2: Path) -> list[list[int]]:
    """Greedy tokens by transformers' own generate, the prompts' tokens left out: one batch, padded on the left."""
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompts = [
        tokenizer(prompt).input_ids
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=True)["input_ids"]
        for prompt in PROMPTS
    ]
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    tokens = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NUM_TOKENS, pad_token_id=PAD)
    return [without_padding(answer) for answer in tokens[:, longest:].tolist()]


def without_padding(answer: list[int]) -> list[int]:
    """An answer that ended early is padded to the length of the longest."""
    return answer[: answer.index(PAD)] if PAD in answer else answer


@pytest.fixture(scope="module")
def cell_of_two_ranks(smollm2: Path) -> Iterator[LocalCell]:
    with local_cell(target_config(smollm2, tensor_parallel=2), [drafter_config("ngram")]) as running:
        yield running


def answer_all(
    endpoint: str, prompts: Sequence[Prompt], sampling: SamplingParams, speculation: Speculation
) -> list[Answer]:
    """All answers at once, as concurrent requests of one client."""
    with Client(endpoint) as client, ThreadPoolExecutor(len(prompts)) as pool:
        calls = [
            pool.submit(lambda p=prompt: client.generate(p, sampling=sampling, speculation=speculation).result())
            for prompt in prompts
        ]
        return [call.result() for call in calls]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("mode", ["off", "auto"])
def test_greedy_tokens_are_those_of_transformers(
    num_ranks: int, mode: str, request: pytest.FixtureRequest, greedy_by_transformers: list[list[int]]
) -> None:
    cell: LocalCell = request.getfixturevalue("cell" if num_ranks == 1 else "cell_of_two_ranks")
    speculation = OFF if mode == "off" else Speculation(drafters=["ngram"], max_nodes=4)
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    answers = answer_all(cell.endpoint, PROMPTS, sampling, speculation)
    assert [list(answer.token_ids) for answer in answers] == greedy_by_transformers
    num_drafted = sum(answer.speculation.num_accepted_tokens for answer in answers)
    assert (num_drafted > 0) == (mode == "auto"), "drafts must be used exactly when they are allowed"


def test_the_same_seed_gives_the_same_tokens_with_any_drafter(cell: LocalCell) -> None:
    sampling = SamplingParams(temperature=0.8, seed=20240607, max_tokens=40)
    prompts = PROMPTS[:3]
    plain = answer_all(cell.endpoint, prompts, sampling, OFF)
    for drafters in (["ngram"], ["itself"], ["cut"], ["cut", "itself", "ngram"]):
        drafted = answer_all(cell.endpoint, prompts, sampling, Speculation(drafters=drafters))
        assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain], drafters
        assert [answer.text for answer in drafted] == [answer.text for answer in plain]


def test_a_target_that_drafts_for_itself_is_nearly_always_right(cell: LocalCell) -> None:
    sampling = SamplingParams(temperature=0.8, seed=1, max_tokens=48)
    [answer] = answer_all(cell.endpoint, PROMPTS[:1], sampling, Speculation(drafters=["itself"], max_nodes=4))
    assert answer.tokens_per_pass > 3.5, "it shares the target's noise: four nodes should nearly always be accepted"


def test_another_seed_gives_another_answer(cell: LocalCell) -> None:
    answers = [
        answer_all(cell.endpoint, PROMPTS[:1], SamplingParams(temperature=1.0, seed=seed, max_tokens=32), OFF)[0]
        for seed in (1, 2)
    ]
    assert answers[0].token_ids != answers[1].token_ids


def test_a_drawn_seed_is_told_and_gives_the_answer_again(cell: LocalCell) -> None:
    [first] = answer_all(cell.endpoint, PROMPTS[:1], SamplingParams(temperature=1.0, max_tokens=24), Speculation())
    again = SamplingParams(temperature=1.0, max_tokens=24, seed=first.seed)
    [second] = answer_all(cell.endpoint, PROMPTS[:1], again, OFF)
    assert first.token_ids == second.token_ids


def test_a_model_drafter_killed_in_the_middle_of_a_request_changes_no_token(cell: LocalCell, smollm2: Path) -> None:
    sampling = SamplingParams(temperature=0.8, seed=5, max_tokens=64, ignore_eos=True)
    [plain] = answer_all(cell.endpoint, PROMPTS[:1], sampling, OFF)
    with cell.drafter_process(f"victim=model:{smollm2}") as process, Client(cell.endpoint) as client:
        generation = client.generate(PROMPTS[0], sampling=sampling, speculation=Speculation(drafters=["victim"]))
        for num_tokens, _ in enumerate(generation, 1):
            if num_tokens == 20:
                process.kill()
        answer = generation.answer
    assert answer.token_ids == plain.token_ids
    assert "draft" in answer.sources[:20]
    assert set(answer.sources[-20:]) == {"target"}, "the drafter is dead: the target goes on alone"
