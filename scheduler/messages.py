"""The core's events and commands as messages of the worker protos, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from outrider.draft_law import DraftLaw, pack_laws, unpack_laws
from outrider.errors import InvalidRequest
from outrider.packing import pack_i32, unpack_f32, unpack_i32
from outrider.scores import unpack_scores
from outrider.types import TokenLogprobs
from outrider.v1 import drafter_pb2, target_pb2
from outrider.v1.worker_pb2 import RequestRef, TokenSpan
from scheduler.events import (
    Growth,
    PassDone,
    PlannedRow,
    ReleaseDrafter,
    ReleaseTarget,
    RowOutcome,
    RowStatus,
    SendOrder,
    SendPass,
)

MAX_GROWTH_NODES = 1024  # of one growth: more is no draft, and is not even looked at

_STATUS: dict[int, RowStatus] = {
    target_pb2.ROW_STATUS_OK: "ok",
    target_pb2.ROW_STATUS_PREFIX_MISSING: "prefix_missing",
    target_pb2.ROW_STATUS_NO_CAPACITY: "no_capacity",
    target_pb2.ROW_STATUS_INVALID: "invalid",
    target_pb2.ROW_STATUS_FAILED: "failed",
    target_pb2.ROW_STATUS_NO_TOKEN: "no_token",
}


def pass_message(command: SendPass) -> target_pb2.TargetCommand:
    rows = [_row(row) for row in command.rows]
    message = target_pb2.TargetCommand()
    getattr(message, "pass").CopyFrom(target_pb2.Pass(pass_id=command.pass_id, rows=rows))  # a keyword of Python
    return message


def target_release_message(command: ReleaseTarget) -> target_pb2.TargetCommand:
    return target_pb2.TargetCommand(release=RequestRef(request=command.request, epoch=command.epoch))


def orders_message(commands: Iterable[SendOrder]) -> drafter_pb2.DrafterCommand:
    return drafter_pb2.DrafterCommand(orders=drafter_pb2.DraftOrders(orders=map(_order, commands)))


def _order(command: SendOrder) -> drafter_pb2.DraftOrder:
    return drafter_pb2.DraftOrder(
        ref=RequestRef(request=command.request, epoch=command.epoch),
        drafter=command.drafter,
        committed_len=command.committed_len,
        open=command.opening,
        tokens=TokenSpan(start=command.tokens_start, ids=pack_i32(command.tokens)),
        max_nodes=command.max_nodes,
        min_survival=command.min_survival,
    )


def drafter_release_message(command: ReleaseDrafter) -> drafter_pb2.DrafterCommand:
    ref = RequestRef(request=command.request, epoch=command.epoch)
    return drafter_pb2.DrafterCommand(release=drafter_pb2.DraftRelease(ref=ref, drafter=command.drafter))


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


def growths_of(worker: str, growths: drafter_pb2.Growths) -> Iterator[Growth]:
    """A report's growths. One whose lists don't fit together, or are endless, keeps its meaning but loses its nodes."""
    for growth in growths.growths:
        tokens, distances, scores, laws = _nodes(growth)
        numbers = range(growth.first_node, growth.first_node + len(tokens))
        yield Growth(
            worker=worker,
            drafter=growths.drafter,
            request=growth.ref.request,
            epoch=growth.ref.epoch,
            committed_len=growth.committed_len,
            first_node=growth.first_node,
            tokens=tokens,
            parents=[number - far if far else 0 for number, far in zip(numbers, distances, strict=True)],
            scores=scores,
            is_done=growth.is_done,
            is_prefix_missing=growth.is_prefix_missing,
            laws=laws,
        )


def _nodes(growth: drafter_pb2.Growth) -> tuple[list[int], list[int], list[float], list[DraftLaw | None]]:
    """Tokens, distances, scores, [num_nodes] each, and laws, [num_nodes] or none."""
    if not len(growth.tokens) == len(growth.distances) == len(growth.scores) <= MAX_GROWTH_NODES:
        return [], [], [], []
    try:
        laws = unpack_laws(growth.laws, len(growth.tokens)) if growth.HasField("laws") else []
    except InvalidRequest:
        return [], [], [], []
    return list(growth.tokens), list(growth.distances), unpack_scores(growth.scores), laws


def _row(row: PlannedRow) -> target_pb2.Row:
    return target_pb2.Row(
        ref=RequestRef(request=row.request, epoch=row.epoch),
        committed_len=row.committed_len,
        open=row.opening,
        tokens=TokenSpan(start=row.tokens_start, ids=pack_i32(row.tokens)),
        node_tokens=pack_i32(row.node_tokens),
        node_parents=pack_i32(row.node_parents),
        laws=pack_laws(row.laws),
    )


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
