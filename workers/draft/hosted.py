"""One drafter of a worker: between the orders that arrive on the event loop and the steps on its engine's thread.

    order ─▶ bookkeeping at once ─▶ changed requests ─┐
                                                      ├─▶ growing.py: opens, tokens, newest orders, closes; then a step
    release, end of a stream ─────▶ closed keys ──────┘        └─▶ new nodes ─▶ stream

An order's tokens are noted when it arrives, so a newer order may replace it before any step has seen it. Nodes of a
step that such an order overtakes are sent all the same: by their numbers the scheduler knows what still stands.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from outrider.draft_orders import DraftOrder
from outrider.v1 import drafter_pb2, worker_pb2
from workers.choice.params import ChoiceParams, guess_params
from workers.draft.drafter import Drafter, TextDrafter
from workers.draft.growing import Growing, NewNodes, Order
from workers.draft.report import report_of
from workers.engine_thread import EngineThread

_MAX_WAITING_REPORTS = 1024


class Stream:
    """A scheduler's stream: reports on their way to it, and whether it keeps up with them."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[drafter_pb2.DrafterReport] = asyncio.Queue(_MAX_WAITING_REPORTS)
        self.is_overrun = asyncio.Event()
        self.drafters: dict[int, str] = {}  # names, by the number of the draft that was opened there
        self._released: list[int] = []

    def send(self, report: drafter_pb2.DrafterReport) -> None:
        report.released.extend(self._released)
        self._released.clear()
        try:
            self.reports.put_nowait(report)
        except asyncio.QueueFull:
            self.is_overrun.set()

    def acknowledge(self, draft: int) -> None:
        """With the next report: a draft's number may be used again."""
        self._released.append(draft)


@dataclass(slots=True)
class _Request:
    key: int  # the drafter's
    draft: int  # its number on the stream
    ref: worker_pb2.RequestRef
    stream: Stream
    params: ChoiceParams | None  # until the drafter has been told
    known: list[int] = field(default_factory=list)
    num_told: int = 0  # known tokens that the drafter has been told
    root_len: int = 0  # of the root of its last growth
    max_nodes: int = 0
    min_survival: float = 0.0


class Hosted:
    """A named drafter. All methods belong to the event loop."""

    def __init__(self, name: str, drafter: Drafter) -> None:
        self.name = name
        self.drafter = drafter
        self._growing = Growing(drafter)
        self._keys = count()
        self._requests: dict[tuple[Stream, int], _Request] = {}  # by the draft's number
        self._by_key: dict[int, _Request] = {}
        self._changed: dict[int, _Request] = {}  # with an order that no step has seen
        self._closed: list[int] = []
        self._live: set[int] = set()  # keys that the drafter is drafting for
        self._has_work = asyncio.Event()
        self.is_ready = not isinstance(drafter, TextDrafter)  # that one is once it has the target's tokenizer

    def order(self, stream: Stream, order: DraftOrder) -> None:
        """Note an order. One for a draft of which nothing is known is reported as missing."""
        if order.opening is not None:
            self.release(stream, order.draft)
            params = guess_params(order.opening.request)
            request = _Request(next(self._keys), order.draft, order.opening.ref, stream, params)
            self._requests[stream, order.draft] = self._by_key[request.key] = request
        found = self._requests.get((stream, order.draft))
        if found is None or not (found.known or order.tokens):
            self.release(stream, order.draft)
            stream.send(drafter_pb2.DrafterReport(missing=[order.draft]))
            return
        found.known += order.tokens
        if order.max_nodes is not None:
            found.max_nodes = order.max_nodes
        if order.min_survival is not None:
            found.min_survival = order.min_survival / 100
        self._changed[found.key] = found
        self._has_work.set()

    def release(self, stream: Stream, draft: int) -> None:
        """Forget a draft, if it is there."""
        request = self._requests.pop((stream, draft), None)
        if request is not None:
            del self._by_key[request.key]
            self._changed.pop(request.key, None)
            self._live.discard(request.key)
            self._closed.append(request.key)
            self._has_work.set()

    def close(self, stream: Stream) -> None:
        """Forget all that a stream has opened."""
        for owner, draft in list(self._requests):
            if owner is stream:
                self.release(owner, draft)

    async def run(self, thread: EngineThread) -> None:
        """Step for as long as there is something to draft. Ends when cancelled; raises what the engine raises."""
        while True:
            await self._has_work.wait()
            closed, orders = self._take()
            self._report(await thread.run(partial(self._growing.step, closed, orders)))
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

    def _report(self, new_nodes: Sequence[NewNodes]) -> None:
        growths: dict[Stream, list[tuple[int, int, NewNodes]]] = defaultdict(list)
        for nodes in new_nodes:
            if nodes.is_done:
                self._live.discard(nodes.key)
            request = self._by_key.get(nodes.key)
            if request is not None:
                growths[request.stream].append((request.draft, nodes.committed_len - request.root_len, nodes))
                request.root_len = nodes.committed_len
        for stream, of_stream in growths.items():
            stream.send(report_of(of_stream))
