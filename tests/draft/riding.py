"""The scheduler's core and its drafter workers, joined by the very bytes that travel between them.

Nothing moves until a test says so: each message waits in its queue, a step takes its orders first and reports later,
and the target's verdicts are the test's. So any interleaving can be played, and every byte counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outrider.v1 import drafter_pb2
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Command,
    DrafterDown,
    DrafterUp,
    Emit,
    Event,
    Finish,
    Grown,
    NewRequest,
    PassDone,
    ReleaseDrafter,
    ResetTarget,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetFacts,
    TargetUp,
)
from scheduler.messages import drafter_release_message, growths_of, order_message, pass_message
from scheduler.policy import PolicyConfig
from workers.draft.drafter import Drafter
from workers.draft.growing import NewNodes, Order
from workers.draft.hosted import Hosted, Stream

FOREVER_S = 1e9


def new_request(
    number: int, prompt: Sequence[int], max_tokens: int, max_nodes: int, opening: OpenRequest
) -> NewRequest:
    return NewRequest(
        number=number,
        prompt=prompt,
        max_tokens=max_tokens,
        end_token_ids=frozenset(),
        stop_token_ids=frozenset(),
        opening=opening,
        speculates=True,
        drafters=frozenset(),
        max_nodes=max_nodes,
        deadline_s=None,
    )


@dataclass
class Worker:
    """A drafter worker and the scheduler's stream to it."""

    name: str
    hosted: dict[str, Hosted]
    stream: Stream = field(default_factory=Stream)
    commands: deque[bytes] = field(default_factory=deque)  # on their way to it
    steps: dict[str, tuple[list[int], list[Order]]] = field(default_factory=dict)  # that have taken their orders

    def take_command(self) -> None:
        command = drafter_pb2.DrafterCommand.FromString(self.commands.popleft())
        for order in command.orders.orders:
            self.hosted[order.drafter].order(self.stream, order)
        if command.HasField("release"):
            self.hosted[command.release.drafter].release(self.stream, command.release.ref)

    def begin_step(self, drafter: str) -> None:
        """As the event loop does, before the engine's thread begins."""
        if drafter not in self.steps:
            self.steps[drafter] = self.hosted[drafter]._take()

    def end_step(self, drafter: str) -> list[NewNodes]:
        new_nodes, _ = self.hosted[drafter]._step(*self.steps.pop(drafter))
        self.hosted[drafter]._report(new_nodes, 1.5)
        return new_nodes

    @property
    def has_work(self) -> bool:
        return bool(self.commands or self.steps) or any(
            each._live or each._changed or each._closed for each in self.hosted.values()
        )

    def break_stream(self) -> None:
        """What was on its way, either way, is lost; what was opened on the stream is forgotten."""
        for each in self.hosted.values():
            each.close(self.stream)
        self.stream, self.commands = Stream(), deque()


class Riding:
    """One core, one target that the test speaks for, and drafter workers."""

    def __init__(self, facts: TargetFacts, *, max_running: int = 64) -> None:
        config = CoreConfig(
            max_running_requests=max_running, policy=PolicyConfig(draft_wait_s=FOREVER_S), pass_timeout_s=FOREVER_S
        )
        self.core = Core(config)
        self.workers: dict[str, Worker] = {}
        self.sent: SendPass | None = None
        self.finished: dict[int, Finish] = {}
        self.num_bytes: Counter[str] = Counter()  # by what they were for
        self.num_rows = 0
        self._facts = facts
        self.handle(TargetUp(facts))

    def connect(self, name: str, drafters: Mapping[str, Drafter]) -> Worker:
        worker = self.workers[name] = Worker(name, {each: Hosted(each, drafter) for each, drafter in drafters.items()})
        self._greet(worker)
        return worker

    def reconnect(self, worker: Worker) -> None:
        """The stream breaks, and the worker, which lives on, is met anew."""
        worker.break_stream()
        self.handle(DrafterDown(worker.name))
        self._greet(worker)

    def submit(self, new: NewRequest) -> None:
        self.handle(Submitted(new))

    def verdict(self, walked: Mapping[int, Sequence[int]]) -> None:
        """The target answers the pass: for each of its rows, the accepted tokens and the next one."""
        assert self.sent is not None
        rows, pass_id, self.sent = self.sent.rows, self.sent.pass_id, None
        outcomes = [
            RowOutcome(
                row.request,
                row.epoch,
                row.committed_len,
                "ok",
                walked[row.request],
                row.committed_len + len(walked[row.request]),
            )
            for row in rows
        ]
        self.handle(PassDone(pass_id, outcomes, self._facts.num_kv_blocks))

    def take_report(self, worker: Worker) -> None:
        data = worker.stream.reports.get_nowait().SerializeToString()
        self.num_bytes["growths"] += len(data)
        self.handle(Grown(list(growths_of(worker.name, drafter_pb2.DrafterReport.FromString(data).growths))))

    def settle(self) -> None:
        """All messages arrive, and drafters step, until nothing is left to do but the pass."""
        while any(worker.has_work or not worker.stream.reports.empty() for worker in self.workers.values()):
            for worker in self.workers.values():
                while worker.commands:
                    worker.take_command()
                for drafter in worker.hosted:
                    worker.begin_step(drafter)
                    worker.end_step(drafter)
                while not worker.stream.reports.empty():
                    self.take_report(worker)

    def handle(self, event: Event) -> None:
        for command in self.core.handle(event, 0.0):
            self._carry_out(command)

    def _greet(self, worker: Worker) -> None:
        drawing = frozenset(name for name, each in worker.hosted.items() if each.drafter.draws)
        self.handle(DrafterUp(worker.name, list(worker.hosted), drawing))

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendOrder():
                data = order_message(command).SerializeToString()
                self.num_bytes["orders" if command.opening is None else "openings"] += len(data)
                self.workers[command.worker].commands.append(data)
            case ReleaseDrafter():
                data = drafter_release_message(command).SerializeToString()
                self.num_bytes["releases"] += len(data)
                self.workers[command.worker].commands.append(data)
            case SendPass():
                self.sent = command
                self.num_rows += len(command.rows)
                self.num_bytes["passes"] += len(pass_message(command).SerializeToString())
            case Finish():
                self.finished[command.request] = command
            case ResetTarget():
                raise AssertionError(command.reason)
            case Emit():
                pass
