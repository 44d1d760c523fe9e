"""The policy that others have: a draft of a fixed size in every pass, of one group of rows or of two in turn.

With one group it is draft-then-verify, or, where drafters run ahead, speculation on the verdict (SSD). With two, one
drafts while the other is verified (MineDraft). A pass starts when all rows of its group have their draft, or as soon as
the target is free where nobody waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.events import PlannedRow, TargetFacts
from scheduler.policy.policy import PassInFlight, PassReport, Plan, bases
from scheduler.request import DrafterView, Request

MAX_WAIT_S = 30.0  # its drafts always come


class Fixed:
    def __init__(self, num_nodes: int, *, waits: bool, num_groups: int = 1) -> None:
        self._num_nodes = num_nodes
        self._waits = waits
        self._num_groups = num_groups

    @property
    def min_survival(self) -> float:
        return 0.0

    def plan(
        self, free: Sequence[Request], in_flight: Sequence[PassInFlight], facts: TargetFacts, now_s: float
    ) -> Plan:
        if len(in_flight) >= self._num_groups or not free:
            return Plan()
        rows = bases(free[: self._group_size(free, in_flight)], facts.max_pass_tokens)
        until_s = max(self._wait_until_s(row.request) for row in rows)
        if until_s > now_s:
            return Plan(again_s=until_s, waits_for_drafts=True)
        room = facts.max_pass_tokens - sum(row.num_tokens for row in rows)
        for row in rows:
            if not row.is_chunk:
                row.nodes = row.request.candidates()[0]
                row.num_nodes = max(0, min(room, len(row.nodes), self._num_nodes))
                room -= row.num_nodes
        return Plan(rows)

    def _group_size(self, free: Sequence[Request], in_flight: Sequence[PassInFlight]) -> int:
        """An equal part of all rows: groups stay of one size while requests come and go."""
        num_rows = len(free) + sum(len(each.requests) for each in in_flight)
        return -(-num_rows // self._num_groups)

    def _wait_until_s(self, request: Request) -> float:
        """-inf where there is nothing to wait for: a prompt, a whole draft, drafters that have done all they will."""
        enough = min(self._num_nodes, request.new.max_tokens - request.num_completion_tokens - 1)
        if not self._waits or request.num_completion_tokens == 0 or len(request.tree) >= enough:
            return float("-inf")
        waited = [
            view.ordered_s + MAX_WAIT_S
            for view in request.drafters.values()
            if view.ordered_len == request.committed_len and not view.health.is_late
        ]
        return max(waited, default=float("-inf"))

    def expected_s(self, rows: Sequence[PlannedRow], in_flight: Sequence[PassInFlight], now_s: float) -> float:
        return now_s

    def note_target(self, facts: TargetFacts) -> None:
        pass

    def note_pass(self, sent: PassInFlight, report: PassReport, now_s: float) -> None:
        pass

    def note_growth(self, request: Request, view: DrafterView, now_s: float) -> None:
        pass
