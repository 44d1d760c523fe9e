"""Orders to a drafter as numbers on the wire: drafter.proto says which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from outrider.v1.drafter_pb2 import DrafterCommand, DraftOpening


@dataclass(frozen=True, slots=True)
class DraftOrder:
    """Brings a draft to its request's committed state, and asks for nodes below it."""

    draft: int  # its number on the stream
    tokens: Sequence[int] = ()  # committed since the draft's last order; in the first: all
    max_nodes: int | None = None  # None, here and below: as it was
    min_survival: int | None = None  # in hundredths
    opening: DraftOpening | None = None  # in a draft's first order


def add_orders(command: DrafterCommand, orders: Iterable[DraftOrder]) -> None:
    numbers: list[int] = []
    next_draft = 0
    for order in orders:
        if order.opening is not None:
            command.openings.add(draft=order.draft).MergeFrom(order.opening)
        wants = order.max_nodes, order.min_survival
        head = 8 * len(order.tokens) + 4 * (order.draft != next_draft)
        numbers.append(head + 2 * (wants[0] is not None) + (wants[1] is not None))
        if order.draft != next_draft:
            numbers.append(order.draft)
        numbers += [each for each in wants if each is not None]
        numbers += order.tokens
        next_draft = order.draft + 1
    command.orders.extend(numbers)


def orders_of(command: DrafterCommand) -> Iterator[DraftOrder]:
    """Up to the first order that is cut off. An opening belongs to its draft's first order in the command."""
    openings = {opening.draft: opening for opening in command.openings}
    values = command.orders
    at, draft = 0, -1
    while at < len(values):
        head = values[at]
        has_draft, has_nodes, has_survival = head >> 2 & 1, head >> 1 & 1, head & 1
        start = at + 1 + has_draft + has_nodes + has_survival
        end = start + (head >> 3)
        if end > len(values):
            return
        draft = values[at + 1] if has_draft else draft + 1
        max_nodes = values[at + 1 + has_draft] if has_nodes else None
        min_survival = values[start - 1] if has_survival else None
        yield DraftOrder(draft, values[start:end], max_nodes, min_survival, openings.pop(draft, None))
        at = end
