"""Bad input: each with its own error, and a message that names the field, the value and the limit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from outrider.errors import InvalidRequest, ModelNotFound, OutriderError, PermissionDenied
from outrider.v1 import inference_pb2 as pb
from scheduler.admission import ModelLimits, check_request, encode_prompt, max_tokens_of
from scheduler.tokenizer import Tokenizer

LIMITS = ModelLimits(model="tiny", vocab_size=300, max_context=64, max_kv_tokens=50, max_nodes=8)


def request_of(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"text": "the rain"} | fields)  # type: ignore[arg-type]


REFUSED = [
    (request_of(model="other"), ModelNotFound, ["model", "'other'", "'tiny'"]),
    (request_of(sampling={"temperature": -0.5}), InvalidRequest, ["temperature", "-0.5", ">= 0"]),
    (request_of(sampling={"temperature": math.nan}), InvalidRequest, ["temperature", "nan"]),
    (request_of(sampling={"temperature": math.inf}), InvalidRequest, ["temperature", "inf"]),
    (request_of(sampling={"top_p": 0.0}), InvalidRequest, ["top_p", "0.0", "above 0 and at most 1"]),
    (request_of(sampling={"top_p": 1.5}), InvalidRequest, ["top_p", "1.5"]),
    (request_of(sampling={"min_p": -0.1}), InvalidRequest, ["min_p", "-0.1"]),
    (request_of(sampling={"max_tokens": 0}), InvalidRequest, ["max_tokens", "0", "at least 1"]),
    (request_of(sampling={"stop": [""]}), InvalidRequest, ["stop[0]", "0 characters"]),
    (request_of(sampling={"stop": ["x"] * 17}), InvalidRequest, ["stop", "17", "16"]),
    (request_of(speculation={"drafters": ["nobody"]}), InvalidRequest, ["drafters[0]", "'nobody'", "ngram"]),
    (request_of(speculation={"max_nodes": 9}), InvalidRequest, ["max_nodes", "9", "8"]),
    (request_of(speculation={"mode": 7}), InvalidRequest, ["speculation.mode", "7"]),
    (
        request_of(speculation={"acceptance_rule": "ACCEPTANCE_RULE_TYPICAL"}),
        PermissionDenied,
        ["acceptance_rule", "TYPICAL", "allow_lossy = true"],
    ),
    (request_of(speculation={"acceptance_rule": 9}), InvalidRequest, ["acceptance_rule", "9", "COUPLED"]),
    (request_of(sampling={"typical_p": 0.0}), InvalidRequest, ["typical_p", "0.0"]),
    (request_of(sampling={"repetition_penalty": 0.0}), InvalidRequest, ["repetition_penalty", "0.0", "1000"]),
    (request_of(sampling={"presence_penalty": math.nan}), InvalidRequest, ["presence_penalty", "nan"]),
    (request_of(sampling={"frequency_penalty": -101.0}), InvalidRequest, ["frequency_penalty", "-101", "-100"]),
    (request_of(sampling={"n": 0}), InvalidRequest, ["sampling.n", "0", "from 1 to 16"]),
    (request_of(sampling={"n": 17}), InvalidRequest, ["sampling.n", "17"]),
    (request_of(sampling={"logprobs": 21}), InvalidRequest, ["logprobs", "21", "20"]),
    (request_of(sampling={"stop_token_ids": [1, 300]}), InvalidRequest, ["stop_token_ids[1]", "300"]),
    (request_of(sampling={"allowed_token_ids": [300]}), InvalidRequest, ["allowed_token_ids[0]", "300 tokens"]),
    (request_of(sampling={"bad_words": ["a", ""]}), InvalidRequest, ["bad_words[1]", "0 characters"]),
    (request_of(sampling={"bad_words": ["a"] * 257}), InvalidRequest, ["bad_words", "257", "256"]),
    (request_of(sampling={"logit_bias": [{"token_id": 300}]}), InvalidRequest, ["logit_bias[0]", "300"]),
    (
        request_of(sampling={"logit_bias": [{"token_id": 1, "bias": -math.inf}]}),
        InvalidRequest,
        ["logit_bias[0].bias", "-inf", "-1000"],
    ),
    (
        request_of(sampling={"logit_bias": [{"token_id": 1}, {"token_id": 1}]}),
        InvalidRequest,
        ["logit_bias[1].token_id", "an earlier entry"],
    ),
    (
        request_of(sampling={"min_tokens": 8, "max_tokens": 7}),
        InvalidRequest,
        ["min_tokens is 8", "max_tokens is 7"],
    ),
    (
        request_of(sampling={"min_tokens": 1, "regex": "a"}),
        InvalidRequest,
        ["min_tokens is 1", "sampling.regex"],
    ),
    (
        request_of(sampling={"ignore_eos": True, "json_schema": "{}"}),
        InvalidRequest,
        ["ignore_eos", "sampling.json_schema"],
    ),
    (request_of(resume_from={"ids": [1]}), InvalidRequest, ["sampling.seed is not set", "resume_from"]),
    (request_of(resume_from={"ids": [1, 300]}, sampling={"seed": 1}), InvalidRequest, ["resume_from.ids[1]", "300"]),
    (request_of(resume_from={"ids": [1]}, sampling={"seed": 1, "n": 2}), InvalidRequest, ["sampling.n is 2"]),
    (
        request_of(resume_from={"ids": [1] * 65}, sampling={"seed": 1}),
        InvalidRequest,
        ["resume_from.ids has 65 ids", "context", "at most 64"],
    ),
    (request_of(sampling={"stop_token_ids": [1] * 301}), InvalidRequest, ["stop_token_ids has 301 ids", "at most 300"]),
    (request_of(sampling={"allowed_token_ids": [1] * 301}), InvalidRequest, ["allowed_token_ids has 301 ids", "300"]),
    (request_of(sampling={"logit_bias": [{"token_id": 300}] * 1025}), InvalidRequest, ["logit_bias has 1025", "1024"]),
    (request_of(speculation={"drafters": ["ngram"] * 257}), InvalidRequest, ["drafters has 257 names", "256"]),
    (
        request_of(speculation={"drafters": ["itself"] * 257}, resume_from={}),
        InvalidRequest,
        ["drafters has 257 names", "256"],
    ),
    (request_of(model="m" * 20_000), ModelNotFound, ["model", "..."]),
    (request_of(service_class=99), InvalidRequest, ["service_class is 99", "BATCH (3)"]),
]


@pytest.mark.parametrize(("bad", "error", "words"), REFUSED, ids=lambda value: str(value)[:40].replace("\n", " "))
def test_a_bad_field_is_named_with_its_value_and_limit(
    bad: pb.GenerateRequest, error: type[OutriderError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        check_request(bad, LIMITS, {"ngram"})
    for word in words:
        assert word in caught.value.message


NOT_COUNTED = [
    (request_of(resume_from={"ids": [300] * 65}, sampling={"seed": 1}), "resume_from.ids has 65 ids"),
    (request_of(sampling={"stop_token_ids": [300] * 301}), "stop_token_ids has 301 ids"),
    (request_of(sampling={"allowed_token_ids": [300] * 301}), "allowed_token_ids has 301 ids"),
]


@pytest.mark.parametrize(("bad", "complaint"), NOT_COUNTED, ids=lambda value: str(value)[:40].replace("\n", " "))
def test_too_many_ids_are_refused_for_their_number_before_any_of_them_is_looked_at(
    bad: pb.GenerateRequest, complaint: str
) -> None:
    """The ids themselves are wrong, too: whoever looks at them names the first."""
    with pytest.raises(InvalidRequest, match=complaint):
        check_request(bad, LIMITS, {"ngram"})


def test_a_request_that_is_resumed_may_name_drafters_that_have_not_come_back_yet() -> None:
    request = request_of(speculation={"drafters": ["itself"]}, resume_from={})

    check_request(request, LIMITS, {"ngram"})


def test_a_lossy_rule_is_taken_where_the_server_allows_it() -> None:
    request = request_of(speculation={"acceptance_rule": "ACCEPTANCE_RULE_TYPICAL"})

    check_request(request, replace(LIMITS, allows_lossy=True), {"ngram"})


def test_more_tokens_than_the_default_maximum_can_be_no_minimum() -> None:
    with pytest.raises(InvalidRequest, match=r"min_tokens is 31: sampling.max_tokens is not set and 30 here"):
        max_tokens_of(pb.SamplingParams(min_tokens=31), 20, LIMITS)


BAD_PROMPTS = [
    (pb.GenerateRequest(), ["prompt", "text, chat, token_ids"]),
    (pb.GenerateRequest(text=""), ["text", "''", "at least one token"]),
    (pb.GenerateRequest(token_ids={"ids": []}), ["token_ids", "at least one token"]),
    (pb.GenerateRequest(token_ids={"ids": [1, 300]}), ["token_ids.ids[1]", "300", "300 tokens"]),
    (pb.GenerateRequest(token_ids={"ids": [1] * 64}), ["token_ids", "64 tokens", "63"]),
    (pb.GenerateRequest(token_ids={"ids": [300] * 64}), ["token_ids has 64 tokens", "63"]),  # before they are looked at
    (pb.GenerateRequest(text="x" * 5000), ["text", "5000 characters", "4096"]),
    (pb.GenerateRequest(chat={"messages": [{}] * 65}), ["chat.messages has 65 messages", "64 tokens"]),
    (
        pb.GenerateRequest(chat={"messages": [{"role": "r" * 4097}]}),
        ["chat.messages", "4097 characters", "4096"],
    ),
    (
        pb.GenerateRequest(token_ids={"ids": [5] * 50}),
        ["token_ids", "50 tokens", "KV cache holds 50 tokens of one request", "may have 49"],
    ),
    (pb.GenerateRequest(chat={}), ["chat.messages", "at least one message"]),
    (pb.GenerateRequest(chat={"messages": [{"content": "x"}]}), ["chat.messages[0].role"]),
    (
        pb.GenerateRequest(chat={"messages": [{"role": "user"}], "template_variables_json": "{"}),
        ["template_variables_json", "no JSON"],
    ),
    (
        pb.GenerateRequest(chat={"messages": [{"role": "user"}], "template_variables_json": "[" * 100_000}),
        ["template_variables_json", "no JSON"],
    ),
    (
        pb.GenerateRequest(chat={"messages": [{"role": "r" * 2500, "content": "x" * 2500}]}),
        ["chat.messages", "5000 characters", "4096"],
    ),
]


@pytest.mark.parametrize(("bad", "words"), BAD_PROMPTS, ids=lambda value: str(value)[:40].replace("\n", " "))
def test_a_bad_prompt_is_named(bad: pb.GenerateRequest, words: list[str], tokenizer_files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_prompt(bad, Tokenizer(tokenizer_files), LIMITS)
    for word in words:
        assert word in caught.value.message


def of_tools(template_variables_json: str) -> pb.GenerateRequest:
    chat = {"messages": [{"role": "user"}], "template_variables_json": template_variables_json}
    return pb.GenerateRequest(chat=chat)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (of_tools('{"tools": ["%s"]}' % ("x" * 5000)), ["chat has 5009 characters", "4096"]),
        (of_tools(r'{"tools": ["\ud800"]}'), ["chat.template_variables_json", r"'\ud800'"]),
        (of_tools(r'{"a \udfff": 1}'), ["chat.template_variables_json", r"'\udfff'"]),
    ],
    ids=["long", "half a character", "half a character in a name"],
)
def test_what_a_template_makes_of_its_variables_is_checked(
    bad: pb.GenerateRequest, words: list[str], tokenizer_files: dict[str, bytes]
) -> None:
    template = b"{{ tools | tojson }}{% for message in messages %}{{ message.role }}\n{% endfor %}"
    files = tokenizer_files | {"chat_template.jinja": template}
    with pytest.raises(InvalidRequest) as caught:
        encode_prompt(bad, Tokenizer(files), LIMITS)
    for word in words:
        assert word in caught.value.message


def test_a_whole_character_may_be_escaped_in_halves(tokenizer_files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer(tokenizer_files | {"chat_template.jinja": b"{{ tools[0] }}"})

    assert tokenizer.fast.decode(encode_prompt(of_tools(r'{"tools": ["\ud83d\ude00"]}'), tokenizer, LIMITS)) == "😀"


def test_max_tokens_is_what_is_left_unless_it_is_given() -> None:
    assert max_tokens_of(pb.SamplingParams(max_tokens=7), 10, LIMITS) == 7
    assert max_tokens_of(pb.SamplingParams(), 20, ModelLimits("m", 9, 64, 64, 8)) == 44
    assert max_tokens_of(pb.SamplingParams(), 20, ModelLimits("m", 9, 9000, 9000, 8)) == 256
    assert max_tokens_of(pb.SamplingParams(), 20, LIMITS) == 30


def test_max_tokens_beyond_the_context_or_the_cache_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"max_tokens is 60: .* 10 tokens .* 64, so at most 54"):
        max_tokens_of(pb.SamplingParams(max_tokens=60), 10, LIMITS)
    with pytest.raises(InvalidRequest, match=r"max_tokens is 45: .*KV cache holds 50"):
        max_tokens_of(pb.SamplingParams(max_tokens=45), 10, LIMITS)
    with pytest.raises(InvalidRequest, match=r"KV cache holds 50"):
        max_tokens_of(pb.SamplingParams(), 50, LIMITS)
