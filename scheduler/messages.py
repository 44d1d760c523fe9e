"""The core's events and commands as messages of target.proto, and back. Those of drafter.proto: draft_stream.py."""

from __future__ import annotations

import math

from outrider.draft_law import pack_laws
from outrider.errors import InvalidRequest
from outrider.packing import pack_i32, unpack_f32, unpack_i32
from outrider.types import TokenLogprobs
from outrider.v1 import target_pb2
from outrider.v1.worker_pb2 import RequestRef
from scheduler.events import (
    PassDone,
    PlannedRow,
    ReleaseTarget,
    RowOutcome,
    RowStatus,
    SendPass,
)

_STATUS: dict[int, RowStatus] = {
    target_pb2.ROW_STATUS_OK: "ok",
    target_pb2.ROW_STATUS_PREFIX_MISSING: "prefix_missing",
    target_pb2.ROW_STATUS_NO_CAPACITY: "no_capacity",
    target_pb2.ROW_STATUS_INVALID: "invalid",
    target_pb2.ROW_STATUS_FAILED: "failed",
    target_pb2.ROW_STATUS_NO_TOKEN: "no_token",
}


def pass_message(command: SendPass) -> target_pb2.TargetCommand:
    message = target_pb2.TargetCommand()
    asked = getattr(message, "pass")  # a keyword of Python
    asked.pass_id = command.pass_id
    for row in command.rows:
        _fill(asked.rows.add(), row)
    return message


def target_release_message(command: ReleaseTarget) -> target_pb2.TargetCommand:
    return target_pb2.TargetCommand(release=RequestRef(request=command.request, epoch=command.epoch))


def pass_done_of(target: str, result: target_pb2.PassResult) -> PassDone:
    return PassDone(
        result.pass_id,
        [_outcome(row) for row in result.rows],
        result.num_free_kv_blocks,
        pass_s=_seconds(result.pass_ms),
        idle_s=_seconds(result.idle_ms),
        num_tokens=result.num_tokens,
        target=target,
    )


def _fill(message: target_pb2.Row, row: PlannedRow) -> None:
    """In place: a message that is put into another one is copied."""
    message.ref.request, message.ref.epoch = row.request, row.epoch
    message.committed_len = row.committed_len
    if row.opening is not None:
        message.open.CopyFrom(row.opening)
    message.tokens.start, message.tokens.ids = row.tokens_start, pack_i32(row.tokens)
    if row.node_tokens:
        message.node_tokens, message.node_parents = pack_i32(row.node_tokens), pack_i32(row.node_parents)
    laws = pack_laws(row.laws)
    if laws is not None:
        message.laws.CopyFrom(laws)
    message.is_ahead = row.is_ahead


def _seconds(milliseconds: float) -> float:
    """0, which stands for unknown, of what is no time."""
    return milliseconds / 1000 if 0 < milliseconds < math.inf else 0.0


def _outcome(row: target_pb2.RowResult) -> RowOutcome:
    try:
        tokens, status = unpack_i32(row.tokens), _STATUS.get(row.status, "failed")
        logprobs = [_logprobs(entry) for entry in row.logprobs]
    except InvalidRequest:
        tokens, status, logprobs = [], "failed", []
    return RowOutcome(
        request=row.ref.request,
        epoch=row.ref.epoch,
        committed_len=row.committed_len,
        status=status,
        tokens=tokens,
        known_len=row.known_len,
        num_cached_tokens=row.num_cached_tokens,
        detail=row.detail,
        logprobs=logprobs,
    )


def _logprobs(entry: target_pb2.TokenLogprobsPacked) -> TokenLogprobs:
    """Raises InvalidRequest where the lists don't fit together. The token itself comes first in both."""
    ids, logprobs = unpack_i32(entry.ids), unpack_f32(entry.logprobs)
    if not ids or len(ids) != len(logprobs):
        raise InvalidRequest.of("logprobs", len(logprobs), f"there are {len(ids)} ids")
    return TokenLogprobs(logprobs[0], tuple(ids[1:]), tuple(logprobs[1:]))
