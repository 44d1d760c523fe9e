"""What is refused before any work is done: every field of a request against what this server can do.

A message names the field, the value and the limit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from outrider.errors import InvalidRequest, ModelNotFound, PermissionDenied, shown
from outrider.types import Message
from outrider.v1 import inference_pb2 as pb
from scheduler.resume import check_resume
from scheduler.sampling import check_sampling, check_token_ids
from scheduler.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 256
MAX_DRAFTER_NAMES = 256
MAX_PROMPT_CHARS_PER_TOKEN = 64  # no token of a real vocabulary averages more; bounds the tokeniser's work


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model and this server allow."""

    model: str
    vocab_size: int
    max_context: int  # prompt and completion together, tokens
    max_kv_tokens: int  # what the target's KV cache holds for one request
    max_nodes: int  # draft nodes of one request in one pass
    allows_lossy: bool = False  # acceptance rules that change the law


def check_request(request: pb.GenerateRequest, limits: ModelLimits, drafters: Collection[str]) -> None:
    """Everything that can be said without the prompt's tokens."""
    if request.model and request.model != limits.model:
        raise ModelNotFound(f"model is {shown(request.model)}: this server serves {limits.model!r}")
    if request.service_class not in pb.ServiceClass.values():
        known = "it must be INTERACTIVE (1), STANDARD (2) or BATCH (3)"
        raise InvalidRequest.of("service_class", request.service_class, known)
    check_sampling(request.sampling, limits.vocab_size)
    num_names = len(request.speculation.drafters)
    if num_names > MAX_DRAFTER_NAMES:
        text = f"speculation.drafters has {num_names} names: at most {MAX_DRAFTER_NAMES} are allowed"
        raise InvalidRequest(text)
    # One that is resumed was admitted before; its drafters may not have found this life of the scheduler yet.
    wanted = () if request.HasField("resume_from") else request.speculation.drafters
    _check_drafters(wanted, drafters)
    _check_speculation(request.speculation, limits)
    check_resume(request, limits.vocab_size, limits.max_context)


def encode_prompt(request: pb.GenerateRequest, tokenizer: Tokenizer, limits: ModelLimits) -> list[int]:
    """The prompt's tokens, checked against the vocabulary and the context. CPU work: call it in a thread."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt is not set: one of text, chat, token_ids must be")
    if kind == "token_ids":
        _check_num_tokens(kind, len(request.token_ids.ids), limits)  # before anything looks at them
        check_token_ids("token_ids.ids", request.token_ids.ids, limits.vocab_size)
        return list(request.token_ids.ids)
    if kind == "text":
        tokens = _encode_text(request.text, tokenizer, limits)
    else:
        tokens = _encode_chat(request.chat, tokenizer, limits)
    _check_num_tokens(kind, len(tokens), limits)
    return tokens


def max_tokens_of(sampling: pb.SamplingParams, num_prompt_tokens: int, limits: ModelLimits) -> int:
    """max_tokens as given, or its default; within the context and the target's KV cache."""
    room = limits.max_context - num_prompt_tokens
    room_in_cache = limits.max_kv_tokens - num_prompt_tokens
    if not sampling.HasField("max_tokens"):
        wanted = max(min(DEFAULT_MAX_TOKENS, room, room_in_cache), 1)
        if sampling.min_tokens > wanted:
            limit = f"sampling.max_tokens is not set and {wanted} here, and it can't be above that"
            raise InvalidRequest.of("sampling.min_tokens", sampling.min_tokens, limit)
    elif sampling.max_tokens > room:
        raise InvalidRequest.of(
            "sampling.max_tokens",
            sampling.max_tokens,
            f"the prompt has {num_prompt_tokens} tokens and the model's context is {limits.max_context}, "
            f"so at most {room} are left",
        )
    else:
        wanted = sampling.max_tokens
    if wanted > room_in_cache:
        raise InvalidRequest(
            f"the prompt has {num_prompt_tokens} tokens and sampling.max_tokens is {wanted}: "
            f"the target's KV cache holds {limits.max_kv_tokens} tokens of one request"
        )
    return wanted


