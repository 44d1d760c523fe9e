"""The policy that others have: a draft of a fixed size in every pass, of one group of rows or of two in turn.

With one group it is draft-then-verify, or, where drafters run ahead, speculation on the verdict (SSD). With two, one
drafts while the other is verified (MineDraft). A pass starts when all rows of its group have their draft, or as soon as
the target is free where nobody waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.events import TargetFacts
from scheduler.policy.pass_time import PassTime
from scheduler.policy.patience import draft_is_due_s, take_nodes
from scheduler.policy.policy import PassInFlight, PassReport, Plan, bases
from scheduler.request import DrafterView, Request

MAX_WAIT_S = 30.0  # its drafts always come


class Fixed:
    def __init__(self, num_nodes: int, *, waits: bool, num_groups: int = 1) -> None:
        self._num_nodes = num_nodes
        self._waits = waits
        self._num_groups = num_groups
        self._time = PassTime([])

    @property
    def min_survival(self) -> float:
        return 0.0

    @property
    def drafts_pay(self) -> bool:
        return True

    def note_drafters(self) -> None:
        pass

    def plan(
        self,
        free: Sequence[Request],
        ahead: Sequence[Request],
        in_flight: Sequence[PassInFlight],
        facts: TargetFacts,
        now_s: float,
    ) -> Plan:
        if len(in_flight) >= self._num_groups or not free:
            return Plan()
        rows = bases(free[: self._group_size(free, in_flight)], facts.max_pass_tokens)
        until_s = max(self._wait_until_s(row.request) for row in rows)
        if until_s > now_s:
            return Plan(again_s=until_s, waits_for_drafts=True)
        take_nodes(rows, facts.max_pass_tokens, self._num_nodes)
        return Plan(rows)

    def _group_size(self, free: Sequence[Request], in_flight: Sequence[PassInFlight]) -> int:
        """An equal part of all rows: groups stay of one size while requests come and go."""
        num_rows = len(free) + sum(len(each.requests) for each in in_flight)
        return -(-num_rows // self._num_groups)

    def _wait_until_s(self, request: Request) -> float:
        if not self._waits:
            return float("-inf")
        enough = min(self._num_nodes, request.new.max_tokens - request.num_completion_tokens - 1)
        return draft_is_due_s(request, enough, MAX_WAIT_S)

    def expected_s(self, plan: Plan, in_flight: Sequence[PassInFlight], now_s: float) -> float:
        return now_s

    def note_target(self, facts: TargetFacts) -> None:
        self._time = PassTime(facts.pass_costs)

    def for_another(self) -> Fixed:
        return Fixed(self._num_nodes, waits=self._waits, num_groups=self._num_groups)

    def pass_s(self, num_rows: int, num_prompt_tokens: int, context_len: int) -> float:
        return self._time.never_falling(num_rows + num_prompt_tokens, context_len)

    def note_rows(self, num_rows: int, now_s: float) -> None:
        pass

    def note_pass(self, sent: PassInFlight, report: PassReport, now_s: float) -> None:
        pass

    def note_growth(self, request: Request, view: DrafterView, now_s: float) -> None:
        pass

    def note_verdict(self, request: Request) -> None:
        pass

    def note_report(self, view: DrafterView, num_nodes: int, seconds: float) -> None:
        pass
