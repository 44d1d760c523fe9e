"""Which sampling parameters a target takes, and that it refuses the others by name."""

from __future__ import annotations

import pytest

from outrider.errors import InvalidRequest, Unsupported
from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from workers.choice.params import ChoiceParams, check_tokens, choice_params, guess_params

TEXTS = {
    "bad_words": pb.SamplingParams(bad_words=["x"]),
    "json_schema": pb.SamplingParams(json_schema="{}"),
    "regex": pb.SamplingParams(regex="a"),
    "grammar": pb.SamplingParams(grammar="a"),
    "choice": pb.SamplingParams(choice=pb.Choices(values=["a"])),
}
TAKEN = pb.SamplingParams(
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
SCHEDULERS = pb.SamplingParams(
    max_tokens=5, stop=["x"], stop_token_ids=[3], ignore_eos=True, include_stop=True, n=2, skip_special_tokens=False
)


def opened(sampling: pb.SamplingParams, rule: pb.AcceptanceRule = pb.ACCEPTANCE_RULE_COUPLED) -> OpenRequest:
    with_seed = pb.SamplingParams(seed=1)
    with_seed.MergeFrom(sampling)
    return OpenRequest(sampling=with_seed, acceptance_rule=rule)


def names(sampling: pb.SamplingParams) -> set[str]:
    return {descriptor.name for descriptor, _ in sampling.ListFields()}


def test_unset_fields_mean_the_documented_defaults() -> None:
    assert choice_params(opened(pb.SamplingParams())) == ChoiceParams(temperature=1.0, top_p=1.0, typical_p=1.0, seed=1)


def test_zero_is_a_value_and_not_unset() -> None:
    assert choice_params(opened(pb.SamplingParams(temperature=0.0))).temperature == 0.0


def test_every_parameter_arrives() -> None:
    request = opened(TAKEN, pb.ACCEPTANCE_RULE_REJECTION)
    request.num_prompt_tokens = 9
    request.end_token_ids.append(7)
    request.bad_words.add(ids=[5, 6])
    request.grammar = "{}"

    assert choice_params(request) == ChoiceParams(
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias=((1, -2.0),),
        allowed_token_ids=(1, 2),
        bad_words=((5, 6),),
        min_tokens=5,
        end_token_ids=(7,),
        num_prompt_tokens=9,
        grammar="{}",
        seed=3,
        rule="rejection",
        num_logprobs=0,
    )


def test_every_field_of_the_contract_is_either_taken_or_left_to_the_scheduler_or_refused() -> None:
    fields = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}

    assert fields == names(TAKEN) | names(SCHEDULERS) | set(TEXTS)


@pytest.mark.parametrize("field", TEXTS)
def test_a_field_that_says_in_text_what_a_target_needs_in_tokens_is_refused_by_name(field: str) -> None:
    with pytest.raises(Unsupported, match=field):
        choice_params(opened(TEXTS[field]))


def test_the_schedulers_own_fields_are_taken_and_mean_nothing_here() -> None:
    assert choice_params(opened(SCHEDULERS)) == ChoiceParams(seed=1)


def test_an_unknown_acceptance_rule_is_refused() -> None:
    with pytest.raises(Unsupported, match="acceptance_rule is 9"):
        choice_params(opened(pb.SamplingParams(), 9))  # type: ignore[arg-type]  # what a newer scheduler might send


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
        pb.SamplingParams(typical_p=0.0),
        pb.SamplingParams(repetition_penalty=0.0),
        pb.SamplingParams(presence_penalty=float("nan")),
        pb.SamplingParams(frequency_penalty=float("inf")),
        pb.SamplingParams(logit_bias=[pb.LogitBias(token_id=1, bias=float("-inf"))]),
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


@pytest.mark.parametrize(
    "params",
    [
        ChoiceParams(logit_bias=((10, 1.0),)),
        ChoiceParams(allowed_token_ids=(3, 10)),
        ChoiceParams(end_token_ids=(10,)),
        ChoiceParams(bad_words=((1, 10),)),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(params: ChoiceParams) -> None:
    check_tokens(params, 11)
    with pytest.raises(InvalidRequest, match="is 10: the vocabulary has 10 tokens"):
        check_tokens(params, 10)


def test_a_drafter_guesses_where_the_target_would_refuse() -> None:
    request = OpenRequest(sampling=pb.SamplingParams(temperature=-1.0), acceptance_rule=9)  # type: ignore[arg-type]

    assert guess_params(request) == ChoiceParams(temperature=-1.0)
