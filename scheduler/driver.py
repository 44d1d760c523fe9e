"""The core's shell: feeds it events and the time, carries out its commands. All on one event loop, so no locks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NoReturn, TypeVar

from outrider.errors import ModelNotFound, OutriderError, Overloaded, ServerUnavailable
from outrider.tls import CellChannels
from outrider.v1 import inference_pb2 as pb
from outrider.v1.target_pb2 import TargetDescription
from scheduler.answer_times import AnswerTimes, Pace
from scheduler.core import Core, CoreConfig
from scheduler.events import (
    Cancelled,
    Command,
    DrafterLeaving,
    DrafterUp,
    Emit,
    Event,
    Finish,
    NewRequest,
    ReleaseDrafter,
    ReleaseTarget,
    RequestStats,
    ResetTarget,
    SendOrder,
    SendPass,
    Submitted,
    TargetLeaving,
    TargetsExpected,
    Tick,
)
from scheduler.links import DrafterLink, Link, Refused, TargetLink
from scheduler.mailbox import Mailbox, Turns
from scheduler.served_model import ServedModel, difference, nonsense
from scheduler.tokenizer import BadFiles, Tokenizer

log = logging.getLogger(__name__)

AnyLink = TypeVar("AnyLink", TargetLink, DrafterLink)

FIRST_GUESS_OF_A_REQUEST_S = 2.0


class Driver:
    """Runs one core, its links and its clock."""

    def __init__(self, config: CoreConfig, max_queued_requests: int, channels: CellChannels | None = None) -> None:
        self._channels = channels or CellChannels(None)
        self.core = Core(config)
        self.times = AnswerTimes()
        self.model: ServedModel | None = None
        self.drafter_names: set[str] = set()  # all that ever were here: one that restarts is no unknown name
        self._max_queued_requests = max_queued_requests
        self._mailboxes: dict[int, Mailbox] = {}
        self._turns = Turns()
        self._numbers = count(1)
        self._target_links: dict[str, tuple[TargetLink, asyncio.Task[None]]] = {}
        self._drafter_links: dict[str, tuple[DrafterLink, asyncio.Task[None]]] = {}
        self._num_wanted_targets = 0
        self._changing_links = asyncio.Lock()
        self._leaving: dict[str, asyncio.Event] = {}  # workers that are drained; set once they are
        self._is_stopped = False
        self._model_known = asyncio.Event()
        self._learning_model = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._request_s = FIRST_GUESS_OF_A_REQUEST_S  # running mean of how long a request runs
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────

    def next_number(self) -> int:
        return next(self._numbers)

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def served_model(self) -> ServedModel:
        if self.model is None:
            refused = self._refused_targets().items()
            why = "".join(f"; {address} is refused: {reason}" for address, reason in refused)
            raise ServerUnavailable(f"the server is starting: its target is not there yet{why}", retry_after_s=1.0)
        return self.model

    def check_room(self, num_answers: int, tenant: str, num_coming: int = 0, replaced: Collection[int] = ()) -> None:
        """Raises Overloaded, with the expected wait for places in the queue, when there are not enough, also for the
        `num_coming` answers of anybody that were promised one. The tenant's own requests `replaced` make room first.

        A tenant that is known has at most as many requests waiting as there are places left: one alone comes to half of
        the queue, and whoever comes second finds room.
        """
        num_replaced_running, num_replaced_queued = self.core.nums_running_and_queued_among(replaced)
        num_running = self.core.num_running - num_replaced_running
        num_queued = self.core.num_queued - num_replaced_queued
        num_free = self._max_queued_requests - num_queued + self.core.groups.num_places - num_running
        if num_coming + num_answers > num_free:
            self._refuse(f"{num_running} requests run and {num_queued} wait, which is the limit", num_queued)
        num_own = self.core.num_queued_of(tenant) - num_replaced_queued
        if tenant and num_own + num_answers > num_free:
            text = f"{num_own} requests of tenant {tenant!r} wait, and one tenant may have as many as places are left"
            self._refuse(f"{text}, {num_free}", num_own)

    def _refuse(self, why: str, num_before: int) -> NoReturn:
        # As long as those before it take to start: by how long requests have run, and how many do at once.
        wait_s = max(self._request_s * num_before / max(self.core.num_running, 1), 0.1)
        raise Overloaded(f"{why}: come back in {wait_s:.1f} s", retry_after_s=wait_s)

    def submit(self, request: NewRequest) -> Mailbox:
        mailbox = self._mailboxes[request.number] = Mailbox(pace=Pace(self.now_s))
        self.post(Submitted(request))
        return mailbox

    def cancel(self, number: int) -> None:
        """Release all that a request holds; nothing happens if it has finished. Its mailbox is closed."""
        mailbox = self._mailboxes.pop(number, None)
        if mailbox is not None:
            if mailbox.finish is None:
                self.times.note_abandoned()
            self.post(Cancelled(number))

    def end(self, number: int, error: OutriderError) -> None:
        """Release all that a request holds, and have its stream end with an error. Nothing if it has finished."""
        mailbox = self._mailboxes.pop(number, None)
        if mailbox is not None:
            if mailbox.finish is None:
                self.times.note_failure(error)
            self.post(Cancelled(number))
            self._put(mailbox, Finish(number, None, None, error, RequestStats(self.now_s)))

    # ── events and commands ─────────────────────────────────────────────────────────────────────────

    def post(self, event: Event) -> None:
        if isinstance(event, DrafterUp):
            self.drafter_names.update(event.drafters)
        now_s = self.now_s
        try:
            for command in self.core.handle(event, now_s):
                self._carry_out(command, now_s)
            for address, is_left in self._leaving.items():
                if not self.core.num_requests_on(address):
                    is_left.set()
            self._set_timer()
        except Exception as err:
            # The core's state can't be trusted after that, whoever posted the event: the process has to end.
            self._fail(err)
            raise

    def _carry_out(self, command: Command, now_s: float) -> None:
        match command:
            case Emit() | Finish():
                self._deliver(command, now_s)
            case SendOrder() | ReleaseDrafter():
                if command.worker in self._drafter_links:
                    self._drafter_links[command.worker][0].send(command)
            case SendPass() | ReleaseTarget():
                if command.target in self._target_links:
                    self._target_links[command.target][0].send(command)
            case ResetTarget(reason, target):
                if target in self._target_links:
                    self._target_links[target][0].reset(reason)

    def _deliver(self, command: Emit | Finish, now_s: float) -> None:
        mailbox = self._mailboxes.get(command.request)
        if isinstance(command, Finish):
            self.times.note_finish(command)
            if command.stats.started_s is not None:
                ran_s = (command.stats.finished_s or now_s) - command.stats.started_s
                self._request_s += 0.1 * (ran_s - self._request_s)
        elif mailbox is not None:
            mailbox.pace.note(len(command.tokens), now_s, self.times)
        if mailbox is not None:
            self._put(mailbox, command)

    def _put(self, mailbox: Mailbox, command: Emit | Finish) -> None:
        mailbox.put(command)
        self._turns.line_up(mailbox)

    def _set_timer(self) -> None:
        wakeup_s = self.core.next_wakeup_s()
        if self._timer is not None:
            if self._timer.when() == wakeup_s and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if wakeup_s is not None:
            self._timer = asyncio.get_running_loop().call_at(wakeup_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.post(Tick())

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────

    async def set_workers(self, targets: Sequence[str], drafters: Sequence[str], num_missing: int = 0) -> None:
        """Hold links to exactly these workers. Links to those that stay are not touched. One call at a time.

        `num_missing`: target groups that are to come, or to come back, whose addresses are not known yet.
        """
        async with self._changing_links:
            await self._drop(self._target_links, set(self._target_links) - set(targets))
            await self._drop(self._drafter_links, set(self._drafter_links) - set(drafters))
            if self._is_stopped:
                return
            self._num_wanted_targets = len(targets) + num_missing
            self._expect_targets()
            for address in targets:
                if address not in self._target_links:
                    learn = partial(self._learn_model, address)
                    target = TargetLink(address, self.post, learn, self._expect_targets, self._channels)
                    self._target_links[address] = target, self._start(target)
            for address in drafters:
                if address not in self._drafter_links:
                    drafter = DrafterLink(address, self.post, self._served, self._channels)
                    self._drafter_links[address] = drafter, self._start(drafter)

    def _expect_targets(self) -> None:
        """One that is refused is not expected: what only a larger group could hold must not wait for it."""
        self.post(TargetsExpected(self._num_wanted_targets - len(self._refused_targets())))

    def _refused_targets(self) -> dict[str, str]:
        """Reasons by address."""
        return {link.address: link.detail for link in self.target_links if link.state == pb.WORKER_STATE_REFUSED}

    async def drain_worker(self, address: str, limit_s: float) -> None:
        """Returns when no request is on this drafter, or target group, any more, or after `limit_s`."""
        is_left = self._leaving[address] = asyncio.Event()
        self.post(TargetLeaving(address) if address in self._target_links else DrafterLeaving(address))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await is_left.wait()
        self._leaving.pop(address, None)

    @property
    def target_links(self) -> Iterable[TargetLink]:
        return [link for link, _ in self._target_links.values()]

    def descriptions(self) -> list[TargetDescription]:
        """Of the target groups that are there; while none is, of the last one that was."""
        known = [link.description for link in self.target_links if link.state == pb.WORKER_STATE_READY]
        return [each for each in known if each is not None] or [self.served_model().description]

    @property
    def drafter_links(self) -> Iterable[DrafterLink]:
        return [link for link, _ in self._drafter_links.values()]

    async def wait_failed(self) -> None:
        """Returns never; raises what ended a link that should not have ended."""
        await asyncio.shield(self._failure)

    async def stop(self) -> None:
        self._is_stopped = True
        await self.set_workers([], [])
        if self._timer is not None:
            self._timer.cancel()

    def _start(self, link: Link) -> asyncio.Task[None]:
        task = asyncio.create_task(link.run(), name=f"link to {link.address}")
        task.add_done_callback(self._note_end_of_link)
        return task

    def _note_end_of_link(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Have `wait_failed` raise: the scheduler can't go on."""
        log.critical("the scheduler has failed", exc_info=error)
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _drop(self, links: dict[str, tuple[AnyLink, asyncio.Task[None]]], addresses: Iterable[str]) -> None:
        for address in addresses:
            _, task = links.pop(address)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _learn_model(self, address: str, description: TargetDescription, files: Mapping[str, bytes]) -> None:
        """A restarted target may have another KV cache; its tokenizer is the same unless its vocabulary is not. Raises
        Refused for a target group that nobody could be served by, or whose model is not the one that others serve, or
        will when they are back. What the last model has begun no other one goes on with."""
        fault = nonsense(description)
        if fault:
            raise Refused(fault)
        async with self._learning_model:
            known = self.model
            complaint = difference(description, known.description) if known is not None else ""
            if complaint and self._num_wanted_targets > len(self._refused_targets().keys() | {address}):
                ready = [link.address for link in self.target_links if link.state == pb.WORKER_STATE_READY]
                where = f" at {', '.join(ready)}" if ready else ""
                raise Refused(f"{complaint}{where}: all target groups of a cell serve one model")
            if known is not None and known.description.vocabulary == description.vocabulary:
                tokenizer = known.tokenizer
            else:
                try:
                    tokenizer = await asyncio.to_thread(Tokenizer, files)
                except BadFiles as err:
                    raise Refused(err.message) from err
            self.model = ServedModel(description, tokenizer)
            for number in [*self._mailboxes] if complaint else ():
                self.end(number, ModelNotFound(f"a target with another model came: {complaint} to this request"))
        self._model_known.set()

    async def _served(self) -> ServedModel:
        await self._model_known.wait()
        return self.served_model()

    def worker_state(self, link: DrafterLink, drafter: str) -> pb.WorkerState:
        if link.state != pb.WORKER_STATE_READY:
            return link.state
        if self.core.health(link.address, drafter).is_late:
            return pb.WORKER_STATE_LATE
        return pb.WORKER_STATE_STARVED if self.core.is_starved(link.address, drafter) else link.state
