"""Types to protos and back: the only place where a caller's values meet the wire's messages. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage

from outrider.errors import InternalError, InvalidRequest, shown
from outrider.types import (
    AcceptanceRule,
    DrafterPool,
    DrafterStats,
    FinishReason,
    Message,
    ModelInfo,
    SamplingParams,
    Scaling,
    ScalingDecision,
    ServerInfo,
    ServiceClass,
    Speculation,
    SpeculationMode,
    SpeculationStats,
    Started,
    TargetPool,
    Token,
    TokenLogprobs,
    TokenSource,
    Usage,
    WorkerInfo,
)
from outrider.v1 import inference_pb2 as pb

Prompt = str | Sequence[int] | Sequence[Message]

_MODES: dict[SpeculationMode, pb.SpeculationMode] = {
    "auto": pb.SPECULATION_MODE_AUTO,
    "off": pb.SPECULATION_MODE_OFF,
}
_RULES: dict[AcceptanceRule, pb.AcceptanceRule] = {
    "coupled": pb.ACCEPTANCE_RULE_COUPLED,
    "rejection": pb.ACCEPTANCE_RULE_REJECTION,
    "typical": pb.ACCEPTANCE_RULE_TYPICAL,
}
_CLASSES: dict[ServiceClass, pb.ServiceClass] = {
    "interactive": pb.SERVICE_CLASS_INTERACTIVE,
    "standard": pb.SERVICE_CLASS_STANDARD,
    "batch": pb.SERVICE_CLASS_BATCH,
}
_REASONS: dict[FinishReason, pb.FinishReason] = {
    "end": pb.FINISH_REASON_END,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}
_SOURCES: dict[TokenSource, pb.TokenSource] = {
    "target": pb.TOKEN_SOURCE_TARGET,
    "draft": pb.TOKEN_SOURCE_DRAFT,
}
_KINDS = {
    FieldDescriptor.CPPTYPE_BOOL: "a bool",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_STRING: "a str",
    FieldDescriptor.CPPTYPE_UINT32: "an int",
    FieldDescriptor.CPPTYPE_UINT64: "an int",
}
_LARGEST = {FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1, FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1}
_CONSTRAINTS = ("json_schema", "regex", "grammar", "choice")

_NameT = TypeVar("_NameT", bound=str)
_NumberT = TypeVar("_NumberT", bound=int)
_ProtoT = TypeVar("_ProtoT", bound=ProtoMessage)


# --- what a caller says ---


def request_to_proto(
    prompt: Prompt,
    sampling: SamplingParams,
    speculation: Speculation,
    *,
    model: str = "",
    request_id: str = "",
    service_class: ServiceClass | None = None,
) -> pb.GenerateRequest:
    """Raises TypeError for a value of the wrong type, InvalidRequest for one that no server could take."""
    values = {"request_id": request_id, "model": model}
    number = _number_of(_CLASSES, service_class, "service_class")
    request = _fill(pb.GenerateRequest, "", values | {"service_class": number})
    request.MergeFrom(_prompt_to_proto(prompt))
    request.sampling.CopyFrom(sampling_to_proto(sampling))
    request.speculation.CopyFrom(speculation_to_proto(speculation))
    return request


def sampling_to_proto(sampling: SamplingParams) -> pb.SamplingParams:
    check_kind("sampling", sampling, SamplingParams)
    check_kind("sampling.logit_bias", sampling.logit_bias, Mapping)
    constraints = [name for name in _CONSTRAINTS if getattr(sampling, name)]
    if len(constraints) > 1:
        raise InvalidRequest(f"sampling has {' and '.join(constraints)}: an answer can follow only one of them")
    values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    values["logit_bias"] = [
        _fill(pb.LogitBias, "sampling.logit_bias.", {"token_id": token_id, "bias": bias})
        for token_id, bias in sampling.logit_bias.items()
    ]
    values["choice"] = _fill(pb.Choices, "sampling.choice.", {"values": sampling.choice}) if sampling.choice else None
    return _fill(pb.SamplingParams, "sampling.", values)


def speculation_to_proto(speculation: Speculation) -> pb.SpeculationParams:
    check_kind("speculation", speculation, Speculation)
    values = {field.name: getattr(speculation, field.name) for field in fields(speculation)}
    values["mode"] = _number_of(_MODES, speculation.mode, "speculation.mode")
    values["acceptance_rule"] = _number_of(_RULES, speculation.acceptance_rule, "speculation.acceptance_rule")
    return _fill(pb.SpeculationParams, "speculation.", values)


def _prompt_to_proto(prompt: Prompt) -> pb.GenerateRequest:
    if isinstance(prompt, str):
        return pb.GenerateRequest(text=prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise TypeError(f"prompt is a {_kind(prompt)}: it must be a str, a list of token ids or a list of messages")
    if not prompt:
        raise InvalidRequest.of("prompt", prompt, "it must hold at least one token id or message")
    if isinstance(prompt[0], Mapping):
        return pb.GenerateRequest(
            chat=pb.ChatPrompt(messages=[_turn_to_proto(i, turn) for i, turn in enumerate(prompt)])
        )
    for i, token_id in enumerate(prompt):
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise TypeError(f"prompt[{i}] is a {_kind(token_id)}: after a first token id, every item must be an int")
    return pb.GenerateRequest(token_ids=_fill(pb.TokenIds, "prompt.", {"ids": prompt}))


def _turn_to_proto(i: int, turn: object) -> pb.ChatMessage:
    if not isinstance(turn, Mapping):
        raise TypeError(f"prompt[{i}] is a {_kind(turn)}: a message is a dict with role and content")
    if set(turn) != {"role", "content"}:
        raise TypeError(f"prompt[{i}] has the keys {sorted(map(str, turn))}: a message has role and content")
    for key, value in turn.items():
        if not isinstance(value, str):
            raise TypeError(f"prompt[{i}][{key!r}] is a {_kind(value)}: it must be a str")
    return pb.ChatMessage(role=turn["role"], content=turn["content"])


def _fill(cls: type[_ProtoT], prefix: str, values: Mapping[str, object]) -> _ProtoT:
    """A message with each value in the field of its name; None leaves a field unset. Errors name the field."""
    message = cls()
    for name, value in values.items():
        if isinstance(value, str) and cls.DESCRIPTOR.fields_by_name[name].is_repeated:
            # A str is also a sequence of strs: stop="END" would stop at every E.
            raise TypeError(f"{prefix}{name} is {value!r}: it must be a list, such as [{value!r}]")
        try:
            message.MergeFrom(cls(**{name: value}))
        except TypeError as err:
            raise TypeError(f"{prefix}{name} is {shown(value)}: it must be {_kind_of(cls, name)}") from err
        except ValueError as err:  # protobuf's answer to a number that the field can't hold
            raise InvalidRequest.of(prefix + name, value, _range_of(cls, name) or f"it does not fit ({err})") from err
    return message


def check_kind(field: str, value: object, kind: type) -> None:
    """Raises TypeError where the value is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{field} is {shown(value)}: it must be a {kind.__name__}")