def _check_num_tokens(kind: str, num_tokens: int, limits: ModelLimits) -> None:
    if not num_tokens:
        raise InvalidRequest.of(kind, "" if kind != "token_ids" else [], "a prompt needs at least one token")
    if num_tokens >= limits.max_context:
        raise InvalidRequest(
            f"{kind} has {num_tokens} tokens: the model's context is {limits.max_context} tokens, "
            f"so a prompt may have {limits.max_context - 1}"
        )
    if num_tokens >= limits.max_kv_tokens:
        raise InvalidRequest(
            f"{kind} has {num_tokens} tokens: the target's KV cache holds {limits.max_kv_tokens} tokens of one "
            f"request, so a prompt may have {limits.max_kv_tokens - 1}"
        )


def _encode_text(text: str, tokenizer: Tokenizer, limits: ModelLimits) -> list[int]:
    _check_chars("text", len(text), limits)
    return tokenizer.encode(text)


def _encode_chat(chat: pb.ChatPrompt, tokenizer: Tokenizer, limits: ModelLimits) -> list[int]:
    num_messages = len(chat.messages)
    if not num_messages:
        raise InvalidRequest("chat.messages is []: a chat needs at least one message")
    if num_messages > limits.max_context:
        text = f"the model's context is {limits.max_context} tokens, and none takes less than one"
        raise InvalidRequest(f"chat.messages has {num_messages} messages: {text}")
    for i, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidRequest.of(f"chat.messages[{i}].role", "", "it must be a role, such as user")
    num_chars = sum(len(message.role) + len(message.content) for message in chat.messages)
    _check_chars("chat.messages", num_chars, limits)
    messages: list[Message] = [{"role": m.role, "content": m.content} for m in chat.messages]
    text = tokenizer.render_chat(messages, _template_variables(chat))
    _check_chars("chat", len(text), limits)  # with all that the template prints, of its variables too
    return tokenizer.encode_word(text)


def _template_variables(chat: pb.ChatPrompt) -> dict[str, object]:
    try:
        variables = json.loads(chat.template_variables_json or "{}")
        json.dumps(variables, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:  # JSON can escape half a character
        half = err.object[err.start]
        raise InvalidRequest(f"chat.template_variables_json holds {half!r}: half a character is no text") from err
    except (ValueError, RecursionError) as err:
        raise InvalidRequest(f"chat.template_variables_json is no JSON: {err}") from err
    if not isinstance(variables, dict):
        raise InvalidRequest.of("chat.template_variables_json", variables, "it must be a JSON object")
    return variables


def _check_chars(field: str, num_chars: int, limits: ModelLimits) -> None:
    max_chars = limits.max_context * MAX_PROMPT_CHARS_PER_TOKEN
    if num_chars > max_chars:
        raise InvalidRequest(f"{field} has {num_chars} characters: no prompt over {max_chars} can fit the context")


def _check_drafters(wanted: Sequence[str], drafters: Collection[str]) -> None:
    for i, name in enumerate(wanted):
        if name not in drafters:
            known = ", ".join(sorted(drafters)) or "none"
            raise InvalidRequest.of(f"speculation.drafters[{i}]", name, f"the drafters here are: {known}")


def _check_speculation(speculation: pb.SpeculationParams, limits: ModelLimits) -> None:
    if speculation.mode not in (pb.SPECULATION_MODE_UNSPECIFIED, pb.SPECULATION_MODE_AUTO, pb.SPECULATION_MODE_OFF):
        raise InvalidRequest.of("speculation.mode", speculation.mode, "it must be AUTO (1) or OFF (2)")
    if speculation.HasField("max_nodes") and not 1 <= speculation.max_nodes <= limits.max_nodes:
        raise InvalidRequest.of(
            "speculation.max_nodes", speculation.max_nodes, f"it must be from 1 to {limits.max_nodes}"
        )
    if speculation.acceptance_rule == pb.ACCEPTANCE_RULE_TYPICAL and not limits.allows_lossy:
        raise PermissionDenied(
            "speculation.acceptance_rule is TYPICAL (3), which changes the law of the answers: this server does not "
            "allow it; it does when it is started with allow_lossy = true in [scheduler]"
        )
    if speculation.acceptance_rule not in pb.AcceptanceRule.values():
        known = "it must be COUPLED (1), REJECTION (2) or TYPICAL (3)"
        raise InvalidRequest.of("speculation.acceptance_rule", speculation.acceptance_rule, known)
