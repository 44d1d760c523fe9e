"""How many candidates become nodes in a step."""

from __future__ import annotations

import pytest

from outrider.step_size import num_promoted


@pytest.mark.parametrize(
    ("num_missing", "expected"), [(-3, 0), (0, 0), (1, 1), (4, 4), (5, 4), (8, 4), (9, 5), (15, 8), (24, 8)]
)
def test_half_of_what_is_missing_at_most_but_the_last_four_together(num_missing: int, expected: int) -> None:
    assert num_promoted([0.5] * 20, num_missing) == expected


def test_there_are_no_more_than_there_are_candidates() -> None:
    assert num_promoted([], 24) == 0
    assert num_promoted([0.5, 0.4], 24) == 2


def test_what_is_fifty_times_less_likely_than_the_best_waits() -> None:
    assert num_promoted([0.5, 0.2, 0.01, 0.0099, 0.001], 24) == 3
