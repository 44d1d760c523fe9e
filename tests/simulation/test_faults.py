"""The core in seeded schedules of faults, and cores with a defect, which the same schedules must find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from outrider.tree import Node
from scheduler.core import Core, CoreConfig
from scheduler.drafting import Drafting
from scheduler.events import PassDone, ReleaseDrafter, RowOutcome
from scheduler.request import Commit, Request, SentRow
from scheduler.simulation.campaign import Tally, run_seeds
from scheduler.simulation.schedule import run_schedule
from scheduler.simulation.trace import Trace

NUM_SCHEDULES = 400
NUM_FOR_TWINS = 300


@pytest.mark.parametrize("first", range(0, NUM_SCHEDULES, 100))
def test_no_token_is_lost_repeated_or_wrong_and_nothing_stays_behind(first: int) -> None:
    tally = run_seeds(range(first, first + 100))
    assert tally.failures == []
    assert tally.answers > 150, "most schedules have answers, or they show nothing"
    assert tally.failed > 10, "some faults cost requests, or they are none"
    assert tally.preemptions > 5, "some requests give way to others, or classes are none"


def test_a_seed_is_the_same_schedule_in_every_process() -> None:
    script = (
        "from scheduler.simulation.schedule import run_schedule\n"
        "from scheduler.simulation.trace import Trace\n"
        "for seed in (3, 8, 21):\n"
        "    trace = Trace(10_000)\n"
        "    print(run_schedule(seed, trace=trace), *trace.lines(), sep='\\n')\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "fault" in outputs.pop()


def test_a_trace_holds_the_last_events() -> None:
    whole, last = Trace(100_000), Trace(5)
    run_schedule(3, trace=whole)
    run_schedule(3, trace=last)
    assert list(last.lines()) == list(whole.lines())[-5:]


# ── wrong twins ─────────────────────────────────────────────────────────────────────────────────────


class TakesAnyAnswer(Core):
    """Believes an answer to whatever pass, in whatever epoch, for whatever committed_len."""

    def _finish_pass(self, done: PassDone, now_s: float) -> None:
        known = any(each.pass_id == done.pass_id for group in self.groups for each in group.in_flight)
        if not known:
            outcomes = {outcome.request: outcome for outcome in done.outcomes}
            for number in [number for number in outcomes if number in self._running]:
                self._take_outcome(
                    self._running[number], SentRow(done.pass_id, (), 0, 1, False), outcomes[number], now_s
                )
            return
        super()._finish_pass(done, now_s)

    def _take_outcome(self, request: Request, row: SentRow, outcome: RowOutcome | None, now_s: float) -> None:
        if outcome is not None:
            outcome = replace(outcome, epoch=request.target.epoch, committed_len=request.committed_len)
        super()._take_outcome(request, row, outcome, now_s)


class IgnoresCommittedLen(Core):
    """Takes an answer that says that it begins elsewhere for what comes next, less what would overlap."""

    def _take_outcome(self, request: Request, row: SentRow, outcome: RowOutcome | None, now_s: float) -> None:
        if outcome is not None and outcome.committed_len != request.committed_len:
            skew = outcome.committed_len - request.committed_len
            tokens = outcome.tokens[skew:] if skew > 0 else [*request.tokens[skew:], *outcome.tokens]
            outcome = replace(outcome, committed_len=request.committed_len, tokens=tokens)
        super()._take_outcome(request, row, outcome, now_s)


class ForgetsRunningOnes(Core):
    """Leaves requests in a pass that will never be answered."""

    def _reopen_on_target(self, request: Request) -> None:
        sent = request.sent
        super()._reopen_on_target(request)
        request.sent = sent


class KeepsNothingOfThePreempted(Core):
    """Has them begin again, though their clients hold a part of the answer already."""

    def _preempt(self, request: Request) -> None:
        del request.tokens[len(request.new.prompt) :]
        super()._preempt(request)


class LeavesThemWithTheLostGroup(Core):
    def _rehouse(self) -> None:
        pass


class ReleasesNothingAtTheTarget(Core):
    def _release_everywhere(self, request: Request) -> None:
        self._commands += self._drafting.release(request)


class TrustsTheTargetsTokens(Core):
    """What the core did before the simulator existed: it committed tokens that are none."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        self._vocab_size = 2**31

    def _take_outcome(self, request: Request, row: SentRow, outcome: RowOutcome | None, now_s: float) -> None:
        vocab_size, self._vocab_size = self._vocab_size, 2**31
        super()._take_outcome(request, row, outcome, now_s)
        self._vocab_size = vocab_size


def found_by(core: type[Core]) -> Tally:
    return run_seeds(range(NUM_FOR_TWINS), core)


def test_answers_to_other_passes_would_be_wrong_tokens() -> None:
    tally = found_by(TakesAnyAnswer)
    assert tally.lost + tally.repeated + tally.wrong > 0


def test_an_answer_for_another_committed_len_would_be_wrong_tokens() -> None:
    tally = found_by(IgnoresCommittedLen)
    assert tally.lost + tally.repeated + tally.wrong > 0


def test_a_request_that_is_not_opened_again_would_never_end() -> None:
    assert found_by(ForgetsRunningOnes).unended > 0


def test_a_preempted_request_that_begins_again_would_repeat_tokens() -> None:
    tally = found_by(KeepsNothingOfThePreempted)
    assert tally.repeated + tally.wrong > 0


def test_a_request_that_stays_with_a_lost_group_would_never_end() -> None:
    assert found_by(LeavesThemWithTheLostGroup).unended > 0


def test_a_request_that_is_not_released_would_be_a_leak() -> None:
    assert found_by(ReleasesNothingAtTheTarget).leaked > 0


def test_tokens_that_are_none_would_be_wrong_tokens() -> None:
    assert found_by(TrustsTheTargetsTokens).wrong > 0


def test_a_commit_that_skips_a_token_is_lost_and_one_that_repeats_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Request.commit

    def skipping(request: Request, walked: Sequence[int], nodes: Sequence[Node]) -> Commit:
        return commit(request, walked[1:] if len(walked) > 2 else walked, nodes)

    def repeating(request: Request, walked: Sequence[int], nodes: Sequence[Node]) -> Commit:
        return commit(request, [walked[0], *walked] if len(walked) > 2 else walked, nodes)

    monkeypatch.setattr(Request, "commit", skipping)
    assert found_by(Core).lost > 0
    monkeypatch.setattr(Request, "commit", repeating)
    assert found_by(Core).repeated > 0


def test_drafts_that_are_not_released_would_be_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def release(_: Drafting, __: Request) -> list[ReleaseDrafter]:
        return []

    monkeypatch.setattr(Drafting, "release", release)
    assert found_by(Core).leaked > 0


# ── the command ─────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_what_it_found() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "cluster", "simulate", "--faults", "60", "--seed", "7", "--json", "--processes", "2"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    found = json.loads(run.stdout)
    assert found["schedules"] == 60
    assert [found[kind] for kind in ("lost", "repeated", "wrong", "leaked", "unended", "broken")] == [0] * 6


def test_the_command_replays_a_schedule_event_by_event() -> None:
    command = [sys.executable, "-m", "cluster", "simulate", "--faults", "1", "--seed", "3", "--trace", "20"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert len(run.stdout.splitlines()) == 21
