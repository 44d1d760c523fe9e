"""What a score is worth is learned from verdicts."""

from __future__ import annotations

import random

import pytest

from outrider.calibration import by_chance, by_score


@pytest.mark.parametrize("rank", [0, 1, 2, 9])
def test_a_chance_comes_to_be_the_share_of_accepted_nodes(rank: int) -> None:
    rng = random.Random(1)
    calibration = by_score()
    shares = {-3.0: 0.1, 0.3: 0.45, 3.0: 0.8, 20.0: 0.97}
    for _ in range(400):
        for score, share in shares.items():
            calibration.learn(rank, score, is_accepted=rng.random() < share)
    for score, share in shares.items():
        assert calibration.chance(rank, score) == pytest.approx(share, abs=0.08)


def test_ranks_are_learned_apart() -> None:
    calibration = by_score()
    for _ in range(100):
        calibration.learn(0, 0.1, is_accepted=True)
        calibration.learn(1, 0.1, is_accepted=False)
    assert calibration.chance(0, 0.1) > 0.9
    assert calibration.chance(1, 0.1) < 0.1


def test_a_drafter_that_changes_is_seen() -> None:
    calibration = by_score()
    for is_accepted in (True, False):
        for _ in range(1500):
            calibration.learn(0, 1.5, is_accepted=is_accepted)
    assert calibration.chance(0, 1.5) < 0.1


def test_without_verdicts_a_wider_gap_is_worth_more_and_a_lower_rank_less() -> None:
    calibration = by_score()
    gaps = [calibration.chance(0, gap) for gap in (0.0, 0.5, 1.0, 2.0, 5.0)]
    assert gaps == sorted(gaps)
    behind = [calibration.chance(rank, -0.5) for rank in (1, 2, 3)]
    assert behind == sorted(behind, reverse=True)
    assert all(0 < chance < 1 for chance in (*gaps, *behind))


def test_a_chance_that_is_wrong_is_put_right() -> None:
    """Two drafters that always agree are worth no more than one."""
    calibration = by_chance()
    assert calibration.chance(0, 0.75) == pytest.approx(0.75)
    for i in range(400):
        calibration.learn(0, 0.75, is_accepted=i % 2 == 0)
    assert calibration.chance(0, 0.75) == pytest.approx(0.5, abs=0.05)
