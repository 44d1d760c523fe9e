"""The tail of chi-square against values that are known in closed form, and counts against a law."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from cluster.conformance.chi_square import chi_square_p_value, gamma_tail

LAW = {"a": 0.6, "b": 0.25, "c": 0.1, "d": 0.05}
FALSE_ALARM = 1e-6


@pytest.mark.parametrize("x", [0.0, 1e-3, 0.3, 1.0, 2.5, 9.0, 40.0, 300.0])
def test_the_tail_at_one_half_is_that_of_the_normal_law(x: float) -> None:
    assert gamma_tail(0.5, x) == pytest.approx(math.erfc(math.sqrt(x)), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("a", [1, 2, 5, 13, 60])
@pytest.mark.parametrize("x", [0.25, 1.0, 4.0, 20.0, 61.0, 200.0])
def test_the_tail_at_whole_numbers_is_that_of_poissons_law(a: int, x: float) -> None:
    exact = math.exp(-x) * float(sum(Fraction(x) ** k / math.factorial(k) for k in range(a)))
    assert gamma_tail(a, x) == pytest.approx(exact, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 3.841459), (2, 5.991465), (10, 18.307038), (100, 124.342113)])
def test_a_twentieth_is_beyond_the_quantiles_of_the_tables(degrees: int, quantile: float) -> None:
    assert gamma_tail(degrees / 2, quantile / 2) == pytest.approx(0.05, abs=1e-7)


def test_what_the_law_excludes_was_not_counted_by_chance() -> None:
    assert chi_square_p_value({"a": 1000, "e": 1}, {"a": 1.0, "e": 0.0}) == 0
    assert chi_square_p_value({"a": 1000, "e": 1}, {"a": 1.0}) == 0


def test_rare_outcomes_are_counted_together_until_they_are_expected_often_enough() -> None:
    counts = {"a": 60, "b": 25, "c": 11, "d": 4}
    together = {"a": 60, "b": 25, "cd": 15}
    assert chi_square_p_value(counts, LAW, min_expected=8) == chi_square_p_value(
        together, {"a": 0.6, "b": 0.25, "cd": 0.1 + 0.05}
    )


def test_too_few_counts_say_nothing() -> None:
    assert chi_square_p_value({"a": 6, "b": 3}, LAW, min_expected=8) is None
    assert chi_square_p_value({"a": 1000}, {"a": 1.0}) is None


def test_counts_of_the_law_itself_look_unlikely_as_often_as_they_should() -> None:
    """1 in 20 below 0.05: of 4000 samples 200, within 5.3 standard deviations (FALSE_ALARM is below 2e-7 then)."""
    rng = np.random.default_rng(11)
    samples = rng.multinomial(500, list(LAW.values()), size=4000)
    low = sum(
        p < 0.05 for row in samples if (p := chi_square_p_value(dict(zip(LAW, row, strict=True)), LAW)) is not None
    )
    assert abs(low - 200) < 5.3 * math.sqrt(4000 * 0.05 * 0.95)


def test_counts_of_another_law_are_seen() -> None:
    rng = np.random.default_rng(12)
    names = list(LAW)
    right = Counter(names[i] for i in rng.choice(4, size=2000, p=list(LAW.values())))
    wrong = Counter(names[i] for i in rng.choice(4, size=2000, p=[0.5, 0.35, 0.1, 0.05]))
    seen, unseen = chi_square_p_value(wrong, LAW), chi_square_p_value(right, LAW)
    assert seen is not None
    assert unseen is not None
    assert seen < FALSE_ALARM < unseen
