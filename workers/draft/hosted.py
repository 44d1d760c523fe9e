"""One drafter of a worker: between the orders that arrive on the event loop and the steps on its engine's thread.

    order ─▶ bookkeeping at once ─▶ changed requests ─┐
                                                      ├─▶ step (opens, tokens, newest orders, closes; then draft)
    release, end of a stream ─────▶ closed keys ──────┘        └─▶ nodes, but not those of superseded orders ─▶ stream

An order's tokens are noted when it arrives, so a newer order may replace it before any step has seen it.
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
from outrider.packing import pack_f32, pack_i32, unpack_i32
from outrider.tree import ROOT
from outrider.v1 import drafter_pb2, worker_pb2
from workers.choice.params import ChoiceParams, guess_params
from workers.draft.drafter import Drafter, NewNodes
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
    next_node: int = 1  # numbers run on over all orders of an epoch
    first_node: int = 1  # of the order that is being drafted for


@dataclass(frozen=True, slots=True)
class _Order:
    key: int
    params: ChoiceParams | None  # of a request that is new to the drafter
    tokens: Sequence[int]
    max_nodes: int


class Hosted:
    """A named drafter with its thread. All methods belong to the event loop."""

    def __init__(self, name: str, drafter: Drafter, thread: EngineThread) -> None:
        self.name = name
        self.drafter = drafter
        self._thread = thread
        self._keys = count()
        self._requests: dict[tuple[Stream, int], _Request] = {}
        self._by_key: dict[int, _Request] = {}
        self._changed: dict[int, _Request] = {}  # with an order that no step has seen
        self._closed: list[int] = []
        self._live: set[int] = set()  # keys that the drafter is drafting for
        self._has_work = asyncio.Event()

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
            missing = drafter_pb2.Growth(
                ref=order.ref, drafter=self.name, committed_len=order.committed_len, is_prefix_missing=True
            )
            stream.send(drafter_pb2.Growths(growths=[missing]))
            return
        request.max_nodes = order.max_nodes
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

    async def run(self) -> None:
        """Step for as long as there is something to draft. Ends when cancelled; raises what the engine raises."""
        while True:
            await self._has_work.wait()
            closed, orders = self._take()
            new_nodes, step_ms = await self._thread.run(partial(self._step, closed, orders))
            self._report(new_nodes, step_ms)
            if not (self._live or self._changed or self._closed):
                self._has_work.clear()

    def _take(self) -> tuple[list[int], list[_Order]]:
        """What has happened since the last step: keys to close, and the newest order of each changed request."""
        orders: list[_Order] = []
        for request in self._changed.values():
            orders.append(_Order(request.key, request.params, request.known[request.num_told :], request.max_nodes))
            request.params = None
            request.num_told = len(request.known)
            request.first_node = request.next_node
        self._live.update(self._changed)
        self._changed = {}
        closed, self._closed = self._closed, []
        return closed, orders

    def _step(self, closed: Sequence[int], orders: Sequence[_Order]) -> tuple[list[NewNodes], float]:
        """On the engine's thread. The milliseconds are those of the whole step."""
        started = time.perf_counter()
        for key in closed:
            self.drafter.close(key)
        for order in orders:
            if order.params is not None:
                self.drafter.open(order.key, order.params)
            if order.tokens:
                self.drafter.extend(order.key, order.tokens)
            self.drafter.begin(order.key, order.max_nodes)
        return self.drafter.step(), 1000 * (time.perf_counter() - started)

    def _report(self, new_nodes: Sequence[NewNodes], step_ms: float) -> None:
        growths: dict[Stream, list[drafter_pb2.Growth]] = defaultdict(list)
        for nodes in new_nodes:
            if nodes.is_done:
                self._live.discard(nodes.key)
            request = self._by_key.get(nodes.key)
            # Where a newer order waits, these nodes are below a root of the past; its own step tells what still stands.
            if request is not None and nodes.key not in self._changed:
                growths[request.stream].append(self._growth(request, nodes))
        for stream, of_stream in growths.items():
            stream.send(drafter_pb2.Growths(growths=of_stream, step_ms=step_ms))

    def _growth(self, request: _Request, nodes: NewNodes) -> drafter_pb2.Growth:
        first_node = request.next_node
        request.next_node += len(nodes.tokens)
        parents = [0 if parent == ROOT else request.first_node + parent for parent in nodes.parents]
        return drafter_pb2.Growth(
            ref=request.ref,
            drafter=self.name,
            committed_len=len(request.known),
            first_node=first_node,
            tokens=pack_i32(nodes.tokens),
            parents=pack_i32(parents),
            scores=pack_f32(nodes.scores),
            is_done=nodes.is_done,
            laws=pack_laws(nodes.laws),
        )

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
