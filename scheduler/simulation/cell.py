"""A modelled cell: target groups, drafter workers, a scheduler that may be restarted, and those who ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random

from scheduler.core import Core, CoreConfig
from scheduler.events import DrafterDown, DrafterUp, Emit, Finish, TargetDown, TargetUp
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.client import Client, Question
from scheduler.simulation.drafter import DrafterModel, DrafterWorker
from scheduler.simulation.law import Law
from scheduler.simulation.link import Host, Link, Wire
from scheduler.simulation.scheduler import Scheduler
from scheduler.simulation.target import Target, TargetModel
from scheduler.simulation.trace import Trace

MakeCore = Callable[[CoreConfig], Core]


@dataclass(frozen=True, slots=True)
class CellModel:
    law: Law
    target: TargetModel
    workers: Mapping[str, Sequence[DrafterModel]]  # the drafters of each worker, by its name
    core: CoreConfig
    target_wire: Wire
    drafter_wire: Wire
    max_queued_requests: int = 1_000_000
    num_target_groups: int = 1


class Cell:
    """Everything random in it comes from `rng`, so a run can be repeated."""

    def __init__(self, model: CellModel, rng: Random, make_core: MakeCore = Core, trace: Trace | None = None) -> None:
        self.model = model
        self.rng = rng
        self.trace = trace
        self.agenda = Agenda()
        self.target_hosts = {
            target: Host(partial(Target, self.agenda, target, model.target, model.law, rng, self._drafted_s))
            for target in (f"t{i}" for i in range(model.num_target_groups))
        }
        self.drafter_hosts = {
            worker: Host(partial(DrafterWorker, self.agenda, worker, drafters, model.law, rng))
            for worker, drafters in model.workers.items()
        }
        self.scheduler: Scheduler | None = None
        self.clients: list[Client] = []
        self.on_delivery: Callable[[Emit | Finish], None] | None = None
        self._make_core = make_core
        self._sessions = count(1)
        self._numbers = count(1)
        self._streams: dict[int, Client] = {}  # of the scheduler that lives, by request

    # ── users ───────────────────────────────────────────────────────────────────────────────────────

    def expect(
        self,
        question: Question,
        at_s: float,
        on_end: Callable[[Client], None] = lambda _: None,
        leader: Client | None = None,
    ) -> Client:
        """Somebody will ask this; one with a leader, the same as somebody else, with another seed."""
        client = Client(self, question, on_end, leader)
        self.clients.append(client)
        self.agenda.at(at_s, client.ask)
        return client

    def admit(self, client: Client) -> int | None:
        if self.scheduler is None or self.scheduler.core.num_queued >= self.model.max_queued_requests:
            return None
        number = next(self._numbers)
        self._streams[number] = client
        return number

    def client_of(self, request: int) -> Client | None:
        return self._streams.get(request)

    def end_stream(self, request: int) -> None:
        """Nobody reads what comes for it any more."""
        self._streams.pop(request, None)

    def _deliver(self, command: Emit | Finish) -> None:
        if self.on_delivery is not None:
            self.on_delivery(command)
        client = self._streams.get(command.request)
        if client is not None:
            client.take(command)
        if isinstance(command, Finish):
            self._streams.pop(command.request, None)

    # ── processes ───────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Whatever of it does not run."""
        for host in (*self.target_hosts.values(), *self.drafter_hosts.values()):
            host.start()
        if self.scheduler is None:
            self.start_scheduler()

    def start_scheduler(self) -> None:
        """A new life: numbers, epochs and passes count from 1 again."""
        self._numbers, self._streams = count(1), {}
        scheduler = Scheduler(self.agenda, self._make_core(self.model.core), self._deliver, self.trace)
        for target, host in self.target_hosts.items():
            target_up, target_down = TargetUp(self.model.target.facts, target), TargetDown(target)
            link = self._link(scheduler, host, self.model.target_wire, target_up, target_down)
            scheduler.target_links[target] = link
        for worker, host in self.drafter_hosts.items():
            drafters = self.model.workers[worker]
            up = DrafterUp(worker, [each.name for each in drafters], frozenset(d.name for d in drafters if d.draws))
            link = self._link(scheduler, host, self.model.drafter_wire, up, DrafterDown(worker))
            scheduler.drafter_links[worker] = link
        self.scheduler = scheduler
        for each in scheduler.links:
            each.connect()

    def kill_scheduler(self) -> None:
        """Every stream breaks."""
        if self.scheduler is None:
            return
        scheduler, self.scheduler = self.scheduler, None
        scheduler.kill()
        for client in list(self._streams.values()):
            client.lose_stream()
        self._streams = {}

    def crash(self, host: Host, notice_s: float) -> None:
        """The process is gone at once; its link hears of it later."""
        process = host.process
        if process is None:
            return
        host.crash()
        for link in self.scheduler.links if self.scheduler is not None else ():
            self.agenda.after(notice_s, partial(link.notice, process))

    @property
    def targets(self) -> list[Target]:
        """Those that run."""
        processes = [host.process for host in self.target_hosts.values()]
        return [process for process in processes if isinstance(process, Target)]

    @property
    def drafter_workers(self) -> dict[str, DrafterWorker]:
        """Those that run."""
        processes = {worker: host.process for worker, host in self.drafter_hosts.items()}
        return {worker: process for worker, process in processes.items() if isinstance(process, DrafterWorker)}

    def _drafted_s(self) -> float:
        return sum(worker.worked_s for worker in self.drafter_workers.values())

    def _link(
        self, scheduler: Scheduler, host: Host, wire: Wire, up: TargetUp | DrafterUp, down: TargetDown | DrafterDown
    ) -> Link:
        return Link(self.agenda, self.rng, wire, host, scheduler.do, scheduler.take, self._sessions, up=up, down=down)
