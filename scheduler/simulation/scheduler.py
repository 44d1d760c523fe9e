"""The scheduler's process around a core: its clock, its timer, its links. What scheduler/driver.py is in production."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from scheduler.core import Core
from scheduler.events import (
    Emit,
    Event,
    Finish,
    ReleaseDrafter,
    ReleaseTarget,
    ResetTarget,
    SendOrder,
    SendPass,
    Tick,
)
from scheduler.simulation.agenda import Action, Agenda
from scheduler.simulation.link import Link
from scheduler.simulation.trace import Trace

Deliver = Callable[[Emit | Finish], None]


class Scheduler:
    """One life of it."""

    def __init__(self, agenda: Agenda, core: Core, deliver: Deliver, trace: Trace | None = None) -> None:
        self.core = core
        self.target_links: dict[str, Link] = {}
        self.drafter_links: dict[str, Link] = {}
        self._agenda = agenda
        self._deliver = deliver
        self._trace = trace
        self._ahead_s = 0.0  # of its clock, before the world's
        self._stalled_until_s = 0.0
        self._backlog: deque[Action] = deque()  # what came while it was stalled
        self._rings_s: float | None = None  # when the timer is set to
        self._is_dead = False
        self.num_events = 0
        self.num_resets = 0

    @property
    def now_s(self) -> float:
        """On its own clock, which is what deadlines are on."""
        return self._agenda.now_s + self._ahead_s

    def do(self, action: Action) -> None:
        """Have the process do something: in its turn after a stall, never when it is dead."""
        if self._is_dead:
            return
        if self._agenda.now_s < self._stalled_until_s or self._backlog:
            self._backlog.append(action)
        else:
            action()

    def post(self, event: Event) -> None:
        """An event from outside of the process."""
        self.do(partial(self.take, event))

    def take(self, event: Event) -> None:
        """Have the core take an event, and carry out what it says."""
        self._handle(event, self.now_s)

    def _handle(self, event: Event, now_s: float) -> None:
        self.num_events += 1
        if self._trace is not None:
            self._trace.note(now_s, "event", event)
        for command in self.core.handle(event, now_s):
            if self._trace is not None:
                self._trace.note(now_s, "does", command)
            match command:
                case SendPass(target=target) | ReleaseTarget(target=target):
                    if target in self.target_links:
                        self.target_links[target].send(command)
                case SendOrder(worker=worker) | ReleaseDrafter(worker=worker):
                    if worker in self.drafter_links:
                        self.drafter_links[worker].send(command)
                case ResetTarget(target=target):
                    self.num_resets += 1
                    if target in self.target_links:  # the link's task ends a moment later, as asyncio's do
                        self._agenda.after(0.0, self.target_links[target].lose)
                case Emit() | Finish():
                    self._deliver(command)
        self._set_timer()

    # ── its clock ───────────────────────────────────────────────────────────────────────────────────

    def skip(self, seconds: float) -> None:
        """Its clock jumps forward."""
        self._ahead_s += seconds
        self._rings_s = None
        self._set_timer()

    def stall(self, seconds: float) -> None:
        """It does nothing for so long: all that comes meanwhile is taken afterwards, in its order."""
        self._stalled_until_s = max(self._stalled_until_s, self._agenda.now_s + seconds)
        self._agenda.at(self._stalled_until_s, self._catch_up)

    def _catch_up(self) -> None:
        while self._backlog and not self._is_dead and self._agenda.now_s >= self._stalled_until_s:
            self._backlog.popleft()()

    def _set_timer(self) -> None:
        wakeup_s = self.core.next_wakeup_s()
        if wakeup_s == self._rings_s:
            return
        self._rings_s = wakeup_s
        if wakeup_s is not None:
            self._agenda.at(wakeup_s - self._ahead_s, partial(self.do, partial(self._ring, wakeup_s)))

    def _ring(self, wakeup_s: float) -> None:
        if wakeup_s != self._rings_s:
            return  # it was set anew
        self._rings_s = None
        self._handle(Tick(), max(self.now_s, wakeup_s))

    # ── its end ─────────────────────────────────────────────────────────────────────────────────────

    def kill(self) -> None:
        self._is_dead = True
        for link in self.links:
            link.close()

    @property
    def links(self) -> list[Link]:
        return [*self.target_links.values(), *self.drafter_links.values()]
