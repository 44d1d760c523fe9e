"""Which sampling parameters a target takes, and that it refuses the others by name."""

from __future__ import annotations

import pytest

from outrider.errors import InvalidRequest, OutriderError, Unsupported
from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from workers.sampling import ChoiceParams, choice_params, guess_params

UNSUPPORTED = {
    "typical_p": pb.SamplingParams(typical_p=0.9),
    "repetition_penalty": pb.SamplingParams(repetition_penalty=1.1),
    "presence_penalty": pb.SamplingParams(presence_penalty=0.5),
    "frequency_penalty": pb.SamplingParams(frequency_penalty=-0.5),
    "logit_bias": pb.SamplingParams(logit_bias=[pb.LogitBias(token_id=1, bias=1)]),
    "min_tokens": pb.SamplingParams(min_tokens=1),
    "bad_words": pb.SamplingParams(bad_words=["x"]),
    "allowed_token_ids": pb.SamplingParams(allowed_token_ids=[1]),
    "logprobs": pb.SamplingParams(logprobs=0),
    "json_schema": pb.SamplingParams(json_schema="{}"),
    "regex": pb.SamplingParams(regex="a"),
    "grammar": pb.SamplingParams(grammar="a"),
    "choice": pb.SamplingParams(choice=pb.Choices(values=["a"])),
}
TAKEN = {"temperature", "seed", "top_k", "top_p", "min_p"}
SCHEDULERS = {"max_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop", "n", "skip_special_tokens"}


def opened(sampling: pb.SamplingParams, rule: pb.AcceptanceRule = pb.ACCEPTANCE_RULE_COUPLED) -> OpenRequest:
    sampling.seed = 1
    return OpenRequest(sampling=sampling, acceptance_rule=rule)


def test_unset_fields_mean_the_documented_defaults() -> None:
    params = choice_params(opened(pb.SamplingParams()))

    assert params == ChoiceParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)


def test_zero_is_a_value_and_not_unset() -> None:
    assert choice_params(opened(pb.SamplingParams(temperature=0.0))).temperature == 0.0


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_a_field_that_the_choice_cannot_honour_is_refused_by_name(field: str) -> None:
    with pytest.raises(Unsupported, match=field):
        choice_params(opened(UNSUPPORTED[field]))


def test_every_field_of_the_contract_is_either_taken_or_left_to_the_scheduler_or_refused() -> None:
    fields = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}

    assert fields == TAKEN | SCHEDULERS | set(UNSUPPORTED)


def test_neutral_values_and_the_schedulers_own_fields_are_taken() -> None:
    neutral = pb.SamplingParams(
        typical_p=1, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, min_tokens=0
    )
    neutral.MergeFrom(pb.SamplingParams(max_tokens=5, stop=["x"], stop_token_ids=[3], ignore_eos=True, n=2))

    assert choice_params(opened(neutral)) == ChoiceParams(seed=1)


@pytest.mark.parametrize("rule", [pb.ACCEPTANCE_RULE_REJECTION, pb.ACCEPTANCE_RULE_TYPICAL])
def test_other_acceptance_rules_are_refused_by_name(rule: pb.AcceptanceRule) -> None:
    with pytest.raises(Unsupported, match=pb.AcceptanceRule.Name(rule)):
        choice_params(opened(pb.SamplingParams(), rule))


@pytest.mark.parametrize(
    "sampling",
    [
        pb.SamplingParams(temperature=-0.1),
        pb.SamplingParams(temperature=float("nan")),
        pb.SamplingParams(temperature=float("inf")),
        pb.SamplingParams(top_p=0.0),
        pb.SamplingParams(top_p=1.01),
        pb.SamplingParams(min_p=-0.1),
        pb.SamplingParams(min_p=1.1),
    ],
)
def test_values_out_of_range_are_refused_by_name(sampling: pb.SamplingParams) -> None:
    field = sampling.ListFields()[0][0].name

    with pytest.raises(InvalidRequest, match=field):
        choice_params(opened(sampling))


def test_sampling_without_a_seed_is_refused_and_greedy_needs_none() -> None:
    with pytest.raises(InvalidRequest, match="seed"):
        choice_params(OpenRequest(sampling=pb.SamplingParams(temperature=1.0)))

    assert choice_params(OpenRequest(sampling=pb.SamplingParams(temperature=0.0))).temperature == 0


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_a_drafter_guesses_where_the_target_would_refuse(field: str) -> None:
    request = opened(UNSUPPORTED[field])

    with pytest.raises(OutriderError):
        choice_params(request)
    assert guess_params(request) == ChoiceParams(seed=1)
