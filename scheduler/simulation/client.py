"""A user: asks, reads, comes back with what is there when the stream breaks, and at times just goes away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from outrider.errors import DeadlineExceeded, OutriderError
from outrider.v1.inference_pb2 import ACCEPTANCE_RULE_REJECTION, SERVICE_CLASS_STANDARD, SamplingParams, ServiceClass
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.events import Cancelled, Emit, Finish, NewRequest, Stopped, Submitted
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.scheduler import Scheduler

RETRY_PAUSE_S = 0.5  # before asking again where nobody answers, or the queue is full


@dataclass(frozen=True, slots=True)
class Question:
    """What a user wants. Times are seconds after it is asked."""

    seed: int
    prompt: Sequence[int]
    max_tokens: int
    end_token_ids: frozenset[int] = frozenset()
    max_nodes: int = 8
    speculates: bool = True
    is_drawn_for: bool = False  # asks for the rejection rule
    wants_logprobs: bool = False
    deadline_s: float | None = None
    vanishes_s: float | None = None
    stops_after: int | None = None  # tokens, in which the text comes to a stop string
    service_class: ServiceClass = SERVICE_CLASS_STANDARD
    tenant: str = ""


class Reception(Protocol):
    """Where users come to: the scheduler that lives now, if one does."""

    agenda: Agenda
    scheduler: Scheduler | None

    def admit(self, client: Client) -> int | None:
        """A number for a request; None: the queue is full."""


@dataclass(slots=True, eq=False)
class Client:
    """One question and what has come of it."""

    reception: Reception
    question: Question
    on_end: Callable[[Client], None]
    leader: Client | None = None  # asked the same before: its prompt is to be found, not computed again
    tokens: list[int] = field(default_factory=list)
    is_over: bool = False
    has_vanished: bool = False
    has_stopped: bool = False  # its text has come to the stop string
    error: OutriderError | None = None
    finish: Finish | None = None
    number: int | None = None  # of its request in the scheduler that lives
    asked_s: float = 0.0
    first_token_s: float | None = None
    ended_s: float | None = None
    resets_before: int = 0  # of the target, when the request was made
    excuses: set[type[OutriderError]] = field(default_factory=set)  # errors that it may end with
    breaches: list[str] = field(default_factory=list)  # of the core's contract with a stream

    # ── what it does ────────────────────────────────────────────────────────────────────────────────

    def ask(self) -> None:
        self.asked_s = self.reception.agenda.now_s
        if self.question.vanishes_s is not None:
            self.reception.agenda.after(self.question.vanishes_s, self._vanish)
        self._submit()

    def _submit(self) -> None:
        """Ask for what is missing; later, if nobody takes it now."""
        scheduler = self.reception.scheduler
        if self.is_over:
            return
        if self._time_left_s is not None and self._time_left_s <= 0:
            self._end(DeadlineExceeded("the deadline passed before anybody answered"))
            return
        self.number = self.reception.admit(self) if scheduler is not None else None
        if scheduler is None or self.number is None:
            self.reception.agenda.after(RETRY_PAUSE_S, self._submit)
            return
        self.resets_before = scheduler.num_resets
        scheduler.post(Submitted(self._request(self.number, scheduler.now_s)))

    def lose_stream(self) -> None:
        """The scheduler, or the way to it, is gone. What came so far is kept, and the rest asked for."""
        self.number = None
        if self.has_stopped or self._is_complete:
            self._end(None)
        elif not self.is_over:
            self.reception.agenda.after(RETRY_PAUSE_S, self._submit)

    def _vanish(self) -> None:
        if self.is_over:
            return
        number, scheduler = self.number, self.reception.scheduler
        self.has_vanished = True
        self._end(None)
        if number is not None and scheduler is not None:
            scheduler.post(Cancelled(number))

    # ── what comes to it ────────────────────────────────────────────────────────────────────────────

    def take(self, command: Emit | Finish) -> None:
        if self.is_over:
            if not self.has_vanished:
                self.breaches.append(f"{type(command).__name__} after the end")
            return
        if isinstance(command, Finish):
            self.finish = command
            self._end(command.error)
            return
        if len(command.sources) != len(command.tokens) or len(command.logprobs) != len(command.tokens):
            self.breaches.append(f"{len(command.tokens)} tokens with lists of other lengths: {command}")
        for token, logprobs in zip(command.tokens, command.logprobs, strict=False):
            if (logprobs.logprob if logprobs else None) != (-float(token) if self.question.wants_logprobs else None):
                self.breaches.append(f"token {token} with log-probabilities {logprobs}")
        if self.first_token_s is None:
            self.first_token_s = self.reception.agenda.now_s
        if not self.has_stopped:
            self.tokens += command.tokens
            self._look_for_stop()

    def _look_for_stop(self) -> None:
        stops_after, scheduler = self.question.stops_after, self.reception.scheduler
        if stops_after is None or len(self.tokens) < stops_after or scheduler is None or self.number is None:
            return
        del self.tokens[stops_after:]
        self.has_stopped = True
        number = self.number
        self.reception.agenda.after(0.0, lambda: scheduler.post(Stopped(number)))

    def _end(self, error: OutriderError | None) -> None:
        self.is_over, self.error, self.number = True, error, None
        self.ended_s = self.reception.agenda.now_s
        self.on_end(self)

    # ── its request ─────────────────────────────────────────────────────────────────────────────────

    @property
    def _is_complete(self) -> bool:
        full = len(self.tokens) >= self.question.max_tokens
        return full or bool(self.tokens and self.tokens[-1] in self.question.end_token_ids)

    @property
    def _time_left_s(self) -> float | None:
        if self.question.deadline_s is None:
            return None
        return self.asked_s + self.question.deadline_s - self.reception.agenda.now_s

    def _request(self, number: int, now_s: float) -> NewRequest:
        question, left_s = self.question, self._time_left_s
        sampling = SamplingParams(seed=question.seed, temperature=1.0 if question.is_drawn_for else 0.0)
        if question.wants_logprobs:
            sampling.logprobs = 0
        opening = OpenRequest(
            sampling=sampling,
            acceptance_rule=ACCEPTANCE_RULE_REJECTION if question.is_drawn_for else None,
            num_prompt_tokens=len(question.prompt),
            end_token_ids=sorted(question.end_token_ids),
        )
        return NewRequest(
            number=number,
            prompt=question.prompt,
            max_tokens=question.max_tokens,
            end_token_ids=question.end_token_ids,
            stop_token_ids=frozenset(),
            opening=opening,
            speculates=question.speculates,
            drafters=frozenset(),
            max_nodes=question.max_nodes if question.speculates else 0,
            deadline_s=None if left_s is None else now_s + left_s,
            resumed=list(self.tokens),
            leader=self.leader.number if self.leader is not None else None,
            service_class=question.service_class,
            tenant=question.tenant,
        )
