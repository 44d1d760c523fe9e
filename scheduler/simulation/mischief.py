"""What goes wrong in a schedule, and when: drawn from its seed.

Each schedule has its own temper, a few kinds of mischief out of all: so rare pairs meet, and also calm runs are tried.
Whatever is done ends at `heal`, and then everything has to come to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from outrider.errors import OutriderError, Overloaded
from scheduler.events import Cancelled, Event, PassDone, TargetLeaving
from scheduler.simulation.cell import Cell
from scheduler.simulation.drafter import Drafter
from scheduler.simulation.link import Host, Link
from scheduler.simulation.tampering import tampered
from scheduler.simulation.target import Target

_MAX_STRAY_S = 4.0  # by which a copy of a report may come late


class Mischief:
    def __init__(self, cell: Cell, rng: Random, pass_timeout_s: float) -> None:
        self._cell = cell
        self._rng = rng
        self._timeout_s = pass_timeout_s
        self.skipped_s = 0.0
        kinds: list[Callable[[], None]] = [
            self._crash_target,
            self._crash_all_targets,
            self._crash_drafter,
            self._lose_session,
            self._cut,
            self._slow,
            self._hang,
            self._forget,
            self._squat,
            self._stall_scheduler,
            self._skip_clock,
            self._restart_scheduler,
            self._break_stream,
            self._restart_what_is_down,
            self._drain_target,
        ]
        self._kinds = rng.sample(kinds, rng.randint(0, 5))
        self._tampers = rng.choice([0.0, 0.0, 0.05, 0.3])  # share of reports that are spoiled
        self._strays = rng.choice([0.0, 0.0, 0.1, 0.5])  # share of reports that come again

    def plan(self, until_s: float, every_s: float) -> None:
        """Put it all on the agenda."""
        at_s = self._rng.expovariate(1 / every_s)
        while at_s < until_s and self._kinds:
            self._cell.agenda.at(at_s, self._rng.choice(self._kinds))
            at_s += self._rng.expovariate(1 / every_s)
        self._cell.agenda.at(until_s, self.heal)

    def arm(self) -> None:
        """Watch the links of the scheduler that lives; once for each of its lives."""
        scheduler = self._cell.scheduler
        for link in scheduler.links if scheduler is not None else ():
            link.tamper = self._tamper
            link.strays = self._strays_of

    def heal(self) -> None:
        """From now on everything runs, and runs well; what hangs or is cut comes back in its time."""
        self._tampers = self._strays = 0.0
        for target in self._cell.targets:
            target.slowness, target.num_squatted_blocks = 1.0, 0
        for drafter in self._drafters():
            drafter.slowness = 1.0
        is_new = self._cell.scheduler is None
        self._cell.start()
        if is_new:
            self.arm()

    # ── processes ───────────────────────────────────────────────────────────────────────────────────

    def _crash_target(self) -> None:
        self._crash(self._rng.choice([*self._cell.target_hosts.values()]))

    def _crash_all_targets(self) -> None:
        for host in self._cell.target_hosts.values():
            self._crash(host)

    def _crash_drafter(self) -> None:
        hosts = list(self._cell.drafter_hosts.values())
        if hosts:
            self._crash(self._rng.choice(hosts))

    def _crash(self, host: Host) -> None:
        notice_s = self._rng.choice([0.0, 0.01, 0.5, 2 * self._timeout_s])
        self._note("a worker crashes")
        self._cell.crash(host, notice_s)
        self._cell.agenda.after(self._rng.choice([0.05, 0.5, 3.0]), host.start)

    def _restart_what_is_down(self) -> None:
        for host in (*self._cell.target_hosts.values(), *self._cell.drafter_hosts.values()):
            host.start()

    def _drain_target(self) -> None:
        """It is left, then it ends whether it is or not, and comes again."""
        if self._cell.scheduler is not None:
            target, host = self._rng.choice([*self._cell.target_hosts.items()])
            self._note("a target group is drained")
            self._cell.scheduler.post(TargetLeaving(target))
            self._cell.agenda.after(self._rng.choice([0.0, 0.1, 1.0]), partial(self._crash, host))

    def _restart_scheduler(self) -> None:
        self._note("the scheduler crashes")
        self._cell.kill_scheduler()
        self._cell.agenda.after(self._rng.choice([0.0, 0.1, 1.0]), self._start_scheduler)

    def _start_scheduler(self) -> None:
        if self._cell.scheduler is None:
            self._cell.start_scheduler()
            self.arm()

    def _break_stream(self) -> None:
        """A client's connection breaks: it comes back, and what it had before is ended (scheduler/calls.py)."""
        scheduler = self._cell.scheduler
        streams = [client for client in self._cell.clients if client.number is not None]
        if scheduler is not None and streams:
            self._note("a client's connection breaks")
            client = self._rng.choice(streams)
            assert client.number is not None
            self._cell.end_stream(client.number)
            scheduler.post(Cancelled(client.number))
            client.lose_stream()

    def _slow(self) -> None:
        factor = self._rng.choice([3.0, 30.0, 300.0])
        self._note(f"a worker is {factor:g} times slower")
        workers = self._workers()
        if workers:
            self._rng.choice(workers).slowness = self._rng.choice([1.0, factor])

    def _hang(self) -> None:
        seconds = self._rng.choice([0.3, 1.0, 3.0]) * self._timeout_s
        self._note(f"a worker hangs for {seconds:g} s")
        workers = self._workers()
        if workers:
            self._rng.choice(workers).hangs_until_s = self._cell.agenda.now_s + seconds

    def _forget(self) -> None:
        drafters = self._drafters()
        if drafters:
            self._note("a drafter forgets everything")
            self._rng.choice(drafters).forget_all()

    def _squat(self) -> None:
        """Somebody else takes KV blocks, and gives back what was taken before."""
        if self._cell.targets:
            target, num_blocks = self._rng.choice(self._cell.targets), self._cell.model.target.facts.num_kv_blocks
            target.num_squatted_blocks = self._rng.choice([self._rng.randint(0, num_blocks), num_blocks])
            self._note(f"{target.num_squatted_blocks} of {num_blocks} KV blocks are taken")

    # ── time ────────────────────────────────────────────────────────────────────────────────────────

    def _stall_scheduler(self) -> None:
        if self._cell.scheduler is not None:
            seconds = self._rng.choice([0.1, 1.0, 2.0]) * self._timeout_s
            self._note(f"the scheduler stalls for {seconds:g} s")
            self._cell.scheduler.stall(seconds)

    def _skip_clock(self) -> None:
        if self._cell.scheduler is not None:
            seconds = self._rng.choice([0.01, 1.0, 3.0]) * self._timeout_s
            self._note(f"the scheduler's clock jumps by {seconds:g} s")
            self.skipped_s += seconds
            self._cell.scheduler.skip(seconds)

    # ── the network ─────────────────────────────────────────────────────────────────────────────────

    def _lose_session(self) -> None:
        links = self._links()
        if links:
            self._note("a session is lost")
            self._rng.choice(links).lose()

    def _cut(self) -> None:
        """Nothing comes through for a while; then what waited does, unless somebody gave up before."""
        links = self._links()
        if not links:
            return
        link, now_s = self._rng.choice(links), self._cell.agenda.now_s
        seconds = self._rng.choice([0.05, 0.5, 1.5 * self._timeout_s])
        self._note(f"a link is cut for {seconds:g} s")
        link.cut.until_s = max(link.cut.until_s, now_s + seconds)
        if self._rng.random() < 0.3:
            self._cell.agenda.after(seconds / 2, link.lose)

    def _tamper(self, event: Event) -> Event:
        if isinstance(event, PassDone):
            for outcome in event.outcomes:
                if outcome.status == "no_capacity":
                    self._excuse(outcome.request, Overloaded)
        if self._tampers and self._rng.random() < self._tampers:
            spoiled = tampered(event, self._rng, self._cell.model.law.vocab_size, self._excuse)
            self._note("the next report is spoiled")
            return spoiled
        return event

    def _strays_of(self, event: Event) -> Iterator[tuple[float, Event]]:
        if self._strays and self._rng.random() < self._strays:
            for _ in range(self._rng.randint(1, 2)):
                yield self._rng.choice([0.0, 0.001, 0.1, 1.0]) * _MAX_STRAY_S * self._rng.random(), event

    # ── whom it may meet ────────────────────────────────────────────────────────────────────────────

    def _links(self) -> list[Link]:
        return self._cell.scheduler.links if self._cell.scheduler is not None else []

    def _workers(self) -> list[Target | Drafter]:
        return [*self._cell.targets, *self._drafters()]

    def _drafters(self) -> list[Drafter]:
        return [drafter for worker in self._cell.drafter_workers.values() for drafter in worker.drafters.values()]

    def _excuse(self, request: int, error: type[OutriderError]) -> None:
        client = self._cell.client_of(request)
        if client is not None:
            client.excuses.add(error)

    def _note(self, what: str) -> None:
        if self._cell.trace is not None:
            self._cell.trace.note(self._cell.agenda.now_s, "fault", what)
