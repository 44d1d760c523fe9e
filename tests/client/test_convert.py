"""What a caller says reaches the wire, all of it and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from outrider import SamplingParams, Speculation, Token
from outrider.convert import (
    finish_reason_from_proto,
    model_info_from_proto,
    request_to_proto,
    sampling_to_proto,
    server_info_from_proto,
    speculation_stats_from_proto,
    speculation_to_proto,
    tokens_from_proto,
)
from outrider.errors import InternalError, InvalidRequest
from outrider.types import ServiceClass, TargetPool, TokenLogprobs
from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import MODEL_INFO, SERVER_INFO

CONSTRAINTS = {"json_schema": "{}", "regex": "a+", "grammar": "root ::= 'a'", "choice": ["yes", "no"]}

EVERY_FIELD = SamplingParams(
    max_tokens=0,
    temperature=0.0,
    seed=2**64 - 1,
    top_k=0,
    top_p=0.9,
    min_p=0.0,
    typical_p=0.95,
    repetition_penalty=1.1,
    presence_penalty=-0.5,
    frequency_penalty=0.0,
    logit_bias={7: -100.0, 9: 1.5},
    stop=["END", "\n\n"],
    stop_token_ids=[2, 0],
    ignore_eos=False,
    include_stop=True,
    min_tokens=0,
    bad_words=["no"],
    allowed_token_ids=[1, 2, 3],
    n=1,
    logprobs=0,
    skip_special_tokens=False,
)


def fields_set(message: Any) -> set[str]:
    return {descriptor.name for descriptor, _ in message.ListFields()}


def test_each_type_has_exactly_the_fields_of_its_message() -> None:
    assert {f.name for f in fields(SamplingParams)} == set(pb.SamplingParams.DESCRIPTOR.fields_by_name)
    assert {f.name for f in fields(Speculation)} == set(pb.SpeculationParams.DESCRIPTOR.fields_by_name)


def test_what_is_not_said_is_not_set() -> None:
    request = request_to_proto("a", SamplingParams(), Speculation())
    assert fields_set(request.sampling) == set()
    assert fields_set(request.speculation) == set()
    assert not request.HasField("service_class")
    assert not request.HasField("resume_from")


@pytest.mark.parametrize("field", fields(SamplingParams), ids=lambda field: field.name)
def test_each_sampling_field_alone_sets_itself_alone(field: Any) -> None:
    value = CONSTRAINTS.get(field.name, getattr(EVERY_FIELD, field.name))
    message = sampling_to_proto(SamplingParams(**{field.name: value}))
    assert fields_set(message) == {field.name}
    came = getattr(message, field.name)
    match field.name:
        case "logit_bias":
            assert {entry.token_id: entry.bias for entry in came} == value
        case "choice":
            assert list(came.values) == value
        case _:
            assert (list(came) if isinstance(value, list) else came) == value


def test_zero_and_false_are_said_not_unset() -> None:
    message = sampling_to_proto(SamplingParams(temperature=0.0, ignore_eos=False, min_tokens=0))
    assert message.HasField("temperature")
    assert message.HasField("ignore_eos")
    assert message.HasField("min_tokens")


def test_all_sampling_fields_together_reach_the_message() -> None:
    assert fields_set(sampling_to_proto(EVERY_FIELD)) == {f.name for f in fields(SamplingParams)} - set(CONSTRAINTS)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("interactive", pb.SERVICE_CLASS_INTERACTIVE),
        ("standard", pb.SERVICE_CLASS_STANDARD),
        ("batch", pb.SERVICE_CLASS_BATCH),
    ],
)
def test_a_service_class_reaches_the_message(name: ServiceClass, number: int) -> None:
    request = request_to_proto("a", SamplingParams(), Speculation(), service_class=name)
    assert request.service_class == number


def test_a_service_class_that_there_is_none_of_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="service_class is 'urgent': it must be one of interactive, "):
        request_to_proto("a", SamplingParams(), Speculation(), service_class="urgent")  # type: ignore[arg-type]


def test_two_constraints_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="regex and choice"):
        sampling_to_proto(SamplingParams(regex="a", choice=["b"]))


UINT32 = "must be an int from 0 to 4294967295"
UINT64 = "must be an int from 0 to 18446744073709551615"


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("max_tokens", -1, f"it {UINT32}"),
        ("seed", 2**64, f"it {UINT64}"),
        ("seed", -1, f"it {UINT64}"),
        ("top_k", 2**32, f"it {UINT32}"),
        ("logprobs", -1, f"it {UINT32}"),
        ("stop_token_ids", [5, -5], f"each {UINT32}"),
    ],
)
def test_a_number_out_of_range_names_field_value_and_range(field: str, value: object, limit: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampling_to_proto(SamplingParams(**{field: value}))  # type: ignore[arg-type]
    assert str(caught.value) == f"sampling.{field} is {value!r}: {limit}"


def test_draft_nodes_out_of_range_name_the_range() -> None:
    with pytest.raises(InvalidRequest, match=rf"^speculation\.max_nodes is -1: it {UINT32}$"):
        speculation_to_proto(Speculation(max_nodes=-1))


def test_a_bias_out_of_range_names_its_field() -> None:
    with pytest.raises(InvalidRequest, match=r"sampling\.logit_bias\.token_id is -1"):
        sampling_to_proto(SamplingParams(logit_bias={-1: 1.0}))


@pytest.mark.parametrize("field", ["stop", "bad_words", "choice"])
def test_one_string_where_a_list_belongs_is_refused_not_split_into_letters(field: str) -> None:
    with pytest.raises(TypeError, match="it must be a list, such as"):
        sampling_to_proto(SamplingParams(**{field: "END"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("temperature", "hot", "a number"),
        ("max_tokens", "5", "an int"),
        ("seed", [1], "an int"),
        ("ignore_eos", "yes", "a bool"),
        ("regex", 5, "a str"),
        ("json_schema", {"type": "object"}, "a str; json.dumps makes one of a dict"),
        ("stop", [1], "a list, each item a str"),
        ("stop_token_ids", 5, "a list, each item an int"),
        ("logit_bias", [1], "a Mapping"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_field_and_what_it_must_be(field: str, value: object, kind: str) -> None:
    with pytest.raises(TypeError) as caught:
        sampling_to_proto(SamplingParams(**{field: value}))  # type: ignore[arg-type]
    assert str(caught.value) == f"sampling.{field} is {value!r}: it must be {kind}"


def test_what_is_no_dataclass_of_ours_is_refused_by_its_field() -> None:
    with pytest.raises(TypeError, match=r"^sampling is \{'max_tokens': 1\}: it must be a SamplingParams$"):
        request_to_proto("a", {"max_tokens": 1}, Speculation())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^speculation is 'off': it must be a Speculation$"):
        request_to_proto("a", SamplingParams(), "off")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("speculation", "expected"),
    [
        (Speculation(mode="auto"), pb.SpeculationParams(mode=pb.SPECULATION_MODE_AUTO)),
        (Speculation(mode="off"), pb.SpeculationParams(mode=pb.SPECULATION_MODE_OFF)),
        (Speculation(drafters=["ngram", "small"]), pb.SpeculationParams(drafters=["ngram", "small"])),
        (Speculation(max_nodes=0), pb.SpeculationParams(max_nodes=0)),
        (
            Speculation(acceptance_rule="rejection"),
            pb.SpeculationParams(acceptance_rule=pb.ACCEPTANCE_RULE_REJECTION),
        ),
        (Speculation(acceptance_rule="coupled"), pb.SpeculationParams(acceptance_rule=pb.ACCEPTANCE_RULE_COUPLED)),
        (Speculation(acceptance_rule="typical"), pb.SpeculationParams(acceptance_rule=pb.ACCEPTANCE_RULE_TYPICAL)),
    ],
)
def test_each_speculation_field_alone_sets_itself_alone(
    speculation: Speculation, expected: pb.SpeculationParams
) -> None:
    assert speculation_to_proto(speculation) == expected


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"speculation\.mode is 'fast': it must be one of auto, off"):
        speculation_to_proto(Speculation(mode="fast"))  # type: ignore[arg-type]


def request_of(prompt: Any) -> pb.GenerateRequest:
    return request_to_proto(prompt, SamplingParams(), Speculation(), model="m", request_id="r")


def test_a_str_is_text() -> None:
    request = request_of("Once")
    assert request.WhichOneof("prompt") == "text"
    assert (request.text, request.model, request.request_id) == ("Once", "m", "r")


def test_an_empty_text_is_still_a_text() -> None:
    assert request_of("").WhichOneof("prompt") == "text"


@pytest.mark.parametrize("prompt", [[5, 0, 4_294_967_295], (5,), range(3)])
def test_ints_are_token_ids(prompt: Any) -> None:
    assert list(request_of(prompt).token_ids.ids) == list(prompt)


def test_dicts_with_role_and_content_are_a_chat() -> None:
    request = request_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}])
    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("system", "Be brief."), ("user", "")]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "prompt is a int"),
        (None, "prompt is a NoneType"),
        (b"bytes", "prompt is a bytes"),
        ({"role": "user", "content": "a"}, "prompt is a dict"),
        ([1, "two"], r"prompt\[1\] is a str"),
        ([True], r"prompt\[0\] is a bool"),
        ([1.0], r"prompt\[0\] is a float"),
        (["a list", "of texts"], r"prompt\[0\] is a str"),
        ([{"role": "user", "content": "a"}, 7], r"prompt\[1\] is a int"),
        ([{"role": "user"}], r"prompt\[0\] has the keys \['role'\]"),
        ([{"role": "user", "content": "a", "name": "b"}], r"keys \['content', 'name', 'role'\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"prompt\[0\]\['content'\] is a list"),
    ],
)
def test_a_prompt_of_the_wrong_type_is_refused_by_place_and_type(prompt: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        request_of(prompt)


@pytest.mark.parametrize(("prompt", "message"), [([], r"prompt is \[\]"), ([-1], r"prompt\.ids"), ([2**32], "ids")])
def test_a_prompt_that_no_server_could_take_is_refused(prompt: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        request_of(prompt)


def test_tokens_keep_order_sources_and_log_probabilities() -> None:
    came = tokens_from_proto(
        pb.Tokens(
            ids=[5, 6],
            texts=["a", ""],
            sources=[pb.TOKEN_SOURCE_DRAFT, pb.TOKEN_SOURCE_TARGET],
            logprobs=[
                pb.TokenLogprobs(logprob=-0.5, top_ids=[5, 9], top_logprobs=[-0.5, -1.5]),
                pb.TokenLogprobs(logprob=-2.0),
            ],
        )
    )
    assert came == (
        Token(5, "a", "draft", TokenLogprobs(-0.5, (5, 9), (-0.5, -1.5))),
        Token(6, "", "target", TokenLogprobs(-2.0, (), ())),
    )


@pytest.mark.parametrize(
    "message",
    [
        pb.Tokens(ids=[1, 2], texts=["a"], sources=[1, 1]),
        pb.Tokens(ids=[1], texts=["a"], sources=[]),
        pb.Tokens(ids=[], texts=["a"], sources=[1]),
        pb.Tokens(ids=[1, 2], texts=["a", "b"], sources=[1, 1], logprobs=[pb.TokenLogprobs()]),
    ],
)
def test_lists_of_different_lengths_are_the_servers_fault(message: pb.Tokens) -> None:
    with pytest.raises(InternalError, match="the server sent"):
        tokens_from_proto(message)


def test_an_enum_value_that_means_nothing_here_is_never_guessed() -> None:
    with pytest.raises(InternalError, match="finish reason 9"):
        finish_reason_from_proto(9)  # type: ignore[arg-type]
    with pytest.raises(InternalError, match="token source 0"):
        tokens_from_proto(pb.Tokens(ids=[1], texts=["a"], sources=[0]))
    with pytest.raises(InternalError, match="speculation mode 0"):
        speculation_stats_from_proto(pb.SpeculationStats())


def test_information_keeps_every_field() -> None:
    model = model_info_from_proto(MODEL_INFO)
    assert model == replace(model, model="tiny", vocab_size=49_152, max_context=2_048, end_token_ids=(0, 2))
    assert (model.dtype, model.has_chat_template) == ("float32", True)
    server = server_info_from_proto(SERVER_INFO)
    assert (server.version, server.state) == ("0.1.0", "degraded")
    assert (server.max_running_requests, server.max_queued_requests) == (64, 256)
    assert (server.max_message_bytes, server.max_nodes_per_pass) == (16_777_216, 8)
    assert (server.num_running_requests, server.num_queued_requests) == (3, 1)
    assert (server.num_free_kv_blocks, server.num_kv_blocks) == (90, 100)
    assert (server.num_passes, server.busy_s, server.bubble_s) == (9, 1.5, 0.5)
    assert [(worker.name, worker.state, worker.num_ranks) for worker in server.targets] == [("target-0", "ready", 4)]
    [target] = server.targets
    assert (target.address, target.num_running_requests) == ("10.0.0.1:7", 3)
    assert (target.num_free_kv_blocks, target.num_kv_blocks) == (90, 100)
    assert [(worker.kind, worker.state, worker.detail) for worker in server.drafters] == [
        ("ngram", "late", ""),
        ("model", "refused", "another vocabulary"),
    ]


def test_what_is_said_of_target_groups_is_kept_and_nothing_is_where_nothing_scales_them() -> None:
    assert server_info_from_proto(SERVER_INFO).scaling.target is None
    numbers = {"num_wanted": 4, "num_present": 2, "num_starting": 1, "num_draining": 3, "min_groups": 1}
    numbers |= {"max_groups": 6, "num_waiting": 7}
    pool = pb.TargetPool(**numbers, demand=3.5, reason="why")
    target = server_info_from_proto(pb.GetServerInfoResponse(scaling=pb.Scaling(target=pool))).scaling.target
    assert target == TargetPool(**numbers, demand=3.5, reason="why")


def test_a_state_of_a_newer_server_is_shown_as_its_number() -> None:
    assert server_info_from_proto(pb.GetServerInfoResponse(state=99)).state == "state 99"  # type: ignore[arg-type]
