"""Several target groups in one core: who runs where, and what becomes of those whose group is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outrider.errors import Overloaded
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Cancelled,
    Command,
    DrafterUp,
    Emit,
    Event,
    Finish,
    NewRequest,
    PassDone,
    PlannedRow,
    ReleaseDrafter,
    ReleaseTarget,
    ResetTarget,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetDown,
    TargetLeaving,
    TargetsExpected,
    TargetUp,
    Tick,
)
from scheduler.request import Request
from scheduler.waitlist import Waitlist
from tests.scheduler.classes import BATCH, INTERACTIVE, STANDARD, asked
from tests.scheduler.world import FACTS, true_answer, true_next

PASS_TIMEOUT_S = 10.0


class Groups:
    """A core and its target groups, whose answers come when a test says so."""

    def __init__(self, *addresses: str, num_places: int = 4, num_kv_blocks: int = 64) -> None:
        self.core = Core(CoreConfig(max_running_requests=num_places, pass_timeout_s=PASS_TIMEOUT_S))
        self.facts = replace(FACTS, num_kv_blocks=num_kv_blocks)
        self.now_s = 0.0
        self.passes: dict[int, SendPass] = {}  # that are not answered, of groups that are there
        self.answers: dict[int, PassDone] = {}  # computed, and on their way
        self.new: dict[int, NewRequest] = {}
        self.tokens: dict[int, list[int]] = {}  # that were emitted
        self.ends: dict[int, Finish] = {}
        self.texts: dict[tuple[str, int], tuple[int, list[int]]] = {}  # epoch and tokens, by group and request
        for address in addresses:
            self.up(address)

    def up(self, address: str) -> list[Command]:
        return self.post(TargetUp(self.facts, address))

    def down(self, address: str) -> list[Command]:
        self._forget(address)
        return self.post(TargetDown(address))

    def leave(self, address: str) -> list[Command]:
        return self.post(TargetLeaving(address))

    def ask(self, new: NewRequest) -> list[Command]:
        self.new[new.number], self.tokens[new.number] = new, []
        return self.post(Submitted(new))

    def answer(self, pass_id: int) -> list[Command]:
        del self.passes[pass_id]
        return self.post(self.answers.pop(pass_id))

    def answer_all(self) -> None:
        while self.passes:
            self.answer(min(self.passes))

    def where(self, number: int) -> str | None:
        request = self.core._running.get(number)
        return None if request is None else request.target.group

    def running(self) -> dict[str, list[int]]:
        return {group.address: sorted(group.running) for group in self.core.groups}

    def post(self, event: Event) -> list[Command]:
        commands = self.core.handle(event, self.now_s)
        for command in commands:
            match command:
                case SendPass(pass_id, rows, target):
                    assert self.core.groups.get(target) is not None, "a pass for a group that is not there"
                    self.passes[pass_id] = command
                    outcomes = [self._outcome(target, row) for row in rows]
                    self.answers[pass_id] = PassDone(pass_id, outcomes, self.facts.num_kv_blocks, target=target)
                case ReleaseTarget(request, epoch, target):
                    if self.texts.get((target, request), (0, []))[0] == epoch:
                        del self.texts[target, request]
                case ResetTarget(_, target):
                    self._forget(target)
                case Emit(request, tokens):
                    self.tokens[request] += tokens
                case Finish(request):
                    assert request not in self.ends
                    self.ends[request] = command
        return commands

    def _forget(self, address: str) -> None:
        self.passes = {pass_id: sent for pass_id, sent in self.passes.items() if sent.target != address}
        self.texts = {key: text for key, text in self.texts.items() if key[0] != address}

    def _outcome(self, target: str, row: PlannedRow) -> RowOutcome:
        epoch, tokens = self.texts.get((target, row.request), (0, []))
        if row.opening is not None:
            epoch, tokens = row.epoch, []
        if epoch != row.epoch or row.tokens_start > len(tokens):
            return RowOutcome(row.request, row.epoch, row.committed_len, "prefix_missing", known_len=len(tokens))
        tokens = [*tokens[: row.tokens_start], *row.tokens] if row.tokens else list(tokens)
        chosen = [true_next(tuple(tokens))] if len(tokens) == row.committed_len else []
        self.texts[target, row.request] = row.epoch, [*tokens, *chosen]
        return RowOutcome(row.request, row.epoch, row.committed_len, "ok", chosen, len(tokens) + len(chosen))


def test_requests_are_spread_over_the_groups_and_each_has_places_of_its_own() -> None:
    groups = Groups("a", "b", num_places=2)
    for number in range(1, 6):
        groups.ask(asked(number))
    assert {address: len(numbers) for address, numbers in groups.running().items()} == {"a": 2, "b": 2}
    assert (groups.core.num_running, groups.core.num_queued, groups.core.groups.num_places) == (4, 1, 4)
    assert {sent.target for sent in groups.passes.values()} == {"a", "b"}
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())


@pytest.mark.parametrize(("prompt", "num_beside"), [(80, 3), (3, 1)])
def test_followers_go_to_their_leader_where_its_prompt_is_worth_it(prompt: int, num_beside: int) -> None:
    """A prompt of 20 blocks is not computed again; one that fills no block draws nobody, and the places are shared."""
    groups = Groups("a", "b", num_kv_blocks=1000)
    groups.ask(asked(1, prompt=prompt, max_tokens=9))
    for number in (2, 3, 4):
        groups.ask(asked(number, prompt=prompt, max_tokens=9, leader=1))
    assert groups.core.num_queued == 3
    while groups.core.num_queued:
        groups.answer(min(groups.passes))
    assert [groups.where(number) for number in (1, 2, 3, 4)].count(groups.where(1)) - 1 == num_beside


def test_the_requests_of_a_lost_group_go_to_another_at_once_with_their_tokens_and_their_drafters() -> None:
    groups = Groups("a", "b")
    groups.post(DrafterUp("w", ["d"]))
    for number in (1, 2):
        groups.ask(replace(asked(number, max_tokens=9), speculates=True, max_nodes=2))
    groups.answer(min(groups.passes))
    lost = groups.where(1)
    assert lost is not None
    assert groups.where(2) != lost
    commands = groups.down(lost)
    assert groups.where(1) == groups.where(2) != lost
    assert not any(isinstance(command, (ReleaseTarget, ReleaseDrafter, SendOrder)) for command in commands)
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())
    assert groups.ends[1].stats.num_preemptions == 0


def test_the_most_urgent_ones_get_what_room_there_is_and_the_others_wait() -> None:
    groups = Groups("a", num_places=3)
    for number, service_class in enumerate([BATCH, STANDARD, INTERACTIVE], 1):
        groups.ask(asked(number, service_class))
    groups.up("b")
    groups.ask(asked(4, STANDARD))
    groups.down("a")
    assert (groups.running(), groups.core.num_queued) == ({"b": [2, 3, 4]}, 1)
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())


def test_what_lost_its_group_preempts_what_is_less_urgent_elsewhere() -> None:
    groups = Groups("a", num_places=1)
    groups.ask(asked(1, INTERACTIVE))
    groups.up("b")
    groups.ask(asked(2, BATCH))
    assert groups.running() == {"a": [1], "b": [2]}
    groups.down("a")
    assert (groups.running(), groups.core.num_queued) == ({"b": [1]}, 1)
    groups.answer_all()
    assert groups.tokens[2] == true_answer(groups.new[2])
    assert [groups.ends[number].stats.num_preemptions for number in (1, 2)] == [0, 1]


def test_those_without_room_start_again_before_what_came_after_them_in_their_order() -> None:
    groups = Groups("a", num_places=2)
    for number in (1, 2):
        groups.ask(asked(number))
    groups.up("b")
    for number in (3, 4, 5):
        groups.ask(asked(number))
    assert groups.running() == {"a": [1, 2], "b": [3, 4]}
    groups.down("a")
    assert (groups.running(), groups.core.num_queued) == ({"b": [3, 4]}, 3)
    groups.post(Cancelled(3))
    assert groups.running() == {"b": [1, 4]}
    groups.post(Cancelled(4))
    assert groups.running() == {"b": [1, 2]}


def test_while_no_group_is_there_the_last_ones_requests_keep_their_places() -> None:
    groups = Groups("a", "b", num_places=1)
    for number in (1, 2, 3):
        groups.ask(asked(number))
    groups.down("a")
    groups.down("b")
    assert (groups.core.num_running, groups.core.num_queued) == (1, 2)
    assert not groups.core.has_target
    groups.up("c")
    assert (groups.running(), groups.core.num_queued) == ({"c": [2]}, 2), "a's was put back when b was full"
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())


def test_a_late_answer_of_a_group_that_a_request_has_left_commits_nothing() -> None:
    groups = Groups("a", "b")
    groups.ask(asked(1))
    sent = next(iter(groups.passes.values()))
    other = {"a": "b", "b": "a"}[sent.target]
    groups.down(sent.target)
    groups.up(sent.target)
    row = sent.rows[0]
    outcome = RowOutcome(1, row.epoch, row.committed_len, "ok", [3], row.committed_len + 1)
    for target in (sent.target, other):
        commands = groups.post(PassDone(sent.pass_id, [outcome], 64, target=target))
        assert not any(isinstance(command, Emit) for command in commands)
    assert groups.where(1) == other


def test_an_answer_counts_only_from_the_group_that_was_asked() -> None:
    groups = Groups("a", "b")
    groups.ask(asked(1))
    sent = next(iter(groups.passes.values()))
    row = sent.rows[0]
    outcome = RowOutcome(1, row.epoch, row.committed_len, "ok", [3], row.committed_len + 1)
    other = {"a": "b", "b": "a"}[sent.target]
    assert groups.post(PassDone(sent.pass_id, [outcome], 64, target=other)) == []
    assert any(isinstance(c, Emit) for c in groups.post(PassDone(sent.pass_id, [outcome], 64, target=sent.target)))


def test_a_group_that_hangs_is_reset_alone() -> None:
    groups = Groups("a", "b")
    for number in (1, 2):
        groups.ask(asked(number))
    hanging = groups.where(1)
    groups.now_s = PASS_TIMEOUT_S - 1
    groups.answer(next(pass_id for pass_id, sent in groups.passes.items() if sent.target != hanging))
    groups.now_s = PASS_TIMEOUT_S
    commands = groups.post(Tick())
    assert [command.target for command in commands if isinstance(command, ResetTarget)] == [hanging]
    assert groups.where(1) == groups.where(2) != hanging


def test_a_request_that_no_group_could_hold_fails_and_one_that_some_could_does_not() -> None:
    groups = Groups("a", num_kv_blocks=8)
    groups.facts = replace(FACTS, num_kv_blocks=40)
    groups.up("b")
    groups.ask(asked(1, prompt=100))
    groups.ask(asked(2, prompt=200))
    assert groups.where(1) == "b"
    assert isinstance(groups.ends[2].error, Overloaded)


def test_one_that_only_a_missing_group_could_hold_waits_for_it_and_holds_up_nobody() -> None:
    groups = Groups("a", num_kv_blocks=8)
    groups.facts = replace(FACTS, num_kv_blocks=40)
    groups.post(TargetsExpected(2))
    groups.up("b")
    groups.ask(asked(1, prompt=100, max_tokens=3))
    groups.answer(min(groups.passes))
    assert groups.where(1) == "b"
    groups.down("b")
    groups.ask(asked(2))
    assert (groups.running(), groups.core.num_queued, groups.ends) == ({"a": [2]}, 1, {})
    groups.up("c")
    assert groups.where(1) == "c"
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())


def test_and_fails_once_that_one_is_given_up_or_has_come_back_smaller() -> None:
    for event in (TargetsExpected(1), TargetUp(replace(FACTS, num_kv_blocks=8), "b")):
        groups = Groups("a", num_kv_blocks=8)
        groups.post(TargetsExpected(2))
        groups.ask(asked(1, prompt=100))
        assert groups.ends == {}
        groups.post(event)
        error = groups.ends[1].error
        assert isinstance(error, Overloaded)
        assert "may come to need 27 KV blocks: the target's KV cache holds 8 blocks of 4 tokens" in error.message


def test_a_request_that_was_paid_for_is_so_again_where_it_lost_its_place() -> None:
    """A batch request that its class was due starts before the interactive ones, however often it is put back."""
    waitlist, batch = Waitlist(), Request(asked(1, BATCH, max_tokens=8), 0.0)
    waitlist.add(batch)
    served = Request(asked(2, INTERACTIVE, max_tokens=10_000), 0.0)
    waitlist.add(served)
    waitlist.start(served)
    waitlist.note_served(served, 1000)
    waiting = Request(asked(3, INTERACTIVE), 0.0)
    waitlist.add(waiting)
    for _ in range(3):
        assert waitlist.next(lambda _: True) is batch
        waitlist.start(batch)
        assert batch.is_paid_for
        batch.stats.started_s = 0.0
        waitlist.put_back(batch)
        assert not batch.is_paid_for


@pytest.mark.parametrize("lost", ["a", "b"])
def test_what_is_learned_of_drafters_outlives_a_group(lost: str) -> None:
    groups = Groups("a", "b")
    policies = {group.address: group.policy for group in groups.core.groups}
    assert policies["a"] is not policies["b"]
    groups.down(lost)
    groups.up("c")
    kept = {group.address: group.policy for group in groups.core.groups}
    assert kept["c"] is policies[lost]


# ── a group that is to be left ──────────────────────────────────────────────────────────────────────


def test_the_requests_of_a_group_that_is_left_move_at_their_next_verdict_with_what_they_have() -> None:
    groups = Groups("a")
    groups.post(DrafterUp("w", ["d"]))
    for number in (1, 2):
        groups.ask(replace(asked(number, max_tokens=9), speculates=True, max_nodes=2))
    groups.up("b")
    epochs = {number: groups.core._running[number].target.epoch for number in (1, 2)}
    [row] = groups.passes[1].rows
    assert row.request == 1
    commands = groups.leave("a")
    assert groups.running() == {"a": [1], "b": [2]}, "what is being computed is not in vain"
    assert groups.core.num_requests_on("a") == 1
    commands += groups.answer(1)
    assert groups.running() == {"a": [], "b": [1, 2]}
    assert groups.core.num_requests_on("a") == 0
    released = [command for command in commands if isinstance(command, ReleaseTarget)]
    assert [(each.request, each.epoch, each.target) for each in released] == [(2, epochs[2], "a"), (1, epochs[1], "a")]
    assert not any(isinstance(command, ReleaseDrafter) for command in commands)
    assert len(groups.tokens[1]) == 1
    assert groups.down("a") == []
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())
    assert [groups.ends[number].stats.num_preemptions for number in (1, 2)] == [0, 0]


def test_nothing_starts_on_a_group_that_is_left_and_it_counts_for_nothing() -> None:
    groups = Groups("a", "b", num_places=2)
    groups.leave("a")
    for number in (1, 2, 3):
        groups.ask(asked(number))
    assert groups.running() == {"a": [], "b": [1, 2]}
    assert (groups.core.num_queued, groups.core.groups.num_places) == (1, 2)
    groups.up("c")
    assert groups.running() == {"a": [], "b": [1, 2], "c": [3]}


def test_those_for_whom_there_is_no_room_run_on_until_there_is_the_most_urgent_first() -> None:
    groups = Groups("a", num_places=2)
    for number, service_class in enumerate([BATCH, INTERACTIVE], 1):
        groups.ask(asked(number, service_class, max_tokens=20))
    groups.up("b")
    groups.ask(asked(3, max_tokens=1))
    groups.ask(asked(4, INTERACTIVE, max_tokens=3))
    groups.leave("a")
    of_b = next(pass_id for pass_id, sent in groups.passes.items() if sent.target == "b")
    groups.answer(min(groups.passes))
    assert groups.running() == {"a": [1, 2], "b": [3, 4]}, "nobody gives way to one that runs"
    groups.answer(of_b)
    groups.answer(next(pass_id for pass_id, sent in groups.passes.items() if sent.target == "a"))
    assert groups.running() == {"a": [1], "b": [2, 4]}
    groups.down("a")
    assert (groups.running(), groups.core.num_queued) == ({"b": [2, 4]}, 1), "as if it had been lost"
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())


def test_the_last_group_runs_on_with_what_it_has_when_it_is_left_and_nothing_new_starts() -> None:
    groups = Groups("a", num_places=2)
    groups.ask(asked(1, max_tokens=9))
    groups.leave("a")
    groups.ask(asked(2))
    assert (groups.running(), groups.core.num_queued, groups.core.has_target) == ({"a": [1]}, 1, False)
    groups.answer(min(groups.passes))
    groups.up("b")
    groups.answer(min(groups.passes))
    assert groups.running() == {"a": [], "b": [1, 2]}
    groups.answer_all()
    assert all(groups.tokens[number] == true_answer(new) for number, new in groups.new.items())


def test_what_lost_its_group_goes_to_none_that_is_left() -> None:
    groups = Groups("a", "b")
    groups.ask(asked(1))
    lost = groups.where(1)
    assert lost is not None
    other = {"a": "b", "b": "a"}[lost]
    groups.leave(other)
    groups.down(lost)
    assert (groups.running(), groups.core.num_running) == ({other: []}, 1)
    groups.up("c")
    assert groups.where(1) == "c"
    groups.answer_all()
    assert groups.tokens[1] == true_answer(groups.new[1])


# ── any sequence of events ──────────────────────────────────────────────────────────────────────────

ADDRESSES = st.sampled_from(["a", "b", "c"])
SMALL, LARGE = 8, 24  # KV blocks of a group


class AnySequence(RuleBasedStateMachine):
    """Groups come, go, hang and answer in any order; at the end every answer is the true one."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups(num_places=3, num_kv_blocks=LARGE)
        self.number = 0
        self.cancelled: set[int] = set()

    @rule(address=ADDRESSES, num_kv_blocks=st.sampled_from([SMALL, LARGE]))
    def come(self, address: str, num_kv_blocks: int) -> None:
        self.groups.facts = replace(FACTS, num_kv_blocks=num_kv_blocks)
        if self.groups.core.groups.get(address) is None:
            self.groups.up(address)

    @rule(address=ADDRESSES)
    def go(self, address: str) -> None:
        self.groups.down(address)

    @rule(number=st.integers(0, 3))
    def expect(self, number: int) -> None:
        self.groups.post(TargetsExpected(number))

    @rule(address=ADDRESSES)
    def leave(self, address: str) -> None:
        self.groups.leave(address)

    @rule(
        service_class=st.sampled_from([INTERACTIVE, STANDARD, BATCH]),
        tenant=st.sampled_from(["x", "y"]),
        prompt=st.integers(1, 40),
        max_tokens=st.integers(1, 12),
        follows=st.booleans(),
    )
    def ask(self, service_class: int, tenant: str, prompt: int, max_tokens: int, follows: bool) -> None:
        self.number += 1
        new = asked(self.number, service_class, tenant, prompt=prompt, max_tokens=max_tokens)  # type: ignore[arg-type]
        if follows and self.number > 1:
            before = self.groups.new[self.number - 1]
            new = replace(new, prompt=before.prompt, leader=before.number)
        self.groups.ask(new)

    @precondition(lambda self: self.groups.passes)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.01, 1.0]))
    def answer(self, data: st.DataObject, seconds: float) -> None:
        """In a group they come in the order of the passes."""
        firsts = {sent.target: pass_id for pass_id, sent in sorted(self.groups.passes.items(), reverse=True)}
        self.groups.now_s += seconds
        self.groups.answer(data.draw(st.sampled_from(sorted(firsts.values()))))

    @rule()
    def hang(self) -> None:
        self.groups.now_s += PASS_TIMEOUT_S
        self.groups.post(Tick())

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, self.number))
        self.cancelled.add(number)
        self.groups.post(Cancelled(number))

    @invariant()
    def every_running_request_is_on_one_group_that_has_room_for_it(self) -> None:
        core = self.groups.core
        on_groups = [number for group in core.groups for number in group.running]
        assert len(on_groups) == len(set(on_groups))
        assert set(on_groups) | set(core._stranded) == set(core._running)
        assert not (core._stranded and core.has_target), "none is without a group while one is there"
        for group in core.groups:
            assert len(group.running) <= group.capacity.num_places
            assert sum(map(group.capacity.blocks_of, group.running.values())) <= group.capacity.num_blocks
            assert all(request.target.group == group.address for request in group.running.values())

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        """A group without any request would take whichever comes first, unless that is too large for it."""
        core = self.groups.core
        first = core._waitlist.next(core._may_start)
        for group in core.groups.staying if first is not None else ():
            assert group.running or group.capacity.blocks_of(first) > group.capacity.num_blocks

    @invariant()
    def no_request_is_twice_in_the_passes(self) -> None:
        core = self.groups.core
        rows = Counter(
            (row.request, row.epoch)
            for sent in self.groups.passes.values()
            for row in sent.rows
            if row.request in core._running
            and row.epoch == core._running[row.request].target.epoch
            and not row.is_ahead
        )
        assert all(number == 1 for number in rows.values()), rows

    def teardown(self) -> None:
        self.groups.post(TargetsExpected(1))
        self.groups.down("a")
        self.groups.facts = replace(FACTS, num_kv_blocks=LARGE)
        self.groups.up("a")
        for _ in range(10_000):
            if self.groups.passes:
                self.groups.answer(min(self.groups.passes))
            elif (wakeup_s := self.groups.core.next_wakeup_s()) is not None:
                self.groups.now_s = max(self.groups.now_s, wakeup_s)
                self.groups.post(Tick())
            else:
                break
        self._check_ends(range(1, self.number + 1))

    def _check_ends(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            new, got = self.groups.new[number], self.groups.tokens[number]
            true, end = true_answer(new), self.groups.ends.get(number)
            assert got == true[: len(got)]
            if number in self.cancelled:
                continue
            assert end is not None, f"request {number} never ended"
            match end.error:
                case None:
                    assert len(got) == len(true)
                case Overloaded():  # no group that was there could hold it
                    assert Request(new, 0.0).blocks_reserved(FACTS.block_size) > SMALL
                case _:
                    assert "passes in a row had no answer" in end.error.message
        core = self.groups.core
        assert (core.num_running, core.num_queued, self.groups.texts) == (0, 0, {})


AnySequence.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=150, stateful_step_count=40)
test_any_sequence = AnySequence.TestCase
