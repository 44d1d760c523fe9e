"""The scheduler's core and its drafter workers, joined by the very bytes that travel between them.

Nothing moves until a test says so: each message waits in its queue, a step takes its orders first and reports later,
and the target's verdicts are the test's. So any interleaving can be played, and every byte counted.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from outrider.v1 import drafter_pb2
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.core import Core, CoreConfig
from scheduler.draft_stream import DraftStream
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
    PlannedRow,
    ReleaseDrafter,
    ResetTarget,
    RowOutcome,
    SendOrder,
    SendPass,
    Submitted,
    TargetFacts,
    TargetUp,
    Tick,
)
from scheduler.messages import pass_message
from scheduler.simulation.target import behind
from workers.draft.commands import carry_out
from workers.draft.drafter import Drafter
from workers.draft.growing import NewNodes, Order
from workers.draft.hosted import Hosted, Stream

MAX_ROUNDS = 200


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
    drafts: DraftStream = field(init=False)  # the scheduler's end of the stream

    def __post_init__(self) -> None:
        self.drafts = DraftStream(self.name)

    def take_command(self) -> None:
        carry_out(self.stream, drafter_pb2.DrafterCommand.FromString(self.commands.popleft()), self.hosted)

    def begin_step(self, drafter: str) -> None:
        """As the event loop does, before the engine's thread begins."""
        if drafter not in self.steps:
            self.steps[drafter] = self.hosted[drafter]._take()

    def end_step(self, drafter: str) -> list[NewNodes]:
        new_nodes = self.hosted[drafter]._growing.step(*self.steps.pop(drafter))
        self.hosted[drafter]._report(new_nodes)
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
        self.stream, self.commands, self.drafts = Stream(), deque(), DraftStream(self.name)


def num_tokens_of(rows: Sequence[PlannedRow]) -> int:
    return sum(max(len(row.tokens), 1) + len(row.node_tokens) for row in rows)


