"""What the workers are told of a request's sampling parameters."""

from __future__ import annotations

import pytest

from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.opening import opening_of, spellings
from scheduler.seeds import answer_seed
from scheduler.tokenizer import Tokenizer

FOR_WORKERS = pb.SamplingParams(
    temperature=0.5,
    seed=3,
    top_k=4,
    top_p=0.9,
    min_p=0.1,
    typical_p=0.8,
    repetition_penalty=1.5,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    logit_bias=[pb.LogitBias(token_id=1, bias=-2)],
    min_tokens=5,
    allowed_token_ids=[1, 2],
    logprobs=0,
)
# The scheduler acts on these by itself, or says them in the fields of OpenRequest.
OTHERS = {"max_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop", "n", "skip_special_tokens"}
OTHERS |= {"bad_words", "json_schema", "regex", "grammar", "choice"}


def opened(request: pb.GenerateRequest, tokenizer: Tokenizer) -> OpenRequest:
    return opening_of(request, seed=3, num_prompt_tokens=7, end_token_ids={9, 2}, tokenizer=tokenizer, grammar="g")


@pytest.fixture
def tokenizer(tokenizer_files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer(tokenizer_files)


def test_every_parameter_reaches_the_workers_or_is_the_schedulers_own(tokenizer: Tokenizer) -> None:
    """A field that is added to the proto and forgotten would be ignored: that must not happen."""
    fields = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert fields == OTHERS | {descriptor.name for descriptor, _ in FOR_WORKERS.ListFields()}

    assert opened(pb.GenerateRequest(sampling=FOR_WORKERS), tokenizer).sampling == FOR_WORKERS


def test_what_is_unset_is_sent_as_its_default(tokenizer: Tokenizer) -> None:
    sent = opened(pb.GenerateRequest(), tokenizer)

    assert (sent.sampling.temperature, sent.sampling.top_p, sent.sampling.typical_p) == (1, 1, 1)
    assert sent.sampling.repetition_penalty == 1
    assert not sent.sampling.HasField("logprobs")
    assert sent.acceptance_rule == pb.ACCEPTANCE_RULE_COUPLED
    assert (sent.num_prompt_tokens, list(sent.end_token_ids), sent.grammar) == (7, [2, 9], "g")


def test_a_bad_word_is_sent_as_it_stands_at_the_beginning_and_behind_a_space(tokenizer: Tokenizer) -> None:
    found = spellings(["rain", " rain"], tokenizer)

    assert sorted(tokenizer.fast.decode(list(ids)) for ids in found) == [" rain", "rain"]


@pytest.mark.parametrize("blank", ["\n", "\t", "  "])
def test_to_ban_a_blank_bans_no_other_blank(blank: str, tokenizer: Tokenizer) -> None:
    assert [tokenizer.fast.decode(list(ids)) for ids in spellings([blank], tokenizer)] == [blank]


def test_the_first_answer_has_the_requests_seed_and_no_two_have_the_same() -> None:
    seeds = [answer_seed(seed, index) for seed in (0, 1, 2**64 - 1) for index in range(16)]

    assert seeds[0] == 0
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert answer_seed(7, 3) == 0xCAF7A93C6948D2B, "what was answered yesterday can be had again today"
