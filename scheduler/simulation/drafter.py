"""A modelled drafter worker: one process's life, with one or more drafters. It keeps the rules of drafter.proto.

A step expands the likeliest leaves of all requests that want nodes, and takes modelled time; its nodes are told when it
ends, below the root that they were found for. Orders that come meanwhile count from the next step on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from scheduler.events import Command, Event, Grown, Growth, ReleaseDrafter, SendOrder
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.guessing import GuessModel
from scheduler.simulation.law import Law
from scheduler.simulation.sketch import Sketch

Reply = Callable[[Event], None]
_Key = tuple[int, int]  # session and request


@dataclass(frozen=True, slots=True)
class DrafterModel:
    name: str
    guess: GuessModel
    step_s: Callable[[int], float]  # of a step, by the tokens that it computes
    draws: bool = False
    max_step_leaves: int = 8  # expanded in a step; at least one of each request
    spread: float = 0.0  # a step takes up to so much more or less, as a share


class DrafterWorker:
    """All drafters of one process; each steps by itself."""

    def __init__(self, agenda: Agenda, worker: str, models: Sequence[DrafterModel], law: Law, rng: Random) -> None:
        self.drafters = {model.name: Drafter(agenda, worker, model, law, rng) for model in models}

    def open(self, session: int, reply: Reply) -> None:
        for drafter in self.drafters.values():
            drafter.replies[session] = reply

    def take(self, session: int, command: Command) -> None:
        match command:
            case SendOrder():
                self.drafters[command.drafter].order(session, command)
            case ReleaseDrafter():
                self.drafters[command.drafter].release(session, command.request, command.epoch)

    def close(self, session: int) -> None:
        for drafter in self.drafters.values():
            drafter.close(session)

    @property
    def worked_s(self) -> float:
        """All drafters, until now."""
        return sum(drafter.worked_s for drafter in self.drafters.values())

    @property
    def num_requests(self) -> int:
        return sum(drafter.num_requests for drafter in self.drafters.values())


class Drafter:
    """One drafter of a worker."""

    def __init__(self, agenda: Agenda, worker: str, model: DrafterModel, law: Law, rng: Random) -> None:
        self._agenda = agenda
        self._worker = worker
        self._model = model
        self._law = law
        self._rng = rng
        self._sketches: dict[_Key, Sketch] = {}
        self._is_busy = False
        self.replies: dict[int, Reply] = {}
        self.busy_s = 0.0  # all of the step that is under way included
        self._free_s = 0.0  # when that step ends
        self.num_nodes = 0  # that were told
        # What mischief may do to it.
        self.slowness = 1.0
        self.hangs_until_s = 0.0

    @property
    def num_requests(self) -> int:
        return len(self._sketches)

    @property
    def worked_s(self) -> float:
        """Until now."""
        return self.busy_s - max(self._free_s - self._agenda.now_s, 0.0)

    def order(self, session: int, order: SendOrder) -> None:
        """Note an order. What it can't be built on is reported as missing; what is out of date is left out."""
        key = session, order.request
        sketch = self._sketches.get(key)
        if sketch is not None and sketch.epoch > order.epoch:
            return
        if order.opening is not None and (sketch is None or sketch.epoch < order.epoch):
            sketch = self._sketches[key] = Sketch.of(order, self._law)
        if sketch is None or sketch.epoch != order.epoch or not sketch.note(order):
            self._sketches.pop(key, None)
            self._reply(session, [self._missing(order)])
            return
        self._work()

    def release(self, session: int, request: int, epoch: int) -> None:
        """Forget a request; nothing where a newer epoch is open."""
        sketch = self._sketches.get((session, request))
        if sketch is not None and sketch.epoch <= epoch:
            del self._sketches[session, request]

    def forget_all(self) -> None:
        self._sketches.clear()

    def close(self, session: int) -> None:
        self.replies.pop(session, None)
        self._sketches = {key: sketch for key, sketch in self._sketches.items() if key[0] != session}

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """Begin a step if there is something to draft."""
        if self._is_busy:
            return
        if self._agenda.now_s < self.hangs_until_s:
            self._is_busy = True
            self._agenda.at(self.hangs_until_s, self._resume)
            return
        taken = [(key, sketch) for key, sketch in self._sketches.items() if sketch.is_ordered or sketch.is_live]
        if not taken:
            return
        num_tokens = sum(self._grow(sketch, len(taken)) for _, sketch in taken)
        spread = self._rng.uniform(-self._model.spread, self._model.spread) if self._model.spread else 0.0
        step_s = self._model.step_s(max(num_tokens, 1)) * self.slowness * (1 + spread)
        news = [(key, sketch, sketch.news(self._worker, self._model.name, key[1])) for key, sketch in taken]
        self._is_busy = True
        self.busy_s += step_s
        self._free_s = self._agenda.now_s + step_s
        self._agenda.after(step_s, partial(self._end_step, news))

    def _grow(self, sketch: Sketch, num_requests: int) -> int:
        """A request's part of a step. Returns the tokens that it computes."""
        if sketch.is_ordered:
            sketch.move(self._law)
        if not sketch.is_live:
            return 0
        places = sketch.places(max(1, self._model.max_step_leaves // num_requests))
        num_tokens = sketch.num_tokens(places)
        sketch.expand(places, self._model.guess, self._law)
        sketch.promote(self._model.name, self._law)
        return num_tokens

    def _end_step(self, news: Sequence[tuple[_Key, Sketch, Growth]]) -> None:
        self._is_busy = False
        by_session: defaultdict[int, list[Growth]] = defaultdict(list)
        for key, sketch, growth in news:
            self.num_nodes += len(growth.tokens)
            if self._sketches.get(key) is sketch and (growth.tokens or growth.is_done):
                by_session[key[0]].append(growth)
        for session, growths in by_session.items():
            self._reply(session, growths)
        self._work()

    def _resume(self) -> None:
        self._is_busy = False
        self._work()

    def _reply(self, session: int, growths: Sequence[Growth]) -> None:
        if session in self.replies:
            self.replies[session](Grown(growths))

    def _missing(self, order: SendOrder) -> Growth:
        return Growth(
            worker=self._worker,
            drafter=self._model.name,
            request=order.request,
            epoch=order.epoch,
            committed_len=order.committed_len,
            first_node=0,
            tokens=(),
            parents=(),
            scores=(),
            is_done=False,
            is_prefix_missing=True,
        )
