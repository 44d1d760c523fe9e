"""The policy that waits: each row for its draft, up to a time that somebody sets, and then takes all its nodes.

It is draft-then-verify as the literature has it. Whoever wants every draft verified, to try that tokens don't depend on
it or to compare, sets the time; what serves is the price.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.events import TargetFacts
from scheduler.policy.pass_time import PassTime
from scheduler.policy.policy import Base, PassInFlight, PassReport, Plan, bases
from scheduler.request import DrafterView, Request


class Patience:
    def __init__(self, draft_wait_s: float) -> None:
        self._draft_wait_s = draft_wait_s
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
        if in_flight or not free:
            return Plan()
        until_s = {each.number: draft_is_due_s(each, each.new.max_nodes, self._draft_wait_s) for each in free}
        rows = bases((request for request in free if until_s[request.number] <= now_s), facts.max_pass_tokens)
        if not rows:
            return Plan(again_s=min(until_s.values()), waits_for_drafts=True)
        take_nodes(rows, facts.max_pass_tokens)
        return Plan(rows)

    def expected_s(self, plan: Plan, in_flight: Sequence[PassInFlight], now_s: float) -> float:
        return now_s

    def note_target(self, facts: TargetFacts) -> None:
        self._time = PassTime(facts.pass_costs)

    def for_another(self) -> Patience:
        return Patience(self._draft_wait_s)

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


def draft_is_due_s(request: Request, enough: int, wait_s: float) -> float:
    """Until when a row waits for its draft. -inf where there is nothing to wait for: a prompt never waits, nobody waits
    for a drafter that is late or done, and a row with `enough` nodes goes: what comes later is run-ahead."""
    if request.num_completion_tokens == 0 or len(request.tree) >= enough:
        return float("-inf")
    return max(
        (
            view.ordered_s + wait_s
            for view in request.drafters.values()
            if view.ordered_len == request.committed_len and not view.health.is_late
        ),
        default=float("-inf"),
    )


def take_nodes(rows: Sequence[Base], max_pass_tokens: int, max_nodes: int | None = None) -> None:
    """Each row's likeliest nodes, urgent rows' first, while the pass has room; at most `max_nodes` of a row."""
    room = max_pass_tokens - sum(row.num_tokens for row in rows)
    for row in sorted(rows, key=lambda row: row.service_class):
        if not row.is_chunk:
            row.find_candidates()
            num_nodes = max(0, min(room, len(row.candidates.nodes[:max_nodes])))
            row.take(num_nodes, float(row.candidates.survivals[:num_nodes].sum()), num_nodes)
            room -= num_nodes
