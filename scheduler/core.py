"""The scheduler's core: events in, commands out, time as an argument. It does no I/O.

Read this first. One request's way through it:

    Submitted ──▶ waitlist ──▶ running ──▶ rows in passes ──▶ Emit … Emit ──▶ Finish
                     ▲          │  │   ▲
                     └──────────┘  ▼   │ Grown (nodes for the tree)
                     preempted    orders to drafters

The core owns every request's committed tokens; a worker that loses its state is simply sent them again. What belongs to
one target group, its passes above all, is in target_group.py; where a request runs, routing.py says. Each time a
request is opened on a worker it gets a fresh epoch; an answer with another epoch, or for another committed_len, is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from outrider.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NoTokenLeft,
    OutriderError,
    Overloaded,
    ServerUnavailable,
)
from outrider.types import FinishReason, TokenLogprobs
from scheduler.drafting import RUN_AHEAD, Drafting
from scheduler.events import (
    Cancelled,
    Command,
    DrafterDown,
    DrafterLeaving,
    DrafterUp,
    Emit,
    Event,
    Finish,
    Grown,
    NewRequest,
    PassDone,
    ReleaseTarget,
    ResetTarget,
    RowOutcome,
    Stopped,
    Submitted,
    TargetDown,
    TargetLeaving,
    TargetsExpected,
    TargetUp,
    Tick,
)
from scheduler.policy.patience import Patience
from scheduler.policy.policy import Policy
from scheduler.policy.price import Price
from scheduler.policy.worth import Lack, Worth
from scheduler.pressure import Pressure, pressure_of
from scheduler.request import DrafterHealth, Request, SentRow, TargetView
from scheduler.routing import choose
from scheduler.target_group import TargetGroup
from scheduler.target_groups import TargetGroups
from scheduler.totals import Totals
from scheduler.waitlist import Waitlist

MAX_UNANSWERED_PASSES = 3  # of one request, in a row
LATE_AFTER_S = 1.0  # a drafter from which nothing comes for so long
NO_CAPACITY_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    max_running_requests: int = 64  # of a target group
    pass_timeout_s: float = 60.0
    # Set: each row waits so long for its draft, and all nodes are verified. Unset: the price decides.
    draft_wait_s: float | None = None
    run_ahead: int = RUN_AHEAD  # times a pass's nodes: what a drafter may have waiting, those in flight among them


class Core:
    """All scheduling state of one cell: its requests, and what is known of its target groups and drafters.

    `handle` takes an event and the time, and returns what is to be done, in order. It never raises for
    anything that a worker or a client may send.
    """

    def __init__(self, config: CoreConfig, policy: Policy | None = None) -> None:
        """`policy`: another one than the configuration asks for; the simulator compares them."""
        self._config = config
        self._requests: dict[int, Request] = {}  # all that have not finished
        self._waitlist = Waitlist()
        self._running: dict[int, Request] = {}  # in order of start
        self._stranded: dict[int, Request] = {}  # those of them whose group was lost, and that no other has taken yet
        self._full_since_s: float | None = None  # since then some request finds no room; None: all that may run do
        self._preempted_s = float("-inf")  # when one last gave way
        self._vocab_size = 0  # of the target, also of one that is being restarted: drafters go on meanwhile
        self._deadlines: list[tuple[float, int]] = []  # a heap, of requests; those that have finished may be in it
        self._pass_ids = count(1)
        self._epochs = count(1)
        self._commands: list[Command] = []
        wait_s = config.draft_wait_s
        self._policy: Policy = policy or (Price() if wait_s is None else Patience(wait_s))
        self.groups = TargetGroups(self._policy, config.max_running_requests, config.pass_timeout_s)
        late_after_s = LATE_AFTER_S if wait_s is None else wait_s
        self._drafting = Drafting(late_after_s, config.run_ahead, self.groups.policy_of, self._running, self._epochs)
        self.totals = Totals()  # without the requests that go on

    # ── what the outside may ask ────────────────────────────────────────────────────────────────────

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_queued(self) -> int:
        return len(self._waitlist)

    def num_queued_of(self, tenant: str) -> int:
        return self._waitlist.num_waiting_of(tenant)

    def nums_running_and_queued_among(self, numbers: Iterable[int]) -> tuple[int, int]:
        there = [number for number in numbers if number in self._requests]
        num_running = sum(number in self._running for number in there)
        return num_running, len(there) - num_running

    @property
    def has_target(self) -> bool:
        """On which a request may start."""
        return len(self.groups.staying) > 0

    def totals_now(self) -> Totals:
        return self.totals.with_those(request.stats for request in self._requests.values())

    def health(self, worker: str, drafter: str) -> DrafterHealth:
        return self._drafting.health(worker, drafter)

    def is_starved(self, worker: str, drafter: str) -> bool:
        """By all target groups, be it that no drafter pays there."""
        health = self._drafting.health(worker, drafter)
        policies = self.groups.policies
        return all(self._drafting.is_starved(health, policy) or not policy.drafts_pay for policy in policies)

    def num_requests_on(self, worker: str) -> int:
        """That the drafters of this worker draft for, or that run on this target group."""
        group = self.groups.get(worker)
        return self._drafting.num_requests_on(worker) if group is None else len(group.running)

    def worth(self, num_drafters: Mapping[str, int], most: int, now_s: float) -> dict[str, Worth | Lack]:
        """Of the drafters of each name, if there were so many, and with up to `most`; or why that is not known."""
        return self.groups.worth(num_drafters, most, now_s)

    def pressure(self, now_s: float) -> Pressure:
        """On the target groups."""
        waiting = [request for request in self._waitlist if self._may_start(request)]
        waited_s = 0.0 if self._full_since_s is None else now_s - self._full_since_s
        num_places, preempted_s = self._config.max_running_requests, now_s - self._preempted_s
        return pressure_of(self.groups.staying, self._running.values(), waiting, waited_s, preempted_s, num_places)

    def next_wakeup_s(self) -> float | None:
        """When the core wants a Tick if nothing happens before; None: never."""
        deadline_s = self._deadlines[0][0] if self._deadlines else None
        wakeup_s = self.groups.next_wakeup_s()
        return deadline_s if wakeup_s is None else wakeup_s if deadline_s is None else min(deadline_s, wakeup_s)

    def handle(self, event: Event, now_s: float) -> list[Command]:
        self._commands = []
        self._take(event, now_s)
        self._expire(now_s)
        self._drafting.note_late(now_s)
        if isinstance(event, Grown) and self.groups.are_asleep(now_s):
            return self._commands  # the commonest event by far
        self._start_queued(now_s)
        self._start_passes(now_s)
        return self._commands

    def _take(self, event: Event, now_s: float) -> None:
        match event:
            case Submitted(new):
                self._submit(new, now_s)
            case Cancelled(number):
                if number in self._requests:
                    self._remove(self._requests[number])
            case Stopped(number):
                if number in self._requests:
                    self._end(self._requests[number], now_s, reason="stop")
            case TargetUp(facts, target):
                self._lose_group(target)
                self.groups.add(target, facts)
                self._vocab_size = facts.vocab_size
                self._rehouse()
            case TargetDown(target):
                self._lose_group(target)
                self._rehouse()
            case TargetLeaving(target):
                leaving = self.groups.retire(target)
                if leaving is not None:
                    self._move_from(leaving)
            case TargetsExpected(number):
                self.groups.num_expected = number
            case PassDone():
                self._finish_pass(event, now_s)
            case DrafterUp(worker, drafters, drawing):
                for policy in self.groups.policies:
                    policy.note_drafters()
                self._commands += self._drafting.add_worker(worker, drafters, drawing, now_s)
            case DrafterLeaving(worker):
                self._drafting.retire_worker(worker)
            case DrafterDown(worker):
                self._commands += self._drafting.lose_worker(worker, now_s)
            case Grown():
                for growth in event.growths:
                    self._commands += self._drafting.grow(growth, self._vocab_size, now_s)
            case Tick():
                pass

    # ── a request's beginning and end ───────────────────────────────────────────────────────────────

    def _submit(self, new: NewRequest, now_s: float) -> None:
        request = self._requests[new.number] = Request(new, now_s)
        self._waitlist.add(request)
        if new.deadline_s is not None:
            heappush(self._deadlines, (new.deadline_s, new.number))

    def _start_queued(self, now_s: float) -> None:
        """Start requests, in their order, while there is room for them, or for those below them to give way."""
        while self.groups.staying:
            request = self._waitlist.next(self._may_start)
            if request is None:
                self._full_since_s = None
                return
            largest = self.groups.largest
            needed = largest.blocks_of(request)
            if needed > largest.num_blocks:
                limit = f"the target's KV cache holds {largest.num_blocks} blocks of {largest.block_size} tokens"
                self._fail(request, Overloaded(f"the request may come to need {needed} KV blocks: {limit}"), now_s)
                continue
            chosen = choose(request, self.groups.staying)
            if chosen is None:
                self._full_since_s = now_s if self._full_since_s is None else self._full_since_s
                return
            group, given = chosen
            if given:
                self._preempted_s = now_s
            for each in given:
                self._preempt(each)
            self._waitlist.start(request)
            self._running[request.number] = request
            request.stats.started_s = now_s if request.stats.started_s is None else request.stats.started_s
            group.take(request, next(self._epochs))
            self._commands += self._drafting.order(request, now_s)

    def _preempt(self, request: Request) -> None:
        request.stats.num_preemptions += 1
        self._put_back(request)

    def _put_back(self, request: Request) -> None:
        """It keeps its tokens, and waits until there is room for it again. The pass that it may be in goes on."""
        del self._running[request.number]
        self._release_everywhere(request)
        request.close()
        self._waitlist.put_back(request)

    def _may_start(self, request: Request) -> bool:
        """A request with a leader waits for it, to find its prompt in the prefix cache instead of computing it too. One
        that is too large for the groups that are there waits for those that are missing."""
        leader = self._requests.get(request.new.leader or 0)
        return (leader is None or leader.num_completion_tokens > 0) and not self.groups.may_come_for(request)

    def _expire(self, now_s: float) -> None:
        while self._deadlines and (self._deadlines[0][0] <= now_s or self._deadlines[0][1] not in self._requests):
            _, number = heappop(self._deadlines)
            if number in self._requests:
                request = self._requests[number]
                text = f"the deadline passed after {request.num_completion_tokens} tokens"
                self._fail(request, DeadlineExceeded(text), now_s)
        for group in self.groups:
            hung = group.hung(now_s)
            if hung is not None:
                reason = f"no answer to pass {hung.pass_id} within {self._config.pass_timeout_s:g} s"
                self._blame_rows(hung.requests, reason, now_s)
                self._commands.append(ResetTarget(reason, group.address))
                self._lose_group(group.address)
        self._rehouse()

    def _blame_rows(self, numbers: Sequence[int], reason: str, now_s: float) -> None:
        """A row that was there each time the target hung may be what hangs it: it does not get a fourth try."""
        for request in [self._running[number] for number in numbers if number in self._running]:
            request.num_unanswered += 1
            if request.num_unanswered >= MAX_UNANSWERED_PASSES:
                text = f"{request.num_unanswered} passes in a row had no answer; the last: {reason}"
                self._fail(request, ServerUnavailable(text), now_s)

    def _fail(self, request: Request, error: OutriderError, now_s: float) -> None:
        self._end(request, now_s, error=error)

    def _end(
        self,
        request: Request,
        now_s: float,
        *,
        reason: FinishReason | None = None,
        end_token_id: int | None = None,
        error: OutriderError | None = None,
    ) -> None:
        self._remove(request)
        request.stats.finished_s = now_s
        self._commands.append(Finish(request.number, reason, end_token_id, error, request.stats))

    def _remove(self, request: Request) -> None:
        """Forget a request, and have every worker forget it. Another may have its place."""
        self.groups.wake()
        del self._requests[request.number]
        self.totals.add(request.stats)
        if request.number in self._running:
            del self._running[request.number]
            self._release_everywhere(request)
            self._waitlist.note_end(request)
        else:
            self._waitlist.remove(request)

    def _release_everywhere(self, request: Request) -> None:
        self._stranded.pop(request.number, None)
        group = self.groups.get(request.target.group)
        if group is not None:
            group.drop(request)
            self._commands.append(ReleaseTarget(request.number, request.target.epoch, group.address))
        self._commands += self._drafting.release(request)

    # ── groups that are lost, or are to be left ─────────────────────────────────────────────────────

    def _lose_group(self, address: str) -> None:
        """Its requests are to be opened elsewhere: where, `_rehouse` says."""
        group = self.groups.lose(address)
        self.groups.wake()
        for request in group.running.values() if group is not None else ():
            self._reopen_on_target(request)
            request.target.group = None
            self._stranded[request.number] = request

    def _rehouse(self) -> None:
        """Requests whose group was lost go to others that have room, the most urgent ones first. Those for whom there
        is none wait as if they had been preempted. While there is no group for them, all of them stay as they are."""
        if not self._stranded or not self.groups.staying:
            return
        stranded, self._stranded = self._stranded, {}
        left: list[Request] = []
        for request in sorted(stranded.values(), key=lambda each: each.new.service_class):
            chosen = choose(request, self.groups.staying)
            if chosen is None or chosen[1]:
                left.append(request)
            else:
                chosen[0].take(request, request.target.epoch)
        for request in reversed(left):
            self._put_back(request)

    def _move_from(self, group: TargetGroup) -> None:
        """Requests of a group that is to be left go to others that have room, the most urgent ones first, and none
        while its next token is being computed here. The rest runs on, until there is room or the group is gone."""
        waiting = [each for each in group.running.values() if all(row.is_ahead for row in each.sent)]
        for request in sorted(waiting, key=lambda each: each.new.service_class):
            chosen = choose(request, self.groups.staying)
            if chosen is not None and not chosen[1]:
                self._commands.append(ReleaseTarget(request.number, request.target.epoch, group.address))
                group.drop(request)
                self._reopen_on_target(request)
                chosen[0].take(request, request.target.epoch)

    def _reopen_on_target(self, request: Request) -> None:
        request.sent = []
        request.target = TargetView(next(self._epochs), request.target.group)
        request.stats.num_cached_prompt_tokens = 0  # its prompt is looked for anew

    # ── passes ──────────────────────────────────────────────────────────────────────────────────────

    def _start_passes(self, now_s: float) -> None:
        for group in self.groups:
            if now_s >= group.asleep_until_s:
                self._policy.note_rows(len(self._running), now_s)
                self._commands += group.start_passes(now_s, self._pass_ids)

    def _finish_pass(self, done: PassDone, now_s: float) -> None:
        group = self.groups.get(done.target)
        sent = group.find_pass(done.pass_id) if group is not None else None
        if group is None or sent is None:
            return
        if sent is not group.in_flight[0]:
            reason = f"pass {sent.pass_id} was answered before pass {group.in_flight[0].pass_id}"
            self._commands.append(ResetTarget(reason, group.address))
            self._lose_group(group.address)
            self._rehouse()
            return
        group.take_answer(sent, done, now_s)
        outcomes = {outcome.request: outcome for outcome in done.outcomes}
        self.totals.num_passes += 1
        self.totals.busy_s += done.pass_s
        self.totals.bubble_s += done.idle_s if group.had_work else 0.0
        for number in sent.requests:
            request = self._running.get(number)
            row = request.take_sent(sent.pass_id) if request is not None else None
            if request is None or row is None:
                continue  # cancelled, past its deadline, or on another group, while the pass ran
            self._take_outcome(request, row, outcomes.get(number), now_s)
        if group.is_leaving:
            self._move_from(group)
        group.had_work = bool(group.running)

    def _take_outcome(self, request: Request, row: SentRow, outcome: RowOutcome | None, now_s: float) -> None:
        if outcome is None:
            self._fail(request, InternalError("the target's answer lacks the row of this request"), now_s)
            return
        is_of_now = outcome.epoch == request.target.epoch and outcome.committed_len == request.committed_len
        if not is_of_now or (row.is_ahead and outcome.status != "ok"):
            # Of one that was ahead nobody knows what it was refused for: the next one will tell. But what is ahead of
            # it, or of a verdict that is lost, would follow nobody knows what.
            if request.sent:
                self._reopen_on_target(request)
            return
        match outcome.status:
            case "ok":
                request.num_unanswered, request.refused_since_s, request.not_before_s = 0, None, float("-inf")
                request.target.known_len = outcome.known_len
                num_cached = request.stats.num_cached_prompt_tokens + outcome.num_cached_tokens
                request.stats.num_cached_prompt_tokens = min(num_cached, len(request.new.prompt))
                if outcome.tokens:
                    self._commit(request, row, outcome, now_s)
            case "prefix_missing" if request.target.known_len > 0:
                self._reopen_on_target(request)
            case "prefix_missing":
                self._fail(request, InternalError("the target misses a prefix that it was just sent"), now_s)
            case "no_capacity":
                self._wait_for_blocks(request, now_s)
            case "no_token":
                after = f"after {request.num_completion_tokens} tokens: "
                self._fail(request, NoTokenLeft(after + outcome.detail), now_s)
            case "invalid" if request.num_completion_tokens == len(request.new.resumed) > 0:
                self._fail(request, InvalidRequest(f"resume_from is no beginning: {outcome.detail}"), now_s)
            case "invalid" | "failed":
                self._fail(request, InternalError(f"the target refused the row: {outcome.detail}"), now_s)

    def _wait_for_blocks(self, request: Request, now_s: float) -> None:
        """Blocks are reserved, so this ends: another life of this scheduler's link still holds them for a while."""
        request.refused_since_s = now_s if request.refused_since_s is None else request.refused_since_s
        if now_s - request.refused_since_s >= self._config.pass_timeout_s:
            waited = f"for {self._config.pass_timeout_s:g} s"
            self._fail(request, Overloaded(f"the target had no free KV blocks {waited}", retry_after_s=1.0), now_s)
        else:
            request.not_before_s = now_s + NO_CAPACITY_PAUSE_S

    def _commit(self, request: Request, row: SentRow, outcome: RowOutcome, now_s: float) -> None:
        if request.stats.first_token_s is None:
            request.stats.first_token_s = now_s
            group = self.groups.get(request.target.group)
            if group is not None:
                group.note_computed(request)
        if len(outcome.logprobs) != (len(outcome.tokens) if request.wants_logprobs else 0):
            text = f"the target sent {len(outcome.logprobs)} log-probabilities for {len(outcome.tokens)} tokens"
            self._fail(request, InternalError(text), now_s)
            return
        if not 0 <= min(outcome.tokens) <= max(outcome.tokens) < self._vocab_size:
            foreign = next(token for token in outcome.tokens if not 0 <= token < self._vocab_size)
            text = f"the target chose token {foreign}: its vocabulary has {self._vocab_size} tokens"
            self._fail(request, InternalError(text), now_s)
            return
        if not request.is_lossy:
            self._drafting.survival.learn(request.tree, outcome.tokens, request.guesses)
            self._drafting.note_verdict(request, outcome.tokens[0])
        commit = request.commit(outcome.tokens, row.nodes)
        self._waitlist.note_served(request, len(commit.tokens))
        logprobs: Sequence[TokenLogprobs | None] = outcome.logprobs[: len(commit.tokens)]
        if not request.wants_logprobs:
            logprobs = [None] * len(commit.tokens)
        self._commands.append(Emit(request.number, commit.tokens, commit.sources, logprobs))
        if commit.reason is not None:
            self._end(request, now_s, reason=commit.reason, end_token_id=commit.end_token_id)
        else:
            self._commands += self._drafting.order(request, now_s)
