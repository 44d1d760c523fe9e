"""A scheduler's commands, handed to the drafters that their drafts are on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from outrider.draft_orders import DraftOrder, orders_of
from outrider.v1.drafter_pb2 import DrafterCommand, DrafterReport
from workers.draft.hosted import Hosted, Stream
from workers.draft.report import nothing

_log = logging.getLogger(__name__)


def carry_out(stream: Stream, command: DrafterCommand, hosted: Mapping[str, Hosted]) -> None:
    """`hosted`: by name."""
    for draft in command.released:
        drafter = hosted.get(stream.drafters.pop(draft, ""))
        if drafter is not None:
            drafter.release(stream, draft)
        stream.acknowledge(draft)
    for order in orders_of(command):
        _hand_on(stream, order, hosted)


def _hand_on(stream: Stream, order: DraftOrder, hosted: Mapping[str, Hosted]) -> None:
    if order.opening is not None:
        stream.drafters[order.draft] = order.opening.drafter
    name = stream.drafters.get(order.draft)
    if name is None:
        stream.send(DrafterReport(missing=[order.draft]))
    elif name in hosted and hosted[name].is_ready:
        hosted[name].order(stream, order)
    else:
        ready = ", ".join(each for each, drafter in hosted.items() if drafter.is_ready)
        _log.warning("an order for %r: ready on this worker are %s", name, ready)
        stream.send(nothing(order.draft))
