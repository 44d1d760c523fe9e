"""How many of a draft's candidates become nodes in one step: of a drafter, and of one that the simulator models."""

from __future__ import annotations

from collections.abc import Sequence

# Of one request in a step. The fewer, the better each step knows what is likeliest; the more, the deeper a tree is when
# the next pass starts, where a drafter has time for few steps. In simulation 4 is best for drafters of six steps a pass
# (2 % better), 16 for those of two (2 % better).
MAX_STEP_NODES = 8
_FEW = 4  # go in one step, and so in one message
_WORTHWHILE = 0.02  # of the best candidate's survival: what is less likely waits for a later step


def num_promoted(survivals: Sequence[float], num_missing: int) -> int:
    """`survivals`: of the candidates, the likeliest first. `num_missing`: nodes that the draft may still have."""
    # Half of what is missing, but for the last few: what is found behind the likeliest may be likelier than others.
    room = max(0, min(MAX_STEP_NODES, num_missing, max(_FEW, (num_missing + 1) // 2)))
    best = survivals[:room]
    return sum(survival >= _WORTHWHILE * best[0] for survival in best)
