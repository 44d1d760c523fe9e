"""The policy that waits: each row for its draft, up to a time that somebody sets, and then takes all its nodes.

It is draft-then-verify as the literature has it. Whoever wants every draft verified, to try that tokens don't depend on
it or to compare, sets the time; what serves is the price.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.events import PlannedRow, TargetFacts
from scheduler.policy.policy import Base, PassInFlight, PassReport, Plan, bases
from scheduler.request import DrafterView, Request


class Patience:
    def __init__(self, draft_wait_s: float) -> None:
        self._draft_wait_s = draft_wait_s

    @property
    def min_survival(self) -> float:
        return 0.0

    def plan(
        self, free: Sequence[Request], in_flight: Sequence[PassInFlight], facts: TargetFacts, now_s: float
    ) -> Plan:
        if in_flight or not free:
            return Plan()
        until_s = {request.number: self._wait_until_s(request) for request in free}
        rows = bases((request for request in free if until_s[request.number] <= now_s), facts.max_pass_tokens)
        if not rows:
            return Plan(again_s=min(until_s.values()), waits_for_drafts=True)
        room = facts.max_pass_tokens - sum(row.num_tokens for row in rows)
        for row in rows:
            _take_nodes(row, room)
            room -= row.num_nodes
        return Plan(rows)

    def expected_s(self, rows: Sequence[PlannedRow], in_flight: Sequence[PassInFlight], now_s: float) -> float:
        return now_s

    def note_target(self, facts: TargetFacts) -> None:
        pass

    def note_pass(self, sent: PassInFlight, report: PassReport, now_s: float) -> None:
        pass

    def note_growth(self, request: Request, view: DrafterView, now_s: float) -> None:
        pass

    def _wait_until_s(self, request: Request) -> float:
        """-inf where there is nothing to wait for: a prompt never waits, nobody waits for a drafter that is late, and a
        row whose tree is large enough goes: what comes later is run-ahead."""
        if request.num_completion_tokens == 0 or len(request.tree) >= request.new.max_nodes:
            return float("-inf")
        return max(
            (
                view.ordered_s + self._draft_wait_s
                for view in request.drafters.values()
                if view.ordered_len == request.committed_len and not view.health.is_late
            ),
            default=float("-inf"),
        )


def _take_nodes(row: Base, room: int) -> None:
    if not row.is_chunk:
        row.nodes = row.request.candidates()[0]
        row.num_nodes = max(0, min(room, len(row.nodes)))
