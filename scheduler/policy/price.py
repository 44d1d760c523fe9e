"""The policy that serves: one price for every token (docs/scheduling.md).

selection.py   which nodes go into a pass: those that are worth the time that they add
classes.py     what that means where rows of several service classes meet
waiting.py     whether to wait for drafts that are on their way
pace.py        whether all rows go together, or two groups take turns
ahead.py       whether the next pass goes before the verdict on the one that runs
payoff.py      whether drafts pay at all
pass_time.py   V(num_tokens), the time that all of this is counted in
growth_curve.py  what may be expected of a drafter, and when
supply.py      what drafters have been worth, for whoever wants more or fewer of them
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler.events import TargetFacts
from scheduler.policy.ahead import Ahead, Draft
from scheduler.policy.classes import weights_of, within_pace
from scheduler.policy.growth_curve import GrowthCurve
from scheduler.policy.pace import Pace
from scheduler.policy.pass_time import PassTime
from scheduler.policy.payoff import Measured, Payoff
from scheduler.policy.policy import Base, Expected, PassInFlight, PassReport, Plan, bases, mean_context
from scheduler.policy.selection import Selection, select
from scheduler.policy.supply import Supply
from scheduler.policy.waiting import Coming, wait_until_s
from scheduler.policy.worth import Lack, Worth
from scheduler.request import DrafterView, Request

FLOOR_SHARE = 0.1  # of the least survival that is verified now: worth drafting ahead, for later passes
MIN_FLOOR, MAX_FLOOR = 0.01, 0.5
_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Drafters:
    """What is learned of a cell's drafters: the same for all of its target groups."""

    curves: defaultdict[tuple[str, str], GrowthCurve] = field(default_factory=lambda: defaultdict(GrowthCurve))
    supply: Supply = field(default_factory=Supply)


