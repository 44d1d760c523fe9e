"""Where two answers part, and whether rounding can have done it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.conformance.difference import Difference, difference
from cluster.conformance.settings import Setting
from outrider.types import Answer, SamplingParams, SpeculationStats, TokenLogprobs, Usage
from workers.choice.noise import gumbel

VOCAB = 50
GREEDY = Setting("greedy", SamplingParams(temperature=0), has_plain_choice=True)
WARM = Setting("temperature 0.7", SamplingParams(temperature=0.7), has_plain_choice=True)
LIMITED = Setting("top_k", SamplingParams(temperature=0.7, top_k=3))
NUM_PROMPT_TOKENS = 7


def answer(*tokens: int, logprobs: tuple[float, ...] = ()) -> Answer:
    return Answer(
        request_id="a",
        model="m",
        seed=99,
        token_ids=tokens,
        texts=("",) * len(tokens),
        sources=("target",) * len(tokens),
        text="",
        logprobs=tuple(TokenLogprobs(value, (), ()) for value in logprobs) or None,
        finish_reason="length",
        matched_stop="",
        usage=Usage(NUM_PROMPT_TOKENS, 0, len(tokens), 0.0, 0.0, 0.0),
        speculation=SpeculationStats("off", "coupled", False, 1, 0, 0, ()),
    )


def test_equal_tokens_have_no_difference() -> None:
    assert difference(answer(1, 2, 3), answer(1, 2, 3), GREEDY, VOCAB) is None


def test_the_first_place_where_they_part_is_told_with_both_tokens() -> None:
    assert difference(answer(1, 2, 3, 4), answer(1, 2, 5, 6), GREEDY, VOCAB) == Difference(2, 3, 5, None)
    assert difference(answer(1, 2), answer(1, 2, 5), GREEDY, VOCAB) == Difference(2, None, 5, None)


def test_greedy_choices_are_apart_by_their_log_probabilities() -> None:
    found = difference(answer(1, 2, logprobs=(-0.1, -1.0)), answer(1, 3, logprobs=(-0.1, -1.2)), GREEDY, VOCAB)
    assert found is not None
    assert found.gap == pytest.approx(0.2)


def test_sampled_choices_that_the_noise_makes_a_tie_have_no_gap() -> None:
    noise = gumbel(99, NUM_PROMPT_TOKENS + 1, VOCAB)
    tie = -1.0 + 0.7 * float(noise[2] - noise[3])
    found = difference(answer(1, 2, logprobs=(-0.1, -1.0)), answer(1, 3, logprobs=(-0.1, tie)), WARM, VOCAB)
    assert found is not None
    assert found.gap == pytest.approx(0, abs=1e-9)
    other_seed = replace(answer(1, 2, logprobs=(-0.1, -1.0)), seed=98)
    found = difference(other_seed, answer(1, 3, logprobs=(-0.1, tie)), WARM, VOCAB)
    assert found is not None
    assert found.gap is not None
    assert found.gap > 0.1


def test_behind_a_limit_the_gap_is_unknown() -> None:
    found = difference(answer(2, logprobs=(-1.0,)), answer(3, logprobs=(-1.0,)), LIMITED, VOCAB)
    assert found == Difference(0, 2, 3, None)


@pytest.mark.parametrize(
    ("dtype", "is_strict", "gap", "kind"),
    [
        ("bfloat16", False, 0.1, "within rounding"),
        ("bfloat16", False, 1.0, "breach"),
        ("bfloat16", False, None, "unclear"),
        ("bfloat16", True, 0.1, "breach"),
        ("float16", False, 0.1, "breach"),
        ("float32", True, 0.0, "breach"),
    ],
)
def test_rounding_excuses_near_ties_where_equal_tokens_are_not_promised(
    dtype: str, is_strict: bool, gap: float | None, kind: str
) -> None:
    assert Difference(0, 1, 2, gap).kind(dtype, is_strict=is_strict) == kind
