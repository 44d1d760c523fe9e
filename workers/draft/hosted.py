"""One drafter of a worker: between the orders that arrive on the event loop and the steps on its engine's thread.

    order ─▶ bookkeeping at once ─▶ changed requests ─┐
                                                      ├─▶ growing.py: opens, tokens, newest orders, closes; then a step
    release, end of a stream ─────▶ closed keys ──────┘        └─▶ new nodes ─▶ stream

An order's tokens are noted when it arrives, so a newer order may replace it before any step has seen it. Nodes of a
step that such an order overtakes are sent all the same: by their numbers the scheduler knows what still stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from outrider.draft_law import pack_laws
from outrider.errors import InvalidRequest
from outrider.packing import unpack_i32
from outrider.scores import pack_scores
from outrider.v1 import drafter_pb2, worker_pb2
from workers.choice.params import ChoiceParams, guess_params
from workers.draft.drafter import Drafter, TextDrafter
from workers.draft.growing import Growing, NewNodes, Order
from workers.engine_thread import EngineThread
from workers.prefix import common_len

_MAX_WAITING_REPORTS = 1024

_log = logging.getLogger(__name__)


class Stream:
    """A scheduler's stream: reports on their way to it, and whether it keeps up with them."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[drafter_pb2.DrafterReport] = asyncio.Queue(_MAX_WAITING_REPORTS)
        self.is_overrun = asyncio.Event()

    def send(self, growths: drafter_pb2.Growths) -> None:
        try:
            self.reports.put_nowait(drafter_pb2.DrafterReport(growths=growths))
        except asyncio.QueueFull:
            self.is_overrun.set()


@dataclass(slots=True)
class _Request:
    key: int  # the drafter's
    ref: worker_pb2.RequestRef
    stream: Stream
    params: ChoiceParams | None  # until the drafter has been told
    known: list[int] = field(default_factory=list)
    num_told: int = 0  # known tokens that the drafter has been told
    max_nodes: int = 0
    min_survival: float = 0.0


class Hosted:
    """A named drafter. All methods belong to the event loop."""

    def __init__(self, name: str, drafter: Drafter) -> None:
        self.name = name
        self.drafter = drafter
        self._growing = Growing(drafter)
        self._keys = count()
        self._requests: dict[tuple[Stream, int], _Request] = {}
        self._by_key: dict[int, _Request] = {}
        self._changed: dict[int, _Request] = {}  # with an order that no step has seen
        self._closed: list[int] = []
        self._live: set[int] = set()  # keys that the drafter is drafting for
        self._has_work = asyncio.Event()
        self.is_ready = not isinstance(drafter, TextDrafter)  # that one is once it has the target's tokenizer

    def order(self, stream: Stream, order: drafter_pb2.DraftOrder) -> None:
        """Note an order. What it can't be built on is reported as missing; what is out of date is left out."""
        request = self._requests.get((stream, order.ref.request))
        if request is not None and request.ref.epoch > order.ref.epoch:
            return
        if order.HasField("open") and (request is None or request.ref.epoch < order.ref.epoch):
            self._close(stream, order.ref.request)
            request = _Request(next(self._keys), order.ref, stream, guess_params(order.open))
            self._requests[stream, order.ref.request] = self._by_key[request.key] = request
        if request is None or request.ref.epoch != order.ref.epoch or not _learn(request, order):
            self._close(stream, order.ref.request)
            missing = drafter_pb2.Growth(ref=order.ref, committed_len=order.committed_len, is_prefix_missing=True)
            stream.send(drafter_pb2.Growths(drafter=self.name, growths=[missing]))
            return
        request.max_nodes, request.min_survival = order.max_nodes, order.min_survival
        self._changed[request.key] = request
        self._has_work.set()

    def release(self, stream: Stream, ref: worker_pb2.RequestRef) -> None:
        """Forget a request; nothing where a newer epoch is open."""
        request = self._requests.get((stream, ref.request))
        if request is not None and request.ref.epoch <= ref.epoch:
            self._close(stream, ref.request)

    def close(self, stream: Stream) -> None:
        """Forget all that a stream has opened."""
        for owner, number in list(self._requests):
            if owner is stream:
                self._close(owner, number)

    async def run(self, thread: EngineThread) -> None:
        """Step for as long as there is something to draft. Ends when cancelled; raises what the engine raises."""
        while True:
            await self._has_work.wait()
            closed, orders = self._take()
            new_nodes, step_ms = await thread.run(partial(self._step, closed, orders))
            self._report(new_nodes, step_ms)
            if not (self._live or self._changed or self._closed):
                self._has_work.clear()

    def _take(self) -> tuple[list[int], list[Order]]:
        """What has happened since the last step: keys to close, and the newest order of each changed request."""
        orders: list[Order] = []
        for request in self._changed.values():
            tokens = request.known[request.num_told :]
            orders.append(Order(request.key, request.params, tokens, request.max_nodes, request.min_survival))
            request.params = None
            request.num_told = len(request.known)
        self._live.update(self._changed)
        self._changed = {}
        closed, self._closed = self._closed, []
        return closed, orders

    def _step(self, closed: Sequence[int], orders: Sequence[Order]) -> tuple[list[NewNodes], float]:
        """On the engine's thread. The milliseconds are those of the whole step."""
        started = time.perf_counter()
        return self._growing.step(closed, orders), 1000 * (time.perf_counter() - started)

    def _report(self, new_nodes: Sequence[NewNodes], step_ms: float) -> None:
        growths: dict[Stream, list[drafter_pb2.Growth]] = defaultdict(list)
        for nodes in new_nodes:
            if nodes.is_done:
                self._live.discard(nodes.key)
            request = self._by_key.get(nodes.key)
            if request is not None:
                growths[request.stream].append(growth_message(request.ref, nodes))
        for stream, of_stream in growths.items():
            stream.send(drafter_pb2.Growths(drafter=self.name, growths=of_stream, step_ms=step_ms))

    def _close(self, stream: Stream, number: int) -> None:
        request = self._requests.pop((stream, number), None)
        if request is not None:
            del self._by_key[request.key]
            self._changed.pop(request.key, None)
            self._live.discard(request.key)
            self._closed.append(request.key)
            self._has_work.set()


def _learn(request: _Request, order: drafter_pb2.DraftOrder) -> bool:
    """Append the order's tokens. False where that doesn't lead to its committed_len: a gap, or another past."""
    try:
        tokens = unpack_i32(order.tokens.ids)
    except InvalidRequest as err:
        _log.warning("an order for request %d is refused: tokens.ids: %s", order.ref.request, err)
        return False
    start = order.tokens.start if tokens else len(request.known)
    overlap = request.known[start : start + len(tokens)]
    if start > len(request.known) or common_len(overlap, tokens) < len(overlap) or min(tokens, default=0) < 0:
        return False
    request.known += tokens[len(request.known) - start :]
    return len(request.known) == order.committed_len > 0


def growth_message(ref: worker_pb2.RequestRef, nodes: NewNodes) -> drafter_pb2.Growth:
    numbers = range(nodes.first_number, nodes.first_number + len(nodes.tokens))
    return drafter_pb2.Growth(
        ref=ref,
        committed_len=nodes.committed_len,
        first_node=nodes.first_number,
        tokens=nodes.tokens,
        distances=[number - parent if parent else 0 for number, parent in zip(numbers, nodes.parents, strict=True)],
        scores=pack_scores(nodes.scores),
        laws=pack_laws(nodes.laws),
        is_done=nodes.is_done,
    )
