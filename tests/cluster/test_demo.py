"""The demo's own claim, checked: the same tokens with drafts, in fewer passes, and a last line for scripts."""

from __future__ import annotations

import json
import sys
from asyncio import create_subprocess_exec, subprocess, timeout
from dataclasses import replace

import pytest

from cluster.demo import PROMPTS, Comparison, summary
from outrider.types import Answer, SpeculationStats, Usage

DEMO_TIMEOUT_S = 280.0

PLAIN = Answer(
    request_id="a",
    model="m",
    seed=1,
    token_ids=(1, 2, 3, 4, 5),
    texts=("one", " two", "", "", " three"),
    sources=("target",) * 5,
    text="one two three",
    logprobs=None,
    finish_reason="length",
    matched_stop="",
    usage=Usage(3, 0, 5, 0.0, 1.0, 3.0),
    speculation=SpeculationStats("off", "coupled", False, 5, 0, 0, ()),
)
DRAFTED = replace(
    PLAIN,
    sources=("target", "draft", "draft", "draft", "target"),
    usage=Usage(3, 0, 5, 0.0, 1.0, 2.0),
    speculation=SpeculationStats("auto", "coupled", False, 2, 6, 3, ()),
)


def test_the_summary_counts_tokens_after_the_first_and_passes_of_all_prompts() -> None:
    result = summary([Comparison(PROMPTS[0], PLAIN, DRAFTED), Comparison(PROMPTS[1], PLAIN, DRAFTED)])
    assert result == {
        "requests": 2,
        "tokens": 10,
        "tokens_per_pass": 2.5,
        "identical_to_plain": True,
        "tokens_per_s_plain": 2.0,
        "tokens_per_s": 4.0,
        "drafted_nodes": 12,
        "accepted_tokens": 6,
    }


def test_one_other_token_in_one_answer_is_told() -> None:
    other = replace(DRAFTED, token_ids=(1, 2, 3, 4, 6))
    pairs = [Comparison(PROMPTS[0], PLAIN, DRAFTED), Comparison(PROMPTS[1], PLAIN, other)]
    assert summary(pairs)["identical_to_plain"] is False


@pytest.mark.cluster
@pytest.mark.model
@pytest.mark.usefixtures("smollm2")  # fetches the model, so that this is not part of the demo's time
async def test_the_demo_ends_with_0_and_its_last_line_says_identical() -> None:
    demo = await create_subprocess_exec(
        sys.executable, "-m", "cluster", "demo", "--max-tokens", "12", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with timeout(DEMO_TIMEOUT_S):
        output, errors = await demo.communicate()
    assert demo.returncode == 0, errors.decode()
    result = json.loads(output.decode().splitlines()[-1])
    assert result["identical_to_plain"] is True
    assert (result["requests"], result["tokens"]) == (3, 36)
    assert result["accepted_tokens"] > 0
