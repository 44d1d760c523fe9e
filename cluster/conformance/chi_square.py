"""Pearson's chi-square: counts against a law.

The p-value is the regularised upper incomplete gamma function at (degrees / 2, statistic / 2): by its series below
degrees + 1, by its continued fraction (Lentz's method) above (Abramowitz and Stegun 6.5.29 and 6.5.31).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

Outcome = TypeVar("Outcome")

MIN_EXPECTED = 5.0
_MAX_STEPS = 10_000
_PRECISION = 1e-15
_TINY = 1e-300


def chi_square_p_value(
    counts: Mapping[Outcome, int], law: Mapping[Outcome, float | Fraction], min_expected: float = MIN_EXPECTED
) -> float | None:
    """The chance of counts at least this far from the law; 0 where something impossible was counted.

    Outcomes that are expected fewer than `min_expected` times are counted together, with the least likely other one
    where that is still not enough. None where everything then is: such counts say nothing.
    """
    total = sum(counts.values())
    if any(count and not law.get(outcome) for outcome, count in counts.items()):
        return 0.0
    # (expected, counted), the likeliest first
    outcomes = sorted(((total * float(law[each]), counts.get(each, 0)) for each in law if law[each]), reverse=True)
    cells = [outcome for outcome in outcomes if outcome[0] >= min_expected]
    rare = outcomes[len(cells) :]
    while rare and sum(expected for expected, _ in rare) < min_expected and cells:
        rare.append(cells.pop())
    if rare:
        cells.append((sum(expected for expected, _ in rare), sum(counted for _, counted in rare)))
    if len(cells) < 2:
        return None
    statistic = sum((counted - expected) ** 2 / expected for expected, counted in cells)
    return gamma_tail((len(cells) - 1) / 2, statistic / 2)


def gamma_tail(a: float, x: float) -> float:
    """The regularised upper incomplete gamma function of a > 0 and x >= 0."""
    if x == 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    return 1.0 - scale * _series(a, x) if x < a + 1 else scale * _continued_fraction(a, x)


def _series(a: float, x: float) -> float:
    term = total = 1 / a
    for step in range(1, _MAX_STEPS):
        term *= x / (a + step)
        total += term
        if term < total * _PRECISION:
            return total
    raise ArithmeticError(f"the series for a = {a}, x = {x} has not converged")


def _continued_fraction(a: float, x: float) -> float:
    b = x + 1 - a
    c, d = 1 / _TINY, 1 / b
    value = d
    for step in range(1, _MAX_STEPS):
        numerator = -step * (step - a)
        b += 2
        d = 1 / _nonzero(numerator * d + b)
        c = _nonzero(b + numerator / c)
        value *= c * d
        if abs(c * d - 1) < _PRECISION:
            return value
    raise ArithmeticError(f"the continued fraction for a = {a}, x = {x} has not converged")


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
