"""Rows of several service classes in one pass: what each one's tokens are worth, and how long the urgent ones wait.

A pass of one class is what it would be if there were no classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.policy.policy import Base
from scheduler.service_class import WEIGHTS

# A pass takes at most so many times what it would take without the prompts of less urgent classes.
MAX_STRETCH = 2.0


def weights_of(rows: Sequence[Base]) -> NDArray[np.float64] | None:
    """What a token of each row counts for, [num_rows]; the mean of the rows that choose is 1. None: all the same."""
    if len({row.service_class for row in rows}) < 2:
        return None
    weights = np.array([WEIGHTS[row.service_class] for row in rows])
    of_choosing = weights[[not row.is_chunk for row in rows]]
    scaled: NDArray[np.float64] = weights / (of_choosing.mean() if len(of_choosing) else weights.mean())
    return scaled


def within_pace(rows: Sequence[Base], seconds: NDArray[np.float64]) -> Sequence[Base]:
    """The rows with so much of the less urgent prompts as the most urgent class of the pass can bear with: they leave
    room for its nodes, and lengthen the pass by MAX_STRETCH at most. `seconds` is V(n), up to the most of a pass.

    At least a token of one of them goes along in any case.
    """
    if all(row.num_tokens == 1 for row in rows):
        return rows
    urgent = min(row.service_class for row in rows)
    kept = [row for row in rows if row.num_tokens == 1 or row.service_class == urgent]
    if len(kept) == len(rows):
        return rows
    num_tokens = sum(row.num_tokens for row in kept)
    choosing = [row.request for row in kept if row.service_class == urgent and not row.is_chunk]
    num_nodes = sum(len(request.candidates().nodes) for request in choosing)
    longest = int(np.searchsorted(seconds, MAX_STRETCH * seconds[num_tokens], side="right")) - 1
    room = max(min(longest, len(seconds) - 1 - num_nodes) - num_tokens, 1)
    for row in rows:
        if row.num_tokens > 1 and row.service_class > urgent and room > 0:
            kept.append(row.shortened(room) if row.num_tokens > room else row)
            room -= kept[-1].num_tokens
    return kept