def _kind_of(cls: type[ProtoMessage], name: str) -> str:
    """What a field holds, in Python's words."""
    field = cls.DESCRIPTOR.fields_by_name[name]
    kind = _KINDS[field.cpp_type]
    text_of_a_dict = "; json.dumps makes one of a dict" if name == "json_schema" else ""
    return f"a list, each item {kind}" if field.is_repeated else kind + text_of_a_dict


def _range_of(cls: type[ProtoMessage], name: str) -> str:
    """Of a number; nothing of another field."""
    field = cls.DESCRIPTOR.fields_by_name[name]
    largest = _LARGEST.get(field.cpp_type)
    each = "each" if field.is_repeated else "it"
    return "" if largest is None else f"{each} must be an int from 0 to {largest}"


def _number_of(table: Mapping[_NameT, _NumberT], name: _NameT | None, field: str) -> _NumberT | None:
    if name is None:
        return None
    if name not in table:
        raise InvalidRequest.of(field, name, f"it must be one of {', '.join(table)}")
    return table[name]


def _kind(value: object) -> str:
    return type(value).__name__


# --- what it gets back ---


def started_from_proto(started: pb.Started) -> Started:
    return Started(
        request_id=started.request_id,
        model=started.model,
        seed=started.seed,
        num_prompt_tokens=started.num_prompt_tokens,
        max_tokens=started.max_tokens,
        prompt_hash=started.prompt_hash,
    )


def tokens_from_proto(tokens: pb.Tokens) -> tuple[Token, ...]:
    """Raises InternalError unless the parallel lists have one entry a token."""
    num_tokens = len(tokens.ids)
    logprobs: list[TokenLogprobs] | list[None] = [_logprobs_from_proto(entry) for entry in tokens.logprobs]
    if not tokens.logprobs:
        logprobs = [None] * num_tokens
    if not num_tokens == len(tokens.texts) == len(tokens.sources) == len(logprobs):
        raise InternalError(
            f"the server sent {num_tokens} token ids with {len(tokens.texts)} texts, "
            f"{len(tokens.sources)} sources and {len(logprobs)} log-probabilities"
        )
    return tuple(
        Token(token_id, text, _name_of(_SOURCES, source, "token source"), entry)
        for token_id, text, source, entry in zip(tokens.ids, tokens.texts, tokens.sources, logprobs, strict=True)
    )


