"""A link between the scheduler and a worker: sessions, one after another, and what a network does to them.

Within a session both directions keep their order, as gRPC streams do, and nothing is lost; when it ends, what was on
its way is. `tamper` and `strays` go beyond that: they change a report, and deliver more copies of it whenever they
like, whether its session lives or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from scheduler.events import Command, Event
from scheduler.simulation.agenda import Action, Agenda

RECONNECT_PAUSE_S = 0.2  # as in scheduler/links.py
_HANDSHAKES = 4  # messages that a session begins with


class Process(Protocol):
    """One life of a worker."""

    def open(self, session: int, reply: Callable[[Event], None]) -> None: ...
    def take(self, session: int, command: Command) -> None: ...
    def close(self, session: int) -> None: ...


class Host:
    """Where a worker's processes run, one at a time."""

    def __init__(self, make: Callable[[], Process]) -> None:
        self._make = make
        self.process: Process | None = None

    def start(self) -> None:
        if self.process is None:
            self.process = self._make()

    def crash(self) -> None:
        self.process = None


@dataclass(frozen=True, slots=True)
class Wire:
    """Delays of one direction."""

    one_way_s: float
    jitter_s: float = 0.0  # uniform, on top

    def delay_s(self, rng: Random) -> float:
        return self.one_way_s + (rng.random() * self.jitter_s if self.jitter_s else 0.0)


class Cut:
    """When a network lets nothing through."""

    def __init__(self) -> None:
        self.until_s = 0.0


class Direction:
    """One way of a session: things arrive in the order in which they were sent."""

    def __init__(self, agenda: Agenda, rng: Random, wire: Wire, cut: Cut) -> None:
        self._agenda = agenda
        self._rng = rng
        self._wire = wire
        self._cut = cut
        self._on_way: deque[tuple[float, Action]] = deque()
        self._last_s = 0.0

    def send(self, arrival: Action) -> None:
        self._last_s = max(self._last_s, self._agenda.now_s + self._wire.delay_s(self._rng))
        self._on_way.append((self._last_s, arrival))
        self._agenda.at(self._last_s, self._flow)

    def _flow(self) -> None:
        now_s = self._agenda.now_s
        if now_s < self._cut.until_s:
            self._agenda.at(self._cut.until_s, self._flow)
            return
        while self._on_way and self._on_way[0][0] <= now_s:
            self._on_way.popleft()[1]()


@dataclass(slots=True)
class _Session:
    number: int
    process: Process
    to_worker: Direction
    to_scheduler: Direction


class Link:
    """`up` and `down` are what the core is told when a session begins and ends. What happens at the scheduler's end
    goes through `do`: a process that is stalled does it later."""

    def __init__(
        self,
        agenda: Agenda,
        rng: Random,
        wire: Wire,
        host: Host,
        do: Callable[[Action], None],
        post: Callable[[Event], None],
        sessions: Iterator[int],
        *,
        up: Event,
        down: Event,
    ) -> None:
        self._agenda = agenda
        self._rng = rng
        self._wire = wire
        self._host = host
        self._do = do
        self._post = post
        self._numbers = sessions
        self._up, self._down = up, down
        self._session: _Session | None = None
        self.cut = Cut()
        self.tamper: Callable[[Event], Event] | None = None
        self.strays: Callable[[Event], Iterable[tuple[float, Event]]] | None = None

    # ── the scheduler's end ─────────────────────────────────────────────────────────────────────────

    def connect(self) -> None:
        """Begin a session once the worker can be reached; go on trying until then."""
        process = self._host.process
        if process is None or self._agenda.now_s < self.cut.until_s:
            self._agenda.after(RECONNECT_PAUSE_S, partial(self._do, self.connect))
            return
        takes_s = _HANDSHAKES * self._wire.delay_s(self._rng)
        self._agenda.after(takes_s, partial(self._do, partial(self._begin, process)))

    def _begin(self, process: Process) -> None:
        if self._host.process is not process or self._agenda.now_s < self.cut.until_s:
            self.connect()
            return
        ways = [Direction(self._agenda, self._rng, self._wire, self.cut) for _ in range(2)]
        self._session = _Session(next(self._numbers), process, *ways)
        process.open(self._session.number, partial(self._report, self._session))
        self._post(self._up)

    def send(self, command: Command) -> None:
        session = self._session
        if session is not None:
            session.to_worker.send(partial(self._arrive, session, command))

    def lose(self) -> None:
        """The session ends; the next one is tried for soon."""
        self._do(self._lose)

    def notice(self, process: Process) -> None:
        """That this process is no more."""
        if self._session is not None and self._session.process is process:
            self.lose()

    def _lose(self) -> None:
        if self._session is None:
            return
        self.close()
        self._post(self._down)
        self._agenda.after(RECONNECT_PAUSE_S, partial(self._do, self.connect))

    def close(self) -> None:
        """Only this end knows of it yet."""
        session, self._session = self._session, None
        if session is not None:
            session.to_worker.send(partial(session.process.close, session.number))

    # ── on the way ──────────────────────────────────────────────────────────────────────────────────

    def _arrive(self, session: _Session, command: Command) -> None:
        if self._host.process is session.process:
            session.process.take(session.number, command)

    def _report(self, session: _Session, event: Event) -> None:
        if self.tamper is not None:
            event = self.tamper(event)
        session.to_scheduler.send(partial(self._do, partial(self._hear, session, event)))
        for delay_s, stray in self.strays(event) if self.strays is not None else ():
            self._agenda.after(delay_s, partial(self._do, partial(self._post, stray)))

    def _hear(self, session: _Session, event: Event) -> None:
        if session is self._session:
            self._post(event)
