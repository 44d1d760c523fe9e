"""Who goes into the next pass, with which nodes: first come, first served.

Pure functions of the core's state. A row waits for its draft for a bounded time and only for drafters that
keep up; rows whose draft is there never wait for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from outrider.tree import Node, pack_nodes
from scheduler.events import PlannedRow
from scheduler.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    draft_wait_s: float = 1.0  # how long a row may wait for a draft that is on its way


def wait_until_s(request: Request, late: AbstractSet[tuple[str, str]], config: PolicyConfig) -> float:
    """When this request's row may go at the latest: -inf where there is nothing to wait for.

    `late`: the (worker, drafter) pairs that did not keep up; nobody waits for them. A prompt never waits, and neither
    does a row whose tree is large enough: what comes later is run-ahead.
    """
    if request.num_completion_tokens == 0 or len(request.tree) >= request.new.max_nodes:
        return float("-inf")
    return max(
        (
            view.ordered_s + config.draft_wait_s
            for view in request.drafters.values()
            if view.ordered_len == request.committed_len and (view.worker, view.drafter) not in late
        ),
        default=float("-inf"),
    )


def compose_pass(ready: Iterable[Request], max_pass_tokens: int) -> list[PlannedRow]:
    """Rows for `ready` requests, in order, while the pass has room for their tokens.

    A prompt that does not fit comes in chunks. A row's nodes are cut where the room ends.
    """
    rows: list[PlannedRow] = []
    room = max_pass_tokens
    for request in ready:
        if room <= 0:
            break
        row = plan_row(request, room)
        rows.append(row)
        # A row whose tokens the target already knows still forwards its root.
        room -= max(len(row.tokens), 1) + len(row.node_tokens)
    return rows


def plan_row(request: Request, room: int) -> PlannedRow:
    """One request's row of at most `room` tokens (room >= 1)."""
    start = request.target.known_len
    tokens = request.tokens[start : start + room]
    is_chunk = start + len(tokens) < request.committed_len
    num_nodes = 0 if is_chunk else min(request.new.max_nodes, room - max(len(tokens), 1))
    nodes = select_nodes(request, num_nodes)
    node_tokens, node_parents = pack_nodes(nodes)
    return PlannedRow(
        request=request.number,
        epoch=request.target.epoch,
        committed_len=request.committed_len,
        opening=request.new.opening if start == 0 else None,
        tokens_start=start,
        tokens=tokens,
        node_tokens=node_tokens,
        node_parents=node_parents,
        laws=[node.law for node in nodes] if request.new.is_drawn_for else (),
    )


def select_nodes(request: Request, max_nodes: int) -> Sequence[Node]:
    """The likeliest `max_nodes` nodes of the tree, a connected part of it.

    The last token of an answer is the target's own, so a node that deep could never be committed. Nodes that were
    drawn are taken in their order, whatever their tokens are: anything else would bend the law of the answer.
    """
    depth_of_use = request.new.max_tokens - request.num_completion_tokens - 1
    if not request.new.is_drawn_for:
        return request.tree.likeliest(max_nodes, depth_of_use)
    within = (node for node in request.tree if node.depth <= depth_of_use)
    return list(islice(within, max(max_nodes, 0)))