class Riding:
    """One core, one target that the test speaks for, and drafter workers. The clock is the test's, too."""

    def __init__(self, facts: TargetFacts) -> None:
        self.core = Core(CoreConfig(pass_timeout_s=1e9))
        self.now_s = 0.0
        self.workers: dict[str, Worker] = {}
        self.passes: deque[SendPass] = deque()  # that are not answered
        self.finished: dict[int, Finish] = {}
        self.num_bytes: Counter[str] = Counter()  # by what they were for
        self.num_messages: Counter[str] = Counter()
        self.num_nodes = 0  # that drafters have told
        self.num_rows = 0
        self._facts = facts
        self._tokens: dict[int, list[int]] = {}  # that the target knows, by request
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
        self._tokens[new.number] = [*new.prompt]
        self.handle(Submitted(new))

    @property
    def next_rows(self) -> list[PlannedRow]:
        """Of the pass that is answered next; those that were sent ahead are where they have come to."""
        return [behind(row, self._tokens[row.request]) for row in self.passes[0].rows]

    def verdict(self, walked: Mapping[int, Sequence[int]], pass_s: float = 0.0) -> None:
        """The target answers its first pass: for each of the rows, the accepted tokens and the next one."""
        rows, sent = self.next_rows, self.passes.popleft()
        outcomes = []
        for row in rows:
            tokens = walked[row.request]
            self._tokens[row.request] += tokens
            known_len = row.committed_len + len(tokens)
            outcomes.append(RowOutcome(row.request, row.epoch, row.committed_len, "ok", tokens, known_len))
        self.handle(PassDone(sent.pass_id, outcomes, self._facts.num_kv_blocks, pass_s))

    def take_report(self, worker: Worker) -> None:
        data = worker.stream.reports.get_nowait().SerializeToString()
        growths = worker.drafts.growths(drafter_pb2.DrafterReport.FromString(data))
        self.num_bytes["growths"] += len(data)
        self.num_messages["growths"] += 1
        self.num_nodes += sum(len(each.tokens) for each in growths)
        self.handle(Grown(growths))

    def settle(self) -> None:
        """All messages arrive, and drafters step, until nothing is left to do but the pass."""
        for _ in range(MAX_ROUNDS):
            if not any(worker.has_work or not worker.stream.reports.empty() for worker in self.workers.values()):
                return
            for worker in self.workers.values():
                while worker.commands:
                    worker.take_command()
                for drafter in worker.hosted:
                    worker.begin_step(drafter)
                    worker.end_step(drafter)
                while not worker.stream.reports.empty():
                    self.take_report(worker)
        raise AssertionError(f"not at rest after {MAX_ROUNDS} rounds")

    def ride(self, step_s: float, pass_s: Callable[[int], float], walk: Callable[[PlannedRow], list[int]]) -> None:
        """Until all requests have ended, by the clock: a drafter's step takes step_s, a pass of n tokens pass_s(n), and
        messages no time. `walk` is the target."""
        ends: dict[tuple[str, str], float] = {}  # of steps, by worker and drafter
        pass_end = math.inf
        while self.core.num_running or self.core.num_queued:
            for worker in self.workers.values():
                while worker.commands:
                    worker.take_command()
                for drafter, hosted in worker.hosted.items():
                    if (worker.name, drafter) not in ends and (hosted._live or hosted._changed or hosted._closed):
                        worker.begin_step(drafter)
                        ends[worker.name, drafter] = self.now_s + step_s
            if self.passes and pass_end == math.inf:
                pass_end = self.now_s + pass_s(num_tokens_of(self.next_rows))
            step_end, step = min(((end, key) for key, end in ends.items()), default=(math.inf, None))
            ask_s = self.core.next_wakeup_s() or math.inf
            self.now_s = max(self.now_s, min(pass_end, step_end, ask_s))
            if step is not None and step_end == min(pass_end, step_end, ask_s):
                del ends[step]
                self.workers[step[0]].end_step(step[1])
                while not self.workers[step[0]].stream.reports.empty():
                    self.take_report(self.workers[step[0]])
            elif pass_end <= ask_s:
                pass_end = math.inf
                rows = self.next_rows
                self.verdict({row.request: walk(row) for row in rows}, pass_s(num_tokens_of(rows)))
            else:
                self.handle(Tick())

    def handle(self, event: Event) -> None:
        """Each order arrives by itself, and is counted as it is sent: with those of the same event, and releases."""
        self._joined = {"orders": drafter_pb2.DrafterCommand(), "openings": drafter_pb2.DrafterCommand()}
        for command in self.core.handle(event, self.now_s):
            self._carry_out(command)
        for kind, joined in self._joined.items():
            self.num_bytes[kind] += joined.ByteSize()
            self.num_messages[kind] += joined.ByteSize() > 0

    def _greet(self, worker: Worker) -> None:
        drawing = frozenset(name for name, each in worker.hosted.items() if each.drafter.draws)
        self.handle(DrafterUp(worker.name, list(worker.hosted), drawing))

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendOrder() | ReleaseDrafter():
                self._send(command)
            case SendPass():
                self.passes.append(command)
                self.num_rows += len(command.rows)
                self.num_bytes["passes"] += len(pass_message(command).SerializeToString())
            case Finish():
                self.finished[command.request] = command
            case ResetTarget():
                raise AssertionError(command.reason)
            case Emit():
                pass

    def _send(self, command: SendOrder | ReleaseDrafter) -> None:
        worker = self.workers[command.worker]
        if isinstance(command, ReleaseDrafter):
            message = worker.drafts.command([command], [])
        else:
            message = worker.drafts.command([], [command])
        is_opening = isinstance(command, SendOrder) and command.opening is not None
        self._joined["openings" if is_opening else "orders"].MergeFrom(message)
        worker.commands.append(message.SerializeToString())
