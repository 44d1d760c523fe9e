"""Counts against a law."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

from cluster.conformance import chi_square

Outcome = TypeVar("Outcome")


def chi_square_p_value(counts: Mapping[Outcome, int], law: Mapping[Outcome, float | Fraction]) -> float:
    """The chance of counts at least this far from the law; 0 where something impossible was counted."""
    p_value = chi_square.chi_square_p_value(counts, law)
    assert p_value is not None, "too few counts to say anything"
    return p_value
