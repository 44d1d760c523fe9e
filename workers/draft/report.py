"""New nodes as the report that carries them: drafter.proto says which numbers those are."""

from __future__ import annotations

from collections.abc import Iterable

from outrider.draft_law import DraftLaw, pack_laws
from outrider.scores import NUM_STEPS, step_of
from outrider.v1.drafter_pb2 import DrafterReport
from workers.draft.growing import NewNodes


def report_of(growths: Iterable[tuple[int, int, NewNodes]]) -> DrafterReport:
    """`growths`: a draft's number, by how many tokens its root has moved since its last growth, and the nodes."""
    report = DrafterReport()
    laws: list[DraftLaw | None] = []
    for draft, moved, nodes in growths:
        report.growths.extend(_numbers(draft, moved, nodes))
        laws += nodes.laws
    packed = pack_laws(laws)
    if packed is not None:
        report.laws.CopyFrom(packed)
    return report


def nothing(draft: int) -> DrafterReport:
    """The answer to an order that will never bring a node."""
    return DrafterReport(growths=[draft, 1])


def _numbers(draft: int, moved: int, nodes: NewNodes) -> list[int]:
    size = 4 * len(nodes.tokens) + 2 * (moved > 0) + nodes.is_done
    numbers = [draft, size, moved] if moved else [draft, size]
    own_number = nodes.first_number
    for token, parent, score in zip(nodes.tokens, nodes.parents, nodes.scores, strict=True):
        numbers += token, NUM_STEPS * (own_number - parent if parent else 0) + step_of(score)
        own_number += 1
    return numbers
