"""What is learned of drafters: their pace from reports, and how many rows there are."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from scheduler.policy.supply import FORGOTTEN_AFTER_S, LOAD_MEMORY_S, PaceLearning, Supply, _Mean
from scheduler.policy.worth import Lack, Worth
from scheduler.request import DrafterView


def learned(node_s: float, node_row_s: float, numbers_of_rows: list[int], noise_s: float = 0.0) -> PaceLearning:
    rng, pace = Random(1), PaceLearning()
    for number in range(400):
        rows, nodes = numbers_of_rows[number % len(numbers_of_rows)], 1 + number % 5
        exact_s = 0.003 + nodes * (node_s + node_row_s * rows)
        pace.learn(nodes, rows, exact_s + rng.uniform(0, noise_s))
    return pace


@pytest.mark.parametrize(("node_s", "node_row_s"), [(0.004, 0.0), (0.0, 0.002), (0.004, 0.002)])
def test_the_pace_is_that_of_the_reports(node_s: float, node_row_s: float) -> None:
    pace = learned(node_s, node_row_s, [2, 3, 8]).fitted()
    assert pace is not None
    assert (pace.round_trip_s, pace.node_s, pace.node_row_s) == pytest.approx((0.003, node_s, node_row_s), abs=2e-4)


def test_noise_shifts_the_pace_by_its_mean_alone() -> None:
    pace = learned(0.004, 0.002, [2, 3, 8], noise_s=0.004).fitted()
    assert pace is not None
    assert float(pace.ready_s(np.array([4]), 5)[0]) == pytest.approx(0.003 + 4 * 0.014 + 0.002, rel=0.05)


def test_with_one_number_of_rows_the_time_is_put_down_to_the_rows() -> None:
    pace = learned(0.008, 0.0, [4]).fitted()
    assert pace is not None
    assert float(pace.ready_s(np.array([3]), 4)[0]) == pytest.approx(0.003 + 3 * 0.008)
    assert float(pace.ready_s(np.array([3]), 2)[0]) == pytest.approx(0.003 + 3 * 0.004)


def test_what_it_took_with_other_numbers_of_rows_is_remembered() -> None:
    pace = learned(0.008, 0.0, [8])
    for number in range(4000):
        pace.learn(1 + number % 5, 4, 0.003 + (1 + number % 5) * 0.008)
    fitted = pace.fitted()
    assert fitted is not None
    assert (fitted.node_s, fitted.node_row_s) == pytest.approx((0.008, 0.0), abs=1e-4)


def test_a_drafter_that_changes_its_pace_is_followed() -> None:
    pace = learned(0.004, 0.0, [2, 3, 8])
    for number in range(1000):
        pace.learn(1 + number % 5, 1 + number % 8, 0.003 + (1 + number % 5) * 0.020)
    fitted = pace.fitted()
    assert fitted is not None
    assert fitted.node_s == pytest.approx(0.020, rel=0.05)


def test_a_pool_that_has_had_no_drafter_for_long_is_to_be_tried_again() -> None:
    supply, view = Supply(), DrafterView("w", "d", epoch=1)
    supply.note_rows(4, 0.0)

    def said(number: int, now_s: float) -> object:
        return supply.worth({"d": number}, np.full(65, 0.02), 0.0, now_s, 4)["d"]

    for _ in range(40):
        supply.note_report(view, 1, 0.01)
    assert said(1, 100.0) is Lack.NEVER_IN_TIME
    assert said(0, 100.0 + FORGOTTEN_AFTER_S) is Lack.NEVER_IN_TIME
    assert said(0, 101.0 + FORGOTTEN_AFTER_S) is Lack.NO_DRAFTS


def test_the_load_is_the_mean_of_late_from_the_first_request_on() -> None:
    load = _Mean()
    load.note(0, 1000.0)
    load.note(8, 2000.0)
    assert load.at(2000.0) == 8.0
    assert load.at(2001.0) == pytest.approx(8.0)
    load.note(0, 2000.0 + 100 * LOAD_MEMORY_S)
    assert load.at(2000.0 + 101 * LOAD_MEMORY_S) == pytest.approx(8.0 / math.e)


def test_without_rows_nothing_is_worth_anything() -> None:
    supply = Supply()
    supply.note_rows(0, 0.0)
    worth = supply.worth({"d": 1}, np.full(65, 0.02), 0.0, 10.0, 4)["d"]
    assert isinstance(worth, Worth)
    assert worth.goodputs == (0.0,) * 5


def test_nothing_is_said_of_drafters_that_have_drafted_nothing() -> None:
    supply = Supply()
    supply.note_rows(4, 0.0)
    assert supply.worth({"d": 1}, np.full(65, 0.02), 0.0, 10 * LOAD_MEMORY_S, 4) == {"d": Lack.NO_DRAFTS}
