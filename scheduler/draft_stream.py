"""A stream to a drafter worker as messages of drafter.proto: orders and releases to it, growths from it.

What the core says in full, and the wire only once, is kept here: which draft a number stands for, what it was told, how
far its root has come, and how many nodes it has. It all begins anew with each stream.

    number:  free ─ order opens the draft ─▶ open ─ release ─▶ released ─ the worker says so too ─▶ free
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from outrider.draft_law import DraftLaw, unpack_laws
from outrider.draft_orders import DraftOrder, add_orders
from outrider.errors import InvalidRequest
from outrider.scores import NUM_STEPS, SCORES
from outrider.v1.drafter_pb2 import DrafterCommand, DrafterReport, DraftOpening
from outrider.v1.worker_pb2 import RequestRef
from scheduler.events import Growth, ReleaseDrafter, SendOrder

MAX_GROWTH_NODES = 1024  # of one growth: more is no draft, and is not even looked at
# Drafts of which a worker may still speak. Beyond that the oldest is forgotten, and its number is not used again.
MAX_RELEASED = 1024


@dataclass(slots=True)
class _Draft:
    """What both sides know of a draft."""

    number: int
    request: int
    epoch: int
    drafter: str
    told_len: int = 0  # committed tokens that were sent
    max_nodes: int | None = None  # as it was sent last, like the next one
    min_survival: int | None = None
    root_len: int = 0  # committed tokens up to the root of its last growth
    num_nodes: int = 0  # that it has grown


@dataclass(slots=True)
class _Told:
    """A growth as it stands in a report."""

    draft: int
    moved: int = 0
    is_done: bool = False
    num_nodes: int = 0
    nodes: Sequence[int] = ()  # [2 * num_nodes]; token, place, token, place, …; empty where they are too many


class DraftStream:
    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._drafts: dict[int, _Draft] = {}  # by number, also those of which the worker may still speak
        self._open: dict[tuple[int, str], _Draft] = {}  # by request and drafter
        self._released: dict[int, None] = {}  # numbers, in the order of release
        self._free: list[int] = []  # a heap
        self._num_numbers = 0

    def is_open(self, request: int, drafter: str) -> bool:
        return (request, drafter) in self._open

    # ── to the drafter ──────────────────────────────────────────────────────────────────────────────

    def command(self, releases: Iterable[ReleaseDrafter], orders: Iterable[SendOrder]) -> DrafterCommand:
        """The releases, then the orders."""
        command = DrafterCommand()
        for release in releases:
            self._release(release.request, release.drafter, command)
        add_orders(command, [self._order(order, command) for order in orders])
        return command

    def _order(self, order: SendOrder, command: DrafterCommand) -> DraftOrder:
        opening: DraftOpening | None = None
        if order.opening is not None:
            self._release(order.request, order.drafter, command)  # of an older epoch
            ref = RequestRef(request=order.request, epoch=order.epoch)
            opening = DraftOpening(ref=ref, drafter=order.drafter, request=order.opening)
            number = self._free_number()
            self._drafts[number] = _Draft(number, order.request, order.epoch, order.drafter)
            self._open[order.request, order.drafter] = self._drafts[number]
        draft = self._open[order.request, order.drafter]
        assert (draft.epoch, draft.told_len) == (order.epoch, order.tokens_start), "an order that leaves a gap"
        draft.told_len = order.committed_len
        max_nodes = None if order.max_nodes == draft.max_nodes else order.max_nodes
        hundredths = round(100 * order.min_survival)
        min_survival = None if hundredths == draft.min_survival else hundredths
        draft.max_nodes, draft.min_survival = order.max_nodes, hundredths
        return DraftOrder(draft.number, order.tokens, max_nodes, min_survival, opening)

    def _release(self, request: int, drafter: str, command: DrafterCommand) -> None:
        draft = self._open.pop((request, drafter), None)
        if draft is not None:
            command.released.append(draft.number)
            self._released[draft.number] = None
            if len(self._released) > MAX_RELEASED:
                self._forget(next(iter(self._released)))

    def _forget(self, number: int) -> None:
        del self._released[number], self._drafts[number]

    def _free_number(self) -> int:
        """The least one: small numbers are short."""
        if self._free:
            return heappop(self._free)
        self._num_numbers += 1
        return self._num_numbers - 1

    # ── from the drafter ────────────────────────────────────────────────────────────────────────────

    def growths(self, report: DrafterReport) -> list[Growth]:
        """A report's growths. Those of unknown drafts are left out; one whose laws make no sense, or that is endless,
        keeps its meaning but loses its nodes."""
        told = list(_told(list(report.growths)))
        laws = _laws(report, sum(each.num_nodes for each in told))
        growths: list[Growth] = []
        start = 0
        for each in told:
            if each.draft in self._drafts:
                growths.append(self._growth(each, laws and laws[start : start + each.num_nodes]))
            start += each.num_nodes
        growths += [
            self._growth(_Told(number), [], is_prefix_missing=True)
            for number in report.missing
            if number in self._drafts
        ]
        for number in report.released:
            if number in self._released:
                self._forget(number)
                heappush(self._free, number)
        return growths

    def _growth(
        self, told: _Told, laws: Sequence[DraftLaw | None] | None, *, is_prefix_missing: bool = False
    ) -> Growth:
        """`laws`: of its nodes, or empty; None: they make no sense."""
        draft = self._drafts[told.draft]
        first = draft.num_nodes + 1
        draft.num_nodes += told.num_nodes
        draft.root_len += told.moved
        tokens, places = (told.nodes[::2], told.nodes[1::2]) if laws is not None else ([], [])
        return Growth(
            worker=self._worker,
            drafter=draft.drafter,
            request=draft.request,
            epoch=draft.epoch,
            committed_len=draft.root_len,
            first_node=first,
            tokens=tokens,
            # A place is the distance to the parent, 0 for the root, and the step of the score.
            parents=[
                number - place // NUM_STEPS if place >= NUM_STEPS else 0 for number, place in enumerate(places, first)
            ],
            scores=[SCORES[place % NUM_STEPS] for place in places],
            is_done=told.is_done,
            is_prefix_missing=is_prefix_missing,
            laws=laws if laws and tokens else [],
        )


def _told(values: Sequence[int]) -> Iterator[_Told]:
    """Up to the first growth that is cut off."""
    at, draft = 0, -1
    while at < len(values):
        head = values[at]
        has_draft, has_moved, num_nodes = head >> 2 & 1, head >> 1 & 1, head >> 3
        start = at + 1 + has_draft + has_moved
        end = start + 2 * num_nodes
        if end > len(values):
            return
        draft = values[at + 1] if has_draft else draft + 1
        moved = values[start - 1] if has_moved else 0
        nodes = values[start:end] if num_nodes <= MAX_GROWTH_NODES else ()
        yield _Told(draft, moved, bool(head & 1), num_nodes, nodes)
        at = end


def _laws(report: DrafterReport, num_nodes: int) -> list[DraftLaw | None] | None:
    """[num_nodes], or empty: no node was drawn. None where they make no sense."""
    try:
        return unpack_laws(report.laws, num_nodes) if report.HasField("laws") else []
    except InvalidRequest:
        return None
