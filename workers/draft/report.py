"""New nodes as the report that carries them: drafter.proto says which numbers those are."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from outrider.draft_law import DraftLaw, pack_laws
from outrider.scores import NUM_STEPS, step_of
from outrider.v1.drafter_pb2 import DrafterReport
from workers.draft.growing import NewNodes


def report_of(growths: Iterable[tuple[int, int, NewNodes]]) -> DrafterReport:
    """`growths`: a draft's number, by how many tokens its root has moved since its last growth, and the nodes. They are
    put in the order of their numbers: those that follow one another need not be said."""
    report = DrafterReport()
    laws: list[DraftLaw | None] = []
    next_draft = 0
    for draft, moved, nodes in sorted(growths, key=itemgetter(0)):
        report.growths.extend(_head(draft, next_draft, moved, nodes.is_done, len(nodes.tokens)))
        report.growths.extend(_places(nodes))
        laws += nodes.laws
        next_draft = draft + 1
    packed = pack_laws(laws)
    if packed is not None:
        report.laws.CopyFrom(packed)
    return report


def nothing(draft: int) -> DrafterReport:
    """The answer to an order that will never bring a node."""
    return DrafterReport(growths=_head(draft, 0, 0, True, 0))


def _head(draft: int, next_draft: int, moved: int, is_done: bool, num_nodes: int) -> list[int]:
    head = 8 * num_nodes + 4 * (draft != next_draft) + 2 * (moved > 0) + is_done
    return [head, *([draft] if draft != next_draft else []), *([moved] if moved else [])]


def _places(nodes: NewNodes) -> list[int]:
    numbers: list[int] = []
    own_number = nodes.first_number
    for token, parent, score in zip(nodes.tokens, nodes.parents, nodes.scores, strict=True):
        numbers += token, NUM_STEPS * (own_number - parent if parent else 0) + step_of(score)
        own_number += 1
    return numbers