def _logprobs_from_proto(entry: pb.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(entry.logprob, tuple(entry.top_ids), tuple(entry.top_logprobs))


def finish_reason_from_proto(reason: pb.FinishReason) -> FinishReason:
    return _name_of(_REASONS, reason, "finish reason")


def usage_from_proto(usage: pb.Usage) -> Usage:
    return Usage(
        num_prompt_tokens=usage.num_prompt_tokens,
        num_cached_prompt_tokens=usage.num_cached_prompt_tokens,
        num_completion_tokens=usage.num_completion_tokens,
        queue_s=usage.queue_s,
        time_to_first_token_s=usage.time_to_first_token_s,
        duration_s=usage.duration_s,
    )


def speculation_stats_from_proto(stats: pb.SpeculationStats) -> SpeculationStats:
    return SpeculationStats(
        mode=_name_of(_MODES, stats.mode, "speculation mode"),
        acceptance_rule=_name_of(_RULES, stats.acceptance_rule, "acceptance rule"),
        is_lossy=stats.is_lossy,
        num_passes=stats.num_passes,
        num_drafted_nodes=stats.num_drafted_nodes,
        num_accepted_tokens=stats.num_accepted_tokens,
        drafters=tuple(
            DrafterStats(drafter.name, drafter.num_drafted_nodes, drafter.num_accepted_tokens)
            for drafter in stats.drafters
        ),
        num_hits=stats.num_hits,
        mean_hit_depth=stats.mean_hit_depth,
    )


def model_info_from_proto(info: pb.GetModelInfoResponse) -> ModelInfo:
    return ModelInfo(
        model=info.model,
        vocab_size=info.vocab_size,
        max_context=info.max_context,
        end_token_ids=tuple(info.end_token_ids),
        dtype=info.dtype,
        has_chat_template=info.has_chat_template,
    )


def server_info_from_proto(info: pb.GetServerInfoResponse) -> ServerInfo:
    return ServerInfo(
        version=info.version,
        state=_state_name(pb.ServerState, "SERVER_STATE_", info.state),
        max_running_requests=info.limits.max_running_requests,
        max_queued_requests=info.limits.max_queued_requests,
        max_message_bytes=info.limits.max_message_bytes,
        max_nodes_per_pass=info.limits.max_nodes_per_pass,
        num_running_requests=info.load.num_running_requests,
        num_queued_requests=info.load.num_queued_requests,
        num_free_kv_blocks=info.load.num_free_kv_blocks,
        num_kv_blocks=info.load.num_kv_blocks,
        num_passes=info.load.num_passes,
        busy_s=info.load.busy_s,
        bubble_s=info.load.bubble_s,
        targets=tuple(map(_worker_from_proto, info.targets)),
        drafters=tuple(map(_worker_from_proto, info.drafters)),
        scaling=_scaling_from_proto(info.scaling),
    )


def _scaling_from_proto(scaling: pb.Scaling) -> Scaling:
    return Scaling(
        is_dry_run=scaling.is_dry_run,
        pools=tuple(map(_pool_from_proto, scaling.pools)),
        decisions=tuple(
            ScalingDecision(each.pool, each.time_s, each.num_before, each.num_after, each.reason)
            for each in scaling.decisions
        ),
        target=_target_pool_from_proto(scaling.target) if scaling.HasField("target") else None,
    )


def _target_pool_from_proto(pool: pb.TargetPool) -> TargetPool:
    return TargetPool(
        num_wanted=pool.num_wanted,
        num_present=pool.num_present,
        num_starting=pool.num_starting,
        num_draining=pool.num_draining,
        min_groups=pool.min_groups,
        max_groups=pool.max_groups,
        num_waiting=pool.num_waiting,
        demand=pool.demand,
        reason=pool.reason,
    )


def _pool_from_proto(pool: pb.DrafterPool) -> DrafterPool:
    return DrafterPool(
        name=pool.name,
        num_wanted=pool.num_wanted,
        num_present=pool.num_present,
        num_starting=pool.num_starting,
        num_draining=pool.num_draining,
        min_workers=pool.min_workers,
        max_workers=pool.max_workers,
        goodput=pool.goodput if pool.HasField("goodput") else None,
        worth_of_one_more=pool.worth_of_one_more if pool.HasField("worth_of_one_more") else None,
        worth_of_the_last=pool.worth_of_the_last if pool.HasField("worth_of_the_last") else None,
        reason=pool.reason,
    )


def _worker_from_proto(worker: pb.WorkerInfo) -> WorkerInfo:
    return WorkerInfo(
        name=worker.name,
        kind=worker.kind,
        model=worker.model,
        state=_state_name(pb.WorkerState, "WORKER_STATE_", worker.state),
        detail=worker.detail,
        num_ranks=worker.num_ranks,
        num_verdicts=worker.num_verdicts,
        acceptance=worker.acceptance,
        address=worker.address,
        num_running_requests=worker.num_running_requests,
        num_free_kv_blocks=worker.num_free_kv_blocks,
        num_kv_blocks=worker.num_kv_blocks,
    )


def _name_of(table: Mapping[_NameT, _NumberT], number: _NumberT, what: str) -> _NameT:
    for name, known in table.items():
        if known == number:
            return name
    raise InternalError(f"the server sent {what} {int(number)}, which this client does not know")


def _state_name(enum: type[pb.ServerState] | type[pb.WorkerState], prefix: str, number: int) -> str:
    """In lower case. A state that only a newer server knows is shown as its number: it is there to be read."""
    return enum.Name(number).removeprefix(prefix).lower() if number in enum.values() else f"state {number}"
