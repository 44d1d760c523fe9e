"""A node's score on the wire: one of eight steps. What a score is worth is learned, so coarse ones serve as well.

Each step is one bin of calibration.py, or several: of the scores that are common, those whose worth differs most are
kept apart.
"""

from __future__ import annotations

import math
from bisect import bisect

NUM_STEPS = 8
_BORDERS = (-2.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
SCORES = (-3.0, -1.25, -0.25, 0.25, 0.75, 1.5, 3.0, 6.0)  # in the middle of each step


def step_of(score: float) -> int:
    """Raises ValueError for NaN."""
    if math.isnan(score):
        raise ValueError("a node's score is NaN")
    return bisect(_BORDERS, score)
