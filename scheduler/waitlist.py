"""Who starts next. Part of the core: no I/O.

The most urgent class first; within a class the tenant that has had the least (account.py); of a tenant what came first,
and before that what was preempted.

A less urgent class that waits is due a share of what the more urgent ones are served meanwhile, less what it is served
itself. Once its next request is paid for, to its last token, that one is the next to start, and is not preempted: so no
class starves, and what it is due can't be taken back. What it has beyond that, of places that nobody else wanted, can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from outrider.v1.inference_pb2 import ServiceClass
from scheduler.account import Accounts
from scheduler.request import Request
from scheduler.service_class import BY_URGENCY, SHARE


@dataclass(slots=True)
class _Line:
    """Those of one class."""

    accounts: Accounts = field(default_factory=Accounts)
    num_waiting: int = 0
    due: float = 0.0  # tokens


class Waitlist:
    """Holds the requests that wait, and counts what those that run are served."""

    def __init__(self) -> None:
        self._lines: dict[ServiceClass, _Line] = {each: _Line() for each in BY_URGENCY}

    def __len__(self) -> int:
        return sum(line.num_waiting for line in self._lines.values())

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        for line in self._lines.values():
            for account in line.accounts.waiting():
                yield from account.waiting

    def num_waiting_of(self, tenant: str) -> int:
        return sum(line.accounts.num_waiting_of(tenant) for line in self._lines.values())

    # ── who waits ───────────────────────────────────────────────────────────────────────────────────

    def add(self, request: Request) -> None:
        line = self._line(request)
        line.accounts.open(request.new.tenant).waiting.append(request)
        line.num_waiting += 1

    def put_back(self, request: Request) -> None:
        """One that ran, and has no room any more: it is the first of its tenant's. If it was paid for, it is again the
        next to start."""
        line = self._line(request)
        line.accounts.of(request.new.tenant).waiting.appendleft(request)
        line.num_waiting += 1
        self._settle(request)
        request.is_paid_for = False

    def remove(self, request: Request) -> None:
        """It is over before it has started, or before it has started again."""
        self._take_out(request)
        self._line(request).accounts.forget_if_idle()

    def next(self, may_start: Callable[[Request], bool]) -> Request | None:
        """The one to start before all others, of those that may; None: none may."""
        first = [request for line in self._lines.values() if (request := _first(line, may_start)) is not None]
        return next(filter(self._is_due, first), first[0] if first else None)

    # ── who runs ────────────────────────────────────────────────────────────────────────────────────

    def start(self, request: Request) -> None:
        """It waits no longer. What has to be computed before its next token counts as served, the first time."""
        is_due, tokens_left = self._is_due(request), _tokens_left(request)
        line, account = self._line(request), self._line(request).accounts.of(request.new.tenant)
        line.accounts.note_start(account)
        self._take_out(request)
        if is_due:
            request.is_paid_for = True
            line.due = line.due - tokens_left if line.num_waiting else 0.0
        account.pending += tokens_left
        if request.stats.started_s is None:
            self.note_served(request, request.committed_len)

    def note_served(self, request: Request, num_tokens: int) -> None:
        account = self._line(request).accounts.of(request.new.tenant)
        account.served += num_tokens
        account.pending -= num_tokens
        own = request.new.service_class
        for each, line in self._lines.items():
            if each > own and line.num_waiting:
                line.due += SHARE * num_tokens
            elif each == own and not request.is_paid_for:
                line.due = max(line.due - num_tokens, 0.0)

    def note_end(self, request: Request) -> None:
        """Of one that runs."""
        self._settle(request)
        self._line(request).accounts.forget_if_idle()

    def _settle(self, request: Request) -> None:
        """What it has not taken was not served."""
        line, tokens_left = self._line(request), request.new.max_tokens - request.num_completion_tokens
        line.accounts.of(request.new.tenant).pending -= tokens_left
        if request.is_paid_for and line.num_waiting:
            line.due += tokens_left

    def _line(self, request: Request) -> _Line:
        return self._lines[request.new.service_class]

    def _take_out(self, request: Request) -> None:
        line = self._line(request)
        line.accounts.of(request.new.tenant).waiting.remove(request)
        line.num_waiting -= 1
        if not line.num_waiting:
            line.due = 0.0

    def _is_due(self, request: Request) -> bool:
        """Whether it goes before more urgent ones, its class being due as much as it may take."""
        return request.new.service_class != BY_URGENCY[0] and self._line(request).due >= _tokens_left(request)


def _first(line: _Line, may_start: Callable[[Request], bool]) -> Request | None:
    waiting: Iterable[Request] = (request for account in line.accounts.waiting() for request in account.waiting)
    return next(filter(may_start, waiting), None)


def _tokens_left(request: Request) -> int:
    """That it may still take. Started again, it owes nothing for what has to be computed once more."""
    rest = request.new.max_tokens - request.num_completion_tokens
    return rest + (request.committed_len if request.stats.started_s is None else 0)
