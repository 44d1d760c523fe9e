"""V(n) learns from the passes that run."""

from __future__ import annotations

import random

import numpy as np
import pytest

from scheduler.events import PassCost
from scheduler.policy.pass_time import PassTime

PROFILE = [
    PassCost(n, c, s)
    for c, extra in ((256, 0.0), (1024, 0.004))
    for n, s in ((1, 0.020 + extra), (8, 0.024 + extra), (64, 0.080 + extra))
]


def test_the_profile_is_met_at_its_points_and_lines_lie_between() -> None:
    time = PassTime(PROFILE)
    assert time.seconds(8, 256) == pytest.approx(0.024)
    assert time.seconds(36, 256) == pytest.approx(0.052)
    assert time.seconds(8, 640) == pytest.approx(0.026)
    assert time.seconds(120, 256) == pytest.approx(0.136), "as steep as before"
    assert time.seconds(8, 64) == pytest.approx(0.023), "of contexts below the first one too"
    assert time.curve(100, 256)[[1, 8, 64]] == pytest.approx([0.020, 0.024, 0.080])


def test_a_machine_that_is_slower_in_all_is_known_after_a_few_passes() -> None:
    time = PassTime(PROFILE)
    rng = random.Random(0)
    for _ in range(20):
        size = rng.choice([4, 8, 16])
        time.learn(size, 256, 1.5 * PassTime(PROFILE).seconds(size, 256) * rng.uniform(0.95, 1.05))
    for size in (1, 8, 64):
        assert time.seconds(size, 256) == pytest.approx(1.5 * PassTime(PROFILE).seconds(size, 256), rel=0.12)


def test_what_never_falls_is_no_less_for_more_tokens_and_no_less_than_what_is_expected() -> None:
    """Where few tokens were measured to take longer than many, as on a machine that was busy then."""
    time = PassTime(PROFILE)
    for _ in range(20):
        time.learn(1, 256, 0.038)
        time.learn(16, 256, 0.020)
    assert time.seconds(1, 256) > time.seconds(8, 256)
    rising = [time.never_falling(n, 256) for n in range(1, 65)]
    assert rising == sorted(rising)
    assert all(r >= time.seconds(n, 256) for n, r in enumerate(rising, 1))
    assert rising == pytest.approx(time.curve(64, 256)[1:], rel=0.05)


def test_without_a_profile_the_curve_comes_from_the_passes() -> None:
    time = PassTime([])
    for _ in range(30):
        for size in (1, 4, 16, 64):
            time.learn(size, 100, 0.002 + 0.0005 * size)
    for size in (1, 16, 64):
        assert time.seconds(size, 100) == pytest.approx(0.002 + 0.0005 * size, rel=0.25)


def test_one_pass_that_met_something_else_changes_little() -> None:
    time = PassTime(PROFILE)
    for _ in range(20):
        time.learn(8, 256, 0.024)
    time.learn(8, 256, 30.0)
    assert time.seconds(8, 256) == pytest.approx(0.024, rel=0.05)


@pytest.mark.parametrize("costs", [PROFILE, PROFILE[:1], [], PROFILE[::-1]])
def test_more_tokens_never_take_less_time(costs: list[PassCost]) -> None:
    time = PassTime(costs)
    rng = random.Random(1)
    for _ in range(50):
        time.learn(rng.randint(1, 200), rng.randint(0, 4000), rng.uniform(0.01, 0.2))
    for context in (0, 256, 5000):
        curve = time.curve(512, context)
        assert (np.diff(curve) >= 0).all()
        assert (curve > 0).all()
