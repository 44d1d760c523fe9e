"""A target group as the core sees it: the requests that run there, its passes in flight, the policy that plans them.

Part of the core: no I/O. All of it is gone when the group is lost, but for the requests, which the core has too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scheduler.events import PassDone, PlannedRow, SendPass, TargetFacts
from scheduler.policy.policy import PassInFlight, PassReport, Plan, Policy
from scheduler.preemption import Capacity
from scheduler.prefixes import Prefixes
from scheduler.request import Request, TargetView

MAX_PASSES_IN_FLIGHT = 2  # the one that runs, and the next


@dataclass(frozen=True, slots=True)
class Load:
    """What runs on a target group."""

    num_rows: int
    num_prompt_tokens: int  # of these rows, that have yet to be computed
    context_len: int  # of a row, in the mean


class TargetGroup:
    def __init__(
        self, address: str, facts: TargetFacts, capacity: Capacity, policy: Policy, pass_timeout_s: float
    ) -> None:
        """`policy`: no other group's; it is told of this one here."""
        self.address = address
        self.facts = facts
        self.capacity = capacity
        self.policy = policy
        self.running: dict[int, Request] = {}  # in order of start here
        self.in_flight: list[PassInFlight] = []  # the first one runs
        self.num_free_kv_blocks = facts.num_kv_blocks
        self.prefixes = Prefixes(facts.block_size, facts.num_kv_blocks)
        self.asleep_until_s = float("-inf")  # nothing that comes can bring the next pass forward before that
        self.had_work = False  # when the last pass ended
        self.is_leaving = False  # nothing starts here any more
        self._ask_again_s: float | None = None  # when the policy wants to be asked again
        self._answered_s: float | None = None  # when the last answer came
        self._pass_timeout_s = pass_timeout_s
        policy.note_target(facts)

    def next_wakeup_s(self) -> float | None:
        times = [sent.deadline_s for sent in self.in_flight[:1]]
        if self._ask_again_s is not None:
            times.append(self._ask_again_s)
        return min(times, default=None)

    def wake(self) -> None:
        """Something has happened that may make a pass possible."""
        self.asleep_until_s = float("-inf")

    # ── its requests ────────────────────────────────────────────────────────────────────────────────

    def take(self, request: Request, epoch: int) -> None:
        """Have a request run here, to be opened in this epoch."""
        request.target = TargetView(epoch, self.address, num_expected=self.prefixes.num_known(request.tokens))
        request.refused_since_s, request.not_before_s = None, float("-inf")
        self.running[request.number] = request
        self.wake()

    def drop(self, request: Request) -> None:
        """It runs here no more; what was computed for it may be found by others."""
        del self.running[request.number]
        self.note_computed(request)
        self.wake()

    def note_computed(self, request: Request) -> None:
        """The newest token's KV is computed with the next one."""
        self.prefixes.note(request.tokens[: min(request.target.known_len, request.committed_len - 1)])

    @property
    def load(self) -> Load:
        running = self.running.values()
        missing = [each.committed_len - max(each.target.known_len, each.target.num_expected) for each in running]
        return Load(
            num_rows=len(running),
            num_prompt_tokens=sum(num for num in missing if num > 1),
            context_len=sum(each.committed_len for each in running) // max(len(running), 1),
        )

    # ── its passes ──────────────────────────────────────────────────────────────────────────────────

    def start_passes(self, now_s: float, pass_ids: Iterator[int]) -> list[SendPass]:
        """What the policy wants sent now."""
        passes: list[SendPass] = []
        self._ask_again_s, self.asleep_until_s = None, float("inf")
        while len(self.in_flight) < MAX_PASSES_IN_FLIGHT:
            waiting = [request for request in self.running.values() if not request.sent]
            free = [request for request in waiting if request.not_before_s <= now_s]
            plan = self.policy.plan(free, self._may_go_ahead(), self.in_flight, self.facts, now_s)
            if not plan.rows:
                paused = [request.not_before_s for request in waiting if request.not_before_s > now_s]
                again_s = paused if plan.again_s is None else [*paused, plan.again_s]
                self._ask_again_s = min(again_s, default=None)
                self.asleep_until_s = float("-inf") if plan.waits_for_drafts else min(again_s, default=float("inf"))
                break
            passes.append(self._pass_of(plan, next(pass_ids), now_s))
            for request in free:
                request.num_passed_over = 0 if request.sent else request.num_passed_over + 1
        return passes

    def _may_go_ahead(self) -> list[Request]:
        """Those in the pass that runs which may be in the next one too, before its verdict."""
        if len(self.in_flight) != 1:
            return []
        rows = (self.running.get(number) for number in self.in_flight[0].requests)
        return [request for request in rows if request is not None and request.may_go_ahead]

    def _pass_of(self, plan: Plan, pass_id: int, now_s: float) -> SendPass:
        rows: list[PlannedRow] = []
        for row in plan.rows:
            nodes = row.nodes
            rows.append(row.planned(nodes))
            row.request.note_sent(row.sent(pass_id, nodes))
        sent = PassInFlight(
            pass_id=pass_id,
            requests=[row.request for row in rows],
            num_tokens=plan.num_tokens,
            context_len=plan.context_len,
            sent_s=now_s,
            deadline_s=now_s + self._pass_timeout_s,
            expected_s=self.policy.expected_s(plan, self.in_flight, now_s),
            free_since_s=None if self.in_flight else self._answered_s,
            expected=plan.expected,
        )
        self.in_flight.append(sent)
        return SendPass(pass_id, rows, self.address)

    def find_pass(self, pass_id: int) -> PassInFlight | None:
        return next((each for each in self.in_flight if each.pass_id == pass_id), None)

    def take_answer(self, sent: PassInFlight, done: PassDone, now_s: float) -> None:
        self.in_flight.remove(sent)
        self.in_flight = [replace(each, deadline_s=now_s + self._pass_timeout_s) for each in self.in_flight]
        self._answered_s = now_s
        self.num_free_kv_blocks = done.num_free_kv_blocks
        num_chosen = sum(len(outcome.tokens) for outcome in done.outcomes)
        report = PassReport(
            done.pass_s, done.idle_s, done.num_tokens, num_chosen, len(self.running), was_wanted=self.had_work
        )
        self.policy.note_pass(sent, report, now_s)
        self.wake()

    def hung(self, now_s: float) -> PassInFlight | None:
        """The pass whose answer is overdue."""
        first = self.in_flight[0] if self.in_flight else None
        return first if first is not None and now_s >= first.deadline_s else None
