"""What must hold of a schedule, whatever went wrong in it: it knows every true token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from outrider.errors import DeadlineExceeded, Overloaded, ServerUnavailable
from scheduler.core import MAX_UNANSWERED_PASSES
from scheduler.events import TargetFacts
from scheduler.simulation.cell import Cell
from scheduler.simulation.client import Client, Question
from scheduler.simulation.law import Law

_FURTHEST = 8  # tokens that a gap or a repetition is looked for


@dataclass(slots=True)
class Findings:
    """How many of each; a sound core has none, save `failed`."""

    lost: int = 0  # answers in which true tokens are missing
    repeated: int = 0  # answers in which some are there twice
    wrong: int = 0  # answers with other tokens than the true ones
    leaked: int = 0  # things that are held when nobody wants anything any more
    unended: int = 0  # requests that never ended
    broken: int = 0  # the core raised, or broke its contract; or an error without a cause
    what: list[str] = field(default_factory=list)

    def note(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.what.append(f"{kind}: {what}")

    @property
    def num(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "what")


def judge(cell: Cell, findings: Findings) -> None:
    """At the end, when nothing will happen any more."""
    for index, client in enumerate(cell.clients):
        name = f"client {index}"
        for breach in client.breaches:
            findings.note("broken", f"{name}: {breach}")
        if not client.is_over:
            findings.note("unended", f"{name} has {len(client.tokens)} tokens and waits")
        _judge_tokens(client, cell.model.law, findings, name)
        _judge_error(client, cell.model.target.facts, findings, name)
    _judge_leaks(cell, findings)


def _judge_tokens(client: Client, law: Law, findings: Findings, name: str) -> None:
    question = client.question
    true = law.answer(question.seed, question.prompt, question.max_tokens, question.end_token_ids)
    got = client.tokens
    if got != true[: len(got)]:
        kind = difference(got, true)
        findings.note(kind, f"{name} got {got}, and the truth is {true}")
        return
    is_partial = client.error is not None or client.has_vanished or client.has_stopped or not client.is_over
    if len(got) < len(true) and not is_partial:
        findings.note("lost", f"{name} got {len(got)} of {len(true)} tokens, and no error")


def difference(got: Sequence[int], true: Sequence[int]) -> str:
    """What kind of wrong an answer is that is no beginning of the true one."""
    place = next((i for i, (one, other) in enumerate(zip(got, true, strict=False)) if one != other), len(true))
    rest = list(got[place:])
    for far in range(1, _FURTHEST + 1):
        if rest == list(true[place + far : place + far + len(rest)]):
            return "lost"
        if place >= far and rest == list(true[place - far : place - far + len(rest)]):
            return "repeated"
    return "wrong"


def _judge_error(client: Client, facts: TargetFacts, findings: Findings, name: str) -> None:
    """Every error needs a cause that was there."""
    error = client.error
    if error is None or type(error) in client.excuses:
        return
    if isinstance(error, DeadlineExceeded) and client.question.deadline_s is not None:
        return
    if isinstance(error, Overloaded) and _is_too_large(client.question, facts):
        return
    findings.note("broken", f"{name} ended with {type(error).__name__}, and nothing was wrong: {error.message}")


def _is_too_large(question: Question, facts: TargetFacts) -> bool:
    """For the whole cache, in the rule that Request.blocks_reserved states."""
    longest = len(question.prompt) + question.max_tokens + (question.max_nodes if question.speculates else 0)
    return -(-longest // facts.block_size) + 1 > facts.num_kv_blocks


def excuse_unanswered(client: Client, num_resets: int) -> None:
    """A request that was in three passes that nobody answered may be given up: at the third, before that is reset."""
    if num_resets - client.resets_before >= MAX_UNANSWERED_PASSES - 1:
        client.excuses.add(ServerUnavailable)


def _judge_leaks(cell: Cell, findings: Findings) -> None:
    scheduler = cell.scheduler
    if scheduler is not None:
        core = scheduler.core
        if core.num_running or core.num_queued:
            findings.note("leaked", f"the core has {core.num_running} running and {core.num_queued} queued requests")
        if core.next_wakeup_s() is not None:
            findings.note("leaked", f"the core wants to be woken at {core.next_wakeup_s()}")
    for target in cell.targets:
        if target.num_requests:
            findings.note("leaked", f"a target holds {target.num_requests} requests")
        if target.num_free_blocks != cell.model.target.facts.num_kv_blocks:
            findings.note("leaked", f"a target has {target.num_free_blocks} free KV blocks")
    for worker, process in cell.drafter_workers.items():
        if process.num_requests:
            findings.note("leaked", f"drafter worker {worker} holds {process.num_requests} requests")