class Price:
    def __init__(self, drafters: Drafters | None = None) -> None:
        """`drafters`: those of a cell whose other target groups have a price too."""
        self._time = PassTime([])
        self._pace = Pace()
        self._drafters = drafters or Drafters()
        self._payoff = Payoff()
        self._aheads: defaultdict[tuple[bool, bool], Ahead] = defaultdict(Ahead)  # by drafts that pay, and prompts
        self._ready_since_s: float | None = None  # rows could have gone into a pass, and none was under way
        self._worth_verifying = MIN_FLOOR  # the survival of a node that is just worth its time
        self._nodes_per_row = 0.0  # that are verified, in the mean
        self._decoding = 0.0  # tokens a second, of passes without prompts
        self._context_len = 0  # before the last pass
        self._max_pass_tokens = 0  # of the target

    @property
    def drafts_pay(self) -> bool:
        return self._payoff.drafts_pay

    @property
    def min_survival(self) -> float:
        return min(max(FLOOR_SHARE * self._worth_verifying, MIN_FLOOR), MAX_FLOOR)

    # ── the next pass ───────────────────────────────────────────────────────────────────────────────

    def plan(
        self,
        free: Sequence[Request],
        ahead: Sequence[Request],
        in_flight: Sequence[PassInFlight],
        facts: TargetFacts,
        now_s: float,
    ) -> Plan:
        if len(in_flight) > 1:
            return Plan()
        if in_flight:
            self._ready_since_s = None
            return self._plan_second(free, ahead, in_flight[0], facts.max_pass_tokens, now_s)
        if not free:
            self._ready_since_s = None
            return Plan()
        if self._ready_since_s is None:
            self._ready_since_s = now_s
        rows = bases(free, facts.max_pass_tokens)
        if len(rows) > 1:
            half = rows[::2]
            rest = self._size(rows) - self._size(half)
            if self._takes_turns(self._size(half), rest, mean_context(rows)):
                rows = half
        return self._plan_rows(rows, facts.max_pass_tokens, now_s)

    def _plan_second(
        self,
        free: Sequence[Request],
        ahead: Sequence[Request],
        running: PassInFlight,
        max_pass_tokens: int,
        now_s: float,
    ) -> Plan:
        """Just before the answer to the pass that runs: its own rows once more, with all others, or the others."""
        others = bases(free, max_pass_tokens)
        there = round(len(running.requests) * (1 + self._nodes_per_row))
        takes_turns = bool(others) and self._takes_turns(there, self._size(others), running.context_len)
        if not takes_turns and not ahead:
            return Plan()
        at_s = self._pace.send_at_s(running.expected_s, self._time.seconds(running.num_tokens, running.context_len))
        if now_s < at_s:
            return Plan(again_s=at_s)
        plan = self._plan_ahead(bases([*free, *ahead], max_pass_tokens), takes_turns, max_pass_tokens)
        if plan is None:
            return self._plan_rows(others, max_pass_tokens, now_s) if takes_turns else Plan()
        return plan

    def _plan_rows(self, rows: Sequence[Base], max_pass_tokens: int, now_s: float) -> Plan:
        """The rows with the nodes that are worth it, or a time to wait for more of them."""
        seconds = self._time.curve(max_pass_tokens, mean_context(rows))
        rows = within_pace(rows, seconds)
        num_tokens = sum(row.num_tokens for row in rows)
        num_choosing = sum(not row.is_chunk for row in rows)
        weights = weights_of(rows)
        chosen = self._select(rows, weights, seconds)
        if num_choosing:
            self._worth_verifying += _SMOOTHING * (chosen.min_survival - self._worth_verifying)
            coming = self._coming(rows, np.ones(len(rows)) if weights is None else weights, now_s)
            num_nodes = int(chosen.num_nodes.sum())
            again_s = wait_until_s(chosen, num_choosing, num_tokens + num_nodes, coming, seconds)
            if again_s is not None:
                return Plan(again_s=again_s, waits_for_drafts=True)
            self._nodes_per_row += _SMOOTHING * (num_nodes / num_choosing - self._nodes_per_row)
            gain = sum(row.gain for row in rows)
            if num_tokens == num_choosing:
                self._decoding += _SMOOTHING * (chosen.price - self._decoding)
            wait_s = 0.0 if self._ready_since_s is None else now_s - self._ready_since_s
            draft = Draft(gain / num_choosing, num_nodes / num_choosing)
            self._ahead(has_prompts=num_tokens > num_choosing).note_usual(draft, wait_s)
            self._ahead(has_prompts=num_tokens == num_choosing).forget_left()
            self._note_missing_drafts(rows, num_choosing + gain)
            self._context_len = mean_context(rows)
        return Plan(rows)

    def _plan_ahead(self, rows: Sequence[Base], takes_turns: bool, max_pass_tokens: int) -> Plan | None:
        """All rows, those of the pass that runs among them; None where it is better to wait for its verdicts."""
        context_len = mean_context(rows)
        seconds = self._time.curve(max_pass_tokens, context_len)
        rows = within_pace(rows, seconds)
        chosen = self._select(rows, weights_of(rows), seconds)
        running, others = [row for row in rows if row.is_ahead], [row for row in rows if not row.is_ahead]
        num_running = sum(not row.is_chunk for row in running)
        num_choosing = num_running + sum(not row.is_chunk for row in others)
        ahead = self._ahead(has_prompts=sum(row.num_tokens for row in rows) > num_choosing)

        def round_s(one: float, other: float) -> float:
            """Of two groups of so many tokens, in turn or together, where verdicts are waited for."""
            if takes_turns:
                return self._pace.in_turn_s(round(one), round(other), lambda num: self._time.seconds(num, context_len))
            return self._time.seconds(round(one + other), context_len) + self._pace.turnaround_s + ahead.wait_s

        if ahead.may_pay:
            saved_s = round_s(_size(others), _size(running) + num_running * ahead.more.num_nodes) - chosen.pass_s
            of_each = 1 + ahead.usual.num_nodes
            usual_s = round_s((num_choosing - num_running) * of_each, num_running * of_each)
            if ahead.pays(num_choosing, num_running, saved_s, usual_s):
                ahead.note_ahead()
                return Plan(rows)
        if num_running:
            drafts = [(row.gain, row.num_expected_nodes) for row in running]
            ahead.note_left(Draft(*(sum(each) / num_running for each in zip(*drafts, strict=True))))
        return None

    def _select(
        self, rows: Sequence[Base], weights: NDArray[np.float64] | None, seconds: NDArray[np.float64]
    ) -> Selection:
        """Gives each row its candidates, and the number of those that are worth their time."""
        for row in rows:
            row.find_candidates()
        num_tokens = sum([row.num_tokens for row in rows])
        num_choosing = sum([not row.is_chunk for row in rows])
        min_price = self._decoding if num_tokens > num_choosing else 0.0
        chosen = select(
            [row.candidates.survivals for row in rows],
            num_choosing,
            num_tokens,
            seconds,
            weights,
            shares=[row.candidates.shares for row in rows] if any(row.is_ahead for row in rows) else None,
            min_price=min_price,
        )
        figures = chosen.num_nodes.tolist(), chosen.gains.tolist(), chosen.num_expected.tolist()
        for row, num_nodes, gain, num_expected in zip(rows, *figures, strict=True):
            row.take(num_nodes, gain, num_expected)
        return chosen

    def _coming(self, rows: Sequence[Base], weights: NDArray[np.float64], now_s: float) -> Iterator[Coming]:
        """What the rows' drafters are expected to add, by what their orders brought before."""
        for row, weight in zip(rows, weights.tolist(), strict=True):
            request = row.request
            if not request.drafters or request.num_completion_tokens == 0 or row.is_chunk:
                continue
            for view in request.drafters.values():
                if view.ordered_len != request.committed_len or view.health.is_late:
                    continue
                elapsed_s, has_then = now_s - view.ordered_s, row.gain
                for report in self._drafters.curves[view.worker, view.drafter].reports[view.num_reports :]:
                    latest_s = view.ordered_s + report.latest_s
                    if report.worth > has_then and latest_s > now_s:
                        in_s = max(report.after_s - elapsed_s, report.deviation_s)
                        nodes = max(report.num_nodes - row.num_nodes, 0.0)
                        yield Coming(in_s, latest_s, weight * (report.worth - has_then), nodes)
                        has_then = report.worth

    def _ahead(self, *, has_prompts: bool) -> Ahead:
        return self._aheads[self.drafts_pay, has_prompts]

    def _takes_turns(self, one: int, other: int, context_len: int) -> bool:
        return self._pace.takes_turns(one, other, lambda num_tokens: self._time.seconds(num_tokens, context_len))

    def _size(self, rows: Sequence[Base]) -> int:
        """Tokens of a pass of these rows with as many nodes as usual."""
        return round(sum(row.num_tokens + (0 if row.is_chunk else self._nodes_per_row) for row in rows))

    def _note_missing_drafts(self, rows: Sequence[Base], num_expected: float) -> None:
        """Of rows under whose root nothing was there: what their drafts would have brought, verifying them paid for.
        `num_expected`: tokens that the pass commits."""
        after_s = lost = 0.0
        for row in rows if self.drafts_pay else ():
            began_empty = [view for view in row.request.drafters.values() if view.began_empty]
            if began_empty:
                best = max(map(self._first_draft, began_empty))
                lost, after_s = lost + best[0], after_s + best[0] * best[1]
        if lost:
            self._pace.note_missing_drafts(after_s / lost, min(lost / num_expected, 1.0))
        else:
            self._pace.note_drafts()

    def _first_draft(self, view: DrafterView) -> tuple[float, float]:
        """What the drafter's first report is worth, in tokens, and after how many seconds it comes."""
        reports = self._drafters.curves[view.worker, view.drafter].reports
        if not reports:
            return 0.0, 0.0
        return max(reports[0].worth - reports[0].num_nodes * self._worth_verifying, 0.0), reports[0].after_s

    # ── what is measured ────────────────────────────────────────────────────────────────────────────

    def expected_s(self, plan: Plan, in_flight: Sequence[PassInFlight], now_s: float) -> float:
        pass_s = self._time.seconds(plan.num_tokens, plan.context_len)
        if in_flight:
            return max(in_flight[-1].expected_s, now_s) + pass_s
        return now_s + self._pace.turnaround_s + pass_s

    def note_target(self, facts: TargetFacts) -> None:
        self._time = PassTime(facts.pass_costs)
        self._pace, self._payoff = Pace(), Payoff()
        self._aheads.clear()
        self._max_pass_tokens = facts.max_pass_tokens

    def for_another(self) -> Price:
        return Price(self._drafters)

    def pass_s(self, num_rows: int, num_prompt_tokens: int, context_len: int) -> float:
        num_tokens = round(num_rows * (1 + self._nodes_per_row)) + num_prompt_tokens
        return self._time.never_falling(num_tokens, context_len)

    def note_rows(self, num_rows: int, now_s: float) -> None:
        self._drafters.supply.note_rows(num_rows, now_s)

    def note_pass(self, sent: PassInFlight, report: PassReport, now_s: float) -> None:
        if report.pass_s > 0:
            self._time.learn(report.num_tokens or sent.num_tokens, sent.context_len, report.pass_s)
        if sent.free_since_s is not None:
            self._pace.note_turnaround(report.idle_s - (sent.sent_s - sent.free_since_s))
        if sent.expected is not None and report.num_running and report.pass_s > 0:
            self._payoff.note_pass(self._measured(sent, sent.expected, report))

    def _measured(self, sent: PassInFlight, expected: Expected, report: PassReport) -> Measured:
        token_s = self._time.at_best(report.num_running, sent.context_len) / report.num_running
        has_prompts = expected.num_tokens > expected.num_choosing
        # Of prompts, what the target has in its prefix cache took no part.
        num_alone = report.num_tokens - expected.num_nodes if report.num_tokens else expected.num_tokens
        return Measured(
            expected=expected,
            num_chosen=report.num_chosen,
            num_running=report.num_running,
            seconds=report.pass_s + (report.idle_s if report.was_wanted else 0.0),
            alone_s=self._time.at_best(round(max(num_alone, expected.num_choosing)), sent.context_len)
            if has_prompts
            else expected.num_choosing * token_s,  # a part of the rows takes turns with the others
            token_s=token_s,
        )

    def note_drafters(self) -> None:
        self._payoff = Payoff()

    def note_growth(self, request: Request, view: DrafterView, now_s: float) -> None:
        if not view.began_empty:
            return
        survivals = request.candidates().survivals
        worth = survivals[survivals >= self._worth_verifying]
        curve = self._drafters.curves[view.worker, view.drafter]
        curve.learn(view.num_reports, now_s - view.ordered_s, float(worth.sum()), len(worth))

    def note_verdict(self, request: Request) -> None:
        self._drafters.supply.note_verdict(request)

    def note_report(self, view: DrafterView, num_nodes: int, seconds: float) -> None:
        self._drafters.supply.note_report(view, num_nodes, seconds)

    def worth(
        self, num_drafters: Mapping[str, int], most: int, now_s: float, num_groups: int = 1
    ) -> dict[str, Worth | Lack]:
        """Of the drafters of each name, if there were so many, and with up to `most`; or why that is not known. The
        cell's `num_groups` target groups count as if all were like this one."""
        seconds = self._time.curve(self._max_pass_tokens, self._context_len)
        gap_s = self._pace.turnaround_s
        found = self._drafters.supply.worth(num_drafters, seconds, gap_s, now_s, most, num_groups)
        return {name: worth.of_nothing() for name, worth in found.items()} if self._payoff.is_left else found


def _size(rows: Sequence[Base]) -> float:
    """Tokens of these rows that are expected to be computed."""
    return sum(row.num_tokens + row.num_expected_nodes for row in rows)
