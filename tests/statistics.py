"""Counts against a law."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

import torch

Outcome = TypeVar("Outcome")
MIN_EXPECTED = 5.0


def chi_square_p_value(counts: Mapping[Outcome, int], law: Mapping[Outcome, float | Fraction]) -> float:
    """The chance of counts at least this far from the law; 0 where something impossible was counted.

    Outcomes that are expected fewer than five times are counted together.
    """
    total = sum(counts.values())
    if any(count and not law.get(outcome) for outcome, count in counts.items()):
        return 0.0
    cells: list[tuple[float, float]] = []
    rare = (0.0, 0.0)
    for outcome, probability in law.items():
        cell = (float(counts.get(outcome, 0)), total * float(probability))
        if cell[1] >= MIN_EXPECTED:
            cells.append(cell)
        else:
            rare = (rare[0] + cell[0], rare[1] + cell[1])
    if rare[1] > 0:
        cells.append(rare)
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    degrees = torch.tensor((len(cells) - 1) / 2.0, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2.0, dtype=torch.float64)))
